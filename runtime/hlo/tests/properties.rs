//! Whatever is called with whatever numbers: a value or an error, never a panic, and the same bytes each time.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop the test as tests do")]

use gemma4_hlo::{
    Builder, Combine, Comparison, DotDimensions, ElementType, GatherDimensions, Groups, Module, Parallelism, Parameter,
    Precision, ScatterDimensions, Shape, Value,
};
use proptest::prelude::*;

/// One call: which operation, which earlier values, and numbers for everything else.
#[derive(Clone, Debug)]
struct Step {
    op: u8,
    values: [usize; 3],
    sizes: Vec<u64>,
    dims: Vec<usize>,
    element: ElementType,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![8 => 0_u64..5, 1 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just(1 << 62)];
    let dim = prop_oneof![12 => 0_usize..4, 1 => Just(usize::MAX)];
    let step = (
        any::<u8>(),
        any::<[usize; 3]>(),
        prop::collection::vec(size, 0..4),
        prop::collection::vec(dim, 0..4),
        prop::sample::select(ElementType::ALL.to_vec()),
    );
    let step = step.prop_map(|(op, values, sizes, dims, element)| Step { op, values, sizes, dims, element });
    prop::collection::vec(step, 0..40)
}

/// Makes the call; a refusal adds no value.
fn apply(b: &mut Builder, step: &Step, known: &mut Vec<Value>) {
    let pick = |index: usize| known[step.values[index] % known.len()];
    let (x, y, z) = (pick(0), pick(1), pick(2));
    let (sizes, dims) = (&step.sizes, &step.dims);
    let first_dim = dims.first().copied().unwrap_or(0);
    let first_size = sizes.first().copied().unwrap_or(0);
    let signed: Vec<i64> = sizes.iter().map(|size| size.cast_signed()).collect();
    let groups = Groups::new(sizes.chunks(2).map(|ids| ids.iter().map(|id| *id as u32).collect()).collect::<Vec<_>>());
    let made = match step.op % 40 {
        0 => b.add(x, y),
        1 => b.maximum(x, y),
        2 => b.and(x, y),
        3 => b.negate(x),
        4 => b.not(x),
        5 => b.exponential(x),
        6 => b.compare(Comparison::Lt, x, y),
        7 => b.select(x, y, z),
        8 => b.clamp(x, y, z),
        9 => b.convert(x, step.element),
        10 => b.bitcast_convert(x, step.element),
        11 => b.broadcast(x, sizes, dims),
        12 => b.reshape(x, sizes),
        13 => b.transpose(x, dims),
        14 => b.concatenate(&[x, y, z], first_dim),
        15 => b.slice(x, &vec![0; sizes.len()], sizes, &vec![1; sizes.len()]),
        16 => b.pad(x, y, &signed, &signed, sizes),
        17 => b.reverse(x, dims),
        18 => b.dynamic_slice(x, &[y, z], sizes),
        19 => b.dynamic_update_slice(x, y, &[z]),
        20 => b.take(x, y, first_dim),
        21 => {
            let numbers = GatherDimensions {
                offset_dims: dims.clone(),
                collapsed_slice_dims: vec![first_dim],
                start_index_map: dims.clone(),
                index_vector_dim: first_dim,
                ..GatherDimensions::default()
            };
            b.gather(x, y, &numbers, sizes)
        }
        22 => {
            let numbers = ScatterDimensions {
                update_window_dims: dims.clone(),
                inserted_window_dims: vec![first_dim],
                scatter_dims_to_operand_dims: vec![first_dim],
                index_vector_dim: 1,
                ..ScatterDimensions::default()
            };
            b.scatter(x, y, z, &numbers, Combine::Add)
        }
        23 => b.reduce_sum(x, dims),
        24 => b.reduce_max(x, dims),
        25 => b.argmax(x, first_dim).map(|(_, place)| place),
        26 => b.cumulative_sum(x, first_dim),
        27 => b.top_k(x, first_size).map(|(numbers, _)| numbers),
        28 => {
            let numbers = DotDimensions {
                left_batch: dims.iter().take(1).copied().collect(),
                right_batch: dims.iter().skip(1).take(1).copied().collect(),
                left_contract: dims.iter().skip(2).copied().collect(),
                right_contract: dims.iter().skip(2).copied().collect(),
            };
            b.dot_general(x, y, &numbers, step.element, Precision::Default)
        }
        29 => b.all_reduce(x, &groups, Combine::Add),
        30 => b.all_gather(x, first_dim, &groups),
        31 => b.reduce_scatter(x, first_dim, &groups, Combine::Add),
        32 => b.all_to_all(x, first_dim, dims.last().copied().unwrap_or(0), &groups),
        33 => b.iota(step.element, sizes, first_dim),
        34 => b.number(first_size as f64, step.element, sizes),
        35 => b
            .while_loop(&[x, y], |b, args| b.compare(Comparison::Lt, args[0], z), |_, args| Ok(args.to_vec()))
            .map(|all| all[0]),
        36 => b.conditional(x, |_| Ok(vec![y]), |_| Ok(vec![z])).map(|all| all[0]),
        37 => b.sort(&[x, y], first_dim, true, |b, args| b.compare(Comparison::Gt, args[0], args[1])).map(|all| all[0]),
        38 => b.reduce_with(&[x], &[y], dims, |b, args| Ok(vec![b.add(args[0], z)?])).map(|all| all[0]),
        _ => b.scope("deeper \"\\\u{7f}é", |b| b.collective_permute(x, &[(0, 1), (1, 0)])),
    };
    known.extend(made);
}

fn build(steps: &[Step]) -> Module {
    let parallelism = Parallelism::ManualPartitions(2);
    let mut module = Module::new("random", parallelism).unwrap();
    let parameters = [
        Parameter::new("a", Shape::new(ElementType::F32, [2, 3])),
        Parameter::new("b", Shape::new(ElementType::S32, [3])),
        Parameter::new("c", Shape::scalar(ElementType::F32)),
        Parameter::new("d", Shape::scalar(ElementType::Pred)),
    ];
    module
        .main(&parameters, |b, args| {
            let mut known = args.to_vec();
            for step in steps {
                apply(b, step, &mut known);
            }
            Ok(known)
        })
        .unwrap();
    module
}

proptest! {
    #[test]
    fn random_chains_never_panic_and_are_deterministic(steps in steps()) {
        let (first, second) = (build(&steps), build(&steps));
        prop_assert_eq!(first.text(), second.text());
        prop_assert_eq!(first.canonical(), second.canonical());
    }

    #[test]
    fn a_printed_shape_counts_its_bytes_or_says_that_it_cannot(dims in prop::collection::vec(any::<u64>(), 0..6)) {
        let shape = Shape::new(ElementType::S64, dims.clone());
        let fits = dims.iter().all(|size| *size <= i64::MAX.cast_unsigned());
        let exact = dims.iter().try_fold(8_u128, |product, size| product.checked_mul(u128::from(*size)));
        if let (true, Some(bytes)) = (fits, exact) {
            prop_assert_eq!(shape.bytes(), u64::try_from(bytes).ok().filter(|bytes| *bytes <= i64::MAX.cast_unsigned()));
        }
    }
}
