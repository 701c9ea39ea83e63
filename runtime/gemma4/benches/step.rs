//! Speed of whole steps on XLA's CPU plugin: one token for each of a batch of sequences, and prompts in one bucket. Beside
//! it goes `scripts/transformers_bench.py`, which does the same with Hugging Face transformers.
//!
//! `STEP_BENCH_CHECKPOINT=folder cargo bench -p gemma4-model --bench step -- [hlo] [cpu] [int8|int4] [fast] [all] [profile] [xRUNS] [DECODE_BATCH..] [pPROMPT..]`,
//! such as `-- cpu 1 8 32 p512 p2048`, which is what no arguments mean, with both forms of the operators. `fast` has the layers
//! that share KV run only for the rows with logits, as is done if nothing is said, `all` for all rows. `int8` or `int4` quantizes the weights.
//! `profile` runs as many steps
//! again and prints what each operator took, beside what this machine's memory and arithmetic allow, measured before.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a bench stops where it cannot go on, and prints")]

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gemma4_kernels::profile::{self, Bounds, Cost};
use gemma4_model::config::AttentionKind;
use gemma4_model::graph::{Kernels, LayerForm, ParameterRole, PerLayerTable, StepInput, StepOptions, step};
use gemma4_model::kv::KvLayout;
use gemma4_model::quantization::{Content, Quantization};
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::tensors::Role;
use gemma4_model::weights::{AlignedStore, Checkpoint, FileBytes, LoadOptions, Selection, Target};
use gemma4_model::{Config, DType};
use gemma4_pjrt::install::{self, Target as Platform};
use gemma4_pjrt::mapped::MappedFile;
use gemma4_pjrt::{Argument, Buffer, Client, CompileOptions, ElementType, HostBytes, Plugin, Value, environment};

/// Tokens in the cache of each sequence that decodes.
const CONTEXT: u64 = 512;
const RUNS: usize = 7;
const MAX_MODEL_LEN: u64 = 4096;

type Weights = HashMap<(Role, Option<usize>, Content), Buffer>;

fn dims(shape: &[u64]) -> Vec<i64> {
    shape.iter().map(|size| size.cast_signed()).collect()
}

fn number(value: u64) -> i32 {
    i32::try_from(value).expect("a small number")
}

fn size(value: u64) -> usize {
    usize::try_from(value).expect("a small number")
}

/// Megabytes of a line of `/proc/self/status`.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|line| line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<f64>().ok());
    kibibytes.unwrap_or(f64::NAN) / 1024.0
}

/// Seconds that all threads of this process have computed.
fn computed() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

fn load(client: &Client, checkpoint: &Checkpoint, folder: &Path, quantization: Option<Quantization>) -> Weights {
    let map = |path: &Path| -> std::io::Result<FileBytes> {
        let file: Arc<MappedFile> = MappedFile::open(path).map_err(std::io::Error::other)?;
        Ok(file)
    };
    let mesh = Mesh { data: 1, model: 1 };
    let target = Target { mesh, experts: ExpertSharding::Tensor, dtype: DType::Bf16, quantization };
    let weights: Mutex<Weights> = Mutex::default();
    let store = AlignedStore { folder: &folder.join("aligned"), map: &map, on_progress: &|_| {} };
    let outcome = checkpoint.load_aligned::<()>(&target, &LoadOptions::new(&[0]), &store, |part| {
        let bytes = HostBytes::new(Arc::new(part.bytes.clone()));
        let element = match part.dtype {
            DType::I8 => ElementType::S8,
            DType::U16 => ElementType::U16,
            DType::F32 => ElementType::F32,
            _ => ElementType::BF16,
        };
        let buffer = client.borrow(bytes, element, &dims(&part.shape), 0).expect("a buffer");
        let tensor = part.tensors[0];
        weights.lock().expect("unlocked").insert((tensor.role, tensor.layer, part.content), buffer);
        ControlFlow::Continue(())
    });
    assert!(outcome.expect("weights").is_continue());
    weights.into_inner().expect("unlocked")
}

/// What a step is about: `sequences` sequences with `before` tokens in the cache get `each` new ones.
struct Load {
    sequences: u64,
    before: u64,
    each: u64,
    /// Steps that are timed, after one that is not.
    runs: usize,
    fast_prefill: bool,
    quantization: Option<Quantization>,
    /// What the machine can do, if operators are to be held against it.
    bounds: Option<Bounds>,
}

