//! Products of bfloat16 with AVX-512 and its instruction for them, which multiplies 32 pairs and adds neighbours to 16 sums of f32.
//!
//! Both factors stay bfloat16: nothing is widened. The instruction rounds each sum to the nearest, and takes numbers below the
//! least normal one for 0. Products here are those of few rows, in the form of
//! [`crate::dot`]; [`crate::panels`] has those of many.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _CMP_NLT_UQ, _MM_HINT_T0, _mm_prefetch, _mm256_mask_storeu_epi16,
    _mm256_maskz_loadu_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
    _mm512_loadu_si512, _mm512_mask_add_ps, _mm512_mask_max_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi16,
    _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_permutexvar_ps,
    _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpackhi_ps,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_unpacklo_ps,
};

use half::bf16;

use crate::functions::{CUBE, FACTORS, LEAST, LN_2, MOST, ROUND, TWICE_ROOT};
use crate::matrix::Matrix;

/// Elements of a register.
const PART: usize = 32;
/// Sums of a register.
const SUMS: usize = 16;
/// Registers of one row that are multiplied at a time, with sums of their own.
const DEEP: usize = 4;
/// How many elements ahead of those that are multiplied weights are fetched for one row of input.
const AHEAD: usize = 2048;
/// Rows of the input in the largest tile of [`dots`].
const BAND: usize = 8;

/// `elements` as the instruction takes them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn pairs(elements: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which every value is one.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(elements) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn load(from: &[bf16; PART]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Up to 32 elements, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn load_some(from: &[bf16]) -> __m512i {
    if let Some(whole) = from.first_chunk() {
        return load(whole);
    }
    let mask = (1_u32 << from.len()) - 1;
    // SAFETY: only elements of the mask are read, which are there.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.as_ptr().cast()) }
}

/// `out[token][row] = weights[row] . inputs[token]`: products of few rows. Rows of `out` are `all` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn dots(inputs: &[bf16], weights: Matrix<'_, bf16>, out: &mut [f32], all: usize) {
    let width = weights.width();
    let tokens = inputs.len() / width;
    let mut first = 0;
    while first < tokens {
        let left = tokens - first;
        // Bands as equal as can be.
        let taken = left.div_ceil(left.div_ceil(BAND));
        let (inputs, out) = (&inputs[first * width..], &mut out[first * all..]);
        // Tiles of at most 24 sums leave room for the factors; fewer than twelve would wait for each other.
        match taken {
            1 => streams(inputs, weights, out),
            2 => band::<8, 2>(inputs, weights, out, all),
            3 => band::<8, 3>(inputs, weights, out, all),
            4 => band::<6, 4>(inputs, weights, out, all),
            5 => band::<4, 5>(inputs, weights, out, all),
            6 => band::<4, 6>(inputs, weights, out, all),
            7 => band::<3, 7>(inputs, weights, out, all),
            _ => band::<3, BAND>(inputs, weights, out, all),
        }
        first += taken;
    }
}

