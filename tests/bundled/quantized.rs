//! Weights in eight bits and in four: what the plan says of their bytes, and that an engine runs on them.

use std::path::Path;

use gemma4_engine::steps::steps;
use gemma4_model::Config;
use gemma4_model::graph::ParameterRole;

use super::{FIXTURES, SEVERAL_DEVICES, collect, fixture, goldens, greedy, plan, plugin, start};

const QUANTIZED: [&str; 2] = ["model.quantization=int8", "model.quantization=int4"];

#[test]
fn the_plan_knows_the_bytes_of_what_programs_take() {
    for name in FIXTURES {
        for (devices, quantized) in [1, 2, 4].into_iter().flat_map(|devices| QUANTIZED.map(|name| (devices, name))) {
            let devices = format!("parallelism.tensor={devices}");
            let (wide, plan) = (plan(name, &[&devices]), plan(name, &[&devices, quantized]));
            let config = std::fs::read(fixture(name).join("bf16/config.json")).expect("a config");
            let config = Config::from_json(&config).expect("a config");
            let steps = steps(&plan, &config).expect("steps");
            let graph = steps[0].build(&config).expect("a step");
            let weights = graph.parameters.iter().filter(|one| matches!(one.role, ParameterRole::Weight { .. }));
            let bytes: u64 = weights.map(|one| one.shape.bytes().expect("a size")).sum();
            assert_eq!(plan.memory.per_device.weights, bytes, "{name}, {devices}, {quantized}");
            assert!(bytes < wide.memory.per_device.weights, "{name}, {devices}, {quantized}");
        }
    }
}

/// Integers, a bfloat16 for 32 of them, and eight bits for the embedding.
#[test]
fn four_bits_take_little_more_than_a_quarter() {
    let weights = |quantized: &[&str]| {
        let set = ["model.id=google/gemma-4-31B-it", "hardware.memory=128GiB"].iter().chain(quantized);
        let set: Vec<String> = set.map(|text| (*text).to_owned()).collect();
        let analysis = gemma4ctl::plan::analyze("cpu-e2b", &set).expect("a profile");
        assert!(!analysis.has_errors(), "{:?}", analysis.loaded.diagnostics);
        let plan = analysis.plan().expect("a plan");
        let note = plan
            .sharding
            .tensors
            .iter()
            .find(|tensor| tensor.name.contains("q_proj"))
            .map(|tensor| format!("{tensor:?}"));
        (plan.memory.per_device.weights as f64, note.expect("a matrix"))
    };
    let ((wide, _), (int8, of_rows), (int4, of_groups)) =
        (weights(&[]), weights(&QUANTIZED[..1]), weights(&QUANTIZED[1..]));
    assert!((0.50..0.51).contains(&(int8 / wide)), "{}", int8 / wide);
    assert!((0.28..0.31).contains(&(int4 / wide)), "{}", int4 / wide);
    assert!(of_rows.contains("int8, with a float32 for each row"), "{of_rows}");
    assert!(of_groups.contains("int4, with a bfloat16 for each 32 weights of a row"), "{of_groups}");
}

#[test]
fn engines_run_on_integers_and_say_the_same_on_one_and_two_devices() {
    let Some(plugin) = plugin() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    for quantized in QUANTIZED {
        say_the_same(quantized, &plugin, cache.path());
    }
}

fn say_the_same(quantized: &str, plugin: &Path, cache: &Path) {
    let name = "tiny-e2b";
    let mut said: Vec<Vec<Vec<u32>>> = Vec::new();
    // The second start of one device finds what the first has written.
    for (devices, compiles) in [(1, true), (1, false), (2, true)] {
        let plan = plan(name, &[&format!("parallelism.tensor={devices}"), quantized]);
        let _one = SEVERAL_DEVICES.lock();
        let booted = start(&plan, name, plugin, cache);
        assert_eq!(booted.compiled > 0, compiles);
        let goldens = goldens(name);
        let tokens = goldens.iter().take(3).map(|golden| {
            let generation = booted.engine.submit(greedy(golden)).expect("taken");
            collect(generation).0
        });
        said.push(tokens.collect());
        booted.engine.end();
    }
    assert!(said[0] == said[1] && said[0] == said[2], "{said:?}");
}