const fn decode(sequences: u64, runs: usize) -> Load {
    Load { sequences, before: CONTEXT - 1, each: 1, runs, fast_prefill: true, quantization: None, bounds: None }
}

const fn prefill(tokens: u64, runs: usize) -> Load {
    Load { sequences: 1, before: 0, each: tokens, runs, fast_prefill: true, quantization: None, bounds: None }
}

/// Prints what each operator took in a step, as a table for Markdown. The bound is the longer one of the times that its bytes and its
/// arithmetic take at least.
fn print_costs(costs: &BTreeMap<String, Cost>, bounds: &Bounds, steps: usize, seconds: f64) {
    println!(
        "\n| Operator | Calls | ms | MB | GFLOP | GB/s | GFLOP/s | Of the bound |\n|---|---|---|---|---|---|---|---|"
    );
    let steps = steps as f64;
    let mut rows: Vec<(&String, &Cost)> = costs.iter().collect();
    rows.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time));
    let mut all = Cost::default();
    for (name, cost) in rows {
        all.calls += cost.calls;
        all.time += cost.time;
        all.bytes += cost.bytes;
        all.operations += cost.operations;
        print_cost(name, cost, bounds, steps);
    }
    print_cost("all of these", &all, bounds, steps);
    let rest = seconds - all.time.as_secs_f64() / steps;
    println!("| the rest of a step of {:.2} ms | | {:.2} | | | | | |", seconds * 1e3, rest * 1e3);
}

fn print_cost(name: &str, cost: &Cost, bounds: &Bounds, steps: f64) {
    let (time, bytes) = (cost.time.as_secs_f64(), cost.bytes);
    let least = (bytes / bounds.bytes_per_second).max(cost.operations / bounds.operations_per_second);
    println!(
        "| {name} | {:.0} | {:.2} | {:.1} | {:.2} | {:.1} | {:.1} | {:.0} % |",
        cost.calls as f64 / steps,
        time / steps * 1e3,
        bytes / steps / 1e6,
        cost.operations / steps / 1e9,
        bytes / time / 1e9,
        cost.operations / time / 1e9,
        least / time * 100.0
    );
}

fn input(load: &Load, config: &Config, options: &StepOptions, which: StepInput) -> Vec<i32> {
    let Load { sequences, before, each, .. } = *load;
    let window = config.text.sliding_window;
    let rows = || (0..sequences).flat_map(|sequence| (0..each).map(move |token| (sequence, before + token)));
    let layout = |kind| {
        let block = options.kv.tokens_per_block(kind);
        let first = match kind {
            AttentionKind::Full => 0,
            AttentionKind::Sliding => (before + 1).saturating_sub(window) / block,
        };
        (block, first, (before + each).div_ceil(block) - first)
    };
    // Pages of full layers come first, sequence after sequence, then those of sliding ones.
    let page = |kind, sequence, number| {
        let (_, _, full) = layout(AttentionKind::Full);
        let (_, first, count) = layout(kind);
        let start = if kind == AttentionKind::Full { 0 } else { sequences * full };
        start + sequence * count + number - first
    };
    let values: Vec<u64> = match which {
        StepInput::TokenIds => rows().map(|(sequence, at)| 2048 + (sequence * 31 + at * 7919) % 60_000).collect(),
        StepInput::Positions => rows().map(|(_, at)| at).collect(),
        StepInput::NumTokens => vec![sequences * each],
        StepInput::Items => (0..sequences)
            .flat_map(|sequence| {
                let tile = options.query_tile;
                let item = move |first| [sequence * each + first, tile.min(each - first), sequence];
                (0..each).step_by(size(tile)).flat_map(item)
            })
            .collect(),
        StepInput::NumItems => vec![sequences * each.div_ceil(options.query_tile)],
        StepInput::Slots(kind) => {
            let (block, _, _) = layout(kind);
            rows().flat_map(|(sequence, at)| [page(kind, sequence, at / block), at % block]).collect()
        }
        StepInput::BlockTable(kind) => {
            let (_, first, count) = layout(kind);
            let width = options.table_blocks(kind, window);
            let of = |sequence| (0..width).map(move |at| page(kind, sequence, first + at.min(count - 1)));
            (0..sequences).flat_map(of).collect()
        }
        StepInput::FirstBlock(kind) => vec![layout(kind).1; size(sequences)],
        StepInput::LogitRows => (0..sequences).map(|sequence| (sequence + 1) * each - 1).collect(),
        StepInput::NumLogitRows => vec![sequences],
        StepInput::LogitItems => (0..sequences).flat_map(|sequence| [sequence, 1, sequence]).collect(),
        StepInput::NumLogitItems => vec![sequences],
    };
    let mut values: Vec<i32> = values.into_iter().map(number).collect();
    if which == StepInput::Items {
        values.resize(size(options.items() * 3), 0);
    }
    values
}

