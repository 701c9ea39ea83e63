//! Products with AVX2 and FMA.
//!
//! From bfloat16 the compiler makes pieces of two elements and keeps sums in memory, at a fifth of this speed; so these loops are
//! written for the instructions. Both have the form of [`crate::dot`] and [`crate::blocked`].
//!
//! A vector of 16 bfloat16 becomes two of f32 with one instruction each, a shift and a mask, if one takes the even elements and
//! the other the odd ones: [`spread`] puts inputs in that order, once for all rows of a matrix.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_NLT_UQ, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps,
    _mm_shuffle_ps, _mm_unpackhi_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
    _mm256_broadcast_ss, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cmp_ps,
    _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_permute2f128_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_srai_epi32,
    _mm256_storeu_ps, _mm256_sub_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use crate::functions::{FACTORS, LEAST, LN_2, MOST, ROUND};
use crate::number::{Kind, Number, Weight};

/// Elements that are loaded at a time.
const PAIR: usize = 16;
/// Elements of a row that are multiplied before sums go back to memory: a panel of 16 columns takes 16 KiB.
const DEPTH: usize = 256;
/// Columns of a panel: two vectors.
const PANEL: usize = 16;

/// Two vectors of f32: 16 elements of a row in the order of [`spread`].
type Pair = [__m256; 2];

/// Loads 16 weights. Integers and f32 come in the order of elements of `W`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load<W: Weight, E: Weight>(from: &[E; PAIR]) -> Pair {
    let start = from.as_ptr();
    match E::KIND {
        Kind::Bf16 => {
            // SAFETY: 32 bytes, which are elements of 16 bits.
            let both = unsafe { _mm256_loadu_si256(start.cast::<__m256i>()) };
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(-0x1_0000));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
        }
        Kind::F32 => {
            // SAFETY: 64 bytes, which are f32.
            let [left, right] = unsafe { [_mm256_loadu_ps(start.cast()), _mm256_loadu_ps(start.add(PAIR / 2).cast())] };
            if W::IS_BF16 {
                // The first halves of both, and the second ones, of which even and odd elements are taken.
                let (low, high) =
                    (_mm256_permute2f128_ps::<0x20>(left, right), _mm256_permute2f128_ps::<0x31>(left, right));
                [_mm256_shuffle_ps::<0x88>(low, high), _mm256_shuffle_ps::<0xdd>(low, high)]
            } else {
                [left, right]
            }
        }
        Kind::Int8 => {
            // SAFETY: 16 bytes, which are integers.
            let all = unsafe { _mm_loadu_si128(start.cast::<__m128i>()) };
            let sides = if W::IS_BF16 {
                let both = _mm256_cvtepi8_epi16(all);
                [_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(both)), _mm256_srai_epi32::<16>(both)]
            } else {
                [_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all))]
            };
            [_mm256_cvtepi32_ps(sides[0]), _mm256_cvtepi32_ps(sides[1])]
        }
    }
}

/// Loads 16 inputs.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn input(from: &[f32; PAIR]) -> Pair {
    load::<f32, f32>(from)
}

/// Widens a row, every 16 elements of it into the order in which [`dots`] has those of weights of the same type: the even ones in
/// front of the odd ones, where those are bfloat16. What is left at the end of a row stays.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn spread<W: Number>(from: &[W], to: &mut [f32]) {
    let whole = from.len() / PAIR * PAIR;
    for (from, to) in from.as_chunks::<PAIR>().0.iter().zip(to.as_chunks_mut::<PAIR>().0) {
        store(to, load::<W, W>(from));
    }
    for (from, to) in from[whole..].iter().zip(&mut to[whole..]) {
        *to = from.widen();
    }
}

