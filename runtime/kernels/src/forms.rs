//! The portable form of each kernel beside the one that this processor runs: where there is AVX2, no other test runs the first.

use half::bf16;
use proptest::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::blocked::Blocked;
use crate::dot::Dots;
use crate::functions::{Gate, gated, softcap};
use crate::int4::{Row, Widen};
use crate::matrix::Matrix;
use crate::number::{Number, Weight};
use crate::products::{Many, PANEL, few_of, spread};
use crate::softmax::{Weigh, Weights, weigh, weights_of};
#[cfg(target_arch = "x86_64")]
use crate::vectors;
use crate::vectors::{Lanes, vectorize};

/// Widths of which half are whole tiles.
#[cfg(target_arch = "x86_64")]
fn widths_in_tiles() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..290, (1_usize..20).prop_map(|tiles| 32 * tiles)]
}

fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec((-4096_i16..4096).prop_map(|number| f32::from(number) / 1024.0), count)
}

/// The same in another type, rounded.
fn narrowed<W: Number>(numbers: &[f32]) -> Vec<W> {
    numbers.iter().map(|number| W::narrow(*number)).collect()
}

fn widened<W: Number>(elements: &[W]) -> Vec<f32> {
    elements.iter().map(|element| element.widen()).collect()
}

/// Equal but for the order of sums.
fn near(left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert!((left - right).abs() <= 1e-4 * (1.0 + left.abs()), "{left} and {right}");
    }
}

/// Products of elements of `W` with weights of another type, or of the same.
fn products<W: Number, E: Weight>(tokens: usize, rows: usize, width: usize, x: &[f32], weights: &[E]) {
    let inputs = narrowed::<W>(x);
    let x = widened(&inputs);
    let mut portable = vec![0.0; rows * tokens];
    Dots { inputs: &x, weights, width, out: &mut portable }.run::<8, false>();
    let mut wide = vec![0.0; x.len()];
    inputs.chunks_exact(width).zip(wide.chunks_exact_mut(width)).for_each(|(from, to)| spread(from, to));
    let mut ours = vec![0.0; rows * tokens];
    few_of::<W, _, _>(Matrix::dense(&wide, width), Matrix::dense(weights, width), &mut ours);
    near(&portable, &ours);
    // With AVX-512, narrow inputs take another way.
    few_of::<W, _, _>(Matrix::dense(&inputs, width), Matrix::dense(weights, width), &mut ours);
    near(&portable, &ours);

    let stride = rows.next_multiple_of(PANEL);
    let by = |run: &mut dyn FnMut(&mut [f32])| {
        let mut out = vec![0.0; tokens * stride];
        run(&mut out);
        out.chunks(stride).flat_map(|row| row[..rows].to_vec()).collect::<Vec<_>>()
    };
    let portable = by(&mut |out| Blocked { inputs: &inputs, weights, width, out, stride }.run::<8, false>());
    let weights = Matrix::dense(weights, width);
    near(&portable, &by(&mut |out| Many::new(&inputs, width).products(weights, out, stride)));
    near(&portable, &by(&mut |out| Many::new(&x, width).products(weights, out, stride)));
}

/// Products in tiles, where the processor has them, beside the portable form: from any first token on, of rows that lie apart.
#[cfg(target_arch = "x86_64")]
fn products_in_tiles(tokens: usize, rows: usize, width: usize, x: &[f32], w: &[f32]) {
    if !vectors::has_amx() {
        return;
    }
    let (inputs, weights) = (narrowed::<bf16>(x), narrowed::<bf16>(w));
    let mut portable = vec![0.0; rows * tokens];
    Dots { inputs: &widened(&inputs), weights: &weights, width, out: &mut portable }.run::<8, false>();
    let apart: Vec<bf16> = weights.chunks_exact(width).flat_map(|row| [row, &[bf16::NAN; 3]].concat()).collect();
    let apart = Matrix::apart(&apart, rows, width, width + 3).expect("as many rows");
    // SAFETY: the processor has the instructions.
    let (packed, alone) = unsafe { (amx::Packed::new(&inputs, width), amx::Packed::here(&inputs, width)) };
    let mirrored: Vec<bf16> = weights.iter().map(|weight| -*weight).collect();
    for first in (0..tokens).step_by(amx::BLOCK) {
        for (inputs, weights) in [(&packed, Matrix::dense(&weights, width)), (&alone, apart)] {
            let both = [weights, Matrix::dense(&mirrored, width)].map(amx::Lines::Elements);
            let mut out = [vec![f32::NAN; (tokens - first) * rows], vec![f32::NAN; (tokens - first) * rows]];
            let take = |squares: &mut [amx::Square; 2], row: usize, token: usize| {
                let (each, count) = ((rows - row).min(amx::BLOCK), tokens - first - token);
                for (square, out) in squares.iter_mut().zip(&mut out) {
                    for (at, sums) in square.rows(count).chunks(amx::BLOCK).enumerate() {
                        out[(token + at) * rows + row..][..each].copy_from_slice(&sums[..each]);
                    }
                }
            };
            // SAFETY: as above.
            unsafe { amx::products(inputs, first..tokens, both, take) };
            near(&portable[first * rows..], &out[0]);
            near(&portable[first * rows..], &out[1].iter().map(|sum| -sum).collect::<Vec<f32>>());
        }
    }
}

