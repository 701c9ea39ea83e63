//! Products of few rows: every weight is read once, in the order in which it lies in memory.
//!
//! A tile is [`ROWS`] rows of the matrix by up to [`TOKENS`] rows of the input, with an accumulator of lanes for each pair:
//! twelve accumulators and four weights fill the sixteen registers of AVX2.

use crate::number::Weight;
use crate::vectors::{Lanes, fma, sum};

/// Rows of the matrix in a tile.
const ROWS: usize = 4;
/// Rows of the input in a tile.
const TOKENS: usize = 3;

/// `out[token][row] = weights[row] . inputs[token]` for all rows of `weights`.
pub(crate) struct Dots<'a, W> {
    /// `[tokens, width]`.
    pub(crate) inputs: &'a [f32],
    /// `[rows, width]`.
    pub(crate) weights: &'a [W],
    /// Length of a row, not 0.
    pub(crate) width: usize,
    /// `[tokens, rows]`.
    pub(crate) out: &'a mut [f32],
}

impl<W: Weight> Lanes for Dots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        dots::<L, FUSED, W>(self.inputs, self.weights, self.width, self.out);
    }
}

/// [`Dots`], for who is in lanes already.
#[inline(always)]
pub(crate) fn dots<const L: usize, const FUSED: bool, W: Weight>(
    inputs: &[f32],
    weights: &[W],
    width: usize,
    out: &mut [f32],
) {
    let all = weights.len() / width;
    let mut row = 0;
    while row < all {
        let weights = &weights[row * width..];
        let Some(out) = out.get_mut(row..) else { return };
        row += if all - row >= ROWS {
            rows::<L, FUSED, ROWS, W>(inputs, weights, width, out, all)
        } else {
            rows::<L, FUSED, 1, W>(inputs, weights, width, out, all)
        };
    }
}

/// `R` rows of the matrix, of `all`, with all rows of the input. Returns `R`.
#[inline(always)]
fn rows<const L: usize, const FUSED: bool, const R: usize, W: Weight>(
    inputs: &[f32],
    weights: &[W],
    width: usize,
    out: &mut [f32],
    all: usize,
) -> usize {
    let tokens = inputs.len() / width;
    let mut first = 0;
    while first < tokens {
        let (inputs, out) = (&inputs[first * width..], &mut out[first * all..]);
        first += match tokens - first {
            1 => tile::<L, FUSED, R, 1, W>(inputs, weights, width, out, all),
            2 | 4 => tile::<L, FUSED, R, 2, W>(inputs, weights, width, out, all),
            _ => tile::<L, FUSED, R, TOKENS, W>(inputs, weights, width, out, all),
        };
    }
    R
}

/// `R` rows of the matrix with the first `T` rows of the input. Returns `T`.
#[inline(always)]
fn tile<const L: usize, const FUSED: bool, const R: usize, const T: usize, W: Weight>(
    inputs: &[f32],
    weights: &[W],
    width: usize,
    out: &mut [f32],
    all: usize,
) -> usize {
    let weights: [&[W]; R] = std::array::from_fn(|row| &weights[row * width..][..width]);
    let inputs: [&[f32]; T] = std::array::from_fn(|token| &inputs[token * width..][..width]);
    let mut sums = [[[0.0_f32; L]; T]; R];
    let (count, whole) = (width / L, width / L * L);
    // Whole arrays of lanes, all as long: nothing is left to check in the loop, and the compiler keeps the sums in registers.
    let weight_lanes: [&[[W; L]]; R] = std::array::from_fn(|row| &weights[row].as_chunks().0[..count]);
    let input_lanes: [&[[f32; L]]; T] = std::array::from_fn(|token| &inputs[token].as_chunks().0[..count]);
    for at in 0..count {
        for row in 0..R {
            let mut weight = [0.0_f32; L];
            for lane in 0..L {
                weight[lane] = weight_lanes[row][at][lane].widen();
            }
            for token in 0..T {
                let input = input_lanes[token][at];
                for lane in 0..L {
                    sums[row][token][lane] = fma::<FUSED>(weight[lane], input[lane], sums[row][token][lane]);
                }
            }
        }
    }
    for row in 0..R {
        for token in 0..T {
            let mut total = sum(sums[row][token]);
            for (weight, input) in weights[row][whole..].iter().zip(&inputs[token][whole..]) {
                total += weight.widen() * input;
            }
            out[token * all + row] = total;
        }
    }
    T
}
