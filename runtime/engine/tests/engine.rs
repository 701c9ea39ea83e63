//! Programs of a plan, compiled on the CPU plugin, kept and loaded again.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "test helpers and the lines that say what is skipped")]

use std::path::PathBuf;

use gemma4_engine::compile::{Compiler, Devices, Request, Target, Verdict, read_answer, serve};
use gemma4_engine::store::{Key, Store, StoreError};
use gemma4_model::graph::{Kernels, LayerForm, PerLayerTable, StepGraph, StepOptions, step};
use gemma4_model::kv::KvLayout;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::{Config, DType};
use gemma4_pjrt::install;

fn plugin() -> Option<PathBuf> {
    let found = install::find(install::Target::Cpu).unwrap();
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        eprintln!("\nskipped: no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
    }
    found.map(|found| found.path)
}

/// A step of the smoke model on two devices.
fn small() -> StepGraph {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smoke");
    gemma4_model::seeded::write(&path, 0).unwrap();
    let config = Config::from_json(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
    let options = StepOptions {
        mesh: Mesh { data: 1, model: 2 },
        experts: ExpertSharding::Tensor,
        dtype: DType::F32,
        quantization: None,
        kv: KvLayout::new(&config, 2, DType::F32, 8).unwrap(),
        pages: 8,
        tokens: 16,
        sequences: 8,
        rows: 8,
        max_model_len: 64,
        query_tile: 16,
        layers: LayerForm::Unrolled,
        per_layer_table: PerLayerTable::Device,
        kernels: Kernels::Hlo,
        fast_prefill: true,
        trace: false,
    };
    step(&config, &options).unwrap()
}

#[test]
fn a_program_is_compiled_kept_and_loaded_again() {
    let Some(plugin) = plugin() else { return };
    let target = Target { plugin, devices: Devices::Cpu { count: 2 } };
    let graph = small();
    let request = Request::Compile { target: target.clone(), program: graph.module.text(), executable: true };
    let mut answer = Vec::new();
    serve(serde_json::to_vec(&request).unwrap().as_slice(), &mut answer).unwrap();
    let (answer, executable): (gemma4_engine::compile::Answer, _) = read_answer(&answer).unwrap();
    let Verdict::Fits(bytes) = answer.verdict else { panic!("{answer:?}") };
    let shapes: u64 = graph.parameters.iter().map(|parameter| parameter.shape.bytes().unwrap()).sum();
    assert_eq!(bytes.arguments, shapes);

    let compiler = Compiler::open(&target).unwrap();
    let identity = compiler.identity().unwrap();
    let key = Key::new(&graph.module, &target.devices, &identity).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("cache")).unwrap();
    assert_eq!(store.read("step", &key).unwrap(), None);
    let path = store.write("step", &key, executable).unwrap();
    let again = store.read("step", &key).unwrap().unwrap();
    assert_eq!(again, executable);
    let Compiler::Client(client) = &compiler else { panic!("a client") };
    assert_eq!(client.load(&again).unwrap().devices().len(), 2);

    // Each part of the key that a header names is checked, and named when it differs.
    let text = std::fs::read(&path).unwrap();
    let changes: [(&str, Key); 5] = [
        ("compiler version", Key { compiler: "another".to_owned(), ..key.clone() }),
        ("CPU features", Key { cpu_features: "none".to_owned(), ..key.clone() }),
        ("XLA_FLAGS", Key { xla_flags: "--xla_fast".to_owned(), ..key.clone() }),
        ("LIBTPU_INIT_ARGS", Key { libtpu_init_args: "--other".to_owned(), ..key.clone() }),
        ("custom calls", Key { custom_calls: vec!["other.v2".to_owned()], ..key.clone() }),
    ];
    for (name, changed) in changes {
        let error = store.read("step", &changed).unwrap_err();
        assert!(matches!(&error, StoreError::Mismatch { part, .. } if *part == name), "{error}");
    }
    // What is compiled is in the file's name too, so a file under a wrong name is needed to get there.
    let other = Key { program: "sha256:0".to_owned(), ..key.clone() };
    std::fs::copy(&path, store.path("step", &other)).unwrap();
    let error = store.read("step", &other).unwrap_err().to_string();
    assert!(error.contains("was made for another program"), "{error}");

    let mut damaged = text.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(store.read("step", &key).unwrap_err().to_string().contains("SHA-256"));
    std::fs::write(&path, &text[..text.len() - 1]).unwrap();
    assert!(matches!(store.read("step", &key), Err(StoreError::Damaged { .. })));
    std::fs::write(&path, "something else").unwrap();
    assert!(matches!(store.read("step", &key), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_mesh_of_another_size_than_the_devices_is_refused() {
    let Some(plugin) = plugin() else { return };
    let request =
        Request::Identify(Target { plugin, devices: Devices::Topology { name: "none".to_owned(), count: 4 } });
    assert!(serve(serde_json::to_vec(&request).unwrap().as_slice(), Vec::new()).is_err());
    assert!(serve(&b"{}"[..], Vec::new()).unwrap_err().to_string().contains("the request cannot be read"));
}

#[cfg(unix)]
#[test]
fn a_folder_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Store::open(&shared).unwrap_err();
    assert!(error.to_string().contains("others can write it (its mode is 777)"), "{error}");
    Store::open(&folder.path().join("made")).unwrap();
    let mode = std::fs::metadata(folder.path().join("made")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn opening_removes_what_killed_writers_left_and_nothing_else() {
    use std::time::{Duration, SystemTime};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("programs");
    Store::open(&folder).unwrap();
    let day = Duration::from_secs(24 * 3600);
    for (name, age) in [(".executable-old", day), (".executable-new", Duration::ZERO), ("step-1.xla", day)] {
        let file = std::fs::File::create(folder.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    Store::open(&folder).unwrap();
    let mut left: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".executable-new", "step-1.xla"]);
}
