//! Sums of the values of many keys.

use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_permutex2var_epi16, _mm512_set1_ps, _mm512_storeu_si512,
};

use half::bf16;

use super::packed::Right;
use super::{BLOCK, Idle, Left, PAIRS, SIDE, Sums, Tiles};
use crate::avx512::{Arithmetic, Narrow, Pairs, load_some};
use crate::matrix::Matrix;

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[row][key] * values[key]`, with weights `[rows, keys]` rounded to
/// bfloat16, values in several matrices of rows of `width` elements that together are as many as there are keys or fewer, and sums
/// `[rows, width]`.
///
/// # Safety
/// [`super::request`] has returned true, and the processor has AVX-512 with bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn weigh(
    weights: &[f32],
    values: &[Matrix<'_, bf16>],
    width: usize,
    rescale: &[f32],
    total: &mut [f32],
    scratch: &mut Scratch,
) {
    let rows = rescale.len();
    let keys = weights.len().checked_div(rows).unwrap_or(0);
    let (deep, wide) = (keys.div_ceil(PAIRS), width.div_ceil(SIDE));
    scratch.right.clear();
    scratch.right.resize(deep * wide, Right::ZERO);
    let mut each = values.iter().flat_map(|values| (0..values.rows()).map(|row| values.row(row)));
    for place in 0..deep * SIDE {
        let Some(even) = each.next() else { break };
        let odd = each.next().unwrap_or_default();
        interleave(even, odd, &mut scratch.right, (place / SIDE, place % SIDE), deep);
    }
    scratch.left.clear();
    scratch.left.resize(rows.next_multiple_of(BLOCK) * deep * PAIRS, bf16::ZERO);
    for (from, to) in weights.chunks_exact(keys.max(1)).zip(scratch.left.chunks_exact_mut(deep * PAIRS)) {
        // SAFETY: the caller vouches for it.
        unsafe { Pairs::run(Narrow { from, to }) };
    }
    // SAFETY: the caller vouches for it.
    let tiles = unsafe { Tiles::new() };
    let mut sums = [[Sums::ZERO; 2]; 2];
    for row in (0..rows).step_by(BLOCK) {
        let left = Left { start: scratch.left[row * deep * PAIRS..].as_ptr(), stride: deep * PAIRS };
        for (pair, right) in scratch.right.chunks(2 * deep).enumerate() {
            let (first, second) = right.split_at(deep);
            tiles.begin(None, true);
            // SAFETY: all rows have as many tiles.
            unsafe {
                if second.is_empty() {
                    tiles.narrow(left, first, &mut Idle);
                } else {
                    tiles.wide(left, [first, second], &mut Idle);
                }
            }
            tiles.end(&mut sums, !second.is_empty());
            for half in 0..right.len() / deep {
                let column = (2 * pair + half) * SIDE;
                for at in 0..BLOCK.min(rows - row) {
                    let total = &mut total[(row + at) * width..][column..width.min(column + SIDE)];
                    add(&sums[half][at / SIDE].0[at % SIDE], rescale[row + at], total);
                }
            }
        }
    }
}

/// What [`weigh`] needs room for.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[rows][keys]`, filled up to whole tiles.
    left: Vec<bf16>,
    /// `[width / 16][keys / 32]`.
    right: Vec<Right>,
}

/// Writes two rows as pairs to a row of the tiles `[width / 16][deep]`, those at `tile` of each `deep`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleave(even: &[bf16], odd: &[bf16], tiles: &mut [Right], (tile, row): (usize, usize), deep: usize) {
    /// Elements of the first register, each with its counterpart of the second, which begins at 32.
    static ORDERS: [[u16; PAIRS]; 2] = orders();
    for at in 0..even.len().div_ceil(PAIRS) {
        let part = |of: &[bf16]| load_some(&of[of.len().min(at * PAIRS)..of.len().min((at + 1) * PAIRS)]);
        let (even, odd) = (part(even), part(odd));
        for half in 0..2 {
            let Some(tile) = tiles.get_mut((2 * at + half) * deep + tile) else { continue };
            // SAFETY: 64 bytes each.
            unsafe {
                let order = _mm512_loadu_si512(ORDERS[half].as_ptr().cast());
                let pairs = _mm512_permutex2var_epi16(even, order, odd);
                _mm512_storeu_si512(tile.0[row].as_mut_ptr().cast(), pairs);
            }
        }
    }
}

/// The lower and the upper half of two registers, in turn.
const fn orders() -> [[u16; PAIRS]; 2] {
    let mut orders = [[0; PAIRS]; 2];
    let mut at = 0;
    while at < PAIRS {
        orders[0][at] = (at / 2 + at % 2 * PAIRS) as u16;
        orders[1][at] = orders[0][at] + SIDE as u16;
        at += 1;
    }
    orders
}

/// `total = total * factor + sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn add(sums: &[f32; SIDE], factor: f32, total: &mut [f32]) {
    let mask = if total.len() >= SIDE { u16::MAX } else { (1_u16 << total.len()) - 1 };
    // SAFETY: only elements of the mask are read and written, which are there.
    unsafe {
        let before = _mm512_maskz_loadu_ps(mask, total.as_ptr());
        let after = _mm512_fmadd_ps(before, _mm512_set1_ps(factor), _mm512_loadu_ps(sums.as_ptr()));
        _mm512_mask_storeu_ps(total.as_mut_ptr(), mask, after);
    }
}
