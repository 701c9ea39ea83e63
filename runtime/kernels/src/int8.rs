//! Products of bfloat16 with integers of eight bits, with AVX-512.
//!
//! Integers become bfloat16, which all of them are exactly: for one row of the input and for panels in registers, else in a place
//! that stays in the caches, and then are multiplied like any others.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm_prefetch, _mm512_add_ps,
    _mm512_castps_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_dpbf16_ps, _mm512_loadu_si512,
    _mm512_permutex2var_epi16, _mm512_reduce_add_ps, _mm512_setzero_ps, _mm512_storeu_si512,
};
use std::cell::RefCell;

use half::bf16;

use crate::avx512::{self, pairs};
use crate::matrix::Matrix;
use crate::number::Weight;

/// Bytes of widened rows at a time, unless inputs take more: they stay in the second cache.
const ROOM: usize = 256 << 10;
/// Rows that are widened at a time are so many or a multiple of it: tiles and panels of all forms are whole.
const BLOCK: usize = 32;
/// Integers, and sums of a register.
const SUMS: usize = 16;
/// Elements of a register.
const PART: usize = 32;
/// Registers of one row that are multiplied at a time, with sums of their own: 128 bytes of integers.
const DEEP: usize = 4;
/// How many bytes ahead of those that are used integers are fetched.
const AHEAD: usize = 4096;

/// The upper halves of two registers of f32.
static HALVES: [u16; 2 * SUMS] = {
    let mut halves = [0; 2 * SUMS];
    let mut at = 0;
    while at < 2 * SUMS {
        halves[at] = 2 * at as u16 + 1;
        at += 1;
    }
    halves
};

thread_local! {
    /// Rows that a thread has widened.
    static WIDE: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
}

/// Gives rows to `multiply`, with the number of the first: all at a time where they are bfloat16, and integers some after the other, so
/// that each is read from memory once and is in the caches when it is multiplied. `tokens` is how many rows of input they meet.
/// Returns whether the rows are one of these.
///
/// # Safety
/// The processor has AVX-512 with bfloat16.
pub(crate) unsafe fn in_bf16<E: Weight>(
    weights: Matrix<'_, E>,
    tokens: usize,
    mut multiply: impl FnMut(usize, Matrix<'_, bf16>),
) -> bool {
    if let Some(weights) = weights.map(E::as_bf16) {
        multiply(0, weights);
        return true;
    }
    let Some(weights) = weights.map(E::as_int8) else { return false };
    let width = weights.width().max(1);
    // With more rows of input, inputs come from further away for each part of the weights.
    let each = (ROOM / (2 * width)).max(tokens).next_multiple_of(BLOCK).min(weights.rows());
    WIDE.with_borrow_mut(|wide| {
        if wide.len() < each * width {
            wide.resize(each * width, bf16::ZERO);
        }
        for first in (0..weights.rows()).step_by(each.max(1)) {
            let rows = each.min(weights.rows() - first);
            for (row, to) in (first..first + rows).zip(wide.chunks_exact_mut(width)) {
                // SAFETY: the caller vouches for it.
                unsafe { widen(weights.row(row), to) };
            }
            multiply(first, Matrix::dense(&wide[..rows * width], width));
        }
    });
    true
}

/// Sixteen integers as f32, or fewer and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load(from: &[i8]) -> __m512 {
    let all = if let Some(whole) = from.first_chunk::<SUMS>() {
        // SAFETY: 16 bytes.
        unsafe { _mm_loadu_si128(whole.as_ptr().cast()) }
    } else {
        // SAFETY: only elements of the mask are read, which are there.
        unsafe { _mm_maskz_loadu_epi8((1 << from.len()) - 1, from.as_ptr()) }
    };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(all))
}

/// The upper halves of 32 integers as f32, which are all of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn halves(low: __m512, high: __m512) -> __m512i {
    // SAFETY: 64 bytes.
    let halves = unsafe { _mm512_loadu_si512(HALVES.as_ptr().cast()) };
    _mm512_permutex2var_epi16(_mm512_castps_si512(low), halves, _mm512_castps_si512(high))
}

/// Up to 32 integers as bfloat16, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn load_some(from: &[i8]) -> __m512i {
    let (low, high) = from.split_at(from.len().min(SUMS));
    halves(load(low), load(&high[..high.len().min(SUMS)]))
}

/// Writes as many integers as bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn widen(from: &[i8], to: &mut [bf16]) {
    let (parts, rest) = from.as_chunks::<{ 2 * SUMS }>();
    // All as long: nothing is left to check in the loop.
    let count = parts.len();
    let (wide, wide_rest) = to.split_at_mut(count * 2 * SUMS);
    let wide = &mut wide.as_chunks_mut::<{ 2 * SUMS }>().0[..count];
    for at in 0..count {
        _mm_prefetch::<_MM_HINT_T0>(parts[at].as_ptr().wrapping_add(AHEAD));
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(wide[at].as_mut_ptr().cast(), load_some(&parts[at])) };
    }
    wide_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = bf16::from_f32(from.widen()));
}

/// `out[row] = weights[row] . input`, of one row of input. Memory gives most where it is read at two places that lie apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn dots_of_one(input: &[bf16], weights: Matrix<'_, i8>, out: &mut [f32]) {
    let half = weights.rows() / 2;
    for row in 0..half {
        [out[row], out[half + row]] = line(input, [weights.row(row), weights.row(half + row)]);
    }
    if weights.rows() % 2 == 1 {
        [out[2 * half]] = line(input, [weights.row(2 * half)]);
    }
}

/// Rows, as wide as the input, with it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn line<const R: usize>(input: &[bf16], rows: [&[i8]; R]) -> [f32; R] {
    let count = input.len() / PART / DEEP;
    let inputs: &[[[bf16; PART]; DEEP]] = &input.as_chunks().0.as_chunks().0[..count];
    let mut parts: [&[[[i8; PART]; DEEP]]; R] = [&[]; R];
    for (parts, row) in parts.iter_mut().zip(rows) {
        *parts = &row.as_chunks().0.as_chunks().0[..count];
    }
    let mut sums = [[_mm512_setzero_ps(); DEEP]; R];
    for at in 0..count {
        for row in 0..R {
            for line in 0..DEEP / 2 {
                _mm_prefetch::<_MM_HINT_T0>(parts[row][at][2 * line].as_ptr().wrapping_byte_add(AHEAD).cast());
            }
        }
        for deep in 0..DEEP {
            let input = pairs(avx512::load(&inputs[at][deep]));
            for row in 0..R {
                let weights = pairs(load_some(&parts[row][at][deep]));
                sums[row][deep] = _mm512_dpbf16_ps(sums[row][deep], weights, input);
            }
        }
    }
    // What is left: whole registers, then elements.
    for at in (count * DEEP * PART..input.len()).step_by(PART) {
        let end = input.len().min(at + PART);
        let input = pairs(avx512::load_some(&input[at..end]));
        for row in 0..R {
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], pairs(load_some(&rows[row][at..end])), input);
        }
    }
    let mut totals = [0.0; R];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
    }
    totals
}
