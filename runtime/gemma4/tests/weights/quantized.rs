//! Integers and scales of rows and of groups, beside what the rule of the documentation makes of the file.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use gemma4_model::DType;
use gemma4_model::quantization::{Content, Quantization};
use gemma4_model::tensors::Role;
use gemma4_model::weights::{LoadOptions, Selection, Target};

use crate::data::{FIXTURES, edited, fixture, open, target, whole};

/// Arrays of one rank by tensor and content.
type Arrays = BTreeMap<(String, Content), (DType, Vec<u64>, Vec<u8>)>;

fn load(folder: &Path, devices: u64, dtype: DType) -> Vec<Arrays> {
    load_as(Quantization::Int8, folder, devices, dtype)
}

fn load_as(quantization: Quantization, folder: &Path, devices: u64, dtype: DType) -> Vec<Arrays> {
    let checkpoint = open(folder, Selection::default()).expect("a good checkpoint");
    let ranks: Vec<u64> = (0..devices).collect();
    let target = Target { quantization: Some(quantization), ..target(devices, dtype) };
    let arrays: Mutex<Vec<Arrays>> = Mutex::new(ranks.iter().map(|_| Arrays::new()).collect());
    let outcome = checkpoint.load::<()>(&target, &LoadOptions::new(&ranks), |part| {
        for rank in &part.ranks {
            let of_rank = &mut arrays.lock().expect("unlocked")[usize::try_from(*rank).expect("small")];
            let array = (part.dtype, part.shape.clone(), part.bytes.as_slice().to_vec());
            assert!(of_rank.insert((part.tensors[0].name.clone(), part.content), array).is_none());
        }
        ControlFlow::Continue(())
    });
    assert!(outcome.expect("loads").is_continue());
    arrays.into_inner().expect("unlocked")
}

/// The numbers of a tensor of bfloat16.
fn numbers(bytes: &[u8]) -> Vec<f64> {
    let upper = |half: &[u8]| f32::from_bits(u32::from_le_bytes([0, 0, half[0], half[1]]));
    bytes.chunks_exact(2).map(|half| f64::from(upper(half))).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect()
}

#[test]
fn integers_are_the_nearest_ones() {
    for name in FIXTURES {
        let (tensors, loaded) = (whole(&fixture(name)), load(&fixture(name), 1, DType::Bf16));
        let mut quantized = 0;
        for ((tensor, content), (dtype, shape, bytes)) in &loaded[0] {
            let Some((_, scales_shape, scales)) = loaded[0].get(&(tensor.clone(), Content::Scales)) else {
                assert_eq!(*dtype, DType::Bf16, "{tensor}");
                continue;
            };
            if *content == Content::Scales {
                assert_eq!(*dtype, DType::F32);
                continue;
            }
            assert_eq!((*dtype, &shape[..shape.len() - 1]), (DType::I8, &scales_shape[..]), "{tensor}");
            let width = usize::try_from(*shape.last().expect("a row")).expect("small");
            let rows = numbers(&tensors[tensor].bytes);
            for ((row, integers), scale) in rows.chunks(width).zip(bytes.chunks(width)).zip(floats(scales)) {
                let largest = row.iter().fold(0.0, |most: f64, number| most.max(number.abs()));
                assert!((f64::from(scale) * 127.0 - largest).abs() <= 1e-6 * largest);
                for (number, integer) in row.iter().zip(integers) {
                    let off = number - f64::from(integer.cast_signed()) * f64::from(scale);
                    assert!(off.abs() <= 0.500_01 * f64::from(scale), "{tensor}: {number}");
                    assert_ne!(integer.cast_signed(), i8::MIN);
                }
            }
            quantized += 1;
        }
        assert!(quantized > 10, "{name}: {quantized}");
        let norms = loaded[0].keys().filter(|(tensor, _)| tensor.contains("norm") || tensor.contains("router"));
        assert!(norms.clone().count() > 0 && norms.clone().all(|(_, content)| *content == Content::Elements), "{name}");
    }
}