/// `out[token][row] = weights[row] . inputs[token]`: products of few rows, of which [`spread`] has set the order for
/// elements of `W`.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn dots<W: Number, E: Weight>(inputs: &[f32], weights: &[E], width: usize, out: &mut [f32]) {
    let tokens = inputs.len() / width;
    let mut first = 0;
    while first < tokens {
        let (inputs, left) = (&inputs[first * width..], tokens - first);
        let out = &mut out[first * (weights.len() / width)..];
        // Tiles whose sums, inputs and weights fill the registers; two pairs are faster than three and one.
        first += match left {
            1 => band::<8, 1, W, E>(inputs, weights, width, out),
            2 | 4 => band::<4, 2, W, E>(inputs, weights, width, out),
            _ => band::<3, 3, W, E>(inputs, weights, width, out),
        };
    }
}

/// All rows of the matrix with the first `T` rows of the input, `R` rows at a time. Returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn band<const R: usize, const T: usize, W: Number, E: Weight>(
    inputs: &[f32],
    weights: &[E],
    width: usize,
    out: &mut [f32],
) -> usize {
    let rows = weights.len() / width;
    let mut row = 0;
    while row < rows {
        let (weights, out) = (&weights[row * width..], &mut out[row..]);
        row += if rows - row >= R {
            dot_tile::<R, T, W, E>(inputs, weights, width, out, rows)
        } else {
            dot_tile::<1, T, W, E>(inputs, weights, width, out, rows)
        };
    }
    T
}

/// `R` rows of the matrix, of `rows`, with `T` rows of the input. Returns `R`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dot_tile<const R: usize, const T: usize, W: Number, E: Weight>(
    inputs: &[f32],
    weights: &[E],
    width: usize,
    out: &mut [f32],
    rows: usize,
) -> usize {
    let (count, whole) = (width / PAIR, width / PAIR * PAIR);
    // All as long: nothing is left to check in the loop.
    let mut weight_parts: [&[[E; PAIR]]; R] = [&[]; R];
    for (row, parts) in weight_parts.iter_mut().enumerate() {
        *parts = &weights[row * width..][..whole].as_chunks().0[..count];
    }
    let mut input_parts: [&[[f32; PAIR]]; T] = [&[]; T];
    for (token, parts) in input_parts.iter_mut().enumerate() {
        *parts = &inputs[token * width..][..whole].as_chunks().0[..count];
    }
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    for at in 0..count {
        let mut x = [[_mm256_setzero_ps(); 2]; T];
        for token in 0..T {
            x[token] = input(&input_parts[token][at]);
        }
        for row in 0..R {
            let [even, odd] = load::<W, E>(&weight_parts[row][at]);
            for token in 0..T {
                sums[row][token] = _mm256_fmadd_ps(even, x[token][0], sums[row][token]);
            }
            for token in 0..T {
                sums[row][token] = _mm256_fmadd_ps(odd, x[token][1], sums[row][token]);
            }
        }
    }
    for row in 0..R {
        for token in 0..T {
            let mut total = sum(sums[row][token]);
            for at in whole..width {
                total += weights[row * width + at].widen() * inputs[token * width + at];
            }
            out[token * rows + row] = total;
        }
    }
    R
}

