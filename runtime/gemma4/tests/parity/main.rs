//! The language model against transformers: every logit, every value on the way, every greedy token.
//!
//! The expected values are those of `tests/fixtures/gemma4`, made by transformers in float32.

#![expect(clippy::print_stdout, reason = "the loss of narrow types is reported")]

mod caches;
mod fast;
mod golden;
mod quantized;
mod runner;

use std::path::{Path, PathBuf};

use gemma4_model::DType;
use gemma4_model::graph::{Kernels, LayerForm, PerLayerTable};
use gemma4_model::quantization::Quantization;
use gemma4_model::sharding::ExpertSharding;

use golden::{FIXTURES, folder, prompts};
use runner::{How, Rows, Runner, argmax, client, distance};

/// Of a float32 runtime (tests/fixtures/gemma4/README.md): rounding stays below 7e-5, mistakes are above 0.2.
const TOLERANCE: f32 = 1e-3;
/// Rows that hold every prompt.
const PREFILL: u64 = 128;
/// Rows of a step of eight sequences.
const DECODE: u64 = 8;

/// Every prompt alone, all logits; then all of them together, token by token.
fn logits_and_tokens(name: &str, folder: &Path, how: How) {
    let Some(client) = client() else { return };
    let mut runner = Runner::new(client, folder, how);
    let prompts = prompts(name);
    let mut next = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let sequence = runner.add_sequence();
        let (logits, _) = runner.step(PREFILL, &[(sequence, &prompt.ids)], Rows::All);
        for (row, expected) in &prompt.logits {
            let off = distance(&logits[*row], expected);
            assert!(off < TOLERANCE, "{name} {how:?}: prompt {index}, row {row} is {off} off");
        }
        next.push(argmax(logits.last().expect("logits")));
    }
    for step in 0..32 {
        for (index, prompt) in prompts.iter().enumerate() {
            assert_eq!(next[index], prompt.greedy[step], "{name} {how:?}: prompt {index}, step {step}");
        }
        let tokens: Vec<[i32; 1]> = next.iter().map(|token| [*token]).collect();
        let chunks: Vec<(usize, &[i32])> = tokens.iter().enumerate().map(|(at, token)| (at, &token[..])).collect();
        let (logits, _) = runner.step(DECODE, &chunks, Rows::LastOfEach);
        for (index, prompt) in prompts.iter().enumerate() {
            if let Some(expected) = prompt.greedy_logits.as_ref().filter(|_| step < 31) {
                let off = distance(&logits[index], expected.row(step + 1));
                assert!(off < TOLERANCE, "{name} {how:?}: prompt {index}, step {step} is {off} off");
            }
        }
        next = logits.iter().map(|logits| argmax(logits)).collect();
    }
}

fn published(name: &str) -> PathBuf {
    folder(name).join("bf16")
}

#[test]
fn one_device() {
    for name in FIXTURES {
        logits_and_tokens(name, &published(name), How::default());
    }
}

/// The folder with the newer form of `config.json` and the same weights.
fn newer(name: &str) -> tempfile::TempDir {
    let new = tempfile::tempdir().expect("a folder");
    std::fs::copy(folder(name).join("f32/config.json"), new.path().join("config.json")).expect("a config");
    for entry in std::fs::read_dir(published(name)).expect("a folder") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().expect("a name").to_owned();
        if file != "config.json" {
            std::fs::copy(&path, new.path().join(file)).expect("a file");
        }
    }
    new
}

#[test]
fn two_devices() {
    for name in FIXTURES {
        logits_and_tokens(name, &published(name), How { tensor_parallel: 2, ..How::default() });
    }
}

#[test]
fn four_devices_and_the_newer_config() {
    for name in FIXTURES {
        let folder = newer(name);
        logits_and_tokens(name, folder.path(), How { tensor_parallel: 4, ..How::default() });
    }
}

#[test]
fn whole_experts_on_each_device() {
    for tensor_parallel in [2, 4] {
        let how = How { tensor_parallel, experts: ExpertSharding::Expert, ..How::default() };
        logits_and_tokens("tiny-moe", &published("tiny-moe"), how);
    }
}

#[test]
fn layers_in_loops() {
    for (name, tensor_parallel) in FIXTURES.into_iter().zip([1, 1, 2, 1, 4]) {
        let how = How { layers: LayerForm::Looped, tensor_parallel, ..How::default() };
        logits_and_tokens(name, &published(name), how);
    }
}

#[test]
fn the_per_layer_table_in_host_memory() {
    let per_layer_table = PerLayerTable::Host;
    for (name, tensor_parallel, layers) in
        [("tiny-e2b", 1, LayerForm::Unrolled), ("tiny-mm", 2, LayerForm::Unrolled), ("tiny-e2b", 2, LayerForm::Looped)]
    {
        let how = How { tensor_parallel, layers, per_layer_table, ..How::default() };
        logits_and_tokens(name, &published(name), how);
    }
}

