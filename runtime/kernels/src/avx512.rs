//! Products of bfloat16 with AVX-512 and its instruction for them, which multiplies 32 pairs and adds neighbours to 16 sums of f32.
//!
//! Both factors stay bfloat16: nothing is widened. The instruction rounds each sum to the nearest, and takes numbers below the
//! least normal one for 0. The forms are those of [`crate::dot`] and [`crate::blocked`].

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_setr_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_shuffle_i32x4, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpackhi_ps, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64, _mm512_unpacklo_ps,
};

use half::bf16;

/// Elements of a register.
const PART: usize = 32;
/// Sums of a register.
const SUMS: usize = 16;
/// Rows of the input in the largest tile of [`dots`].
const BAND: usize = 8;
/// Elements of a row that are multiplied before sums go back to memory: a panel of 32 columns takes 16 KiB.
const DEPTH: usize = 256;
/// Columns of a panel: two registers of sums.
const PANEL: usize = 32;

/// `elements` as the instruction takes them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pairs(elements: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which every value is one.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(elements) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn load(from: &[bf16; PART]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Up to 32 elements, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn load_some(from: &[bf16]) -> __m512i {
    if let Some(whole) = from.first_chunk() {
        return load(whole);
    }
    let mask = (1_u32 << from.len()) - 1;
    // SAFETY: only elements of the mask are read, which are there.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.as_ptr().cast()) }
}

/// `out[row][token] = weights[row] . inputs[token]`: products of few rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn dots(inputs: &[bf16], weights: &[bf16], width: usize, out: &mut [f32]) {
    let tokens = inputs.len() / width;
    let mut first = 0;
    while first < tokens {
        let left = tokens - first;
        // Bands as equal as can be.
        let taken = left.div_ceil(left.div_ceil(BAND));
        let (inputs, out) = (&inputs[first * width..], &mut out[first..]);
        // Tiles of at most 24 sums leave room for the factors; fewer than twelve would wait for each other.
        match taken {
            1 => band::<8, 1>(inputs, weights, width, out, tokens),
            2 => band::<8, 2>(inputs, weights, width, out, tokens),
            3 => band::<8, 3>(inputs, weights, width, out, tokens),
            4 => band::<6, 4>(inputs, weights, width, out, tokens),
            5 => band::<4, 5>(inputs, weights, width, out, tokens),
            6 => band::<4, 6>(inputs, weights, width, out, tokens),
            7 => band::<3, 7>(inputs, weights, width, out, tokens),
            _ => band::<3, BAND>(inputs, weights, width, out, tokens),
        }
        first += taken;
    }
}

/// All rows of the matrix with the first `T` rows of the input, `R` rows at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn band<const R: usize, const T: usize>(
    inputs: &[bf16],
    weights: &[bf16],
    width: usize,
    out: &mut [f32],
    tokens: usize,
) {
    let rows = weights.len() / width;
    let mut row = 0;
    while row < rows {
        let (weights, out) = (&weights[row * width..], &mut out[row * tokens..]);
        row += if rows - row >= R {
            dot_tile::<R, T>(inputs, weights, width, out, tokens)
        } else {
            dot_tile::<1, T>(inputs, weights, width, out, tokens)
        };
    }
}

/// `R` rows of the matrix with `T` rows of the input. Returns `R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn dot_tile<const R: usize, const T: usize>(
    inputs: &[bf16],
    weights: &[bf16],
    width: usize,
    out: &mut [f32],
    tokens: usize,
) -> usize {
    let (count, whole) = (width / PART, width / PART * PART);
    // All as long: nothing is left to check in the loop.
    let mut weight_parts: [&[[bf16; PART]]; R] = [&[]; R];
    for (row, parts) in weight_parts.iter_mut().enumerate() {
        *parts = &weights[row * width..][..whole].as_chunks().0[..count];
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
            let ahead = weight_parts[row][at].as_ptr().wrapping_add(R * width);
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
            let weights = pairs(load_some(&weights[row * width + whole..(row + 1) * width]));
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
            out[(number + at) / T * tokens + (number + at) % T] = total;
        }
        number += SUMS;
    }
    R
}

/// The sum of all lanes of each register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
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

