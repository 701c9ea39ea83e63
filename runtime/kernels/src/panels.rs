//! Products of many rows of bfloat16 with AVX-512 and its instruction for them.
//!
//! Rows of the input are packed once for a product, in bands of up to fourteen whose pairs at one place are neighbours. Each thread
//! turns 32 rows of the weights at a time into a panel, which stays in its second cache while all bands meet it, and fetches the next
//! ones meanwhile. A tile of sums takes 28 registers, a panel's columns two, a pair of the input one.

use std::arch::x86_64::{
    _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_epi32, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
    _mm512_storeu_si512,
};
use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use crate::avx512::{load_some, pairs, turn};
use crate::int8;
use crate::matrix::Matrix;
use crate::number::Weight;
use crate::threads::{self, Shared};

/// Columns of a panel: two registers of sums.
pub(crate) const PANEL: usize = 32;
/// Rows of the input in the tallest band.
const TALLEST: usize = 14;
/// Lanes of a register.
const LANES: usize = 16;
/// Pairs of a row that are multiplied before sums go back to memory: a panel takes 256 KiB.
const DEPTH: usize = 2048;
/// Pairs of the input that are worth a thread.
const PIECE: usize = 16 << 10;

thread_local! {
    static PANEL_OF_THREAD: RefCell<Vec<[u32; PANEL]>> = const { RefCell::new(Vec::new()) };
}

/// Rows in each band but the last, for so many: bands are as equal as can be.
pub(crate) fn tall(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TALLEST).max(1)).max(1)
}

/// Rows as products take them.
pub(crate) struct Packed {
    /// `[bands][pairs of a row][rows of the band]`; the last of an odd number of elements has a 0 beside it.
    pairs: Vec<u32>,
    /// Pairs of a row.
    count: usize,
    /// Rows in each band but the last.
    tall: usize,
}

impl Packed {
    /// Rows of `width` elements, on all threads.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    pub(crate) unsafe fn new(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        let Packed { count, tall, .. } = packed;
        let each = (PIECE / (count * tall).max(1)).max(1) * tall;
        let shared = Shared::new(&mut packed.pairs);
        threads::share(rows.len().div_ceil((each * width).max(1)), |at| {
            let rows = &rows[at * each * width..rows.len().min((at + 1) * each * width)];
            // SAFETY: each piece has bands of its own; the caller vouches for the instructions.
            unsafe { pack_rows(rows, width, tall, shared.part(at * each * count, rows.len() / width * count)) };
        });
        packed
    }

    /// The same on this thread.
    ///
    /// # Safety
    /// As for [`Self::new`].
    pub(crate) unsafe fn here(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        // SAFETY: the caller vouches for it.
        unsafe { pack_rows(rows, width, packed.tall, &mut packed.pairs) };
        packed
    }

    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.pairs.len().checked_div(self.count).unwrap_or(0)
    }

    fn empty(rows: &[bf16], width: usize) -> Self {
        let (rows, count) = (rows.len().checked_div(width).unwrap_or(0), width.div_ceil(2));
        Packed { pairs: vec![0; rows * count], count, tall: tall(rows) }
    }
}

/// Packs bands one after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_rows(rows: &[bf16], width: usize, tall: usize, to: &mut [u32]) {
    let (mut rows, mut to) = (rows, to);
    while !rows.is_empty() && width > 0 {
        let taken = tall.min(rows.len() / width);
        let (band, other_rows) = rows.split_at(taken * width);
        let (packed, others) = std::mem::take(&mut to).split_at_mut(taken * width.div_ceil(2));
        (rows, to) = (other_rows, others);
        let mask = u16::MAX >> (LANES - taken);
        let mut first = 0;
        while first < width {
            let end = width.min(first + 2 * LANES);
            let mut lines = [_mm512_setzero_si512(); LANES];
            for row in 0..taken {
                lines[row] = load_some(&band[row * width + first..row * width + end]);
            }
            let columns = turn(lines);
            for at in 0..(end - first).div_ceil(2) {
                let to = &mut packed[(first / 2 + at) * taken..][..taken];
                // SAFETY: only lanes of the mask are written, which are there.
                unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, columns[at]) };
            }
            first = end;
        }
    }
}