/// The sum of all lanes, in pairs.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// `out[token][row] = weights[row] . inputs[token]`: products of many rows, in their own order. `out` is `[tokens, stride]`, of
/// which the first as many columns as there are rows are written, and perhaps the others; `stride` is a multiple of 16.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn blocked<X: Number, W: Weight>(inputs: &[X], weights: &[W], width: usize, out: &mut [f32], stride: usize) {
    let (tokens, rows) = (inputs.len() / width, weights.len() / width);
    let panels = rows.div_ceil(PANEL);
    let mut packed = vec![[0.0_f32; PANEL]; panels * DEPTH.min(width)];
    // Rows that lie a power of two apart would push each other out of the caches.
    let mut wide = vec![0.0_f32; tokens * DEPTH.min(width)];
    let mut first = 0;
    while first < width {
        let depth = DEPTH.min(width - first);
        for (panel, packed) in packed.chunks_exact_mut(depth).enumerate().take(panels) {
            pack(&weights[panel * PANEL * width..], width, first, packed);
        }
        for (row, to) in wide.chunks_exact_mut(depth).enumerate().take(tokens) {
            widen(&inputs[row * width + first..][..depth], to);
        }
        let mut token = 0;
        while token < tokens {
            let left = tokens - token;
            let inputs = &wide[token * depth..tokens * depth];
            let mut taken = 0;
            for (panel, packed) in packed.chunks_exact(depth).enumerate().take(panels) {
                let out = &mut out[token * stride + panel * PANEL..];
                let fresh = first == 0;
                // Six rows by two vectors are the twelve sums that leave four registers.
                taken = match left {
                    1 => block_tile::<1>(inputs, packed, out, stride, fresh),
                    2 => block_tile::<2>(inputs, packed, out, stride, fresh),
                    3 => block_tile::<3>(inputs, packed, out, stride, fresh),
                    4 | 8 => block_tile::<4>(inputs, packed, out, stride, fresh),
                    5 | 10 => block_tile::<5>(inputs, packed, out, stride, fresh),
                    _ => block_tile::<6>(inputs, packed, out, stride, fresh),
                };
            }
            // No panel, no column: nothing to do for any row.
            token += if taken == 0 { left } else { taken };
        }
        first += depth;
    }
}

/// Widens a row.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn widen<X: Number>(from: &[X], to: &mut [f32]) {
    let whole = from.len() / PAIR * PAIR;
    for (from, to) in from.as_chunks::<PAIR>().0.iter().zip(to.as_chunks_mut::<PAIR>().0) {
        let [left, right] = load::<X, X>(from);
        if X::IS_BF16 {
            // Even and odd elements, back in turn: quarters 0 and 2, then 1 and 3.
            let (low, high) = (_mm256_unpacklo_ps(left, right), _mm256_unpackhi_ps(left, right));
            store(to, [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]);
        } else {
            store(to, [left, right]);
        }
    }
    for (from, to) in from[whole..].iter().zip(&mut to[whole..]) {
        *to = from.widen();
    }
}

/// `T` rows of the input, as long as the panel, with it, onto what is in `out` or, at first, in its place. Returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn block_tile<const T: usize>(
    inputs: &[f32],
    packed: &[[f32; PANEL]],
    out: &mut [f32],
    stride: usize,
    fresh: bool,
) -> usize {
    let mut rows: [&[f32]; T] = [&[]; T];
    for (token, row) in rows.iter_mut().enumerate() {
        *row = &inputs[token * packed.len()..][..packed.len()];
    }
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    for (at, weights) in packed.iter().enumerate() {
        let [left, right] = input(weights);
        for token in 0..T {
            let x = _mm256_broadcast_ss(&rows[token][at]);
            sums[token] = [_mm256_fmadd_ps(x, left, sums[token][0]), _mm256_fmadd_ps(x, right, sums[token][1])];
        }
    }
    for token in 0..T {
        let Some(out) = out[token * stride..].first_chunk_mut::<PANEL>() else { continue };
        let [mut left, mut right] = sums[token];
        if !fresh {
            let before = input(out);
            [left, right] = [_mm256_add_ps(left, before[0]), _mm256_add_ps(right, before[1])];
        }
        store(out, [left, right]);
    }
    T
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn store(to: &mut [f32; PANEL], pair: Pair) {
    let start = to.as_mut_ptr();
    // SAFETY: 64 bytes.
    unsafe {
        _mm256_storeu_ps(start, pair[0]);
        _mm256_storeu_ps(start.add(PANEL / 2), pair[1]);
    }
}

/// Up to 16 rows of the matrix from element `first` on, turned so that their elements at one place are neighbours.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn pack<W: Weight>(weights: &[W], width: usize, first: usize, packed: &mut [[f32; PANEL]]) {
    let depth = packed.len();
    let whole = depth / PAIR * PAIR;
    for half in [0, PANEL / 2] {
        let mut rows: [&[W]; PANEL / 2] = [&[]; PANEL / 2];
        for (column, row) in rows.iter_mut().enumerate() {
            let start = (half + column) * width + first;
            *row = weights.get(start..start + depth).unwrap_or_default();
        }
        for at in (0..whole).step_by(PAIR) {
            let mut vectors = [[_mm256_setzero_ps(); 2]; PANEL / 2];
            for (vector, row) in vectors.iter_mut().zip(rows) {
                if let Some(part) = row.get(at..).and_then(|rest| rest.first_chunk::<PAIR>()) {
                    *vector = load::<W, W>(part);
                }
            }
            for which in 0..2 {
                let mut side = [_mm256_setzero_ps(); PANEL / 2];
                for (to, vector) in side.iter_mut().zip(vectors) {
                    *to = vector[which];
                }
                let turned = turn(side);
                for (place, column) in turned.into_iter().enumerate() {
                    let place = if W::IS_BF16 { place * 2 + which } else { place + which * (PAIR / 2) };
                    let Some(to) = packed[at + place][half..].first_chunk_mut::<8>() else { continue };
                    // SAFETY: 32 bytes.
                    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), column) };
                }
            }
        }
        for (at, packed) in packed.iter_mut().enumerate().skip(whole) {
            for (to, row) in packed[half..].iter_mut().zip(rows) {
                *to = row.get(at).map_or(0.0, |weight| weight.widen());
            }
        }
    }
}

