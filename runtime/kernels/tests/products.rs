//! Products against sums in f64, over odd shapes.
#![expect(clippy::unwrap_used, reason = "test helpers")]

mod packed;

use gemma4_kernels::linear::{Inputs, LayerRows};
use gemma4_kernels::{Number, Weights};
use half::bf16;
use proptest::prelude::*;

/// Numbers of a generator that anybody can repeat: splitmix64.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Products of numbers anywhere.
fn check<X: Number, Y: Number>(tokens: usize, width: usize, rows: usize, seed: u64) {
    let inputs: Vec<X> = numbers(seed, tokens * width).into_iter().map(X::narrow).collect();
    let weights: Vec<X> = numbers(seed ^ 1, rows * width).into_iter().map(X::narrow).collect();
    let exact: Vec<f64> = weights.iter().map(|weight| f64::from(weight.widen())).collect();
    check_sums::<X, Y>(&inputs, width, (&weights).into(), &exact, &vec![1.0; rows], 0.0);
}

/// Products of numbers with integers anywhere, the outermost ones and zeros among them, and scales of any size.
fn check_int8<X: Number, Y: Number>(tokens: usize, width: usize, rows: usize, seed: u64) {
    let inputs: Vec<X> = numbers(seed, tokens * width).into_iter().map(X::narrow).collect();
    let of = |number: f32| (number * 160.0).clamp(-127.0, 127.0) as i8;
    let values: Vec<i8> = numbers(seed ^ 1, rows * width).into_iter().map(of).collect();
    let scales: Vec<f32> =
        (0..rows as i32).map(|row| if row % 7 == 3 { 0.0 } else { 1.7_f32.powi(row % 23 - 20) }).collect();
    let exact: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
    check_sums::<X, Y>(&inputs, width, Weights::Int8 { values: &values, scales: &scales }, &exact, &scales, 0.0);
}

/// Products of numbers with integers of four bits anywhere, and scales of any size and sign, in some groups 0.
fn check_int4<X: Number, Y: Number>(tokens: usize, groups: usize, rows: usize, seed: u64) {
    let width = groups * 32;
    let inputs: Vec<X> = numbers(seed, tokens * width).into_iter().map(X::narrow).collect();
    let of = |number: f32| (number * 9.0).clamp(-8.0, 7.0) as i8;
    let values: Vec<i8> = numbers(seed ^ 1, rows * width).into_iter().map(of).collect();
    let scale = |group: i32| match group % 7 {
        3 => bf16::ZERO,
        even => bf16::from_f32(1.7_f32.powi(group % 23 - 20) * if even % 2 == 0 { 1.0 } else { -1.0 }),
    };
    let scales: Vec<bf16> = (0..(rows * groups) as i32).map(scale).collect();
    let exact: Vec<f64> =
        values.iter().enumerate().map(|(at, value)| f64::from(*value) * scales[at / 32].to_f64()).collect();
    let words = packed::pack(&values, width);
    // More than one row may meet weights that are rounded to its type.
    let rounding = if tokens > 1 && X::narrow(1.0 + f32::EPSILON).widen() == 1.0 { 2.0_f64.powi(-9) } else { 0.0 };
    let weights = Weights::Int4 { values: &words, scales: &scales };
    check_sums::<X, Y>(&inputs, width, weights, &exact, &vec![1.0; rows], rounding);
}

