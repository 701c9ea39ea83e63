//! Softmax of scores, and sums of values that it weighs.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_mask_add_ps, _mm512_mask_max_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
};

use super::functions::{exp, left};
use super::{SUMS, of_mask};
use crate::matrix::Matrix;
use crate::number::Weight;

/// [`crate::softmax::weights_of`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn weights_of(scores: &mut [f32], most: f32) -> (f32, f32) {
    let mut greatest = _mm512_set1_ps(most);
    let mut at = 0;
    while let Some(mask) = left(scores.len(), at) {
        let part = &scores[at..];
        // SAFETY: only elements of the mask are read, which are there. Of a NaN and a number, the second is taken: what was greatest.
        greatest = unsafe { _mm512_mask_max_ps(greatest, mask, _mm512_maskz_loadu_ps(mask, part.as_ptr()), greatest) };
        at += SUMS;
    }
    let new = _mm512_reduce_max_ps(greatest);
    // A row that has seen no key yet stays without weights.
    let shift = _mm512_set1_ps(if new == f32::NEG_INFINITY { 0.0 } else { new });
    let mut added = _mm512_setzero_ps();
    let mut at = 0;
    while let Some(mask) = left(scores.len(), at) {
        let part = &mut scores[at..];
        // SAFETY: only elements of the mask are read and written, which are there.
        unsafe {
            let weights = exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, part.as_ptr()), shift));
            added = _mm512_mask_add_ps(added, mask, added, weights);
            _mm512_mask_storeu_ps(part.as_mut_ptr(), mask, weights);
        }
        at += SUMS;
    }
    (new, _mm512_reduce_add_ps(added))
}

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[row][key] * values[key]`, with weights `[rows, keys or
/// more]`, values `[keys, width]` and sums `[rows, width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn weigh<E: Weight>(weights: &[f32], values: Matrix<'_, E>, rescale: &[f32], total: &mut [f32]) {
    let (width, columns) = (values.width(), weights.len() / rescale.len().max(1));
    let mut first = 0;
    while first < rescale.len() {
        let left = rescale.len() - first;
        let (weights, rescale) = (Matrix::dense(&weights[first * columns..], columns), &rescale[first..]);
        let total = &mut total[first * width..];
        first += match left {
            1 => weigh_rows::<1, 4, E>(weights, values, rescale, total),
            2 | 3 => weigh_rows::<2, 4, E>(weights, values, rescale, total),
            4..8 => weigh_rows::<4, 4, E>(weights, values, rescale, total),
            _ => weigh_rows::<8, 2, E>(weights, values, rescale, total),
        };
    }
}

/// [`weigh`] for the first `R` rows, `C` registers of columns at a time. Returns `R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn weigh_rows<const R: usize, const C: usize, E: Weight>(
    weights: Matrix<'_, f32>,
    values: Matrix<'_, E>,
    rescale: &[f32],
    total: &mut [f32],
) -> usize {
    let width = values.width();
    let mut column = 0;
    while column < width {
        column += if width - column >= C * SUMS {
            weigh_tile::<R, C, E>(weights, values, column, rescale, total)
        } else {
            weigh_tile::<R, 1, E>(weights, values, column, rescale, total)
        };
    }
    R
}

/// [`weigh_rows`] for `C` registers of columns from `column` on, the last of which may be columns that there are not. Returns how many
/// columns these are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn weigh_tile<const R: usize, const C: usize, E: Weight>(
    weights: Matrix<'_, f32>,
    values: Matrix<'_, E>,
    column: usize,
    rescale: &[f32],
    total: &mut [f32],
) -> usize {
    let (width, keys) = (values.width(), values.rows());
    let mut rows: [&[f32]; R] = [&[]; R];
    for (number, row) in rows.iter_mut().enumerate() {
        *row = &weights.row(number)[..keys];
    }
    // All columns but those of a last register are there.
    let last = SUMS.min(width - column - (C - 1) * SUMS);
    let mask = |at: usize| if at + 1 < C || last == SUMS { u16::MAX } else { (1_u16 << last) - 1 };
    let end = (C - 1) * SUMS + last;
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    for key in 0..keys {
        let values = &values.row(key)[column..column + end];
        let mut wide = [_mm512_setzero_ps(); C];
        for at in 0..C {
            // SAFETY: elements of the mask are there.
            wide[at] = unsafe { of_mask(values.as_ptr().add(at * SUMS), mask(at)) };
        }
        for row in 0..R {
            let weight = _mm512_set1_ps(rows[row][key]);
            for at in 0..C {
                sums[row][at] = _mm512_fmadd_ps(weight, wide[at], sums[row][at]);
            }
        }
    }
    for row in 0..R {
        let (to, factor) = (&mut total[row * width + column..][..end], _mm512_set1_ps(rescale[row]));
        for at in 0..C {
            // SAFETY: only elements of the mask are read and written, which are there.
            unsafe {
                let to = to.as_mut_ptr().add(at * SUMS);
                let before = _mm512_maskz_loadu_ps(mask(at), to);
                _mm512_mask_storeu_ps(to, mask(at), _mm512_fmadd_ps(before, factor, sums[row][at]));
            }
        }
    }
    end
}
