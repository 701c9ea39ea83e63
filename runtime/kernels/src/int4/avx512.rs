//! Integers of four bits with AVX-512.
//!
//! A register of words, moved down by the bits of the groups before, is 32 places in a table, since instructions that look up read
//! their lowest bits alone. With places of words, a table has each of the 16 numbers twice, once for each value of the fifth bit, and
//! what comes out are the 32 neighbours of a group in their order, as bfloat16, which every one of these integers is exactly.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_broadcast_i64x4, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_permutexvar_epi16, _mm512_reduce_add_ps,
    _mm512_set1_epi16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi16, _mm512_srlv_epi16,
    _mm512_storeu_ps, _mm512_storeu_si512,
};
use std::cell::RefCell;

use gemma4_model::quantization::{GROUP, GROUPS_OF_BLOCK};
use half::bf16;

use super::{BITS_OF_INTEGER, Packed, Row};
use crate::avx512::{self, Arithmetic, Kernel, Pairs, SUMS};
use crate::number::Weight;

/// How many bytes ahead of those that are used words are fetched.
const AHEAD: usize = 4096;
/// Bits of an integer, as shifts take them.
const DOWN: u32 = BITS_OF_INTEGER as u32;

/// The number of each integer in two's complement.
static NUMBERS: [f32; SUMS] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0];

thread_local! {
    /// The scales of the rows that are multiplied, as f32.
    static SCALES_OF_THREAD: RefCell<Vec<f32>> = RefCell::default();
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn numbers() -> __m512 {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_ps(NUMBERS.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn words(from: &[u16; GROUP]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Writes a row of whole groups as bfloat16.
///
/// # Safety
/// The processor has AVX-512.
pub(crate) unsafe fn widen(row: Row<'_>, to: &mut [bf16]) {
    // SAFETY: the caller vouches for it.
    unsafe { avx512::run(Widen { row, to }) };
}

/// A group of a row as bfloat16, each number rounded once.
///
/// # Safety
/// The processor has AVX-512 with bfloat16.
#[inline(always)]
pub(crate) unsafe fn group(row: Row<'_>, at: usize) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let (block, [low, high]) = (&row.words.as_chunks::<GROUP>().0[at / GROUPS_OF_BLOCK], [at & 1, at & 2]);
        let down = _mm512_set1_epi16((BITS_OF_INTEGER * (low + high)) as i16);
        let scaled = Pairs::table(_mm512_mul_ps(numbers(), _mm512_set1_ps(row.scales[at].widen())));
        Pairs::look_up(scaled, _mm512_srlv_epi16(words(block), down))
    }
}

struct Widen<'a> {
    row: Row<'a>,
    to: &'a mut [bf16],
}

impl<A: Arithmetic> Kernel<A> for Widen<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Widen { row: Row { words: from, scales }, to } = self;
        let (blocks, groups) = (from.as_chunks::<GROUP>().0, to.as_chunks_mut::<GROUP>().0);
        let count = groups.len().min(scales.len());
        // SAFETY: the caller vouches for the instructions; a prefetch has no effect that can be seen, and a group is 64 bytes.
        unsafe {
            let numbers = numbers();
            for at in 0..blocks.len() {
                _mm_prefetch::<_MM_HINT_T0>(blocks[at].as_ptr().wrapping_byte_add(AHEAD).cast());
                let mut places = words(&blocks[at]);
                let first = at * GROUPS_OF_BLOCK;
                for group in first..count.min(first + GROUPS_OF_BLOCK) {
                    // All numbers times the scale, rounded once.
                    let scaled = A::round(_mm512_mul_ps(numbers, _mm512_set1_ps(scales[group].widen())));
                    let wide = _mm512_permutexvar_epi16(places, _mm512_broadcast_i64x4(scaled));
                    _mm512_storeu_si512(groups[group].as_mut_ptr().cast(), wide);
                    places = _mm512_srli_epi16::<DOWN>(places);
                }
            }
        }
    }
}

/// Writes scales as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn widen_scales(from: &[bf16], to: &mut [f32]) {
    let count = from.len().min(to.len()) / SUMS;
    let (parts, wide) = (&from.as_chunks::<SUMS>().0[..count], &mut to.as_chunks_mut::<SUMS>().0[..count]);
    for at in 0..count {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_ps(wide[at].as_mut_ptr(), avx512::widened(&parts[at])) };
    }
    for at in count * SUMS..from.len().min(to.len()) {
        to[at] = from[at].widen();
    }
}

