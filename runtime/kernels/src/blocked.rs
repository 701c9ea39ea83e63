//! Products of many rows: weights are widened once into panels that stay in the caches, and every panel meets all rows.
//!
//! A tile is [`TOKENS`] rows of the input by two registers of columns. Depth is cut into blocks of [`DEPTH`], so that a panel
//! of 16 columns takes 16 KiB.

use crate::number::{Number, Weight};
use crate::vectors::{Lanes, fma};

/// Rows of the input in a tile: six by two registers are the twelve accumulators that leave AVX2 four registers.
const TOKENS: usize = 6;
/// Elements of a row that are multiplied before sums go back to memory.
const DEPTH: usize = 256;

/// `out[token][row] = weights[row] . inputs[token]` for some rows of `weights`.
pub(crate) struct Blocked<'a, X, W> {
    /// `[tokens, width]`.
    pub(crate) inputs: &'a [X],
    /// `[rows, width]`.
    pub(crate) weights: &'a [W],
    /// Length of a row, not 0.
    pub(crate) width: usize,
    /// `[tokens, stride]`, of which the first as many columns as there are rows are written, and perhaps the others.
    pub(crate) out: &'a mut [f32],
    /// A multiple of 16 that is at least the number of rows.
    pub(crate) stride: usize,
}

impl<X: Number, W: Weight> Lanes for Blocked<'_, X, W> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        // Two registers of AVX2.
        blocked::<16, FUSED, X, W>(self);
    }
}

/// Columns of a panel `C`.
#[inline(always)]
fn blocked<const C: usize, const FUSED: bool, X: Number, W: Weight>(work: Blocked<'_, X, W>) {
    let Blocked { inputs, weights, width, out, stride } = work;
    let (tokens, rows) = (inputs.len() / width, weights.len() / width);
    let panels = rows.div_ceil(C);
    let mut packed = vec![[0.0_f32; C]; panels * DEPTH.min(width)];
    let mut wide = vec![0.0_f32; tokens * DEPTH.min(width)];
    let mut first = 0;
    while first < width {
        let depth = DEPTH.min(width - first);
        for (panel, packed) in packed.chunks_exact_mut(depth).enumerate().take(panels) {
            pack::<C, W>(&weights[panel * C * width..], width, first, packed);
        }
        for (row, to) in wide.chunks_exact_mut(depth).enumerate().take(tokens) {
            let from = &inputs[row * width + first..][..depth];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
        }
        let mut token = 0;
        while token < tokens {
            let taken = (tokens - token).min(TOKENS);
            for (panel, packed) in packed.chunks_exact(depth).enumerate().take(panels) {
                let place = token * stride + panel * C;
                let (inputs, out) = (&wide[token * depth..], &mut out[place..]);
                if taken == TOKENS {
                    tile::<C, FUSED, TOKENS>(inputs, packed, out, stride, first == 0);
                } else {
                    for one in 0..taken {
                        tile::<C, FUSED, 1>(
                            &inputs[one * depth..],
                            packed,
                            &mut out[one * stride..],
                            stride,
                            first == 0,
                        );
                    }
                }
            }
            token += taken;
        }
        first += depth;
    }
}

/// Up to `C` rows of the matrix from element `first` on, turned so that their elements at one place are neighbours.
#[inline(always)]
fn pack<const C: usize, W: Weight>(weights: &[W], width: usize, first: usize, packed: &mut [[f32; C]]) {
    let depth = packed.len();
    for column in 0..C {
        match weights.get(column * width + first..).and_then(|row| row.get(..depth)) {
            Some(row) => packed.iter_mut().zip(row).for_each(|(packed, weight)| packed[column] = weight.widen()),
            None => packed.iter_mut().for_each(|packed| packed[column] = 0.0),
        }
    }
}

/// `T` rows of the input with a panel, onto what is in `out` or, at first, in its place.
#[inline(always)]
fn tile<const C: usize, const FUSED: bool, const T: usize>(
    inputs: &[f32],
    packed: &[[f32; C]],
    out: &mut [f32],
    stride: usize,
    fresh: bool,
) {
    let depth = packed.len();
    let inputs: [&[f32]; T] = std::array::from_fn(|token| &inputs[token * depth..][..depth]);
    let mut sums = [[0.0_f32; C]; T];
    for (at, weights) in packed.iter().enumerate() {
        // A copy, so that it is read from memory once for all rows.
        let weights: [f32; C] = *weights;
        for token in 0..T {
            let input = inputs[token][at];
            for column in 0..C {
                sums[token][column] = fma::<FUSED>(input, weights[column], sums[token][column]);
            }
        }
    }
    for token in 0..T {
        let out = &mut out[token * stride..][..C];
        if fresh {
            out.copy_from_slice(&sums[token]);
        } else {
            out.iter_mut().zip(&sums[token]).for_each(|(out, sum)| *out += sum);
        }
    }
}
