//! `plan --prove` and `runtime precompile` from outside, on the CPU plugin, and what they refuse.
#![cfg(target_os = "linux")]

mod common;

use std::path::{Path, PathBuf};

use common::{Outcome, skipped};

/// A small plan on two virtual devices, with one bucket of each kind.
const SMALL: [&str; 10] = [
    "--set",
    "parallelism.tensor=2",
    "--set",
    "scheduler.max_num_seqs=8",
    "--set",
    "scheduler.max_num_batched_tokens=16",
    "--set",
    "scheduler.max_model_len=256",
    "--set",
    "memory.hbm_utilization=0.5",
];

fn plugin() -> Option<PathBuf> {
    let found = gemma4_pjrt::install::find(gemma4_pjrt::install::Target::Cpu).expect("the place of plugins");
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        skipped("no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
    }
    found.map(|found| found.path)
}

fn run(folder: &Path, plugin: Option<&Path>, arguments: &[&str]) -> Outcome {
    let mut command = common::command(folder, arguments);
    Outcome::of(command.envs(plugin.map(|path| ("GEMMA4CTL_PJRT_CPU", path))))
}

#[test]
fn the_compiler_counts_what_the_budget_counts() {
    let Some(plugin) = plugin() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [&["plan", "smoke", "--prove", "--format", "json"][..], &SMALL].concat();
    let outcome = run(folder.path(), Some(&plugin), &arguments).is(0, "compiling step.t16.r8 for cpu:2");
    let plan = outcome.json();
    let (proof, memory) = (&plan["proof"], &plan["memory"]["per_device"]);
    assert_eq!(proof["topology"], "cpu:2");
    assert_eq!(proof["fits"], true);
    for kind in ["weights", "kv"] {
        assert_eq!(proof["per_device"][kind], memory[kind], "{kind}");
    }
    let bytes = |pointer: &str| plan.pointer(pointer).and_then(serde_json::Value::as_u64).expect("bytes");
    let arguments_bytes = bytes("/proof/per_device/arguments");
    let inputs = arguments_bytes - bytes("/proof/per_device/weights") - bytes("/proof/per_device/kv");
    assert!(inputs < 10_000, "{inputs}");
    assert!(bytes("/proof/graphs/0/temporaries") > 0);
    assert_eq!(
        bytes("/memory/per_device/programs"),
        bytes("/proof/per_device/total") - bytes("/proof/per_device/weights") - bytes("/proof/per_device/kv")
    );

    let again = run(folder.path(), Some(&plugin), &arguments).is(0, "proved before with this compiler");
    assert_eq!(again.json(), plan);
    let text = run(folder.path(), Some(&plugin), &[&["plan", "smoke", "--prove"][..], &SMALL].concat());
    assert!(text.stdout.contains("compiled for cpu:2"), "{}", text.all());
}

#[test]
fn what_cannot_be_proved_is_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), None, &["plan", "turbo-stable", "--prove"]).is(2, "only the engine `bundled` has these");
    let gpu = ["plan", "e4b-b200", "--set", "engine.kind=bundled", "--prove"];
    run(folder.path(), None, &gpu).is(2, "no compiler for b200-1 runs without one");
    run(folder.path(), None, &["plan", "smoke", "--prove"]).is(2, "`gemma4ctl runtime install cpu` can be tried again");
}

#[test]
fn a_compiler_that_does_not_start_is_an_error_with_its_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("plugin.so");
    std::fs::write(&library, "no library").expect("a file");
    let outcome = run(folder.path(), Some(&library), &["plan", "smoke", "--prove"]);
    outcome.is(2, "the process for `runtime compile-step` ended with exit status: 2");
}

#[test]
fn programs_are_compiled_ahead_once() {
    let Some(plugin) = plugin() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [&["runtime", "precompile", "smoke", "-o", "warm"][..], &SMALL].concat();
    run(folder.path(), Some(&plugin), &arguments).is(0, "2 programs compiled, 0 were there");
    run(folder.path(), Some(&plugin), &arguments).is(0, "0 programs compiled, 2 were there");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.path().join("warm"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    // The mask of the step's logits, and the step.
    let [_, file] = files.as_slice() else { panic!("{files:?}") };
    let mut bytes = std::fs::read(file).expect("the program");
    let at = bytes.windows(11).position(|window| window == b"\"compiler\":").expect("the compiler's version") + 12;
    bytes[at] = b'?';
    std::fs::write(file, bytes).expect("the program");
    run(folder.path(), Some(&plugin), &arguments).is(0, "was made for another compiler version");
}

/// Runs where the TPU plugin is installed, which takes 205 MB, so not in CI.
#[test]
fn a_pool_too_large_for_the_chip_is_a_verdict() {
    let found = gemma4_pjrt::install::find(gemma4_pjrt::install::Target::Tpu).expect("the place of plugins");
    let Some(found) = found else { return skipped("no TPU plugin; name one in GEMMA4CTL_PJRT_TPU") };
    let folder = tempfile::tempdir().expect("a folder");
    let sets = ["hardware.accelerator=v6e-1", "parallelism.tensor=1", "memory.num_blocks=9000000"];
    let mut arguments = [&["plan", "smoke", "--prove", "--format", "json"][..], &SMALL].concat();
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    let mut command = common::command(folder.path(), &arguments);
    let outcome = Outcome::of(command.env("GEMMA4CTL_PJRT_TPU", &found.path));
    assert_eq!(outcome.code, 1, "{}", outcome.all());
    let plan = outcome.json();
    assert_eq!((&plan["proof"]["fits"], &plan["memory"]["fits"]), (&false.into(), &false.into()));
    let reason = plan["proof"]["reasons"][0].as_str().expect("a reason");
    assert!(
        reason.starts_with("the compiler says that step.t16.r8 needs ") && reason.ends_with("of 31.24 GiB"),
        "{reason}"
    );
}
