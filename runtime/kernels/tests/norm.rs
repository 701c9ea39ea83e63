//! Norms against f64, over odd widths.

use gemma4_kernels::norm::rms_norm;
use half::bf16;
use proptest::prelude::*;

fn numbers(count: usize, scale: f32) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(-1.0_f32..1.0, count).prop_map(move |all| all.iter().map(|x| x * scale).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_rows(
        (width, x, weight, residual) in (0_usize..40, 1_usize..70).prop_flat_map(|(rows, width)| {
            (Just(width), numbers(rows * width, 30.0), numbers(width, 2.0), numbers(rows * width, 5.0))
        }),
        adds: bool,
    ) {
        let eps = 1e-6_f32;
        let mut out = vec![f32::NAN; x.len()];
        rms_norm(&x, &weight, adds.then_some(&residual), eps, &mut out).unwrap();
        for (row, found) in out.chunks(width).enumerate() {
            let x: Vec<f64> = x[row * width..][..width].iter().copied().map(f64::from).collect();
            let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(eps);
            for (at, found) in found.iter().enumerate() {
                let added = if adds { f64::from(residual[row * width + at]) } else { 0.0 };
                let expected = x[at] / mean.sqrt() * f64::from(weight[at]) + added;
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{found} for {expected}");
            }
        }
    }
}

#[test]
fn both_steps_round() {
    // A norm of equal numbers is 1 but for eps; 256 + 1.01 has no place for the 1.01's fraction.
    let (x, weight, residual) = ([bf16::ONE; 8], [bf16::from_f32(1.01); 8], [bf16::from_f32(256.0); 8]);
    let mut out = [bf16::ZERO; 8];
    rms_norm(&x, &weight, None, 0.0, &mut out).unwrap();
    assert_eq!(out, [bf16::from_f32(1.01); 8]);
    rms_norm(&x, &weight, Some(&residual), 0.0, &mut out).unwrap();
    assert_eq!(out, [bf16::from_f32(256.0 + bf16::from_f32(1.01).to_f32()); 8]);
}

#[test]
fn a_row_that_is_no_number_leaves_the_others_alone() {
    let mut out = [0.0_f32; 4];
    rms_norm(&[f32::NAN, 1.0, 2.0, 2.0], &[1.0, 1.0], None, 0.0, &mut out).unwrap();
    assert!(out[0].is_nan() && out[1].is_nan());
    assert_eq!(out[2..], [1.0, 1.0]);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    assert!(rms_norm(&[1.0_f32; 5], &[1.0; 2], None, 0.0, &mut [0.0; 5]).is_err());
    assert!(rms_norm(&[1.0_f32; 4], &[], None, 0.0, &mut [0.0; 4]).is_err());
    assert!(rms_norm(&[1.0_f32; 4], &[1.0; 2], Some(&[1.0; 2]), 0.0, &mut [0.0; 4]).is_err());
    assert!(rms_norm(&[1.0_f32; 4], &[1.0; 2], None, 0.0, &mut [0.0; 2]).is_err());
}
