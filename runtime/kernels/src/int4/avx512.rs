//! Integers of four bits with AVX-512.
//!
//! A register of words, moved down by the bits of the groups before, is 32 places in a table, since the instruction that looks up
//! reads their lowest five bits alone: the table has each of the 16 numbers twice, once for each value of the fifth. What comes out are
//! the 32 neighbours of a group in their order, as bfloat16, which every one of these integers is exactly.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_add_ps,
    _mm512_broadcast_i64x4, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_permutexvar_epi16,
    _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps,
    _mm512_storeu_si512,
};
use std::cell::RefCell;

use gemma4_model::quantization::{GROUP, GROUPS_OF_BLOCK};
use half::bf16;

use super::{BITS_OF_INTEGER, Packed};
use crate::avx512::pairs;
use crate::number::Weight;

/// Sums of a register.
const SUMS: usize = 16;
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

/// The table of all numbers times `scale`, rounded to bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn table(numbers: __m512, scale: f32) -> __m512i {
    let once = _mm512_cvtneps_pbh(_mm512_mul_ps(numbers, _mm512_set1_ps(scale)));
    // SAFETY: both are 32 bytes, of which every value is one.
    _mm512_broadcast_i64x4(unsafe { std::mem::transmute::<__m256bh, __m256i>(once) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn numbers() -> __m512 {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_ps(NUMBERS.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn words(from: &[u16; GROUP]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Writes a row of whole groups as bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn widen(from: &[u16], scales: &[bf16], to: &mut [bf16]) {
    let (blocks, groups) = (from.as_chunks::<GROUP>().0, to.as_chunks_mut::<GROUP>().0);
    let numbers = numbers();
    let count = groups.len().min(scales.len());
    for (at, block) in blocks.iter().enumerate() {
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_byte_add(AHEAD).cast());
        let mut places = words(block);
        let first = at * GROUPS_OF_BLOCK;
        for group in first..count.min(first + GROUPS_OF_BLOCK) {
            let wide = _mm512_permutexvar_epi16(places, table(numbers, scales[group].widen()));
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(groups[group].as_mut_ptr().cast(), wide) };
            places = _mm512_srli_epi16::<DOWN>(places);
        }
    }
}

/// Writes scales as f32: their bits are the upper halves of those.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn widen_scales(from: &[bf16], to: &mut [f32]) {
    let (parts, rest) = from.as_chunks::<SUMS>();
    let (wide, wide_rest) = to.split_at_mut(parts.len() * SUMS);
    let wide = &mut wide.as_chunks_mut::<SUMS>().0[..parts.len()];
    for at in 0..parts.len() {
        // SAFETY: 32 bytes are read and 64 written.
        unsafe {
            let part = _mm512_cvtepu16_epi32(_mm256_loadu_si256(parts[at].as_ptr().cast()));
            _mm512_storeu_ps(wide[at].as_mut_ptr(), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(part)));
        }
    }
    for at in 0..rest.len().min(wide_rest.len()) {
        wide_rest[at] = rest[at].widen();
    }
}

/// `out[row] = weights[row] . input`, of one row of input. Memory gives most where it is read at two places that lie apart; two rows
/// of each share the loads of the input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn dots_of_one(input: &[bf16], weights: Packed<'_>, out: &mut [f32]) {
    SCALES_OF_THREAD.with_borrow_mut(|room| {
        let half = weights.rows() / 2;
        let pairs = half / 2 * 2;
        for row in (0..pairs).step_by(2) {
            let rows = [row, row + 1, half + row, half + row + 1];
            [out[row], out[row + 1], out[half + row], out[half + row + 1]] = line(input, weights, rows, room);
        }
        if half > pairs {
            [out[pairs], out[half + pairs]] = line(input, weights, [pairs, half + pairs], room);
        }
        if weights.rows() > 2 * half {
            [out[2 * half]] = line(input, weights, [2 * half], room);
        }
    });
}

/// Rows, as wide as the input, with it. Sums of a group are exact but for the additions, and are multiplied by its scale then.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn line<const R: usize>(input: &[bf16], weights: Packed<'_>, rows: [usize; R], room: &mut Vec<f32>) -> [f32; R] {
    let groups = input.as_chunks::<GROUP>().0;
    if room.len() < R * groups.len() {
        room.resize(R * groups.len(), 0.0);
    }
    let mut words_of: [&[u16]; R] = [&[]; R];
    for row in 0..R {
        let (words, scales) = weights.row(rows[row]);
        words_of[row] = words;
        widen_scales(scales, &mut room[row * groups.len()..][..groups.len()]);
    }
    let mut scales_of: [&[f32]; R] = [&[]; R];
    for row in 0..R {
        scales_of[row] = &room[row * groups.len()..][..groups.len()];
    }
    let count = groups.len() / GROUPS_OF_BLOCK;
    // All as long: nothing is left to check in the loop.
    let inputs: &[[[bf16; GROUP]; GROUPS_OF_BLOCK]] = &groups.as_chunks().0[..count];
    let mut blocks: [&[[u16; GROUP]]; R] = [&[]; R];
    let mut scales: [&[[f32; GROUPS_OF_BLOCK]]; R] = [&[]; R];
    for row in 0..R {
        blocks[row] = &words_of[row].as_chunks().0[..count];
        scales[row] = &scales_of[row].as_chunks().0[..count];
    }
    let table = table(numbers(), 1.0);
    let zero = _mm512_setzero_ps();
    let mut sums = [[zero; GROUPS_OF_BLOCK]; R];
    for at in 0..count {
        let mut places = [_mm512_castps_si512(zero); R];
        for row in 0..R {
            _mm_prefetch::<_MM_HINT_T0>(blocks[row][at].as_ptr().wrapping_byte_add(AHEAD).cast());
            places[row] = words(&blocks[row][at]);
        }
        for group in 0..GROUPS_OF_BLOCK {
            let input = load(&inputs[at][group]);
            for row in 0..R {
                let sum = _mm512_dpbf16_ps(zero, pairs(_mm512_permutexvar_epi16(places[row], table)), input);
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
            let input = load(&groups[group]);
            let sum = _mm512_dpbf16_ps(zero, pairs(_mm512_permutexvar_epi16(places, table)), input);
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

/// A group of the input.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load(from: &[bf16; GROUP]) -> __m512bh {
    // SAFETY: 64 bytes.
    pairs(unsafe { _mm512_loadu_si512(from.as_ptr().cast()) })
}
