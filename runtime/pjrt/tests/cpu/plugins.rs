//! Loading plugins, and files that are none.

use std::path::Path;
use std::process::Command;

use gemma4_pjrt::{ApiVersion, Error, OLDEST_API, Plugin, Value, environment};

use crate::support::{client, cpu, cpu_path};

#[test]
fn the_plugin_tells_its_versions() {
    let Some(plugin) = cpu() else { return };
    assert!(plugin.api_version() >= OLDEST_API, "{}", plugin.api_version());
    let attributes = plugin.attributes().unwrap();
    assert!(attributes.contains_key("stablehlo_current_version"), "{attributes:?}");
    assert!(plugin.extensions().contains(&5), "the FFI extension");
    let again = Plugin::load(&cpu_path().unwrap()).unwrap();
    assert_eq!(again.path(), plugin.path());
}

#[test]
fn a_client_has_as_many_devices_as_were_asked_for() {
    for count in [1_u16, 2, 4] {
        let Some(client) = client(count.into()) else { return };
        assert_eq!(client.platform_name().unwrap(), "cpu");
        assert!(!client.platform_version().unwrap().is_empty());
        assert_eq!(client.device_count(), usize::from(count));
        assert_eq!(client.global_device_count().unwrap(), usize::from(count));
        let devices: Vec<_> = client.devices().collect();
        assert_eq!(devices[0].kind, "cpu");
        assert_eq!(devices[0].process_index, 0);
        assert!(devices.iter().all(|device| device.local_hardware_id.is_some()));
        assert!(matches!(client.memory_use(9), Err(Error::NoSuchDevice { index: 9, .. })));
    }
}

#[test]
fn a_count_of_devices_is_a_positive_integer() {
    let Some(plugin) = cpu() else { return };
    for value in [Value::String("four".to_owned()), Value::Bool(true), Value::Int(0), Value::Int(-1)] {
        let error = plugin.client(&[("cpu_device_count", value)]).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn files_that_are_no_plugins_are_refused_by_name() {
    let missing = Plugin::load(Path::new("/nowhere/plugin.so")).unwrap_err();
    assert!(matches!(missing, Error::Load { .. }));
    assert!(missing.to_string().contains("/nowhere/plugin.so: No such file"), "{missing}");

    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "this is no library").unwrap();
    let error = Plugin::load(&text).unwrap_err();
    assert!(matches!(error, Error::Load { .. }));
    assert!(error.to_string().contains("text.so"), "{error}");
    assert!(matches!(Plugin::load(folder.path()), Err(Error::Load { .. })));
}

/// Builds a library from C.
fn library(folder: &Path, name: &str, source: &str) -> Option<std::path::PathBuf> {
    let (file, library) = (folder.join(format!("{name}.c")), folder.join(format!("lib{name}.so")));
    std::fs::write(&file, source).unwrap();
    match Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file).status() {
        Ok(status) => {
            assert!(status.success());
            Some(library)
        }
        Err(error) => {
            println!("skipped: no C compiler: {error}");
            None
        }
    }
}

/// A table with a size, a version, and one function after the version, at the slot of `PJRT_Plugin_Initialize`.
fn table(size: &str, major: i32, minor: i32) -> String {
    format!(
        "#include <stddef.h>
        static struct {{ size_t size; void* chain; struct {{ size_t size; void* chain; int major, minor; }} version;
            void* functions[200]; }} table = {{ {size}, 0, {{ 24, 0, {major}, {minor} }}, {{ 0 }} }};
        void* GetPjrtApi(void) {{ return &table; }}"
    )
}

#[test]
fn libraries_that_are_no_plugins_of_a_known_version_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(plain) = library(folder.path(), "plain", "int answer(void) { return 42; }") else { return };
    let error = Plugin::load(&plain).unwrap_err();
    assert!(error.to_string().contains("it does not export `GetPjrtApi`"), "{error}");

    let load = |name: &str, source: &str| Plugin::load(&library(folder.path(), name, source).unwrap()).unwrap_err();
    let none = load("none", "void* GetPjrtApi(void) { return 0; }");
    assert!(none.to_string().contains("`GetPjrtApi` returns no table"), "{none}");
    let short = load("short", &table("16", 0, 81));
    assert!(short.to_string().contains("too short"), "{short}");

    let newer = load("newer", &table("sizeof table", 1, 0));
    let found = ApiVersion { major: 1, minor: 0 };
    assert!(matches!(&newer, Error::Version { found: version, .. } if *version == found), "{newer}");
    assert!(newer.to_string().contains("speaks C API 1.0, and this program needs 0.81 or a later 0.x"), "{newer}");
    let older = load("older", &table("sizeof table", 0, 40));
    assert!(matches!(older, Error::Version { .. }), "{older}");

    // The right version, but the table ends before the function, or has none there.
    for (name, size) in [("cut", "40 + 3 * 8"), ("hole", "sizeof table")] {
        let error = load(name, &table(size, 0, 81));
        let named = matches!(&error, Error::MissingFunction { function: "PJRT_Plugin_Initialize", .. });
        assert!(named, "{error}");
    }
}

#[test]
fn variables_are_not_set_beside_other_threads() {
    // The harness runs this in a thread of its own, so there are at least two.
    let error = environment::prepare(&[("GEMMA4CTL_TEST_UNSET", "1")]).unwrap_err();
    assert!(error.to_string().starts_with("cannot set GEMMA4CTL_TEST_UNSET=1 now"), "{error}");
    environment::prepare(&[("PATH", "never set, since it has a value")]).unwrap();
}