/// The same with kernels of our own in place of XLA's operators.
#[test]
fn kernels_of_our_own() {
    let forms = [LayerForm::Unrolled, LayerForm::Looped].into_iter().cycle();
    for ((name, tensor_parallel), layers) in FIXTURES.into_iter().zip([1, 1, 2, 4, 1]).zip(forms) {
        let how = How { kernels: Kernels::Cpu, tensor_parallel, layers, ..How::default() };
        logits_and_tokens(name, &published(name), how);
    }
    let how = How { kernels: Kernels::Cpu, tensor_parallel: 2, experts: ExpertSharding::Expert, ..How::default() };
    logits_and_tokens("tiny-moe", &published("tiny-moe"), how);
}

/// Prompts cut into chunks of any size, several at once in flat batches, beside sequences that decode already.
#[test]
fn chunks_of_any_size_in_ragged_batches() {
    let Some(client) = client() else { return };
    let alike = FIXTURES.into_iter().zip([1, 2, 1, 4, 1]);
    let both = alike.flat_map(|(name, devices)| [Kernels::Hlo, Kernels::Cpu].map(|kernels| (name, devices, kernels)));
    for (name, tensor_parallel, kernels) in both {
        let mut runner = Runner::new(client, &published(name), How { tensor_parallel, kernels, ..How::default() });
        let prompts = prompts(name);
        let sequences: Vec<usize> = prompts.iter().map(|_| runner.add_sequence()).collect();
        let whole: Vec<Vec<i32>> = prompts.iter().map(|prompt| [&prompt.ids[..], &prompt.greedy].concat()).collect();
        let mut done = vec![0; prompts.len()];
        // Sizes that are no multiple of a block, a tile or the window; 33 reaches over two windows.
        let mut sizes = [1, 7, 16, 3, 33, 2, 15, 17, 5, 8].into_iter().cycle();
        let mut compared = 0;
        while (0..prompts.len()).any(|index| done[index] < whole[index].len() - 1) {
            let (mut chunks, mut left): (Vec<(usize, &[i32])>, usize) = (Vec::new(), 64);
            for index in 0..prompts.len() {
                // All but the last token, which has no successor to compare with.
                let rest = &whole[index][done[index]..whole[index].len() - 1];
                let size = sizes.next().expect("a size").min(rest.len()).min(left);
                if size > 0 {
                    chunks.push((sequences[index], &rest[..size]));
                    left -= size;
                }
            }
            let (logits, _) = runner.step(64, &chunks, Rows::All);
            let mut row = 0;
            for (sequence, tokens) in chunks {
                let (prompt, length) = (&prompts[sequence], prompts[sequence].ids.len());
                for _ in tokens {
                    let position = done[sequence];
                    if let Some((_, expected)) = prompt.logits.iter().find(|(row, _)| *row == position) {
                        let off = distance(&logits[row], expected);
                        assert!(off < TOLERANCE, "{name}: prompt {sequence}, position {position} is {off} off");
                    }
                    if position + 1 >= length {
                        let expected = prompt.greedy[position + 1 - length];
                        assert_eq!(argmax(&logits[row]), expected, "{name}: prompt {sequence}, position {position}");
                        compared += 1;
                    }
                    (done[sequence], row) = (position + 1, row + 1);
                }
            }
        }
        assert_eq!(compared, 8 * 32, "{name}");
    }
}

/// Every value on the way of one prompt.
#[test]
fn traces() {
    let Some(client) = client() else { return };
    for (name, tensor_parallel) in FIXTURES.into_iter().zip([1, 2, 1, 4, 2]) {
        let how = How { trace: true, tensor_parallel, ..How::default() };
        let mut runner = Runner::new(client, &published(name), how);
        let sequence = runner.add_sequence();
        let prompt = &prompts(name)[6];
        let (_, traces) = runner.step(PREFILL, &[(sequence, &prompt.ids)], Rows::All);
        let expected = golden::trace(name);
        let (rows, mut compared) = (prompt.ids.len(), 0);
        for ((point, dims), devices) in runner.trace_names().iter().zip(&traces) {
            let Some(wanted) = expected.get(point) else { panic!("{name}: no {point} to compare with") };
            let of_heads = [".q", ".k", ".v"].iter().any(|end| point.ends_with(end));
            let local: usize = dims[1..].iter().map(|&size| usize::try_from(size).expect("a size")).product();
            let width = wanted.values.len() / rows;
            for row in 0..rows {
                // Heads of the devices one after the other; with fewer heads than devices, neighbours have the same.
                let mut all: Vec<f32> = Vec::new();
                for values in devices {
                    all.extend(&values[row * local..(row + 1) * local]);
                }
                let copies = if of_heads { all.len() / width } else { devices.len() };
                for copy in 0..copies {
                    let found: Vec<f32> = if of_heads {
                        all.chunks(local).skip(copy).step_by(copies).flatten().copied().collect()
                    } else {
                        all[copy * local..(copy + 1) * local].to_vec()
                    };
                    let off = distance(&found, &wanted.values[row * width..(row + 1) * width]);
                    assert!(off < TOLERANCE, "{name}: {point}, row {row}, copy {copy} is {off} off");
                }
            }
            compared += 1;
        }
        // Layers that borrow keys and values have none of their own, and angles are compared through q and k.
        let borrowed = |key: &str| key.ends_with(".k") || key.ends_with(".v");
        let missing: Vec<&String> = expected
            .keys()
            .filter(|key| {
                !key.starts_with("rope.")
                    && !borrowed(key)
                    && !runner.trace_names().iter().any(|(name, _)| name == *key)
            })
            .collect();
        assert!(missing.is_empty() && compared > 30, "{name}: not compared: {missing:?}");
    }
}