#[cfg(target_arch = "x86_64")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_product_in_tiles(
        (tokens, rows, width, x, w) in (1_usize..110, 1_usize..80, widths_in_tiles()).prop_flat_map(|(tokens, rows, width)| {
            (Just(tokens), Just(rows), Just(width), numbers(tokens * width), numbers(rows * width))
        }),
    ) {
        products_in_tiles(tokens, rows, width, &x, &w);
    }

    #[test]
    fn deep_products_in_tiles(x in numbers(40 * 1_120), w in numbers(40 * 1_120)) {
        products_in_tiles(40, 40, 1_120, &x, &w);
        products_in_tiles(80, 40, 560, &x, &w[..40 * 560]);
    }

    #[test]
    fn any_sum_weighed_in_tiles(
        (rows, keys, width, weights, values) in (1_usize..50, 1_usize..70, 1_usize..70).prop_flat_map(|(rows, keys, width)| {
            (Just(rows), Just(keys), Just(width), numbers(rows * keys), numbers(keys * width))
        }),
        cut in 0_usize..70,
        behind in 0_usize..20,
    ) {
        if vectors::has_amx() {
            let (weights, values) = (narrowed::<bf16>(&weights), narrowed::<bf16>(&values));
            let rescale: Vec<f32> = (0..rows).map(|row| 1.0 / (1 + row) as f32).collect();
            let mut portable: Vec<f32> = (0..rows * width).map(|at| (at % 7) as f32).collect();
            let mut ours = portable.clone();
            let (weights, plain) = (widened(&weights), widened(&values));
            Weigh { weights: &weights, values: &plain, width, rescale: &rescale, total: &mut portable }.run::<8, false>();
            let (first, second) = values.split_at(cut.min(keys) * width);
            let parts = [Matrix::dense(first, width), Matrix::dense(second, width)];
            // Columns of no key have no weight.
            let padded: Vec<f32> = weights.chunks(keys).flat_map(|row| [row, &vec![0.0; behind]].concat()).collect();
            // SAFETY: the processor has the instructions.
            unsafe { amx::weigh(&padded, &parts, width, &rescale, &mut ours, &mut amx::Scratch::default()) };
            near(&portable, &ours);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_product(
        (tokens, rows, width, x, w) in (1_usize..16, 1_usize..40, 1_usize..290).prop_flat_map(|(tokens, rows, width)| {
            (Just(tokens), Just(rows), Just(width), numbers(tokens * width), numbers(rows * width))
        }),
    ) {
        products::<f32, f32>(tokens, rows, width, &x, &w);
        let narrow: Vec<bf16> = w.iter().map(|number| bf16::narrow(*number)).collect();
        products::<bf16, bf16>(tokens, rows, width, &x, &narrow);
        let integers: Vec<i8> = w.iter().map(|number| (number * 33.0) as i8).collect();
        products::<f32, i8>(tokens, rows, width, &x, &integers);
        products::<bf16, i8>(tokens, rows, width, &x, &integers);
        // Integers of four bits that have been widened.
        products::<bf16, f32>(tokens, rows, width, &x, &w);
    }

    #[test]
    fn any_numbers_capped(numbers in proptest::collection::vec(-400.0_f32..400.0, 1..50), cap in 1.0_f32..60.0) {
        let mut ours = numbers.clone();
        softcap(&mut ours, cap);
        for (number, ours) in numbers.iter().zip(ours) {
            let exact = f64::from(cap) * (f64::from(*number) / f64::from(cap)).tanh();
            prop_assert!((f64::from(ours) - exact).abs() <= 1e-6 * f64::from(cap), "{} of {} is {}", ours, number, exact);
        }
    }

    #[test]
    fn any_group_widened(
        (words, scales) in (1_usize..40).prop_flat_map(|groups| {
            (proptest::collection::vec(any::<u16>(), groups.div_ceil(4) * 32), numbers(groups))
        }),
    ) {
        let scales: Vec<bf16> = narrowed(&scales);
        let mut portable = vec![f32::NAN; scales.len() * 32];
        Widen { row: Row::new(&words, &scales), to: &mut portable }.run::<8, false>();
        for (at, number) in portable.iter().enumerate() {
            let nibble = i32::from(words[at / 128 * 32 + at % 32] >> (4 * (at / 32 % 4)) & 15);
            let integer = if nibble < 8 { nibble } else { nibble - 16 };
            prop_assert_eq!(*number, integer as f32 * scales[at / 32].widen());
        }
        let mut ours = vec![f32::NAN; portable.len()];
        vectorize(Widen { row: Row::new(&words, &scales), to: &mut ours });
        prop_assert_eq!(&portable, &ours);
        #[cfg(target_arch = "x86_64")]
        if vectors::has_avx512() {
            let mut ours = vec![bf16::NAN; portable.len()];
            // SAFETY: the processor has the instructions.
            unsafe { crate::int4::avx512::widen(Row::new(&words, &scales), &mut ours) };
            prop_assert_eq!(widened(&narrowed::<bf16>(&portable)), widened(&ours));
        }
    }

    #[test]
    fn deep_products(x in numbers(30 * 4_130), w in numbers(40 * 4_130)) {
        // Sums go back to memory in between, and bands are of several heights. Small factors keep what rounding leaves of long sums
        // that cancel out below what is allowed.
        let x: Vec<f32> = x.into_iter().map(|number| number / 4096.0).collect();
        let narrow: Vec<bf16> = narrowed(&w);
        products::<bf16, bf16>(30, 40, 4_130, &x, &narrow);
        let integers: Vec<i8> = w.iter().map(|number| (number * 33.0) as i8).collect();
        products::<bf16, i8>(29, 40, 4_130, &x[..29 * 4_130], &integers);
    }

    #[test]
    fn any_softmax_and_what_it_weighs(
        (rows, keys, width, scores, values) in (1_usize..9, 1_usize..40, 1_usize..70).prop_flat_map(|(rows, keys, width)| {
            (Just(rows), Just(keys), Just(width), numbers(rows * keys), numbers(keys * width))
        }),
        masked in 0_usize..40,
        before in prop_oneof![Just(f32::NEG_INFINITY), -9.0_f32..9.0],
    ) {
        let mut scores = scores;
        for row in scores.chunks_exact_mut(keys) {
            row.iter_mut().take(masked).for_each(|score| *score = f32::NEG_INFINITY);
            let mut portable = row.to_vec();
            let (most, sum) = Weights { scores: &mut portable, most: before }.run::<8, false>();
            let (found, total) = weights_of(row, before);
            prop_assert_eq!(most, found);
            near(&[sum], &[total]);
            near(&portable, row);
        }
        let rescale: Vec<f32> = (0..rows).map(|row| 1.0 / (1 + row) as f32).collect();
        let mut portable: Vec<f32> = (0..rows * width).map(|at| (at % 7) as f32).collect();
        let mut ours = portable.clone();
        let (weights, values) = (&scores, &values);
        Weigh { weights, values, width, rescale: &rescale, total: &mut portable }.run::<8, false>();
        weigh(weights, Matrix::dense(values, width), &rescale, &mut ours);
        near(&portable, &ours);
        // Values that are not widened before.
        let narrow: Vec<bf16> = narrowed(values);
        let values = widened(&narrow);
        let mut portable = ours.clone();
        Weigh { weights, values: &values, width, rescale: &rescale, total: &mut portable }.run::<8, false>();
        weigh(weights, Matrix::dense(&narrow, width), &rescale, &mut ours);
        near(&portable, &ours);
    }

    #[test]
    fn any_gate((mut gate, up) in (1_usize..70).prop_flat_map(|count| (numbers(count), numbers(count)))) {
        let mut portable = gate.clone();
        Gate::<bf16>::new(&mut portable, &up).run::<8, false>();
        gated::<bf16>(&mut gate, &up);
        for (portable, ours) in portable.iter().zip(&gate) {
            // Powers that differ in the last place may round to the next bfloat16, twice.
            prop_assert!((portable - ours).abs() <= 0.02 * portable.abs() + 1e-6, "{} and {}", portable, ours);
            prop_assert_eq!(bf16::narrow(*ours).widen(), *ours);
        }
    }
}

#[test]
fn gates_that_are_no_numbers_or_very_large() {
    let mut gate: Vec<f32> = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0, -0.0].repeat(3);
    let up = vec![1.0; gate.len()];
    let mut portable = gate.clone();
    Gate::<bf16>::new(&mut portable, &up).run::<8, false>();
    gated::<bf16>(&mut gate, &up);
    for (portable, ours) in portable.iter().zip(&gate) {
        assert!(portable == ours || portable.is_nan() && ours.is_nan(), "{portable} and {ours}");
    }
}

#[test]
fn scores_that_are_no_numbers_or_none_at_all() {
    for scores in
        [vec![f32::NAN; 20], vec![f32::NEG_INFINITY; 20], [vec![1.0; 9], vec![f32::NAN], vec![2.0; 9]].concat()]
    {
        let (mut portable, mut ours) = (scores.clone(), scores);
        let (most, sum) = Weights { scores: &mut portable, most: f32::NEG_INFINITY }.run::<8, false>();
        let (found, total) = weights_of(&mut ours, f32::NEG_INFINITY);
        assert_eq!((most, sum.is_nan()), (found, total.is_nan()));
        for (portable, ours) in portable.iter().zip(&ours) {
            assert!(portable.is_nan() == ours.is_nan() && (portable.is_nan() || (portable - ours).abs() < 1e-6));
        }
    }
}