fn measure(client: &Client, config: &Config, weights: &Weights, kernels: Kernels, load: &Load) {
    let tokens = load.sequences * load.each;
    let kv = KvLayout::new(config, 1, DType::Bf16, 32).expect("a layout");
    let blocks = |kind| (load.before + load.each).div_ceil(kv.tokens_per_block(kind).max(1)) + 1;
    let pages = load.sequences * (blocks(AttentionKind::Full) + blocks(AttentionKind::Sliding));
    let options = StepOptions {
        mesh: Mesh { data: 1, model: 1 },
        experts: ExpertSharding::Tensor,
        dtype: DType::Bf16,
        quantization: load.quantization,
        kv,
        pages,
        tokens,
        sequences: load.sequences,
        rows: load.sequences,
        max_model_len: MAX_MODEL_LEN,
        query_tile: 16.min(tokens),
        layers: LayerForm::Unrolled,
        per_layer_table: PerLayerTable::Device,
        kernels,
        fast_prefill: load.fast_prefill,
        trace: false,
    };
    let graph = step(config, &options).expect("a step");
    let program = client.compile(graph.module.text().as_bytes(), &CompileOptions::default()).expect("a program");
    let shape = dims(&options.kv.pool_shape(pages));
    let zeros = vec![0_u8; size(options.kv.page_bytes_per_device() * pages)];
    let mut pool = Some(client.buffer(&zeros, ElementType::BF16, &shape, 0).expect("a pool"));
    let (mut seconds, mut work) = (Vec::new(), Vec::new());
    let profiled = if load.bounds.is_some() { load.runs } else { 0 };
    for run in 0..=load.runs + profiled {
        if run == load.runs + 1 {
            profile::start();
        }
        let before = computed();
        let start = Instant::now();
        let inputs: Vec<Option<Buffer>> = graph
            .parameters
            .iter()
            .map(|parameter| match parameter.role {
                ParameterRole::Input(which) => {
                    let values = input(load, config, &options, which);
                    Some(client.buffer_of(&values, &dims(parameter.shape.dims()), 0).expect("an input"))
                }
                _ => None,
            })
            .collect();
        let arguments = graph.parameters.iter().zip(&inputs).map(|(parameter, input)| match &parameter.role {
            ParameterRole::Input(_) | ParameterRole::PerLayerRows => Argument::Keep(input.as_ref().expect("an input")),
            ParameterRole::KvPool => Argument::Donate(pool.take().expect("a pool")),
            ParameterRole::Weight { role, layers, content } => {
                Argument::Keep(&weights[&(*role, layers.first().copied(), *content)])
            }
        });
        let arguments = vec![arguments.collect()];
        let mut outputs = program.execute(arguments).expect("a step that runs").remove(0).into_iter();
        let logits: Vec<f32> = outputs.next().expect("logits").to_vec().expect("logits");
        assert!(logits.iter().all(|logit| logit.is_finite()), "logits are numbers");
        pool = outputs.next();
        seconds.push(start.elapsed().as_secs_f64());
        work.push(computed() - before);
    }
    // The first run brings weights into memory.
    let median = |mut times: Vec<f64>| {
        times.remove(0);
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let slower = seconds.split_off(load.runs + 1);
    work.truncate(load.runs + 1);
    let (seconds, work) = (median(seconds), median(work));
    println!(
        "{:7}  {:4}  {:4}  {:6}  {:6}  {:9.1}  {:9.1}  {:9.1}  {:9.0}  {:9.0}",
        if load.each == 1 { "decode" } else { "prefill" },
        if kernels == Kernels::Cpu { "cpu" } else { "hlo" },
        if load.fast_prefill { "fast" } else { "all" },
        load.sequences,
        load.before + load.each,
        seconds * 1e3,
        work * 1e3,
        tokens as f64 / seconds,
        memory("VmHWM"),
        memory("RssAnon"),
    );
    if let Some(bounds) = &load.bounds {
        let mean = slower.iter().sum::<f64>() / slower.len() as f64;
        print_costs(&profile::stop(), bounds, load.runs, mean);
    }
}

fn main() {
    environment::prepare(&[environment::QUIET]).expect("quiet logs");
    let Some(folder) = std::env::var_os("STEP_BENCH_CHECKPOINT").map(PathBuf::from) else {
        println!("skipped: STEP_BENCH_CHECKPOINT names no checkpoint");
        return;
    };
    let Some(found) = install::find(Platform::Cpu).expect("the place of plugins") else {
        println!("skipped: no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        return;
    };
    let plugin = Plugin::load(&found.path).expect("the CPU plugin");
    gemma4_kernels::register(plugin).expect("handlers");
    let client = plugin.client(&[("cpu_device_count", Value::Int(1))]).expect("a device");
    let files: Mutex<Vec<Arc<MappedFile>>> = Mutex::default();
    let map = |path: &Path| -> std::io::Result<FileBytes> {
        let file: Arc<MappedFile> = MappedFile::open(path).map_err(std::io::Error::other)?;
        files.lock().expect("unlocked").push(Arc::clone(&file));
        Ok(file)
    };
    let checkpoint = Checkpoint::open(&folder, Selection::default(), map).expect("a checkpoint");
    let config = checkpoint.config().clone();
    let quantization = std::env::args().find_map(|argument| argument.parse::<Quantization>().ok());
    let weights = load(&client, &checkpoint, &folder, quantization);
    // As the engine does.
    files.into_inner().expect("unlocked").iter().for_each(|file| file.release().expect("memory given back"));

    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench" && argument.parse::<Quantization>().is_err())
        .collect();
    let mut forms: Vec<Kernels> = Vec::new();
    let mut loads: Vec<Load> = Vec::new();
    let mut fast_prefills: Vec<bool> = Vec::new();
    let (mut runs, mut bounds) = (RUNS, None);
    for argument in &arguments {
        if let Some(count) = argument.strip_prefix('x') {
            runs = count.parse().expect("a number of runs");
            continue;
        }
        if argument == "profile" {
            let found = profile::bounds();
            println!(
                "memory is read at {:.1} GB/s, products are made at {:.0} GFLOP/s",
                found.bytes_per_second / 1e9,
                found.operations_per_second / 1e9
            );
            bounds = Some(found);
            continue;
        }
        if argument == "all" || argument == "fast" {
            fast_prefills.push(argument == "fast");
            continue;
        }
        match (argument.as_str(), argument.strip_prefix('p')) {
            ("hlo", _) => forms.push(Kernels::Hlo),
            ("cpu", _) => forms.push(Kernels::Cpu),
            (_, Some(prompt)) => {
                loads.push(prefill(prompt.parse().expect("a length"), runs));
            }
            (batch, _) => loads.push(decode(batch.parse().expect("a batch"), runs)),
        }
    }
    if forms.is_empty() {
        forms = vec![Kernels::Hlo, Kernels::Cpu];
    }
    if loads.is_empty() {
        loads.extend([1, 8, 32].map(|sequences| decode(sequences, runs)));
        loads.extend([512, 2048].map(|each| prefill(each, runs)));
    }
    if fast_prefills.is_empty() {
        fast_prefills.push(true);
    }
    println!("{}", folder.display());
    println!("step     form  rows   batch  tokens         ms    core ms   tokens/s   peak MiB   anon MiB");
    for load in &loads {
        for &kernels in &forms {
            for &fast_prefill in &fast_prefills {
                let load = Load { fast_prefill, quantization, bounds, ..*load };
                measure(&client, &config, &weights, kernels, &load);
            }
        }
    }
}