/// bfloat16 against float32, beside what torch loses on the way; and 8-bit caches.
#[test]
fn narrow_types() {
    let Some(client) = client() else { return };
    for name in FIXTURES {
        let prompts = prompts(name);
        let torch = golden::bf16_last_logits(name);
        let mut lines = Vec::new();
        let (int8, int4) = (Some(Quantization::Int8), Some(Quantization::Int4));
        for (label, dtype, quantization, kv_dtype, kernels, factor) in [
            ("bfloat16", DType::Bf16, None, DType::Bf16, Kernels::Hlo, 2.0),
            ("bfloat16, own kernels", DType::Bf16, None, DType::Bf16, Kernels::Cpu, 2.0),
            ("int8 weights", DType::Bf16, int8, DType::Bf16, Kernels::Hlo, 3.0),
            ("int8 weights, own kernels", DType::Bf16, int8, DType::Bf16, Kernels::Cpu, 3.0),
            ("int4 weights", DType::Bf16, int4, DType::Bf16, Kernels::Hlo, 30.0),
            ("int4 weights, own kernels", DType::Bf16, int4, DType::Bf16, Kernels::Cpu, 30.0),
            ("fp8_e4m3 cache", DType::F32, None, DType::F8E4M3, Kernels::Hlo, f32::INFINITY),
            ("fp8_e4m3 cache, own kernels", DType::F32, None, DType::F8E4M3, Kernels::Cpu, f32::INFINITY),
            ("fp8_e5m2 cache", DType::F32, None, DType::F8E5M2, Kernels::Hlo, f32::INFINITY),
            ("fp8_e5m2 cache, own kernels", DType::F32, None, DType::F8E5M2, Kernels::Cpu, f32::INFINITY),
        ] {
            let how = How { dtype, quantization, kv_dtype, kernels, ..How::default() };
            let mut runner = Runner::new(client, &published(name), how);
            let (mut off, mut of_torch, mut agree) = (0.0, 0.0, 0);
            for (index, prompt) in prompts.iter().enumerate() {
                let sequence = runner.add_sequence();
                let (logits, _) = runner.step(PREFILL, &[(sequence, &prompt.ids)], Rows::LastOfEach);
                let (_, expected) = prompt.logits.last().expect("logits");
                off += mean_distance(&logits[0], expected);
                of_torch += mean_distance(&torch[index], expected);
                agree += usize::from(argmax(&logits[0]) == argmax(expected));
            }
            let count = 8.0;
            lines.push(format!(
                "{name}, {label}: mean |logit - f32| {:.4} (torch bf16 {:.4}), top-1 agrees {agree} of 8",
                off / count,
                of_torch / count
            ));
            assert!(off <= factor * of_torch, "{lines:?}");
            assert!(off.is_finite(), "{lines:?}");
        }
        println!("{}", lines.join("\n"));
    }
}

/// The model that is made from a seed runs too, on more devices than it has key/value heads, and the same on each mesh.
#[test]
fn the_seeded_model() {
    let Some(client) = client() else { return };
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("smoke");
    gemma4_model::seeded::write(&folder, 0).expect("a model");
    let tokens: Vec<i32> = (2..42).collect();
    let mut expected: Option<Vec<Vec<f32>>> = None;
    for tensor_parallel in [1, 2, 4] {
        let mut runner = Runner::new(client, &folder, How { tensor_parallel, ..How::default() });
        let sequence = runner.add_sequence();
        let (logits, _) = runner.step(64, &[(sequence, &tokens)], Rows::All);
        let first = expected.get_or_insert_with(|| logits.clone());
        for (row, (found, expected)) in logits.iter().zip(first.iter()).enumerate() {
            let off = distance(found, expected);
            assert!(off < TOLERANCE, "tensor parallel {tensor_parallel}, row {row} is {off} off");
        }
    }
}

fn mean_distance(left: &[f32], right: &[f32]) -> f32 {
    let sum: f32 = left.iter().zip(right).map(|(left, right)| (left - right).abs()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a vocabulary of 1024")]
    let count = left.len() as f32;
    sum / count
}
