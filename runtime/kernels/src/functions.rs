//! Functions of lanes of f32.

use crate::vectors::fma;

/// Below this, `e^x` is not a normal number: it counts as 0.
const LEAST: f32 = -87.3;
/// Above this, `e^x` is taken for that of this.
const MOST: f32 = 88.3;
/// Adding and subtracting it rounds to an integer: 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;

/// `e^x` within two units in the last place; 0 below -87.3, and never more than `e^88.3`. NaN stays NaN.
///
/// `x = n ln 2 + r` with `r` in two parts of ln 2 (Cody and Waite), then the polynomial of Cephes' `expf` for `e^r`.
#[inline(always)]
pub(crate) fn exp<const L: usize, const FUSED: bool>(x: [f32; L]) -> [f32; L] {
    let mut out = [0.0; L];
    for lane in 0..L {
        let value = x[lane];
        let bounded = if value > MOST { MOST } else { value };
        let bounded = if bounded < LEAST { LEAST } else { bounded };
        let n = fma::<FUSED>(bounded, std::f32::consts::LOG2_E, ROUND) - ROUND;
        let r = fma::<FUSED>(n, -0.693_359_4, bounded);
        let r = fma::<FUSED>(n, 2.121_944_4e-4, r);
        let mut p = 1.987_569_1e-4;
        for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = fma::<FUSED>(p, r, factor);
        }
        let power = fma::<FUSED>(p * r, r, r) + 1.0;
        // `n` lies between -126 and 127; with NaN it is anything, and the power stays NaN.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        let exponent = (n as i32).wrapping_add(127) << 23;
        let scaled = power * f32::from_bits(exponent.cast_unsigned());
        out[lane] = if value < LEAST { 0.0 } else { scaled };
    }
    out
}

/// The tanh form of GELU: `x/2 * (1 + tanh(y))` with `y = sqrt(2/pi) * (x + 0.044715 x^3)`, which is `x / (1 + e^-2y)`.
#[inline(always)]
pub(crate) fn gelu<const L: usize, const FUSED: bool>(x: [f32; L]) -> [f32; L] {
    /// `2 * sqrt(2/pi)`.
    const TWICE_ROOT: f32 = 1.595_769;
    let mut inner = [0.0; L];
    for lane in 0..L {
        let value = x[lane];
        inner[lane] = -TWICE_ROOT * fma::<FUSED>(0.044_715 * value * value, value, value);
    }
    let powers = exp::<L, FUSED>(inner);
    let mut out = [0.0; L];
    for lane in 0..L {
        out[lane] = x[lane] / (1.0 + powers[lane]);
    }
    out
}