/// Whatever is split, and however: the same integers, the same scales.
#[test]
fn devices_have_parts_of_the_same_integers() {
    let checkpoint = open(&fixture("tiny-moe"), Selection::default()).expect("a good checkpoint");
    let whole = &load(&fixture("tiny-moe"), 1, DType::Bf16)[0];
    for devices in [2, 4] {
        let ranks = load(&fixture("tiny-moe"), devices, DType::F32);
        for tensor in checkpoint.tensors() {
            // Dimension that is split.
            let split = match tensor.role {
                Role::QProj | Role::GateProj | Role::UpProj | Role::Embedding => 0,
                Role::OProj | Role::DownProj => 1,
                Role::ExpertsDown => 2,
                _ => continue,
            };
            let array = |arrays: &Arrays, content| arrays[&(tensor.name.clone(), content)].clone();
            let last = tensor.shape.len() - 1;
            for content in [Content::Elements, Content::Scales] {
                let (_, _, expected) = array(whole, content);
                let parts: Vec<_> = ranks.iter().map(|arrays| array(arrays, content)).collect();
                if content == Content::Scales && split == last {
                    assert!(parts.iter().all(|(_, _, bytes)| *bytes == expected), "{}", tensor.name);
                    continue;
                }
                // Blocks of the split dimension and all behind it, one of each rank after the other.
                let block = |shape: &[u64], size: u64| shape[split..].iter().product::<u64>() * size;
                let size = if content == Content::Scales { 4 } else { 1 };
                let block = usize::try_from(block(&parts[0].1, size)).expect("small");
                let mut joined: Vec<u8> = Vec::new();
                for at in 0..parts[0].2.len() / block {
                    parts.iter().for_each(|(_, _, bytes)| joined.extend(&bytes[at * block..(at + 1) * block]));
                }
                assert!(joined == expected, "{} {content:?} of {devices}", tensor.name);
            }
        }
    }
}

#[test]
fn rows_that_are_hard_to_scale() {
    let name = "model.language_model.layers.0.mlp.down_proj.weight";
    let rows: [&[f32]; 5] =
        [&[0.0, -0.0], &[1e-40, -1e-40], &[f32::MAX, 1.0, f32::MIN], &[f32::NAN, 127.0, 2.5, -3.5], &[f32::INFINITY]];
    let folder = edited("tiny-e2b", |tensors| {
        let tensor = tensors.get_mut(name).expect("a matrix");
        let width = tensor.shape[1];
        tensor.dtype = safetensors::Dtype::F32;
        let all = (0..tensor.shape[0]).flat_map(|row| {
            let row: &[f32] = rows.get(row).copied().unwrap_or_default();
            row.iter().copied().chain(std::iter::repeat(0.0)).take(width)
        });
        tensor.bytes = all.flat_map(f32::to_le_bytes).collect();
    });
    let arrays = &load(folder.path(), 1, DType::Bf16)[0];
    let (_, shape, integers) = &arrays[&(name.to_owned(), Content::Elements)];
    let scales = floats(&arrays[&(name.to_owned(), Content::Scales)].2);
    let row = |row: usize| -> Vec<i8> {
        let width = usize::try_from(shape[1]).expect("small");
        integers[row * width..][..4].iter().map(|byte| byte.cast_signed()).collect()
    };
    assert_eq!((scales[0], row(0)), (0.0, vec![0; 4]));
    assert!(scales[1] >= 0.0 && scales[1].is_finite());
    assert_eq!((scales[2] > 1e36, row(2)), (true, vec![127, 0, -127, 0]));
    assert_eq!((scales[3], row(3)), (1.0, vec![0, 127, 2, -4]));
    assert_eq!((scales[4], row(4)), (f32::INFINITY, vec![0; 4]));
}

/// The integers of rows of words, block after block, with those that fill up the last one.
fn unpacked(words: &[u8], shape: &[u64]) -> Vec<Vec<i8>> {
    let words_of_row = usize::try_from(*shape.last().expect("a row")).expect("small");
    let integer = |bits: u8| if bits < 8 { bits.cast_signed() } else { bits.cast_signed() - 16 };
    let row = |row: &[u8]| -> Vec<i8> {
        let groups = row.chunks(64).flat_map(|block| (0..4).map(move |group| (block, group)));
        // The lower byte of a word is in front, with the integers of the first two groups.
        let of_group = |(block, group): (&[u8], usize)| {
            (0..32).map(|at| integer(block[2 * at + group / 2] >> (4 * (group % 2)) & 15)).collect::<Vec<i8>>()
        };
        groups.flat_map(of_group).collect()
    };
    words.chunks(2 * words_of_row).map(row).collect()
}

