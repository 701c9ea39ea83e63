//! Loops, branches and calls.

use gemma4_hlo::{Builder, Comparison, ElementType, Module, Parallelism, Shape};

use crate::cases::{Case, case, count, f32s, finish, s32s};

pub(crate) fn all() -> Vec<Case> {
    let mut module = Module::new("calls", Parallelism::Single).unwrap();
    let scalar = Shape::scalar(ElementType::F32);
    let square = module
        .function("square", std::slice::from_ref(&scalar), |b, args| Ok(vec![b.multiply(args[0], args[0])?]))
        .unwrap();
    let swap = module
        .function("swap_and_square", &[scalar.clone(), scalar], |b, args| {
            let squared = b.call(square, &[args[0]])?;
            Ok(vec![args[1], squared[0]])
        })
        .unwrap();
    vec![
        finish(module, "calls", vec![f32s(&[], &[3.0])], &[&[81.0], &[9.0]], |b, args| {
            let nine = b.call(square, &[args[0]])?;
            let swapped = b.call(swap, &[nine[0], nine[0]])?;
            Ok(vec![swapped[1], swapped[0]])
        }),
        case(
            "loops",
            vec![s32s(&[], &[4]), count(&[2]), f32s(&[], &[10.0])],
            &[&[0.0, 4.0], &[4.0], &[16.0], &[6.0]],
            |b, args| {
                let (zero, one) = (b.scalar(0_i32)?, b.scalar(1_i32)?);
                let start = b.splat(0_f32, &[2])?;
                // Uses the limit, the operand and the constant of around the loop.
                let results = b.while_loop(
                    &[zero, start],
                    |b, args2| b.compare(Comparison::Lt, args2[0], args[0]),
                    |b, args2| Ok(vec![b.add(args2[0], one)?, b.add(args2[1], args[1])?]),
                )?;
                let ten = args[2];
                let nested = b.for_loop(zero, args[0], &[ten], |b, counter, carried| {
                    let inner = b.for_loop(zero, counter, &[carried[0]], |b, _, inner| {
                        let one = b.scalar(1_f32)?;
                        Ok(vec![b.add(inner[0], one)?])
                    })?;
                    Ok(inner)
                })?;
                let count = b.for_loop(zero, args[0], &[zero], |b, counter, sum| Ok(vec![b.add(sum[0], counter)?]))?;
                Ok(vec![results[1], results[0], nested[0], count[0]])
            },
        ),
        case(
            "branches",
            vec![f32s(&[], &[3.0]), s32s(&[], &[1]), s32s(&[], &[-4])],
            &[&[9.0], &[1.0], &[4.0], &[5.0], &[3.0], &[3.0]],
            |b, args| {
                let x = args[0];
                let zero = b.scalar(0_f32)?;
                let positive = b.compare(Comparison::Gt, x, zero)?;
                let one = b.scalar(1_f32)?;
                let yes = b.conditional(
                    positive,
                    |b| Ok(vec![b.multiply(x, x)?, one]),
                    |b| {
                        let two = b.scalar(2_f32)?;
                        Ok(vec![x, two])
                    },
                )?;
                let branch = |b: &mut Builder, index| {
                    b.case(index, 3, |b, number| {
                        let number = b.number(number as f64, ElementType::F32, &[])?;
                        Ok(vec![b.add(x, number)?])
                    })
                };
                let middle = branch(b, args[1])?;
                let outside = branch(b, args[2])?;
                let kept = b.optimization_barrier(&[x, x])?;
                Ok(vec![yes[0], yes[1], middle[0], outside[0], kept[0], kept[1]])
            },
        ),
    ]
}
