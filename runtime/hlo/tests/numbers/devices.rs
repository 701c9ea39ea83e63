//! Programs on four devices. Each device's numbers are worked out from those of all.

use gemma4_hlo::{Builder, Combine, Comparison, ElementType, Groups, HloError, Module, Parallelism, Value};

use crate::cases::{Case, Tensor, f32s, parameters};

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let partitions = Parallelism::ManualPartitions(4);
    vec![
        collectives("collectives_on_partitions", partitions),
        collectives("collectives_on_replicas", Parallelism::Replicas(4)),
        everything_manual(partitions),
    ]
}

/// Device `d` holds d*10 + 0, 1, 2, 3 in a 4 x 1 tensor.
fn own(device: u32) -> Vec<f32> {
    (0..4_u8).map(|index| device as f32 * 10.0 + f32::from(index)).collect()
}

fn finish(
    mut module: Module,
    name: &'static str,
    inputs: Vec<Vec<Tensor>>,
    expected: Vec<Vec<Vec<f32>>>,
    build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
) -> Case {
    let parameters: Vec<_> = parameters(&inputs[0]).into_iter().map(|parameter| parameter.donated_to(0)).collect();
    let built = module.main(&parameters, |b, args| {
        let results = build(b, args)?;
        results.into_iter().map(|value| b.convert(value, ElementType::F32)).collect()
    });
    built.unwrap_or_else(|error| panic!("{name}: {error}"));
    Case { name, module, inputs, expected, tolerance: 1e-5 }
}

fn collectives(name: &'static str, parallelism: Parallelism) -> Case {
    let mut module = Module::new(name, parallelism).unwrap();
    let shape = gemma4_hlo::Shape::new(ElementType::F32, [4, 1]);
    // A collective in a function that is called twice.
    let total = module
        .function("total", &[shape], |b, args| {
            Ok(vec![b.all_reduce(args[0], &Groups::all(parallelism), Combine::Add)?])
        })
        .unwrap();
    let inputs = (0..4).map(|device| vec![f32s(&[4, 1], &own(device))]).collect();
    let expected = (0..4_u32).map(|device| {
        let (index, pair) = (device as usize, [device / 2 * 2, device / 2 * 2 + 1]);
        let sums: Vec<f32> = (0..4).map(|row| (0..4).map(|from| own(from)[row]).sum()).collect();
        vec![
            sums.iter().map(|sum| sum * 4.0).collect(),
            (0..4).map(|row| own(pair[0])[row].max(own(pair[1])[row])).collect(),
            (0..4).flat_map(own).collect(),
            (0..4).flat_map(|row| pair.map(|from| own(from)[row])).collect(),
            vec![sums[index]],
            (0..4).map(|from| own(from)[index]).collect(),
            (0..2).flat_map(|row| pair.map(|from| own(from)[(index % 2) * 2 + row])).collect(),
            if device == 3 { vec![0.0; 4] } else { own(device + 1) },
            vec![device as f32],
        ]
    });
    let expected = expected.collect();
    finish(module, name, inputs, expected, |b, args| {
        let x = args[0];
        let (all, pairs) = (Groups::all(parallelism), Groups::new([vec![0, 1], vec![2, 3]]));
        let once = b.call(total, &[x])?;
        let twice = b.call(total, &once)?;
        Ok(vec![
            twice[0],
            b.all_reduce(x, &pairs, Combine::Maximum)?,
            b.all_gather(x, 0, &all)?,
            b.all_gather(x, 1, &pairs)?,
            b.reduce_scatter(x, 0, &all, Combine::Add)?,
            b.all_to_all(x, 0, 1, &all)?,
            b.all_to_all(x, 0, 1, &pairs)?,
            b.collective_permute(x, &[(1, 0), (2, 1), (3, 2)])?,
            match parallelism {
                Parallelism::ManualPartitions(_) => b.partition_id()?,
                _ => b.replica_id()?,
            },
        ])
    })
}

/// The operations with bodies or several results, marked as manual, with collectives in loops and branches.
fn everything_manual(parallelism: Parallelism) -> Case {
    let name = "manual_bodies";
    let module = Module::new(name, parallelism).unwrap();
    let inputs = (0..4).map(|device| vec![f32s(&[4, 1], &own(device))]).collect();
    let expected = (0..4_u32).map(|device| {
        let mine = own(device);
        let sum: Vec<f32> = (0..4).map(|row| (0..4).map(|from| own(from)[row]).sum()).collect();
        let reversed: Vec<f32> = mine.iter().rev().copied().collect();
        vec![
            // Three times: add the sum over devices of what the device had in the beginning.
            mine.iter().zip(&sum).map(|(x, sum)| x + 3.0 * sum).collect(),
            if device == 0 { sum.clone() } else { mine.clone() },
            mine.iter().map(|x| x + (device % 3) as f32).collect(),
            reversed,
            vec![3.0, 2.0, 1.0, 0.0],
            vec![mine[3]],
            vec![3.0],
            vec![mine[2], mine[0]],
            vec![mine[0], mine[1] + 7.0, mine[2], mine[3]],
            mine.clone(),
            vec![mine[3], mine[2]],
            vec![mine[0] * mine[0] + mine[1] * mine[1] + mine[2] * mine[2] + mine[3] * mine[3]],
        ]
    });
    let expected = expected.collect();
    finish(module, name, inputs, expected, |b, args| {
        let x = args[0];
        let all = Groups::all(parallelism);
        let (zero, three) = (b.scalar(0_i32)?, b.scalar(3_i32)?);
        let looped = b.scope("loop", |b| {
            b.for_loop(zero, three, &[x], |b, _, carried| {
                let sum = b.scope("sum", |b| b.all_reduce(x, &all, Combine::Add))?;
                Ok(vec![b.add(carried[0], sum)?])
            })
        })?;
        let device = b.partition_id()?;
        let device = b.convert(device, ElementType::S32)?;
        let first = b.compare(Comparison::Eq, device, zero)?;
        let sum = b.all_reduce(x, &all, Combine::Add)?;
        let branch = b.conditional(first, |_| Ok(vec![sum]), |_| Ok(vec![x]))?;
        let number = b.remainder(device, three)?;
        let case = b.case(number, 3, |b, branch| {
            let number = b.number(branch as f64, ElementType::F32, &[4, 1])?;
            Ok(vec![b.add(x, number)?])
        })?;
        let row = b.reshape(x, &[4])?;
        let places = b.iota(ElementType::S32, &[4], 0)?;
        let sorted = b.sort(&[row, places], 0, true, |b, pair| b.compare(Comparison::Gt, pair[0], pair[1]))?;
        let (largest, place) = b.argmax(row, 0)?;
        let wanted = b.constant(&[2_i32, 0], &[2])?;
        let one = b.constant(&[1_i32], &[1])?;
        let seven = b.constant(&[7_f32], &[1])?;
        let points = gemma4_hlo::ScatterDimensions {
            inserted_window_dims: vec![0],
            scatter_dims_to_operand_dims: vec![0],
            index_vector_dim: 1,
            ..Default::default()
        };
        let (top, _) = b.top_k(row, 2)?;
        let square = gemma4_hlo::DotDimensions::contract(0, 0);
        Ok(vec![
            looped[0],
            branch[0],
            case[0],
            sorted[0],
            sorted[1],
            largest,
            place,
            b.take(row, wanted, 0)?,
            b.scatter(row, one, seven, &points, Combine::Add)?,
            b.optimization_barrier(&[x, row])?[1],
            top,
            b.dot_general(row, row, &square, ElementType::F32, gemma4_hlo::Precision::Highest)?,
        ])
    })
}