/// All rows of the matrix with the first row of the input. It takes as long as the weights take to come from memory, and memory
/// gives most where it is read at two places that lie apart, a little ahead.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn streams(inputs: &[bf16], weights: Matrix<'_, bf16>, out: &mut [f32]) {
    let (half, input) = (weights.rows() / 2, &inputs[..weights.width()]);
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
fn line<const R: usize>(input: &[bf16], rows: [&[bf16]; R]) -> [f32; R] {
    let count = input.len() / PART / DEEP;
    let inputs: &[[[bf16; PART]; DEEP]] = &input.as_chunks().0.as_chunks().0[..count];
    let mut parts: [&[[[bf16; PART]; DEEP]]; R] = [&[]; R];
    for (parts, row) in parts.iter_mut().zip(rows) {
        *parts = &row.as_chunks().0.as_chunks().0[..count];
    }
    let mut sums = [[_mm512_setzero_ps(); DEEP]; R];
    for at in 0..count {
        for deep in 0..DEEP {
            let input = pairs(load(&inputs[at][deep]));
            for row in 0..R {
                let weights = &parts[row][at][deep];
                _mm_prefetch::<_MM_HINT_T0>(weights.as_ptr().wrapping_add(AHEAD).cast());
                sums[row][deep] = _mm512_dpbf16_ps(sums[row][deep], pairs(load(weights)), input);
            }
        }
    }
    // What is left: whole registers, then elements.
    for at in (count * DEEP * PART..input.len()).step_by(PART) {
        let end = input.len().min(at + PART);
        let input = pairs(load_some(&input[at..end]));
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

/// All rows of the matrix with the first `T` rows of the input, `R` rows at a time; rows of `out` are `all` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn band<const R: usize, const T: usize>(inputs: &[bf16], weights: Matrix<'_, bf16>, out: &mut [f32], all: usize) {
    let rows = weights.rows();
    let mut row = 0;
    while row < rows {
        let (weights, out) = (weights.from(row), &mut out[row..]);
        row += if rows - row >= R {
            dot_tile::<R, T>(inputs, weights, out, all)
        } else {
            dot_tile::<1, T>(inputs, weights, out, all)
        };
    }
}

/// `R` rows of the matrix with `T` rows of the input, whose sums are `all` apart. Returns `R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn dot_tile<const R: usize, const T: usize>(
    inputs: &[bf16],
    weights: Matrix<'_, bf16>,
    out: &mut [f32],
    all: usize,
) -> usize {
    let width = weights.width();
    let (count, whole) = (width / PART, width / PART * PART);
    // All as long: nothing is left to check in the loop.
    let mut weight_parts: [&[[bf16; PART]]; R] = [&[]; R];
    for (row, parts) in weight_parts.iter_mut().enumerate() {
        *parts = &weights.row(row)[..whole].as_chunks().0[..count];
    }
    let mut input_parts: [&[[bf16; PART]]; T] = [&[]; T];
    for (token, parts) in input_parts.iter_mut().enumerate() {
        *parts = &inputs[token * width..][..whole].as_chunks().0[..count];
    }
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for at in 0..count {
        let mut rows = [_mm512_setzero_si512(); R];
        for row in 0..R {
            rows[row] = load(&weight_parts[row][at]);
            // Of the tile after this one.
            let ahead = weight_parts[row][at].as_ptr().wrapping_add(R * weights.stride());
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        for token in 0..T {
            let input = pairs(load(&input_parts[token][at]));
            for row in 0..R {
                sums[row][token] = _mm512_dpbf16_ps(sums[row][token], pairs(rows[row]), input);
            }
        }
    }
    if whole < width {
        for row in 0..R {
            let weights = pairs(load_some(&weights.row(row)[whole..]));
            for token in 0..T {
                let input = pairs(load_some(&inputs[token * width + whole..(token + 1) * width]));
                sums[row][token] = _mm512_dpbf16_ps(sums[row][token], weights, input);
            }
        }
    }
    // Sixteen at a time, as the sums of all their lanes.
    let mut number = 0;
    while number < R * T {
        let mut some = [_mm512_setzero_ps(); SUMS];
        for (at, one) in some.iter_mut().enumerate() {
            if number + at < R * T {
                *one = sums[(number + at) / T][(number + at) % T];
            }
        }
        let mut totals = [0.0_f32; SUMS];
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), sums_of(some)) };
        for (at, total) in totals.into_iter().enumerate().take(R * T - number) {
            out[(number + at) % T * all + (number + at) / T] = total;
        }
        number += SUMS;
    }
    R
}