/// `out[token][row] = weights[row] . inputs[token]` for some tokens, the first of which begins a band and the last of which ends one.
/// `out` is `[tokens, stride]`, where the last row may be shorter; 32 columns are written at a time, so what is behind the last row's
/// is lost, and they must be there.
///
/// # Safety
/// The processor has AVX-512 with bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn products<E: Weight>(
    inputs: &Packed,
    tokens: Range<usize>,
    weights: Matrix<'_, E>,
    out: &mut [f32],
    stride: usize,
) {
    let Packed { count, tall, .. } = *inputs;
    debug_assert_eq!(weights.width().div_ceil(2), count, "other rows");
    debug_assert!(tokens.start.is_multiple_of(tall), "half a band");
    PANEL_OF_THREAD.with_borrow_mut(|panel| {
        panel.resize(DEPTH.min(count).max(panel.len()), [0; PANEL]);
        let mut row = 0;
        while row < weights.rows() {
            let block = weights.from(row);
            let mut first = 0;
            while first < count {
                let depth = DEPTH.min(count - first);
                let panel = &mut panel[..depth];
                pack_panel(block, first, panel);
                let mut ahead = if first + depth < count {
                    Ahead::new(block, first + depth, DEPTH.min(count - first - depth))
                } else {
                    Ahead::new(weights.from(row + PANEL), 0, DEPTH.min(count))
                };
                let mut token = tokens.start;
                while token < tokens.end {
                    let taken = tall.min(tokens.end - token);
                    let inputs = &inputs.pairs[token * count + first * taken..][..depth * taken];
                    let out = &mut out[(token - tokens.start) * stride + row..];
                    tile(taken, inputs, panel, &mut ahead, out, stride, first == 0);
                    token += taken;
                }
                first += depth;
            }
            row += PANEL;
        }
    });
}

/// What is fetched while something else is multiplied: parts of rows, line by line.
struct Ahead {
    at: *const u8,
    /// Lines that are left of this row.
    lines: usize,
    /// Rows that are left, with this one.
    rows: usize,
    /// Lines of a part.
    part: usize,
    /// Bytes from the end of a part to the beginning of the next.
    jump: isize,
}

impl Ahead {
    /// `count` pairs from `first` on, of up to 32 rows.
    fn new<E: Weight>(weights: Matrix<'_, E>, first: usize, count: usize) -> Self {
        let rows = weights.rows().min(PANEL);
        let part = (2 * count * size_of::<E>()).div_ceil(64);
        let at = if rows == 0 { [].as_ptr() } else { weights.row(0).as_ptr() };
        let jump = (weights.stride() * size_of::<E>()).cast_signed() - (part * 64).cast_signed();
        Ahead { at: at.wrapping_add(2 * first).cast(), lines: part, rows, part, jump }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        if self.rows == 0 {
            return;
        }
        // SAFETY: every such processor has it, and it has no effect that can be seen, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(self.at.cast()) };
        self.at = self.at.wrapping_add(64);
        self.lines = self.lines.saturating_sub(1);
        if self.lines == 0 {
            (self.at, self.lines, self.rows) = (self.at.wrapping_offset(self.jump), self.part, self.rows - 1);
        }
    }
}

