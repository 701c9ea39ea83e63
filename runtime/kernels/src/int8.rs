//! Integers of eight bits that become bfloat16, which all of them are exactly, in a place that stays in the caches, and then are
//! multiplied like any others. Where an arithmetic widens them in registers ([`Arithmetic::weights`]), that is better still.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch, _mm512_storeu_si512};
use std::cell::RefCell;

use half::bf16;

use crate::avx512::{Arithmetic, PART, Pairs};
use crate::matrix::Matrix;
use crate::number::Weight;

/// Bytes of widened rows at a time, unless inputs take more: they stay in the second cache.
const ROOM: usize = 256 << 10;
/// Rows that are widened at a time are so many or a multiple of it: tiles and panels of all forms are whole.
const BLOCK: usize = 32;
/// How many bytes ahead of those that are used integers are fetched.
const AHEAD: usize = 4096;

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

/// Writes as many integers as bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn widen(from: &[i8], to: &mut [bf16]) {
    let (parts, rest) = from.as_chunks::<PART>();
    // All as long: nothing is left to check in the loop.
    let count = parts.len();
    let (wide, wide_rest) = to.split_at_mut(count * PART);
    let wide = &mut wide.as_chunks_mut::<PART>().0[..count];
    for at in 0..count {
        _mm_prefetch::<_MM_HINT_T0>(parts[at].as_ptr().wrapping_add(AHEAD));
        // SAFETY: 64 bytes; this is compiled for the instructions of the arithmetic.
        unsafe { _mm512_storeu_si512(wide[at].as_mut_ptr().cast(), Pairs::weights(&parts[at])) };
    }
    wide_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = bf16::from_f32(from.widen()));
}
