//! Reductions, running sums and sorts.

use gemma4_hlo::{Combine, Comparison, ElementType};

use crate::cases::{Case, case, count, f32s};

pub(crate) fn all() -> Vec<Case> {
    vec![
        case(
            "reduces",
            vec![f32s(&[2, 3], &[1.0, 5.0, 5.0, -1.0, -2.0, -1.0])],
            &[
                &[11.0, -4.0],
                &[5.0, -1.0],
                &[-2.0],
                &[0.0, 1.0],
                &[1.0, 1.0],
                &[1.0, 0.0],
                &[5.0, -1.0],
                &[1.0, 0.0],
                &[-1.0, -10.0, -5.0],
            ],
            |b, args| {
                let zero = b.splat(-1.5_f32, &[2, 3])?;
                let above = b.compare(Comparison::Gt, args[0], zero)?;
                let negative = b.splat(0_f32, &[2, 3])?;
                let negative = b.compare(Comparison::Lt, args[0], negative)?;
                let not_negative = b.not(negative)?;
                let (largest, place) = b.argmax(args[0], 1)?;
                let one = b.scalar(1_f32)?;
                let below = b.not(above)?;
                Ok(vec![
                    b.reduce_sum(args[0], &[1])?,
                    b.reduce_max(args[0], &[1])?,
                    b.reduce_min(args[0], &[1, 0])?,
                    b.reduce_or(below, &[1])?,
                    b.reduce_or(above, &[1])?,
                    b.reduce_and(not_negative, &[1])?,
                    largest,
                    place,
                    b.reduce(args[0], one, &[0], Combine::Multiply)?,
                ])
            },
        ),
        case(
            "running_sums",
            vec![count(&[2, 5])],
            &[
                &[0.0, 1.0, 3.0, 6.0, 10.0, 5.0, 11.0, 18.0, 26.0, 35.0],
                &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 11.0, 13.0],
            ],
            |b, args| {
                let whole = b.convert(args[0], ElementType::S32)?;
                Ok(vec![b.cumulative_sum(args[0], 1)?, b.cumulative_sum(whole, 0)?])
            },
        ),
        case(
            "sorts",
            vec![f32s(&[2, 4], &[3.0, 1.0, 2.0, 3.0, 0.0, -1.0, 7.0, -1.0])],
            &[
                &[1.0, 2.0, 3.0, 3.0, -1.0, -1.0, 0.0, 7.0],
                &[1.0, 2.0, 0.0, 3.0, 1.0, 3.0, 0.0, 2.0],
                &[3.0, 3.0, 7.0, 0.0],
                &[0.0, 3.0, 2.0, 0.0],
            ],
            |b, args| {
                let places = b.iota(ElementType::S32, &[2, 4], 1)?;
                let sorted =
                    b.sort(&[args[0], places], 1, true, |b, pair| b.compare(Comparison::Lt, pair[0], pair[1]))?;
                let (numbers, largest) = b.top_k(args[0], 2)?;
                Ok(vec![sorted[0], sorted[1], numbers, largest])
            },
        ),
    ]
}
