//! `gemma4ctl runtime` from outside, with a `pip` that does what the test wants; no network.
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};

use common::{Outcome, skipped};
use serde_json::Value;

/// A folder that is home, with programs of its own on PATH.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("bin")).expect("a folder");
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a `pip` on PATH, which holds nothing else.
    fn pip(&self, script: &str) {
        let path = self.path("bin/pip");
        common::write_program(&path, &format!("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\n{script}\n"));
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &Path)]) -> Outcome {
        let mut command = common::command(self.folder.path(), arguments);
        command.env("PATH", self.path("bin")).envs(variables.iter().copied());
        Outcome::of(&mut command)
    }
}

/// A library that is no plugin; any would do.
const NO_PLUGIN: &[u8] = b"\x7fELF and no more";

#[test]
fn an_offline_machine_is_told_how_to_go_on() {
    let place = Place::new();
    let outcome = place.run(&["runtime", "install", "cpu"], &[]).is(1, "none of `python3 -m pip`");
    assert!(outcome.stdout.is_empty(), "{}", outcome.all());
    place.pip("echo 'NewConnectionError: Network is unreachable' >&2; echo 'ERROR: no such package' >&2; exit 1");
    let outcome = place.run(&["runtime", "install", "cpu"], &[]).is(1, "the package index cannot be reached");
    for part in ["xla-cpu-pjrt==0.0.1", "NewConnectionError", "GEMMA4CTL_PJRT_CPU"] {
        assert!(outcome.stderr.contains(part), "{}", outcome.all());
    }
    assert!(!outcome.stderr.contains('\r'), "no bar where there is no terminal: {}", outcome.all());
}

#[test]
fn a_wheel_that_is_not_the_reviewed_one_is_not_installed() {
    let place = Place::new();
    let wheel = if cfg!(target_arch = "aarch64") { "aarch64" } else { "x86_64" };
    place.pip(&format!(
        "while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\necho other > \"$dest/xla_cpu_pjrt-0.0.1-py3-none-manylinux_2_27_{wheel}.whl\""
    ));
    place.run(&["runtime", "install", "cpu"], &[]).is(1, "nothing was installed");
    assert!(place.run(&["runtime", "doctor", "--format", "json"], &[]).json()["targets"][0]["state"] == "missing");
}

#[test]
fn a_library_is_taken_from_a_file() {
    let place = Place::new();
    std::fs::write(place.path("plugin.so"), NO_PLUGIN).expect("a file");
    let outcome = place.run(&["runtime", "install", "tpu", "--from", "plugin.so"], &[]).is(0, "on your word");
    let installed = PathBuf::from(outcome.stdout.trim_end());
    assert_eq!(installed, place.path(".local/share/gemma4ctl/plugins/libtpu-local/libtpu.so"));
    assert_eq!(std::fs::read(&installed).expect("the plugin"), NO_PLUGIN);

    let other = place.path("plugin.so");
    let outcome = place.run(&["runtime", "install", "tpu", "--from", "plugin.so"], &[("GEMMA4CTL_PJRT_TPU", &other)]);
    outcome.is(0, "GEMMA4CTL_PJRT_TPU names it");

    place.run(&["runtime", "install", "tpu", "--from", "absent.so"], &[]).is(2, "absent.so");
    std::fs::write(place.path("broken.whl"), "no archive").expect("a file");
    place.run(&["runtime", "install", "tpu", "--from", "broken.whl"], &[]).is(1, "cannot unpack libtpu/libtpu.so");
}

/// The row of a target.
fn row<'a>(doctor: &'a Value, target: &str) -> &'a Value {
    let rows = doctor["targets"].as_array().expect("targets");
    rows.iter().find(|row| row["target"] == target).unwrap_or_else(|| panic!("no {target} in {doctor}"))
}

#[test]
fn the_doctor_tells_what_is_missing_and_what_is_broken() {
    let place = Place::new();
    let outcome = place.run(&["runtime", "doctor"], &[]).is(0, "");
    let advice = "`gemma4ctl runtime install cpu` fetches";
    assert!(outcome.stdout.contains("missing") && outcome.stdout.contains(advice), "{}", outcome.all());

    std::fs::write(place.path("plugin.so"), NO_PLUGIN).expect("a file");
    place.run(&["runtime", "install", "cpu", "--from", "plugin.so"], &[]).is(0, "");
    let absent = place.path("absent.so");
    let outcome = place.run(&["runtime", "doctor", "--format", "json"], &[("GEMMA4CTL_PJRT_TPU", &absent)]);
    assert_eq!(outcome.code, 1, "{}", outcome.all());
    let doctor = outcome.json();
    let cpu = row(&doctor, "cpu");
    assert_eq!((&cpu["state"], &cpu["origin"]), (&"broken".into(), &"local".into()), "{cpu}");
    assert!(cpu["problem"].as_str().is_some_and(|text| text.contains("cannot load the PJRT plugin")), "{cpu}");
    assert!(cpu["help"].as_str().is_some_and(|text| text.contains("runtime install cpu")), "{cpu}");
    let tpu = row(&doctor, "tpu");
    assert!(tpu["problem"].as_str().is_some_and(|text| text.contains("GEMMA4CTL_PJRT_TPU points at")), "{tpu}");
}

#[test]
fn the_doctor_loads_the_plugin_that_is_there() {
    let found = gemma4_pjrt::install::find(gemma4_pjrt::install::Target::Cpu).expect("the place of plugins");
    let Some(found) = found else {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        return skipped("no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
    };
    let outcome =
        Place::new().run(&["runtime", "doctor", "--format", "json"], &[("GEMMA4CTL_PJRT_CPU", &found.path)]).is(0, "");
    let doctor = outcome.json();
    let cpu = row(&doctor, "cpu");
    assert_eq!((&cpu["state"], &cpu["api"]), (&"ready".into(), &"0.81".into()), "{cpu}");
    assert_eq!(cpu["origin"], "variable");
}

#[test]
fn a_plan_with_parsers_that_the_engine_does_not_have_is_not_served() {
    let place = Place::new();
    for (set, words) in [
        ("chat.tool_call_parser=\"hermes\"", "not as `hermes` [parser-unsupported]"),
        ("chat.reasoning_parser=\"qwen3\"", "not as `qwen3` [parser-unsupported]"),
        ("chat.auto_tool_choice=true", "[tool-choice-without-parser]"),
    ] {
        // The plan is printed all the same.
        let outcome = place.run(&["plan", "smoke", "--format", "json", "--set", set, "--set", "server.port=0"], &[]);
        let plan = outcome.is(1, "").stdout;
        std::fs::write(place.path("plan.json"), plan).expect("a file");
        place.run(&["runtime", "serve", "plan.json"], &[]).is(1, words);
    }
}