/// The sum of all lanes of each register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn sums_of(lanes: [__m512; SUMS]) -> __m512 {
    // Two registers become one with half the lanes of either, four times over. Pairs first, within quarters.
    let mut pairs = [_mm512_setzero_ps(); 8];
    for (at, pair) in pairs.iter_mut().enumerate() {
        let (left, right) = (lanes[at], lanes[at + 8]);
        *pair = _mm512_add_ps(_mm512_unpacklo_ps(left, right), _mm512_unpackhi_ps(left, right));
    }
    let mut fours = [_mm512_setzero_ps(); 4];
    for (at, four) in fours.iter_mut().enumerate() {
        let (left, right) = (pairs[at], pairs[at + 4]);
        *four = _mm512_add_ps(_mm512_unpacklo_ps(left, right), _mm512_unpackhi_ps(left, right));
    }
    // Each quarter of `fours[at]` now holds the sums of a quarter of the registers `at`, `at + 4`, `at + 8` and `at + 12`.
    let mut eights = [_mm512_setzero_ps(); 2];
    for (at, eight) in eights.iter_mut().enumerate() {
        let (left, right) = (fours[at], fours[at + 2]);
        let (low, high) = (_mm512_shuffle_f32x4::<0x88>(left, right), _mm512_shuffle_f32x4::<0xdd>(left, right));
        *eight = _mm512_add_ps(low, high);
    }
    let [left, right] = eights;
    let (low, high) = (_mm512_shuffle_f32x4::<0x88>(left, right), _mm512_shuffle_f32x4::<0xdd>(left, right));
    let mixed = _mm512_add_ps(low, high);
    // Quarters begin with the registers 0, 2, 1 and 3, and within a quarter every fourth follows.
    let order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
    _mm512_permutexvar_ps(order, mixed)
}

/// Rows of sixteen pairs become columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn turn(rows: [__m512i; SUMS]) -> [__m512i; SUMS] {
    let mut twos = [_mm512_setzero_si512(); SUMS];
    for at in (0..SUMS).step_by(2) {
        twos[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        twos[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    // Within quarters: columns 0, 1, 2 and 3 of each quarter, of four rows.
    let mut fours = [_mm512_setzero_si512(); SUMS];
    for at in (0..SUMS).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(twos[at], twos[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(twos[at], twos[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(twos[at + 1], twos[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(twos[at + 1], twos[at + 3]);
    }
    let mut columns = [_mm512_setzero_si512(); SUMS];
    for at in 0..4 {
        let [a, b, c, d] = [fours[at], fours[at + 4], fours[at + 8], fours[at + 12]];
        // Quarters 0 and 2, then 1 and 3, of eight rows.
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (evens, odds) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[at] = _mm512_shuffle_i32x4::<0x88>(even, evens);
        columns[at + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odds);
        columns[at + 8] = _mm512_shuffle_i32x4::<0xdd>(even, evens);
        columns[at + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odds);
    }
    columns
}

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[row][key] * values[key]`, with weights `[rows, keys or
/// more]`, values `[keys, width]` and sums `[rows, width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn weigh(weights: &[f32], values: Matrix<'_, bf16>, rescale: &[f32], total: &mut [f32]) {
    let (width, columns) = (values.width(), weights.len() / rescale.len().max(1));
    let mut first = 0;
    while first < rescale.len() {
        let left = rescale.len() - first;
        let (weights, rescale) = (Matrix::dense(&weights[first * columns..], columns), &rescale[first..]);
        let total = &mut total[first * width..];
        first += match left {
            1 => weigh_rows::<1, 4>(weights, values, rescale, total),
            2 | 3 => weigh_rows::<2, 4>(weights, values, rescale, total),
            4..8 => weigh_rows::<4, 4>(weights, values, rescale, total),
            _ => weigh_rows::<8, 2>(weights, values, rescale, total),
        };
    }
}

/// [`weigh`] for the first `R` rows, `C` registers of columns at a time. Returns `R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn weigh_rows<const R: usize, const C: usize>(
    weights: Matrix<'_, f32>,
    values: Matrix<'_, bf16>,
    rescale: &[f32],
    total: &mut [f32],
) -> usize {
    let width = values.width();
    let mut column = 0;
    while column < width {
        column += if width - column >= C * SUMS {
            weigh_tile::<R, C>(weights, values, column, rescale, total)
        } else {
            weigh_tile::<R, 1>(weights, values, column, rescale, total)
        };
    }
    R
}

/// [`weigh_rows`] for `C` registers of columns from `column` on, the last of which may be columns that there are not. Returns how many
/// columns these are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn weigh_tile<const R: usize, const C: usize>(
    weights: Matrix<'_, f32>,
    values: Matrix<'_, bf16>,
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
        for (at, wide) in wide.iter_mut().enumerate() {
            // SAFETY: only elements of the mask are read, which are there.
            let narrow = unsafe { _mm256_maskz_loadu_epi16(mask(at), values.as_ptr().add(at * SUMS).cast()) };
            *wide = widened(narrow);
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

/// Sixteen bfloat16 as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn widened(narrow: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
}

/// Rounded to bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn rounded(wide: __m512) -> __m512 {
    // SAFETY: both are 32 bytes, of which every value is one.
    widened(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(wide)) })
}

/// `gate = gelu(gate) * up`, rounded to bfloat16 after each step.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn gated(gate: &mut [f32], up: &[f32]) {
    let mut at = 0;
    while let Some(mask) = left(gate.len().min(up.len()), at) {
        let (gate, up) = (&mut gate[at..], &up[at..]);
        // SAFETY: only elements of the mask are read and written, which are there.
        unsafe {
            let (x, up) = (_mm512_maskz_loadu_ps(mask, gate.as_ptr()), _mm512_maskz_loadu_ps(mask, up.as_ptr()));
            let product = _mm512_mul_ps(rounded(gelu(rounded(x))), rounded(up));
            _mm512_mask_storeu_ps(gate.as_mut_ptr(), mask, rounded(product));
        }
        at += SUMS;
    }
}

/// Which of the sixteen elements from `at` on are among the first `length`; `None` if none is. Loops ask for it rather than take
/// chunks, whose iterators the compiler leaves as calls in functions for certain instructions.
#[inline(always)]
fn left(length: usize, at: usize) -> Option<u16> {
    match length.checked_sub(at) {
        None | Some(0) => None,
        Some(left) if left < SUMS => Some((1 << left) - 1),
        Some(_) => Some(u16::MAX),
    }
}

/// [`crate::functions::gelu`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn gelu(x: __m512) -> __m512 {
    let cube = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(CUBE), x), x);
    let inner = _mm512_mul_ps(_mm512_set1_ps(-TWICE_ROOT), _mm512_fmadd_ps(cube, x, x));
    _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0), exp(inner)))
}

