//! Every slice of every tensor of every fixture.

use std::collections::BTreeMap;

use gemma4_model::DType;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::tensors::{Role, Tensor};
use gemma4_model::weights::{OWNED_ALIGNMENT, Part, Selection, Target};

use crate::data::{FIXTURES, Whole, edited, fixture, open, opened, target, whole};

/// The part of a tensor that a rank of `devices` holds, by walking over the coordinates with the rules of the
/// documentation: which of them goes to which rank. Knows nothing of the crate's placements.
fn expected(
    tensor: &Tensor,
    whole: &Whole,
    rank: usize,
    devices: usize,
    kv_heads: usize,
    experts: ExpertSharding,
) -> Vec<u8> {
    let size = whole.bytes.len() / whole.shape.iter().product::<usize>().max(1);
    let shape = &whole.shape;
    let even = |at: usize, length: usize| at / (length / devices) == rank;
    // How many coordinates decide, and for which values of them the rank has what lies below.
    type Holds<'a> = Box<dyn Fn(&[usize]) -> bool + 'a>;
    let (depth, holds): (usize, Holds<'_>) = match tensor.role {
        Role::Embedding | Role::Head | Role::PerLayerTable | Role::QProj | Role::GateProj | Role::UpProj => {
            (1, Box::new(|at| even(at[0], shape[0])))
        }
        Role::OProj | Role::DownProj => (2, Box::new(|at| even(at[1], shape[1]))),
        Role::KProj | Role::VProj if kv_heads >= devices => (1, Box::new(|at| even(at[0], shape[0]))),
        // The one head that the rank's query heads use.
        Role::KProj | Role::VProj => (1, Box::new(|at| at[0] / (shape[0] / kv_heads) == rank * kv_heads / devices)),
        Role::ExpertsGateUp | Role::ExpertsDown if experts == ExpertSharding::Expert => {
            (1, Box::new(|at| even(at[0], shape[0])))
        }
        Role::ExpertsGateUp => (2, Box::new(|at| even(at[1] % (shape[1] / 2), shape[1] / 2))),
        Role::ExpertsDown => (3, Box::new(|at| even(at[2], shape[2]))),
        _ => return whole.bytes.clone(),
    };
    let (outer, inner) = shape.split_at(depth);
    let mut part = Vec::new();
    let mut at = vec![0; depth];
    for below in whole.bytes.chunks(size * inner.iter().product::<usize>()) {
        if holds(&at) {
            part.extend(below);
        }
        for (coordinate, &length) in at.iter_mut().zip(outer).rev() {
            *coordinate += 1;
            if *coordinate < length {
                break;
            }
            *coordinate = 0;
        }
    }
    part
}

fn kv_heads(checkpoint: &gemma4_model::weights::Checkpoint, tensor: &Tensor) -> usize {
    let layer = tensor.layer.filter(|_| tensor.component.is_text()).map(|layer| checkpoint.config().text.layers[layer]);
    layer.map_or(1, |layer| usize::try_from(layer.kv_heads).expect("small"))
}

#[test]
fn slices_of_all_tensors_are_those_of_the_whole() {
    for name in FIXTURES {
        let checkpoint = opened(name);
        let tensors = whole(&fixture(name));
        for (devices, experts) in [1, 2, 4]
            .into_iter()
            .flat_map(|devices| [(devices, ExpertSharding::Tensor), (devices, ExpertSharding::Expert)])
        {
            let mesh = Mesh { data: 1, model: devices };
            let target = Target { mesh, experts, dtype: DType::Bf16, quantization: None };
            for tensor in checkpoint.tensors() {
                for rank in 0..devices {
                    let part = checkpoint.part(&tensor.name, &target, rank).expect("a part");
                    let [rank, devices] = [rank, devices].map(|number| usize::try_from(number).expect("small"));
                    let kv_heads = kv_heads(&checkpoint, tensor);
                    let expected = expected(tensor, &tensors[&tensor.name], rank, devices, kv_heads, experts);
                    assert!(part.bytes.as_slice() == expected, "{name} {} {rank} of {devices}", tensor.name);
                    assert_eq!(part.shape.iter().product::<u64>() * 2, expected.len() as u64);
                    if !part.bytes.is_borrowed() {
                        assert!(part.bytes.alignment() >= OWNED_ALIGNMENT);
                    }
                }
            }
        }
    }
}