/// Up to 32 rows of the matrix, from pair `first` on, turned so that their pairs at one place are neighbours.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_panel<E: Weight>(weights: Matrix<'_, E>, first: usize, panel: &mut [[u32; PANEL]]) {
    let (first, end) = (2 * first, weights.width().min(2 * (first + panel.len())));
    for half in [0, LANES] {
        let mut rows: [&[E]; LANES] = [&[]; LANES];
        for row in 0..LANES.min(weights.rows().saturating_sub(half)) {
            rows[row] = &weights.row(half + row)[first..end];
        }
        let is_whole = half + LANES <= weights.rows();
        let mut at = 0;
        while at < end - first {
            let part = (end - first - at).min(2 * LANES);
            let columns = if is_whole && part == 2 * LANES {
                // Nothing is left to check, so that all of it stays in registers.
                let mut lines = [_mm512_setzero_si512(); LANES];
                for row in 0..LANES {
                    // SAFETY: this row, as all sixteen, has as many elements from there on.
                    lines[row] = load_any(unsafe { rows[row].get_unchecked(at..at + 2 * LANES) });
                }
                turn(lines)
            } else {
                let mut lines = [_mm512_setzero_si512(); LANES];
                for row in 0..LANES {
                    lines[row] = load_any(rows[row].get(at..at + part).unwrap_or_default());
                }
                turn(lines)
            };
            for pair in 0..part.div_ceil(2) {
                let to = &mut panel[at / 2 + pair];
                // SAFETY: 64 bytes, of the 128.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(half).cast(), columns[pair]) };
            }
            at += part;
        }
    }
}

/// Up to 32 elements as bfloat16, which they are or become exactly, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load_any<E: Weight>(from: &[E]) -> std::arch::x86_64::__m512i {
    if let Some(from) = E::as_bf16(from) {
        load_some(from)
    } else if let Some(from) = E::as_int8(from) {
        int8::load_some(from)
    } else {
        _mm512_setzero_si512()
    }
}

/// A band of so many rows with a panel, as [`rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile(
    taken: usize,
    inputs: &[u32],
    panel: &[[u32; PANEL]],
    ahead: &mut Ahead,
    out: &mut [f32],
    stride: usize,
    fresh: bool,
) {
    match taken {
        1 => rows::<1>(inputs, panel, ahead, out, stride, fresh),
        2 => rows::<2>(inputs, panel, ahead, out, stride, fresh),
        3 => rows::<3>(inputs, panel, ahead, out, stride, fresh),
        4 => rows::<4>(inputs, panel, ahead, out, stride, fresh),
        5 => rows::<5>(inputs, panel, ahead, out, stride, fresh),
        6 => rows::<6>(inputs, panel, ahead, out, stride, fresh),
        7 => rows::<7>(inputs, panel, ahead, out, stride, fresh),
        8 => rows::<8>(inputs, panel, ahead, out, stride, fresh),
        9 => rows::<9>(inputs, panel, ahead, out, stride, fresh),
        10 => rows::<10>(inputs, panel, ahead, out, stride, fresh),
        11 => rows::<11>(inputs, panel, ahead, out, stride, fresh),
        12 => rows::<12>(inputs, panel, ahead, out, stride, fresh),
        13 => rows::<13>(inputs, panel, ahead, out, stride, fresh),
        _ => rows::<TALLEST>(inputs, panel, ahead, out, stride, fresh),
    }
}

/// `T` rows of the input, as long as the panel, with it, onto what is in `out` or, at first, in its place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn rows<const T: usize>(
    inputs: &[u32],
    panel: &[[u32; PANEL]],
    ahead: &mut Ahead,
    out: &mut [f32],
    stride: usize,
    fresh: bool,
) {
    let inputs = &inputs.as_chunks::<T>().0[..panel.len()];
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    for at in 0..panel.len() {
        ahead.fetch();
        let (weights, inputs) = (panel[at].as_ptr(), &inputs[at]);
        // SAFETY: 64 bytes each, of the 128.
        let (left, right) =
            unsafe { (_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(LANES).cast())) };
        for token in 0..T {
            let input = pairs(_mm512_set1_epi32(inputs[token].cast_signed()));
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
                high = _mm512_add_ps(high, _mm512_loadu_ps(start.add(LANES)));
            }
            _mm512_storeu_ps(start, low);
            _mm512_storeu_ps(start.add(LANES), high);
        }
    }
}
