//! Weights in eight bits: what the plan says of their bytes, and that an engine runs on them.

use gemma4_engine::steps::steps;
use gemma4_model::Config;
use gemma4_model::graph::ParameterRole;

use super::{FIXTURES, SEVERAL_DEVICES, collect, fixture, goldens, greedy, plan, plugin, start};

const INT8: &str = "model.quantization=int8";

#[test]
fn the_plan_knows_the_bytes_of_what_programs_take() {
    for name in FIXTURES {
        for devices in [1, 2, 4] {
            let devices = format!("parallelism.tensor={devices}");
            let (wide, plan) = (plan(name, &[&devices]), plan(name, &[&devices, INT8]));
            let config = std::fs::read(fixture(name).join("bf16/config.json")).expect("a config");
            let config = Config::from_json(&config).expect("a config");
            let steps = steps(&plan, &config).expect("steps");
            let graph = steps[0].build(&config).expect("a step");
            let weights = graph.parameters.iter().filter(|one| matches!(one.role, ParameterRole::Weight { .. }));
            let bytes: u64 = weights.map(|one| one.shape.bytes().expect("a size")).sum();
            assert_eq!(plan.memory.per_device.weights, bytes, "{name}, {devices}");
            assert!(bytes < wide.memory.per_device.weights, "{name}, {devices}");
        }
    }
}

#[test]
fn engines_run_on_integers_and_say_the_same_on_one_and_two_devices() {
    let Some(plugin) = plugin() else { return };
    let (cache, name) = (tempfile::tempdir().expect("a folder"), "tiny-e2b");
    let mut said: Vec<Vec<Vec<u32>>> = Vec::new();
    // The second start of one device finds what the first has written.
    for (devices, compiles) in [(1, true), (1, false), (2, true)] {
        let plan = plan(name, &[&format!("parallelism.tensor={devices}"), INT8]);
        let _one = SEVERAL_DEVICES.lock();
        let booted = start(&plan, name, &plugin, cache.path());
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