/// [`crate::softmax::weights_of`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
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

/// [`crate::functions::narrow`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn narrow(from: &[f32], to: &mut [bf16]) {
    let mut at = 0;
    while let Some(mask) = left(from.len().min(to.len()), at) {
        let (from, to) = (&from[at..], &mut to[at..]);
        // SAFETY: only elements of the mask are read and written, which are there; both types are 32 bytes, of which every
        // value is one.
        unsafe {
            let narrow = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from.as_ptr()));
            let narrow = std::mem::transmute::<__m256bh, __m256i>(narrow);
            _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, narrow);
        }
        at += SUMS;
    }
}

/// [`crate::functions::exp`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn exp(x: __m512) -> __m512 {
    let bounded = _mm512_max_ps(_mm512_set1_ps(LEAST), _mm512_min_ps(_mm512_set1_ps(MOST), x));
    let rounded = _mm512_fmadd_ps(bounded, _mm512_set1_ps(std::f32::consts::LOG2_E), _mm512_set1_ps(ROUND));
    let n = _mm512_sub_ps(rounded, _mm512_set1_ps(ROUND));
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(LN_2[0]), bounded);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(LN_2[1]), r);
    let mut p = _mm512_set1_ps(FACTORS[0]);
    for factor in &FACTORS[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*factor));
    }
    let power = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1.0));
    let exponent = _mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(127));
    let scaled = _mm512_mul_ps(power, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)));
    // Not below the least: also NaN.
    _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(LEAST)), scaled)
}

/// Multiplies and adds what lies in registers, `rounds` times over. Returns how many operations that were.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn multiply(rounds: usize) -> f64 {
    /// Sums that grow side by side.
    const SIDE: usize = 24;
    let factor = pairs(_mm512_set1_epi32(std::hint::black_box(0x3f00_3f00)));
    let mut sums = [_mm512_setzero_ps(); SIDE];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, factor, factor);
        }
    }
    std::hint::black_box(sums);
    (2 * rounds * SIDE * PART) as f64
}