/// Rows become columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn turn(rows: [__m256; 8]) -> [__m256; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let (ab, cd, ef, gh) =
        (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d), _mm256_unpacklo_ps(e, f), _mm256_unpacklo_ps(g, h));
    let (ba, dc, fe, hg) =
        (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d), _mm256_unpackhi_ps(e, f), _mm256_unpackhi_ps(g, h));
    // Quarters of columns: 0 and 4, 1 and 5, and so on.
    let upper = [
        _mm256_shuffle_ps::<0x44>(ab, cd),
        _mm256_shuffle_ps::<0xee>(ab, cd),
        _mm256_shuffle_ps::<0x44>(ba, dc),
        _mm256_shuffle_ps::<0xee>(ba, dc),
    ];
    let lower = [
        _mm256_shuffle_ps::<0x44>(ef, gh),
        _mm256_shuffle_ps::<0xee>(ef, gh),
        _mm256_shuffle_ps::<0x44>(fe, hg),
        _mm256_shuffle_ps::<0xee>(fe, hg),
    ];
    let mut columns = [_mm256_setzero_ps(); 8];
    for at in 0..4 {
        columns[at] = _mm256_permute2f128_ps::<0x20>(upper[at], lower[at]);
        columns[at + 4] = _mm256_permute2f128_ps::<0x31>(upper[at], lower[at]);
    }
    columns
}

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[row][key] * values[key]`, with weights `[rows, keys]`, values
/// `[keys, width]` and sums `[rows, width]`.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn weigh(weights: &[f32], values: &[f32], width: usize, rescale: &[f32], total: &mut [f32]) {
    let keys = values.len() / width;
    let mut first = 0;
    while first < rescale.len() {
        let left = rescale.len() - first;
        let (weights, rescale) = (&weights[first * keys..], &rescale[first..]);
        let total = &mut total[first * width..];
        first += match left {
            1 => weigh_rows::<1>(weights, values, width, rescale, total),
            2 => weigh_rows::<2>(weights, values, width, rescale, total),
            3 => weigh_rows::<3>(weights, values, width, rescale, total),
            4 | 8 => weigh_rows::<4>(weights, values, width, rescale, total),
            5 | 10 => weigh_rows::<5>(weights, values, width, rescale, total),
            _ => weigh_rows::<6>(weights, values, width, rescale, total),
        };
    }
}

/// [`weigh`] for the first `R` rows. Returns `R`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn weigh_rows<const R: usize>(
    weights: &[f32],
    values: &[f32],
    width: usize,
    rescale: &[f32],
    total: &mut [f32],
) -> usize {
    let keys = values.len() / width;
    let mut rows: [&[f32]; R] = [&[]; R];
    for (number, row) in rows.iter_mut().enumerate() {
        *row = &weights[number * keys..][..keys];
    }
    let whole = width / PANEL * PANEL;
    for column in (0..whole).step_by(PANEL) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for (key, values) in values.chunks_exact(width).enumerate() {
            let Some(part) = values[column..].first_chunk::<PANEL>() else { continue };
            let [left, right] = input(part);
            for row in 0..R {
                let weight = _mm256_broadcast_ss(&rows[row][key]);
                sums[row] = [_mm256_fmadd_ps(weight, left, sums[row][0]), _mm256_fmadd_ps(weight, right, sums[row][1])];
            }
        }
        for row in 0..R {
            let Some(to) = total[row * width + column..].first_chunk_mut::<PANEL>() else { continue };
            let (before, factor) = (input(to), _mm256_broadcast_ss(&rescale[row]));
            let [left, right] = sums[row];
            store(to, [_mm256_fmadd_ps(before[0], factor, left), _mm256_fmadd_ps(before[1], factor, right)]);
        }
    }
    for row in 0..R {
        for column in whole..width {
            let mut sum = total[row * width + column] * rescale[row];
            for key in 0..keys {
                sum += rows[row][key] * values[key * width + column];
            }
            total[row * width + column] = sum;
        }
    }
    R
}

/// [`crate::functions::exp`], of which the compiler makes single lanes where it comes in the middle of other work.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp(x: __m256) -> __m256 {
    let bounded = _mm256_max_ps(_mm256_set1_ps(LEAST), _mm256_min_ps(_mm256_set1_ps(MOST), x));
    let rounded = _mm256_fmadd_ps(bounded, _mm256_set1_ps(std::f32::consts::LOG2_E), _mm256_set1_ps(ROUND));
    let n = _mm256_sub_ps(rounded, _mm256_set1_ps(ROUND));
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(LN_2[0]), bounded);
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(LN_2[1]), r);
    let mut p = _mm256_set1_ps(FACTORS[0]);
    for factor in &FACTORS[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*factor));
    }
    let power = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r), _mm256_set1_ps(1.0));
    let exponent = _mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(127));
    let scaled = _mm256_mul_ps(power, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)));
    // Not below the least: also NaN.
    _mm256_and_ps(scaled, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(LEAST)))
}

/// The scores of a row become weights relative to the largest of them and `most`. Returns that, and the sum of the weights.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn weights_of(scores: &mut [f32], most: f32) -> (f32, f32) {
    let (parts, rest) = scores.as_chunks_mut::<8>();
    let mut greatest = _mm256_set1_ps(most);
    for part in &*parts {
        // SAFETY: 32 bytes. Of a NaN and a number, the second is taken: what was greatest.
        greatest = _mm256_max_ps(unsafe { _mm256_loadu_ps(part.as_ptr()) }, greatest);
    }
    let mut lanes = [0.0_f32; 8];
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), greatest) };
    let mut new = most;
    for score in lanes.iter().chain(&*rest) {
        new = if *score > new { *score } else { new };
    }
    // A row that has seen no key yet stays without weights.
    let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
    let shifts = _mm256_set1_ps(shift);
    let mut added = _mm256_setzero_ps();
    for part in parts {
        // SAFETY: 32 bytes.
        let weights = exp(_mm256_sub_ps(unsafe { _mm256_loadu_ps(part.as_ptr()) }, shifts));
        added = _mm256_add_ps(added, weights);
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_ps(part.as_mut_ptr(), weights) };
    }
    let mut lanes = [f32::NEG_INFINITY; 8];
    lanes[..rest.len()].copy_from_slice(rest);
    // SAFETY: 32 bytes.
    let weights = exp(_mm256_sub_ps(unsafe { _mm256_loadu_ps(lanes.as_ptr()) }, shifts));
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), weights) };
    let left = rest.len();
    rest.copy_from_slice(&lanes[..left]);
    (new, sum(_mm256_add_ps(added, weights)))
}
