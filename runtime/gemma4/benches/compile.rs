//! Compiling steps for the CPU, and loading what was compiled: what the loops over layers save, and whether a warm start
//! pays. Needs the CPU plugin (`cargo run -p gemma4-pjrt --example install-cpu`).
//!
//! `cargo bench -p gemma4-model --bench compile`

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a bench stops where it cannot go on, and prints")]

use std::path::Path;
use std::time::{Duration, Instant};

use gemma4_model::graph::{Kernels, LayerForm, PerLayerTable, StepOptions, step};
use gemma4_model::kv::KvLayout;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::{Config, DType};
use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::{Client, CompileOptions, Plugin, Value, environment};

const RUNS: usize = 3;

/// E2B with its first layers alone: every layer keeps its own keys and values.
fn config(layers: usize) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published/e2b.json");
    let mut config = Config::from_json(&std::fs::read(path).expect("a config")).expect("a config");
    let period = 5;
    let own: Vec<_> = config.text.layers.iter().take(period).copied().collect();
    config.text.layers = (0..layers).map(|layer| own[layer % period]).collect();
    config
}

fn options(config: &Config, layers: LayerForm, tokens: u64) -> StepOptions {
    StepOptions {
        mesh: Mesh { data: 1, model: 1 },
        experts: ExpertSharding::Tensor,
        dtype: DType::Bf16,
        quantization: None,
        kv: KvLayout::new(config, 1, DType::Bf16, 32).expect("a layout"),
        pages: 256,
        tokens,
        sequences: 8,
        rows: 8,
        max_model_len: 8192,
        query_tile: 16.min(tokens),
        layers,
        per_layer_table: PerLayerTable::Device,
        kernels: Kernels::Hlo,
        fast_prefill: true,
        trace: false,
    }
}

/// The shortest of a few runs: everything else on the machine only adds.
fn shortest(mut run: impl FnMut()) -> Duration {
    let once = |_| {
        let begin = Instant::now();
        run();
        begin.elapsed()
    };
    (0..RUNS).map(once).min().unwrap_or_default()
}

fn row(client: &Client, layers: usize, form: LayerForm, tokens: u64) {
    let config = config(layers);
    let options = options(&config, form, tokens);
    let text = step(&config, &options).expect("a step").module.text();
    let build = shortest(|| drop(step(&config, &options).expect("a step").module.text()));
    let mut compiled = None;
    let compile = shortest(|| {
        compiled = Some(client.compile(text.as_bytes(), &CompileOptions::default()).expect("a program"));
    });
    let program = compiled.expect("a program");
    let bytes = program.executable().serialize().expect("bytes");
    let load = shortest(|| drop(client.load(&bytes).expect("a program")));
    let memory = program.executable().memory_stats().expect("memory");
    println!(
        "{layers:6}  {:8}  {tokens:6}  {:8.3}  {:10.3}  {:8.3}  {:6.1}  {:10.1}  {:10.1}",
        if form == LayerForm::Looped { "looped" } else { "unrolled" },
        build.as_secs_f64(),
        compile.as_secs_f64(),
        load.as_secs_f64(),
        compile.as_secs_f64() / load.as_secs_f64(),
        text.len() as f64 / 1e6,
        bytes.len() as f64 / 1e6,
    );
    println!(
        "        temporaries {:.1} MB, pool in place {:.1} MB",
        memory.temporaries as f64 / 1e6,
        memory.aliased as f64 / 1e6
    );
}

fn main() {
    environment::prepare(&[environment::QUIET]).expect("quiet logs");
    let Some(found) = install::find(Target::Cpu).expect("the place of plugins") else {
        println!("skipped: no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        return;
    };
    let plugin = Plugin::load(&found.path).expect("the CPU plugin");
    let client = plugin.client(&[("cpu_device_count", Value::Int(1))]).expect("a device");
    println!("layers  form      tokens  build s   compile s    load s   ratio   text MB   executable MB");
    for layers in [8, 20, 35] {
        for form in [LayerForm::Unrolled, LayerForm::Looped] {
            for tokens in [16, 256] {
                row(&client, layers, form, tokens);
            }
        }
    }
}