#[test]
fn rows_are_borrowed_and_columns_are_copied() {
    let checkpoint = opened("tiny-moe");
    let borrowed = |role, devices| {
        let tensor = checkpoint.tensors().find(|tensor| tensor.role == role).expect("a tensor");
        let part = checkpoint.part(&tensor.name, &target(devices, DType::Bf16), 0).expect("a part");
        part.bytes.is_borrowed()
    };
    for role in [Role::Embedding, Role::QProj, Role::KProj, Role::GateProj, Role::InputNorm, Role::RouterProj] {
        assert!(borrowed(role, 2), "{role:?}");
    }
    for role in [Role::OProj, Role::DownProj, Role::ExpertsGateUp, Role::ExpertsDown] {
        assert!(!borrowed(role, 2), "{role:?}");
        assert!(borrowed(role, 1), "{role:?}");
    }
}

/// `f32` values of bytes.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect()
}

#[test]
fn float32_parts_have_the_numbers_of_the_bfloat16_file() {
    for name in ["tiny-e2b", "tiny-dense"] {
        let checkpoint = opened(name);
        for tensor in checkpoint.tensors() {
            for rank in 0..2 {
                let stored = checkpoint.part(&tensor.name, &target(2, DType::Bf16), rank).expect("a part");
                let wide = checkpoint.part(&tensor.name, &target(2, DType::F32), rank).expect("a part");
                let halves = stored.bytes.as_slice().chunks(2);
                let expected: Vec<f32> =
                    halves.map(|half| f32::from_bits(u32::from_le_bytes([0, 0, half[0], half[1]]))).collect();
                assert_eq!(floats(wide.bytes.as_slice()), expected, "{}", tensor.name);
                assert!(!wide.bytes.is_borrowed() && wide.bytes.alignment() >= OWNED_ALIGNMENT);
                assert_eq!(wide.shape, stored.shape);
            }
        }
    }
}

/// The norm before the head, stored as `dtype` with these bytes for each element, read as `to`.
fn converted(dtype: safetensors::Dtype, element: &[u8], to: DType) -> Vec<u8> {
    const NORM: &str = "model.language_model.norm.weight";
    let folder = edited("tiny-e2b", |tensors| {
        let norm = tensors.get_mut(NORM).expect("the norm");
        norm.dtype = dtype;
        norm.bytes = element.repeat(64);
    });
    let checkpoint = open(folder.path(), Selection::default()).expect("a checkpoint");
    let Part { bytes, .. } = checkpoint.part(NORM, &target(1, to), 0).expect("a part");
    let length = bytes.as_slice().len() / 64;
    assert!(bytes.as_slice().chunks(length).all(|found| found == &bytes.as_slice()[..length]));
    bytes.as_slice()[..length].to_vec()
}

#[test]
fn numbers_are_rounded_to_nearest_even() {
    use safetensors::Dtype::{BF16, F16, F32};
    let cases: BTreeMap<u32, u16> = [
        (0x3f80_0000, 0x3f80), // 1
        (0x3f80_8000, 0x3f80), // halfway: to even, down
        (0x3f81_8000, 0x3f82), // halfway: to even, up
        (0x3f80_8001, 0x3f81), // above halfway
        (0x7f7f_ffff, 0x7f80), // the largest number rounds to infinity
        (0x8000_0000, 0x8000), // -0
        (0xff80_0000, 0xff80), // -infinity
    ]
    .into();
    for (from, to) in cases {
        assert_eq!(converted(F32, &from.to_le_bytes(), DType::Bf16), to.to_le_bytes(), "{from:#x}");
    }
    let nan = converted(F32, &f32::NAN.to_le_bytes(), DType::Bf16);
    assert!(f32::from_le_bytes([0, 0, nan[0], nan[1]]).is_nan());
    // 0x3555 is the half nearest to 1/3, 0x0001 the smallest subnormal, 2^-24.
    assert_eq!(converted(F16, &0x3555_u16.to_le_bytes(), DType::F32), 0.333_251_95_f32.to_le_bytes());
    assert_eq!(converted(F16, &1_u16.to_le_bytes(), DType::F32), (-24.0_f32).exp2().to_le_bytes());
    assert_eq!(converted(F16, &0x3555_u16.to_le_bytes(), DType::Bf16), 0x3eab_u16.to_le_bytes());
    assert_eq!(converted(BF16, &0x7f81_u16.to_le_bytes(), DType::F32), 0x7f81_0000_u32.to_le_bytes());
}
