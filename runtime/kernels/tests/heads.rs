//! Heads against norms and turns in float64.

use gemma4_kernels::Number;
use gemma4_kernels::heads::{HeadsError, Side, Turns, norm_heads};
use half::bf16;
use proptest::prelude::*;

const EPS: f64 = 1e-6;

fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec((-4096_i16..4096).prop_map(|number| f32::from(number) / 512.0), count)
}

/// Heads of `width` elements with the cosines and sines `[T, width/2]`, rounded by `round` between the norm and the turn.
fn reference(
    x: &[f64],
    norm: Option<&[f64]>,
    (cos, sin): (&[f64], &[f64]),
    width: usize,
    round: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let half = width / 2;
    let tokens = cos.len() / half;
    let heads = x.len() / tokens / width;
    let mut out = Vec::new();
    for (number, head) in x.chunks(width).enumerate() {
        let mean = head.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let weight = |at: usize| norm.map_or(1.0, |norm| norm[at]);
        let normed: Vec<f64> =
            head.iter().enumerate().map(|(at, x)| round(x / (mean + EPS).sqrt() * weight(at))).collect();
        let turn = number / heads * half;
        out.extend((0..width).map(|at| {
            let (cos, sin) = (cos[turn + at % half], sin[turn + at % half]);
            match norm {
                None => normed[at],
                Some(_) if at < half => normed[at] * cos - normed[at + half] * sin,
                Some(_) => normed[at] * cos + normed[at - half] * sin,
            }
        }));
    }
    out
}

fn wide<W: Number>(elements: &[W]) -> Vec<f64> {
    elements.iter().map(|element| f64::from(element.widen())).collect()
}

/// Keys and values beside each other, within `error` of the reference.
fn check<W: Number>(x: [&[f32]; 2], norm: &[f32], angles: &[f32], width: usize, error: f64) {
    let narrow = |numbers: &[f32]| numbers.iter().map(|number| W::narrow(*number)).collect::<Vec<W>>();
    let ([keys, values], norm) = (x.map(narrow), narrow(norm));
    let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
    let mut out = vec![W::default(); keys.len() + values.len()];
    let sides = [Side { x: &keys, norm: Some(&norm) }, Side { x: &values, norm: None }];
    assert_eq!(norm_heads(&sides, Turns { cos: &cos, sin: &sin }, width, EPS as f32, &mut out), Ok(()));
    let turns = (wide(&cos), wide(&sin));
    let round = |number: f64| f64::from(W::narrow(number as f32).widen());
    let keys = reference(&wide(&keys), Some(&wide(&norm)), (&turns.0, &turns.1), width, round);
    let values = reference(&wide(&values), None, (&turns.0, &turns.1), width, round);
    let tokens = angles.len() / (width / 2);
    let of_token = |side: &[f64], token: usize| side.chunks(side.len() / tokens).nth(token).map(<[f64]>::to_vec);
    let expected: Vec<f64> =
        (0..tokens).flat_map(|token| [of_token(&keys, token), of_token(&values, token)]).flatten().flatten().collect();
    for (ours, expected) in wide(&out).iter().zip(&expected) {
        assert!((ours - expected).abs() <= error * (1.0 + expected.abs()), "{ours} in place of {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_heads(
        (width, keys, values, norm, angles) in (1_usize..40, 1_usize..4, 1_usize..30).prop_flat_map(|(half, heads, tokens)| {
            let count = 2 * half * heads * tokens;
            (Just(2 * half), numbers(count), numbers(count), numbers(2 * half), numbers(half * tokens))
        }),
    ) {
        check::<f32>([&keys, &values], &norm, &angles, width, 1e-4);
        // Numbers that round to neighbours before they are turned are apart by up to the last place of the larger of a pair.
        check::<bf16>([&keys, &values], &norm, &angles, width, 0.1);
    }
}

#[test]
fn what_is_no_number_stays_in_its_head() {
    let mut x = vec![1.0_f32; 3 * 2 * 8];
    x[9] = f32::NAN;
    let (norm, cos, sin) = (vec![1.0_f32; 8], vec![1.0_f32; 3 * 4], vec![0.0_f32; 3 * 4]);
    let mut out = vec![0.0_f32; x.len()];
    let sides = [Side { x: &x, norm: Some(&norm) }];
    assert_eq!(norm_heads(&sides, Turns { cos: &cos, sin: &sin }, 8, 1e-6, &mut out), Ok(()));
    for (head, out) in out.chunks(8).enumerate() {
        assert!(out.iter().all(|number| number.is_nan() == (head == 1)), "head {head}: {out:?}");
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let (x, norm, turns) = (vec![0.0_f32; 32], vec![0.0_f32; 8], vec![0.0_f32; 8]);
    let run = |x: &[f32], norm: &[f32], cos: &[f32], sin: &[f32], width: usize, out: usize| {
        let mut out = vec![0.0_f32; out];
        norm_heads(&[Side { x, norm: Some(norm) }], Turns { cos, sin }, width, 1e-6, &mut out)
    };
    assert_eq!(run(&x, &norm, &turns, &turns, 8, 32), Ok(()));
    assert_eq!(run(&x, &norm, &turns, &turns[1..], 8, 32), Err(HeadsError("a turn")));
    assert_eq!(run(&x, &norm, &turns, &turns, 7, 32), Err(HeadsError("a turn")));
    assert_eq!(run(&x, &norm, &turns, &turns, 0, 32), Err(HeadsError("a turn")));
    assert_eq!(run(&x, &norm[1..], &turns, &turns, 8, 32), Err(HeadsError("a norm")));
    assert_eq!(run(&x[1..], &norm, &turns, &turns, 8, 31), Err(HeadsError("a side")));
    assert_eq!(run(&x, &norm, &[], &[], 8, 32), Err(HeadsError("a side")));
    assert_eq!(run(&x, &norm, &turns, &turns, 8, 31), Err(HeadsError("the output")));
}