/// `out[row] = weights[row] . input`, of one row of input in the order of the arithmetic. Memory gives most where it is read at two
/// places that lie apart; two rows of each share the loads of the input.
///
/// # Safety
/// The processor has the instructions of `A`.
pub(crate) unsafe fn dots_of_one<A: Arithmetic>(input: &[A::Input], weights: Packed<'_>, out: &mut [f32]) {
    SCALES_OF_THREAD.with_borrow_mut(|room| {
        // SAFETY: the caller vouches for it.
        unsafe { A::run(Streams::<A> { input, weights, out, room }) };
    });
}

struct Streams<'a, A: Arithmetic> {
    input: &'a [A::Input],
    weights: Packed<'a>,
    out: &'a mut [f32],
    /// For scales as f32.
    room: &'a mut Vec<f32>,
}

impl<A: Arithmetic> Kernel<A> for Streams<'_, A> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Streams { input, weights, out, room } = self;
        let half = weights.rows() / 2;
        let pairs = half / 2 * 2;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            for row in (0..pairs).step_by(2) {
                let rows = [row, row + 1, half + row, half + row + 1];
                [out[row], out[row + 1], out[half + row], out[half + row + 1]] =
                    line::<A, 4>(input, weights, rows, room);
            }
            if half > pairs {
                [out[pairs], out[half + pairs]] = line::<A, 2>(input, weights, [pairs, half + pairs], room);
            }
            if weights.rows() > 2 * half {
                [out[2 * half]] = line::<A, 1>(input, weights, [2 * half], room);
            }
        }
    }
}

/// Rows, as wide as the input, with it. Sums of a group are exact but for the additions, and are multiplied by its scale then.
#[inline(always)]
unsafe fn line<A: Arithmetic, const R: usize>(
    input: &[A::Input],
    weights: Packed<'_>,
    rows: [usize; R],
    room: &mut Vec<f32>,
) -> [f32; R] {
    let groups = input.as_chunks::<GROUP>().0;
    if room.len() < R * groups.len() {
        room.resize(R * groups.len(), 0.0);
    }
    let mut words_of: [&[u16]; R] = [&[]; R];
    for row in 0..R {
        let Row { words, scales } = weights.row(rows[row]);
        words_of[row] = words;
        // SAFETY: the caller vouches for the instructions.
        unsafe { widen_scales(scales, &mut room[row * groups.len()..][..groups.len()]) };
    }
    let mut scales_of: [&[f32]; R] = [&[]; R];
    for row in 0..R {
        scales_of[row] = &room[row * groups.len()..][..groups.len()];
    }
    let count = groups.len() / GROUPS_OF_BLOCK;
    // All as long: nothing is left to check in the loop.
    let inputs: &[[[A::Input; GROUP]; GROUPS_OF_BLOCK]] = &groups.as_chunks().0[..count];
    let mut blocks: [&[[u16; GROUP]]; R] = [&[]; R];
    let mut scales: [&[[f32; GROUPS_OF_BLOCK]]; R] = [&[]; R];
    for row in 0..R {
        blocks[row] = &words_of[row].as_chunks().0[..count];
        scales[row] = &scales_of[row].as_chunks().0[..count];
    }
    // SAFETY: the caller vouches for the instructions; a prefetch has no effect that can be seen, wherever it points.
    unsafe {
        let table = A::table(numbers());
        let zero = _mm512_setzero_ps();
        let mut sums = [[zero; GROUPS_OF_BLOCK]; R];
        for at in 0..count {
            let mut places = [_mm512_setzero_si512(); R];
            for row in 0..R {
                _mm_prefetch::<_MM_HINT_T0>(blocks[row][at].as_ptr().wrapping_byte_add(AHEAD).cast());
                places[row] = words(&blocks[row][at]);
            }
            for group in 0..GROUPS_OF_BLOCK {
                let input = A::input(&inputs[at][group]);
                for row in 0..R {
                    let sum = A::add(zero, A::look_up(table, places[row]), input);
                    sums[row][group] = _mm512_fmadd_ps(sum, _mm512_set1_ps(scales[row][at][group]), sums[row][group]);
                    places[row] = _mm512_srli_epi16::<DOWN>(places[row]);
                }
            }
        }
        // What is left: groups of a block that is not full.
        for row in 0..R {
            let Some(block) = words_of[row].as_chunks().0.get(count) else { continue };
            let mut places = words(block);
            for group in count * GROUPS_OF_BLOCK..groups.len() {
                let sum = A::add(zero, A::look_up(table, places), A::input(&groups[group]));
                sums[row][0] = _mm512_fmadd_ps(sum, _mm512_set1_ps(scales_of[row][group]), sums[row][0]);
                places = _mm512_srli_epi16::<DOWN>(places);
            }
        }
        let mut totals = [0.0; R];
        for row in 0..R {
            let [a, b, c, d] = sums[row];
            totals[row] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
        }
        totals
    }
}