/// `out[token][row] = weights[row] . inputs[token]`: products of many rows. `out` is `[tokens, stride]`, of which the first as many
/// columns as there are rows are written, and perhaps the others; `stride` is a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn blocked(inputs: &[bf16], weights: &[bf16], width: usize, out: &mut [f32], stride: usize) {
    let (tokens, rows) = (inputs.len() / width, weights.len() / width);
    let panels = rows.div_ceil(PANEL);
    // Pairs of neighbours, with a 0 behind a last one without.
    let most = DEPTH.min(width).div_ceil(2);
    let mut packed = vec![[0_u32; PANEL]; panels * most];
    // Rows that lie a power of two apart would push each other out of the caches.
    let mut dense = vec![0_u32; tokens * most];
    let mut first = 0;
    while first < width {
        let depth = DEPTH.min(width - first);
        let count = depth.div_ceil(2);
        for (panel, packed) in packed.chunks_exact_mut(count).enumerate().take(panels) {
            pack(&weights[panel * PANEL * width..], width, first, depth, packed);
        }
        for (row, to) in dense.chunks_exact_mut(count).enumerate().take(tokens) {
            gather(&inputs[row * width + first..][..depth], to);
        }
        let mut token = 0;
        while token < tokens {
            let left = tokens - token;
            let inputs = &dense[token * count..tokens * count];
            let mut taken = left;
            for (panel, packed) in packed.chunks_exact(count).enumerate().take(panels) {
                let out = &mut out[token * stride + panel * PANEL..];
                let fresh = first == 0;
                taken = match left {
                    1 => block_tile::<1>(inputs, packed, out, stride, fresh),
                    2 | 3 => block_tile::<2>(inputs, packed, out, stride, fresh),
                    4..8 => block_tile::<4>(inputs, packed, out, stride, fresh),
                    8..12 => block_tile::<8>(inputs, packed, out, stride, fresh),
                    _ => block_tile::<12>(inputs, packed, out, stride, fresh),
                };
            }
            token += taken;
        }
        first += depth;
    }
}

/// Neighbours as pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn gather(from: &[bf16], to: &mut [u32]) {
    let (parts, rest) = from.as_chunks::<2>();
    for (to, [low, high]) in to.iter_mut().zip(parts) {
        *to = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    }
    if let ([last], Some(to)) = (rest, to.last_mut()) {
        *to = u32::from(last.to_bits());
    }
}

/// `T` rows of the input, as long as the panel, with it, onto what is in `out` or, at first, in its place. Returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn block_tile<const T: usize>(
    inputs: &[u32],
    packed: &[[u32; PANEL]],
    out: &mut [f32],
    stride: usize,
    fresh: bool,
) -> usize {
    let mut rows: [&[u32]; T] = [&[]; T];
    for (token, row) in rows.iter_mut().enumerate() {
        *row = &inputs[token * packed.len()..][..packed.len()];
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    for (at, weights) in packed.iter().enumerate() {
        let start = weights.as_ptr();
        // SAFETY: 64 bytes each, of the 128.
        let (left, right) = unsafe { (_mm512_loadu_si512(start.cast()), _mm512_loadu_si512(start.add(SUMS).cast())) };
        for token in 0..T {
            let input = pairs(_mm512_set1_epi32(rows[token][at].cast_signed()));
            let [low, high] = sums[token];
            sums[token] = [_mm512_dpbf16_ps(low, pairs(left), input), _mm512_dpbf16_ps(high, pairs(right), input)];
        }
    }
    for token in 0..T {
        let Some(out) = out[token * stride..].first_chunk_mut::<PANEL>() else { continue };
        let start = out.as_mut_ptr();
        let [mut low, mut high] = sums[token];
        // SAFETY: 64 bytes each, of the 128.
        unsafe {
            if !fresh {
                low = _mm512_add_ps(low, _mm512_loadu_ps(start));
                high = _mm512_add_ps(high, _mm512_loadu_ps(start.add(SUMS)));
            }
            _mm512_storeu_ps(start, low);
            _mm512_storeu_ps(start.add(SUMS), high);
        }
    }
    T
}

/// Up to 32 rows of the matrix, `depth` elements from `first` on, turned so that their pairs at one place are neighbours.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(weights: &[bf16], width: usize, first: usize, depth: usize, packed: &mut [[u32; PANEL]]) {
    for half in [0, SUMS] {
        for at in (0..depth).step_by(PART) {
            let mut rows = [_mm512_setzero_si512(); SUMS];
            for (column, row) in rows.iter_mut().enumerate() {
                let start = (half + column) * width + first;
                let part = weights.get(start + at..start + depth.min(at + PART));
                *row = part.map_or(_mm512_setzero_si512(), |part| load_some(part));
            }
            for (to, column) in packed[at / 2..].iter_mut().zip(turn(rows)) {
                // SAFETY: 64 bytes, of the 128.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(half).cast(), column) };
            }
        }
    }
}

/// Rows of sixteen pairs become columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn turn(rows: [__m512i; SUMS]) -> [__m512i; SUMS] {
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