/// Every sum is within what rounding of f32 sums of these products can make, and of one rounding to the result's type; with weights
/// that are `rounding` off.
fn check_sums<X: Number, Y: Number>(
    inputs: &[X],
    width: usize,
    weights: Weights<'_, X>,
    exact: &[f64],
    scales: &[f32],
    rounding: f64,
) {
    let (tokens, rows) = (inputs.len() / width, scales.len());
    let mut out = vec![Y::narrow(f32::NAN); tokens * rows];
    Inputs::new(inputs, width).product(weights, &mut out).unwrap();
    // The last bit of the result's type, beside the accumulated error of the sum.
    let last = f64::from(Y::narrow(1.0 + f32::EPSILON * 3.0).widen()) - 1.0;
    let step = if last > 0.0 { 2.0_f64.powi(-23) } else { 2.0_f64.powi(-8) };
    for token in 0..tokens {
        for (row, scale) in scales.iter().enumerate() {
            let pairs = inputs[token * width..][..width].iter().zip(&exact[row * width..][..width]);
            let terms: Vec<f64> = pairs.map(|(x, w)| f64::from(x.widen()) * w * f64::from(*scale)).collect();
            let (sum, size): (f64, f64) = (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum());
            let found = f64::from(out[token * rows + row].widen());
            let bound = size * (width as f64 * 2.0_f64.powi(-24) + rounding) + sum.abs() * step + 1e-30;
            assert!((found - sum).abs() <= bound, "{tokens}x{width}x{rows} [{token},{row}]: {found} for {sum}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape(tokens in 0_usize..40, width in 1_usize..300, rows in 0_usize..90, seed: u64) {
        check::<bf16, bf16>(tokens, width, rows, seed);
        check::<bf16, f32>(tokens, width, rows, seed);
        check::<f32, f32>(tokens, width, rows, seed);
        check_int8::<bf16, bf16>(tokens, width, rows, seed);
        check_int8::<bf16, f32>(tokens, width, rows, seed);
        check_int8::<f32, f32>(tokens, width, rows, seed);
    }

    #[test]
    fn any_groups(tokens in 0_usize..40, groups in 1_usize..20, rows in 0_usize..90, seed: u64) {
        check_int4::<bf16, bf16>(tokens, groups, rows, seed);
        check_int4::<bf16, f32>(tokens, groups, rows, seed);
        check_int4::<f32, f32>(tokens, groups, rows, seed);
        // One row has a form of its own.
        check_int4::<bf16, f32>(1, groups, rows, seed);
        check_int4::<f32, f32>(1, groups, rows, seed);
    }

    #[test]
    fn narrowing_is_that_of_half(bits: u32) {
        let value = f32::from_bits(bits);
        let (ours, theirs) = (<bf16 as Number>::narrow(value), bf16::from_f32(value));
        prop_assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan());
        prop_assert!(!value.is_nan() || ours.is_nan());
    }
}

#[test]
fn borders_of_tiles_and_blocks() {
    for tokens in [1, 3, 5, 23, 24, 25, 30, 767, 769] {
        check::<bf16, f32>(tokens, 257, 65, 7);
        check_int8::<bf16, f32>(tokens, 257, 65, 7);
        check_int8::<f32, f32>(tokens, 257, 65, 7);
        check_int4::<bf16, f32>(tokens, 9, 65, 7);
        check_int4::<f32, f32>(tokens, 9, 65, 7);
    }
    for width in [1, 7, 8, 9, 255, 256, 512, 513] {
        for (tokens, rows) in [(26, 33), (4, 5), (1, 6)] {
            check::<bf16, f32>(tokens, width, rows, 8);
            check_int8::<bf16, f32>(tokens, width, rows, 9);
        }
    }
}

#[test]
fn integers_that_are_widened_in_parts() {
    // More than are widened at a time, and not a multiple of it; and more rows of input than one part of the weights meets.
    for tokens in [1, 2, 9, 33, 70, 385] {
        check_int8::<bf16, f32>(tokens, 2_100, 301, 10);
        check_int4::<bf16, f32>(tokens, 65, 301, 10);
        check_int4::<f32, f32>(tokens, 65, 301, 10);
    }
}

#[test]
fn values_that_are_no_numbers_stay_in_their_row_and_column() {
    for tokens in [2, 30] {
        let (width, rows) = (40, 20);
        let mut inputs = vec![bf16::ONE; tokens * width];
        inputs[width + 3] = bf16::INFINITY;
        let mut weights = vec![bf16::ONE; rows * width];
        weights[5 * width + 39] = bf16::NAN;
        weights[6 * width + 3] = bf16::ZERO;
        let mut out = vec![0.0_f32; tokens * rows];
        Inputs::<bf16>::new(&inputs, width).product(&weights, &mut out).unwrap();
        for token in 0..tokens {
            for row in 0..rows {
                let found = out[token * rows + row];
                match (token, row) {
                    (_, 5) | (1, 6) => assert!(found.is_nan(), "[{token},{row}]: {found}"),
                    (1, _) => assert_eq!(found, f32::INFINITY),
                    _ => assert_eq!(found, if row == 6 { 39.0 } else { 40.0 }),
                }
            }
        }
    }
}

#[test]
fn capped_products_are_those_of_tanh() {
    let mut inputs: Vec<f32> = (-4000..4000).map(|at| at as f32 / 7.0).collect();
    inputs.extend([0.0, 1e-20, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    for cap in [30.0_f32, 0.5] {
        let mut out = vec![0.0_f32; inputs.len()];
        Inputs::new(&inputs, 1).capped(Some(cap)).product(&[1.0_f32], &mut out).unwrap();
        for (x, y) in inputs.iter().zip(out) {
            let exact = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
            assert!(
                (f64::from(y) - exact).abs() <= 3e-7 * f64::from(cap) || x.is_nan() && y.is_nan(),
                "{x}: {y}, {exact}"
            );
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let inputs = [1.0_f32; 12];
    assert!(Inputs::<f32>::new(&inputs, 5).product(&[1.0_f32; 10], &mut [0.0_f32; 4]).is_err());
    assert!(Inputs::<f32>::new(&inputs, 4).product(&[1.0_f32; 10], &mut [0.0_f32; 4]).is_err());
    assert!(Inputs::<f32>::new(&inputs, 4).product(&[1.0_f32; 8], &mut [0.0_f32; 5]).is_err());
    assert!(Inputs::<f32>::new(&inputs, 0).product(&[1.0_f32; 8], &mut [0.0_f32; 5]).is_err());
    assert!(Inputs::<f32>::new(&inputs, 4).product(&[1.0_f32; 8], &mut [0.0_f32; 6]).is_ok());
    for (count, fits) in [(1, false), (2, true), (3, false)] {
        let weights = Weights::Int8 { values: &[1; 8], scales: &[0.5, 2.0, 1.0][..count] };
        let mut out = [0.0; 6];
        assert_eq!(Inputs::<f32>::new(&inputs, 4).product(weights, &mut out).is_ok(), fits);
        assert_eq!(out, if fits { [2.0, 8.0, 2.0, 8.0, 2.0, 8.0] } else { [0.0; 6] });
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    const WORDS: [u16; 96] = [0x1111; 96];
    const SCALES: [bf16; 4] = [bf16::ONE; 4];
    let (inputs, mut out) = ([1.0_f32; 128], [0.0_f32; 4]);
    // Two rows of two groups; fewer or more words; a scale less; rows of one group and a half.
    for (width, words, scales, fits) in
        [(64, 64, 4, true), (64, 32, 4, false), (64, 96, 4, false), (64, 64, 3, false), (48, 64, 3, false)]
    {
        let weights = Weights::Int4 { values: &WORDS[..words], scales: &SCALES[..scales] };
        let (inputs, out) = (&inputs[..2 * width.min(64)], &mut out);
        assert_eq!(Inputs::<f32>::new(inputs, width).product(weights, out).is_ok(), fits, "{width}, {words}, {scales}");
    }
    assert_eq!(out, [64.0; 4]);
}

#[test]
fn several_callers_at_a_time() {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || (0..20).for_each(|round| check::<bf16, bf16>(1 + round, 128, 200, seed)));
        }
    });
}

#[test]
fn matrices_that_are_multiplied_together_are_as_each_alone() {
    for tokens in [1, 5, 70] {
        let (width, sizes) = (72, [30, 1, 100]);
        let inputs: Vec<bf16> = numbers(3, tokens * width).into_iter().map(bf16::from_f32).collect();
        let inputs = Inputs::<bf16>::new(&inputs, width);
        let matrix =
            |rows: usize| numbers(rows as u64, rows * width).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let weights = sizes.map(matrix);
        let mut together = sizes.map(|rows| vec![bf16::ZERO; tokens * rows]);
        let pairs = weights.iter().zip(&mut together).map(|(weights, out)| (weights.into(), out.as_mut_slice()));
        inputs.products(pairs.collect()).unwrap();
        for (weights, together) in weights.iter().zip(&together) {
            let mut alone = vec![bf16::ZERO; together.len()];
            inputs.product(weights, &mut alone).unwrap();
            assert_eq!(&alone, together);
        }
    }
}

#[test]
fn gates_are_bent_and_let_through() {
    for (tokens, rows, width) in [(1, 9, 40), (3, 70, 64), (70, 33, 50)] {
        let inputs = numbers(5, tokens * width);
        let (gate, up) = (numbers(6, rows * width), numbers(7, rows * width));
        let mut out = vec![0.0_f32; tokens * rows];
        Inputs::<f32>::new(&inputs, width).gated(&(&gate).into(), &(&up).into(), &mut out).unwrap();
        for (at, found) in out.iter().enumerate() {
            let input = &inputs[at / rows * width..][..width];
            let dot = |matrix: &[f32]| -> f64 {
                let row = &matrix[at % rows * width..][..width];
                input.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let (gate, up) = (dot(&gate), dot(&up));
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            let expected = gate / 2.0 * (1.0 + inner.tanh()) * up;
            assert!((f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} for {expected}");
        }
    }
}

#[test]
fn gates_let_rows_of_a_layer_through() {
    for (tokens, width, layers, layer) in [(1, 9, 3, 2), (5, 40, 2, 0), (70, 33, 4, 1)] {
        let inputs = numbers(5, tokens * 24);
        let (gate, rows) = (numbers(6, width * 24), numbers(7, tokens * layers * width));
        let inputs = Inputs::<f32>::new(&inputs, 24);
        // The same with a matrix that makes exactly 1 of everything is what the gate alone makes.
        let mut out = vec![0.0_f32; tokens * width];
        let of = |layer| LayerRows { values: &rows, layers, width, layer };
        inputs.gated_rows(&(&gate).into(), &of(layer), &mut out).unwrap();
        let mut ones = vec![0.0_f32; tokens * width];
        let all = vec![1.0_f32; tokens * width];
        inputs.gated_rows(&(&gate).into(), &LayerRows { values: &all, layers: 1, width, layer: 0 }, &mut ones).unwrap();
        let mut product = vec![0.0_f32; tokens * width];
        inputs.product(&gate, &mut product).unwrap();
        for (at, found) in out.iter().enumerate() {
            let factor = rows[((at / width) * layers + layer) * width + at % width];
            assert_eq!(*found, ones[at] * factor);
            let gate = f64::from(product[at]);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            assert!((f64::from(ones[at]) - gate / 2.0 * (1.0 + inner.tanh())).abs() < 1e-5);
        }
        assert!(inputs.gated_rows(&(&gate).into(), &of(layers), &mut out).is_err(), "there is no such layer");
    }
}
