//! Softmax of scores that come in blocks, and the sums that they weigh.

use crate::functions::exp;
use crate::matrix::Matrix;
use crate::number::Number;
use crate::vectors::{self, Lanes, fma, vectorize};
#[cfg(target_arch = "x86_64")]
use crate::{avx2, avx512};

/// What is known of each row of scores after some blocks.
pub(crate) struct Rows {
    /// The largest score.
    most: Vec<f32>,
    /// The sum of the weights, relative to that score.
    pub(crate) sum: Vec<f32>,
    /// What weights of earlier blocks have to be multiplied by since the last block.
    pub(crate) rescale: Vec<f32>,
}

impl Rows {
    pub(crate) fn new(rows: usize) -> Self {
        Rows { most: vec![f32::NEG_INFINITY; rows], sum: vec![0.0; rows], rescale: vec![0.0; rows] }
    }

    /// Turns a block of scores `[rows, keys]` into weights, relative to the largest score of each row so far.
    pub(crate) fn add(&mut self, scores: &mut [f32]) {
        let keys = scores.len() / self.most.len().max(1);
        for (row, scores) in scores.chunks_exact_mut(keys.max(1)).enumerate() {
            let (most, added) = weights_of(scores, self.most[row]);
            let shift = if most == f32::NEG_INFINITY { 0.0 } else { most };
            self.rescale[row] = (self.most[row] - shift).exp();
            self.sum[row] = self.sum[row] * self.rescale[row] + added;
            self.most[row] = most;
        }
    }

    /// Takes in the rows of other keys, and their weighted sums `[rows, width]`.
    pub(crate) fn merge(&mut self, other: &Self, total: &mut [f32], others: &[f32]) {
        let width = total.len() / self.most.len().max(1);
        let rows = total.chunks_exact_mut(width.max(1)).zip(others.chunks_exact(width.max(1)));
        for (row, (total, others)) in rows.enumerate() {
            let most = self.most[row].max(other.most[row]);
            // Without a key on either side, nothing has weight.
            let shift = if most == f32::NEG_INFINITY { 0.0 } else { most };
            let (own, foreign) = ((self.most[row] - shift).exp(), (other.most[row] - shift).exp());
            for (total, other) in total.iter_mut().zip(others) {
                *total = *total * own + other * foreign;
            }
            self.sum[row] = self.sum[row] * own + other.sum[row] * foreign;
            self.most[row] = most;
        }
    }
}

/// The scores of a row become weights relative to the largest of them and `most`. Returns that, and the sum of the weights.
pub(crate) fn weights_of(scores: &mut [f32], most: f32) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::weights_of(scores, most) };
    }
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx2() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx2::weights_of(scores, most) };
    }
    vectorize(Weights { scores, most })
}

pub(crate) struct Weights<'a> {
    pub(crate) scores: &'a mut [f32],
    pub(crate) most: f32,
}

impl Lanes for Weights<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) -> (f32, f32) {
        let Weights { scores, most } = self;
        let mut new = most;
        for score in &*scores {
            new = if *score > new { *score } else { new };
        }
        // A row that has seen no key yet stays without weights.
        let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let mut added = [0.0_f32; L];
        for part in scores.chunks_mut(L) {
            let mut lanes = [f32::NEG_INFINITY; L];
            for (lane, score) in lanes.iter_mut().zip(&*part) {
                *lane = score - shift;
            }
            let lanes = exp::<L, FUSED>(lanes);
            for lane in 0..L {
                added[lane] += lanes[lane];
            }
            part.copy_from_slice(&lanes[..part.len()]);
        }
        (new, vectors::sum(added))
    }
}

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[row][key] * values[key]`.
///
/// Rows of weights may be longer than there are values: what is behind is left out.
pub(crate) fn weigh<V: Number>(weights: &[f32], values: Matrix<'_, V>, rescale: &[f32], total: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::weigh(weights, values, rescale, total) };
    }
    let (keys, width, columns) = (values.rows(), values.width(), weights.len() / rescale.len().max(1));
    if columns != keys {
        let weights: Vec<f32> = Matrix::dense(weights, columns).starts(keys);
        return weigh(&weights, values, rescale, total);
    }
    let values = values.values();
    let Some(values) = V::as_f32(&values) else {
        let wide: Vec<f32> = values.iter().map(|value| value.widen()).collect();
        return weigh(weights, Matrix::dense(&wide, width), rescale, total);
    };
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx2() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx2::weigh(weights, values, width, rescale, total) };
    }
    vectorize(Weigh { weights, values, width, rescale, total });
}

pub(crate) struct Weigh<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
    pub(crate) rescale: &'a [f32],
    pub(crate) total: &'a mut [f32],
}

impl Lanes for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        let Weigh { weights, values, width, rescale, total } = self;
        let keys = values.len() / width;
        for (row, total) in total.chunks_exact_mut(width).enumerate() {
            let weights = &weights[row * keys..][..keys];
            for (part, total) in total.chunks_mut(L).enumerate() {
                let mut sums = [0.0_f32; L];
                for (sum, total) in sums.iter_mut().zip(&*total) {
                    *sum = total * rescale[row];
                }
                for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
                    for (sum, value) in sums.iter_mut().zip(&values[part * L..]) {
                        *sum = fma::<FUSED>(*weight, *value, *sum);
                    }
                }
                total.copy_from_slice(&sums[..total.len()]);
            }
        }
    }
}