#[test]
fn integers_of_groups_are_the_nearest_ones() {
    for name in FIXTURES {
        let loaded = load_as(Quantization::Int4, &fixture(name), 1, DType::F32);
        let (tensors, int8) = (whole(&fixture(name)), load(&fixture(name), 1, DType::F32));
        let (mut packed, mut filled_up) = (0, 0);
        for ((tensor, content), (dtype, shape, bytes)) in &loaded[0] {
            if *dtype != DType::U16 {
                // Norms and the like, what is looked up, and rows that are not made of groups.
                let of_packed = loaded[0][&(tensor.clone(), Content::Elements)].0 == DType::U16;
                assert_eq!(of_packed, *content == Content::Scales && *dtype == DType::Bf16, "{tensor}");
                let same = int8[0][&(tensor.clone(), *content)] == (*dtype, shape.clone(), bytes.clone());
                let whole_groups = tensors[tensor].shape.last().is_some_and(|width| width % 32 == 0);
                assert!(of_packed || same, "{tensor}");
                assert!(*dtype != DType::I8 || !whole_groups || tensor.contains("embed_tokens"), "{tensor}");
                continue;
            }
            let (_, scales_shape, scales) = &loaded[0][&(tensor.clone(), Content::Scales)];
            let width = *tensors[tensor].shape.last().expect("a row");
            let (rows, last) = shape.split_at(shape.len() - 1);
            assert_eq!(scales_shape, &[rows, &[width as u64 / 32]].concat(), "{tensor}");
            assert_eq!(last, [width.div_ceil(128) as u64 * 32], "{tensor}");
            let rows = numbers(&tensors[tensor].bytes);
            let scales = numbers(scales);
            for ((row, integers), scales) in
                rows.chunks(width).zip(unpacked(bytes, shape)).zip(scales.chunks(width / 32))
            {
                for ((group, integers), scale) in row.chunks(32).zip(integers.chunks(32)).zip(scales) {
                    let largest = group.iter().fold(0.0, |most: f64, number| most.max(number.abs()));
                    // Numbers of bfloat16 and their eighths are bfloat16.
                    assert!((scale.abs() * 8.0 - largest).abs() == 0.0, "{tensor}: {scale} for {largest}");
                    for (number, integer) in group.iter().zip(integers) {
                        let off = (number - f64::from(*integer) * scale).abs() / scale.abs();
                        assert!(off <= 0.5 || (*integer == 7 && off <= 1.0), "{tensor}: {number} is {integer}");
                    }
                    assert!(largest == 0.0 || integers.contains(&-8), "{tensor}");
                }
                assert!(integers[width..].iter().all(|integer| *integer == 0), "{tensor}");
                filled_up += usize::from(integers.len() > width);
            }
            packed += 1;
        }
        assert!(packed > 10 && filled_up > 0, "{name}: {packed}, {filled_up}");
    }
}

