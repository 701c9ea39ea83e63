//! Weights that the loader quantizes, beside a checkpoint of the numbers that they stand for, which these tests compute alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gemma4_model::DType;
use gemma4_model::graph::{Kernels, LayerForm};
use gemma4_model::quantization::Quantization;
use gemma4_model::sharding::ExpertSharding;
use half::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::golden::{FIXTURES, prompts};
use super::runner::{How, Rows, Runner, argmax, client, distance};
use super::{PREFILL, TOLERANCE, mean_distance, published};

/// Whether a tensor with this name in a checkpoint is quantized.
fn is_quantized(name: &str) -> bool {
    let ends = [
        "embed_tokens.weight",
        "lm_head.weight",
        "per_layer_model_projection.weight",
        "per_layer_input_gate.weight",
        "per_layer_projection.weight",
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "o_proj.weight",
        "gate_proj.weight",
        "up_proj.weight",
        "down_proj.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    ];
    !name.contains("vision") && !name.contains("audio") && ends.iter().any(|end| name.ends_with(end))
}

/// A row as it is after 255 steps between its largest size and the same below zero.
fn coarse(row: &[f32]) -> Vec<f32> {
    let largest = row.iter().map(|number| number.abs()).fold(0.0, f32::max);
    let step = largest / 127.0;
    let number = |number: &f32| if step > 0.0 { (number / step).round_ties_even() * step } else { 0.0 };
    row.iter().map(number).collect()
}

/// A row of which every 32 neighbours have 16 steps: eight from zero to the number of the largest size, seven to the other side.
fn coarser(row: &[f32]) -> Vec<f32> {
    let group = |group: &[f32]| {
        let largest =
            group.iter().copied().reduce(|most, number| if number.abs() > most.abs() { number } else { most });
        let step = bf16::from_f32(largest.expect("a number") / -8.0).to_f32();
        let number = |number: &f32| if step == 0.0 { 0.0 } else { (number / step).round_ties_even().min(7.0) * step };
        group.iter().map(number).collect::<Vec<f32>>()
    };
    row.chunks(32).flat_map(group).collect()
}

/// Whether there are four bits for a tensor whose rows have `width` numbers.
fn has_groups(name: &str, width: usize, how: &How) -> bool {
    let split = match how.experts {
        ExpertSharding::Tensor => ["o_proj.weight", "down_proj.weight", "experts.down_proj"].as_slice(),
        ExpertSharding::Expert => &["o_proj.weight", "down_proj.weight"],
    };
    let devices = usize::try_from(how.tensor_parallel).expect("a few");
    let width = if split.iter().any(|end| name.ends_with(end)) { width / devices } else { width };
    width % 32 == 0 && !["embed_tokens.weight", "lm_head.weight"].iter().any(|end| name.ends_with(end))
}

/// A copy of a checkpoint in bfloat16 with float32 in place of what is quantized, and the tensors that have four bits.
fn dequantized(source: &Path, how: &How) -> (tempfile::TempDir, BTreeSet<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).expect("a config");
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let (mut quantized, mut in_groups) = (0, BTreeSet::new());
    for entry in std::fs::read_dir(source).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        for (name, view) in SafeTensors::deserialize(&bytes).expect("a checkpoint").tensors() {
            let (mut dtype, mut data) = (view.dtype(), view.data().to_vec());
            if is_quantized(&name) {
                assert_eq!(dtype, Dtype::BF16);
                let upper = |half: &[u8]| f32::from_bits(u32::from_le_bytes([0, 0, half[0], half[1]]));
                let numbers: Vec<f32> = data.chunks_exact(2).map(upper).collect();
                let width = *view.shape().last().expect("a dimension");
                let four = how.quantization == Some(Quantization::Int4) && has_groups(&name, width, how);
                let rows = numbers.chunks_exact(width).flat_map(if four { coarser } else { coarse });
                (dtype, data) = (Dtype::F32, rows.flat_map(f32::to_le_bytes).collect());
                quantized += 1;
                in_groups.extend(four.then(|| name.clone()));
            }
            tensors.insert(name, (dtype, view.shape().to_vec(), data));
        }
    }
    assert!(quantized > 20, "{quantized} tensors");
    let four = how.quantization == Some(Quantization::Int4);
    let count = in_groups.len();
    assert!(count < quantized && (count > quantized / 2) == four, "{in_groups:?} of {quantized} tensors");
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor")));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).expect("written");
    (folder, in_groups)
}

/// All logits of a prompt, those of two steps after it, and the tokens that these steps are about.
type Run = (Vec<Vec<f32>>, Vec<i32>);