/// However rows are split: the same integers and scales, as far as parts of rows are whole groups; else eight bits, as without groups.
#[test]
fn devices_have_parts_of_the_same_groups() {
    let mut in_eight_bits = 0;
    for name in FIXTURES {
        let checkpoint = open(&fixture(name), Selection::default()).expect("a good checkpoint");
        let whole = &load_as(Quantization::Int4, &fixture(name), 1, DType::Bf16)[0];
        for devices in [2, 4] {
            let ranks = load_as(Quantization::Int4, &fixture(name), devices, DType::Bf16);
            let int8 = load(&fixture(name), devices, DType::Bf16);
            for tensor in checkpoint.tensors() {
                let split = match tensor.role {
                    Role::QProj | Role::GateProj | Role::UpProj => 0,
                    Role::OProj | Role::DownProj => 1,
                    Role::ExpertsDown => 2,
                    _ => continue,
                };
                let key = |content| (tensor.name.clone(), content);
                let last = tensor.shape.len() - 1;
                let width = tensor.shape[last] / if split == last { devices } else { 1 };
                if width % 32 != 0 {
                    for content in [Content::Elements, Content::Scales] {
                        let same =
                            ranks.iter().zip(&int8).all(|(int4, int8)| int4[&key(content)] == int8[&key(content)]);
                        assert!(same, "{} of {devices}", tensor.name);
                    }
                    in_eight_bits += usize::from(whole[&key(Content::Elements)].0 == DType::U16);
                    continue;
                }
                let rows = |arrays: &Arrays| -> Vec<(Vec<i8>, Vec<u8>)> {
                    let (dtype, shape, words) = &arrays[&key(Content::Elements)];
                    assert_eq!(*dtype, DType::U16, "{} of {devices}", tensor.name);
                    let scales = &arrays[&key(Content::Scales)].2;
                    let integers = unpacked(words, shape);
                    let each = scales.len() / integers.len();
                    let groups = each / 2 * 32;
                    integers
                        .into_iter()
                        .map(|row| row[..groups].to_vec())
                        .zip(scales.chunks(each).map(<[u8]>::to_vec))
                        .collect()
                };
                let (expected, parts): (_, Vec<_>) = (rows(whole), ranks.iter().map(rows).collect());
                let joined: Vec<(Vec<i8>, Vec<u8>)> = if split == last {
                    let row = |row: usize| {
                        let of = parts.iter().map(|part| &part[row]);
                        (
                            of.clone().flat_map(|part| part.0.clone()).collect(),
                            of.flat_map(|part| part.1.clone()).collect(),
                        )
                    };
                    (0..expected.len()).map(row).collect()
                } else {
                    parts.concat()
                };
                assert!(joined == expected, "{} of {devices}", tensor.name);
            }
        }
    }
    assert!(in_eight_bits > 0, "no row is cut within a group");
}

#[test]
fn groups_that_are_hard_to_scale() {
    let name = "model.language_model.layers.0.mlp.down_proj.weight";
    let rows: [&[f32]; 7] = [
        &[0.0, -0.0],
        &[1e-40, -1e-40],
        &[f32::MAX, 1.0, f32::MIN],
        &[f32::NAN, 8.0, 2.5, -3.5, -8.0, -7.4],
        &[f32::INFINITY, 3.0],
        // The first of two that are as large decides.
        &[-4.0, 4.0, 0.25, -0.75],
        // 1.003 is 1.0 as bfloat16.
        &[8.024, -7.52, -7.48],
    ];
    let folder = edited("tiny-e2b", |tensors| {
        let tensor = tensors.get_mut(name).expect("a matrix");
        let width = tensor.shape[1];
        tensor.dtype = safetensors::Dtype::F32;
        let all = (0..tensor.shape[0]).flat_map(|row| {
            let row: &[f32] = rows.get(row).copied().unwrap_or_default();
            // In the second group of each row.
            std::iter::repeat_n(0.0, 32).chain(row.iter().copied()).chain(std::iter::repeat(0.0)).take(width)
        });
        tensor.bytes = all.flat_map(f32::to_le_bytes).collect();
    });
    let arrays = &load_as(Quantization::Int4, folder.path(), 1, DType::F32)[0];
    let (_, shape, words) = &arrays[&(name.to_owned(), Content::Elements)];
    let scales = numbers(&arrays[&(name.to_owned(), Content::Scales)].2);
    let integers = unpacked(words, shape);
    let row = |row: usize| (scales[row * 2 + 1], &integers[row][32..38]);
    assert!(scales.iter().step_by(2).all(|scale| scale.to_bits() == 0));
    assert_eq!(row(0), (0.0, [0; 6].as_slice()));
    assert!(row(1).0.abs() < 1e-40 && row(1).0.is_finite());
    assert_eq!((row(2).0 < -1e37, row(2).1), (true, [-8, 0, 7, 0, 0, 0].as_slice()));
    assert_eq!(row(3), (-1.0, [0, -8, -2, 4, 7, 7].as_slice()));
    assert_eq!(row(4), (f64::NEG_INFINITY, [0; 6].as_slice()));
    assert_eq!(row(5), (0.5, [-8, 7, 0, -2, 0, 0].as_slice()));
    assert_eq!(row(6), (-1.0, [-8, 7, 7, 0, 0, 0].as_slice()));
}