fn run(folder: &Path, name: &str, how: How, tokens: Option<&[i32]>) -> Option<Run> {
    let mut runner = Runner::new(client()?, folder, how);
    let sequence = runner.add_sequence();
    let (mut all, _) = runner.step(PREFILL, &[(sequence, &prompts(name)[PROMPT].ids)], Rows::All);
    let mut taken = Vec::new();
    for step in 0..2 {
        let token = tokens.map_or_else(|| argmax(all.last().expect("logits")), |tokens| tokens[step]);
        taken.push(token);
        // One row takes another way than several.
        let (logits, _) = runner.step(1, &[(sequence, &[token])], Rows::LastOfEach);
        all.extend(logits);
    }
    Some((all, taken))
}

/// The prompt that is run.
const PROMPT: usize = 6;

/// `quantization` in these ways, each beside a checkpoint of what it makes of the numbers.
fn same(name: &str, quantization: Quantization, how: &[How]) {
    // There is one such checkpoint for most ways, and one alone for eight bits.
    let mut known: BTreeMap<BTreeSet<String>, Run> = BTreeMap::new();
    for how in how {
        let how = How { quantization: Some(quantization), ..*how };
        let (folder, in_groups) = dequantized(&published(name), &how);
        if !known.contains_key(&in_groups) {
            let Some(expected) = run(folder.path(), name, How::default(), None) else { return };
            known.insert(in_groups.clone(), expected);
        }
        let (expected, tokens) = &known[&in_groups];
        let plain = &prompts(name)[PROMPT].logits;
        let lost = plain.iter().map(|(row, logits)| distance(&expected[*row], logits)).fold(0.0, f32::max);
        assert!(lost > 10.0 * TOLERANCE, "{name}: nothing has been quantized, {lost}");
        let (found, _) = run(&published(name), name, how, Some(tokens)).expect("as above");
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(expected).map(|(left, right)| distance(left, right)).fold(0.0, f32::max);
        assert!(off < TOLERANCE, "{name} {how:?} is {off} off");
    }
}

/// Each form of the operators and each form of the layers, on as many devices as models are split over.
fn in_all_forms(quantization: Quantization) {
    let (hlo, cpu) = (Kernels::Hlo, Kernels::Cpu);
    let (unrolled, looped) = (LayerForm::Unrolled, LayerForm::Looped);
    for (at, name) in FIXTURES.into_iter().enumerate() {
        let forms = if at % 2 == 0 {
            [(1, cpu, unrolled), (2, hlo, looped), (4, cpu, looped)]
        } else {
            [(1, hlo, unrolled), (2, cpu, looped), (4, hlo, looped)]
        };
        let how =
            forms.map(|(tensor_parallel, kernels, layers)| How { tensor_parallel, kernels, layers, ..How::default() });
        same(name, quantization, &how);
    }
}

#[test]
fn integers_are_the_numbers_that_they_stand_for() {
    in_all_forms(Quantization::Int8);
}

#[test]
fn integers_of_four_bits_are_the_numbers_that_they_stand_for() {
    in_all_forms(Quantization::Int4);
}

/// Beside float32 with the numbers that integers stand for, bfloat16 loses no more than it does with weights of its own.
#[test]
fn integers_in_bfloat16() {
    for (name, quantization) in
        ["tiny-e2b", "tiny-moe"].into_iter().flat_map(|name| Quantization::ALL.map(|of| (name, of)))
    {
        let narrow = How { dtype: DType::Bf16, kv_dtype: DType::Bf16, ..How::default() };
        let (folder, _) = dequantized(&published(name), &How { quantization: Some(quantization), ..narrow });
        let Some((expected, tokens)) = run(folder.path(), name, How::default(), None) else { return };
        let off = |folder: &Path, how| {
            let (found, _) = run(folder, name, how, Some(&tokens)).expect("as above");
            let rows = found.iter().zip(&expected);
            let mut rows: Vec<f32> = rows.map(|(left, right)| mean_distance(left, right)).collect();
            rows.sort_by(f32::total_cmp);
            // A token that goes to another expert is further off, and says nothing about weights.
            rows[rows.len() / 2]
        };
        let alone = off(folder.path(), narrow);
        for kernels in [Kernels::Hlo, Kernels::Cpu] {
            let lost = off(&published(name), How { kernels, quantization: Some(quantization), ..narrow });
            println!("{name}, {quantization}, {kernels:?}: {lost} beside {alone}");
            assert!(lost < 1.5 * alone, "{name}, {quantization}, {kernels:?}: {lost} beside {alone}");
        }
    }
}

#[test]
fn integers_of_whole_experts() {
    let how = How { tensor_parallel: 2, experts: ExpertSharding::Expert, ..How::default() };
    for quantization in Quantization::ALL {
        same("tiny-moe", quantization, &[how, How { kernels: Kernels::Cpu, ..how }]);
    }
}
