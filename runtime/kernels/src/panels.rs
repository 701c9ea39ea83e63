//! Products of many rows of bfloat16 with AVX-512 and its instruction for them.
//!
//! Rows of the input are packed once for a product, into panels of 32 whose pairs at one place are neighbours: they are the lanes of two
//! registers. Weights are copied as they come, line by line and fourteen rows side by side, and each pair of them meets a whole panel;
//! so nothing of the weights is turned, and what comes out is turned once. A tile takes 28 registers of sums, two of inputs and one of a
//! pair of weights. The weights that come next are fetched meanwhile.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_si512,
};
use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use crate::avx512::{self, pairs, turn};
use crate::int8;
use crate::matrix::Matrix;
use crate::number::{Kind, Weight};
use crate::threads::{self, Shared};

/// Rows of a panel of the input: two registers of sums.
pub(crate) const PANEL: usize = 32;
/// Rows of the weights in the tallest tile.
const TALLEST: usize = 14;
/// Lanes of a register, and pairs of a line.
const LANES: usize = 16;
/// Pairs of a row that are multiplied before sums go back to memory: a panel takes 256 KiB.
const DEPTH: usize = 2048;
/// Lines of weights that meet a panel before the next one comes: 256 KiB.
const LINES: usize = 4096;
/// With as few tokens, one tile after the other meets all panels, so that little of a piece comes without having been fetched.
const FEW: usize = 2 * PANEL;

/// A line of a row: sixteen pairs.
type Line = [u32; LANES];

thread_local! {
    /// Weights `[tiles][lines of a row][rows of the tile]`.
    static WEIGHTS_OF_THREAD: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Rows in each tile but the last, for so many: tiles are as equal as can be.
fn tall(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TALLEST).max(1)).max(1)
}

/// Rows of the input as products take them.
pub(crate) struct Packed {
    /// `[panels][places of pairs]`, filled up with 0.
    pairs: Vec<[Line; 2]>,
    /// How many there are.
    rows: usize,
    /// Places of a panel: whole lines of the weights.
    places: usize,
}

impl Packed {
    /// Rows of `width` elements, on all threads.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    pub(crate) unsafe fn new(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        let (each, places) = (PANEL * width, packed.places);
        let shared = Shared::new(&mut packed.pairs);
        threads::share(rows.len().div_ceil(each.max(1)), |at| {
            let rows = &rows[at * each..rows.len().min((at + 1) * each)];
            // SAFETY: each piece has panels of its own; the caller vouches for the instructions.
            unsafe { pack(rows, width, shared.part(at * places, places)) };
        });
        packed
    }

    /// The same on this thread.
    ///
    /// # Safety
    /// As for [`Self::new`].
    pub(crate) unsafe fn here(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        let panels = rows.chunks((PANEL * width).max(1)).zip(packed.pairs.chunks_mut(packed.places.max(1)));
        // SAFETY: the caller vouches for it.
        panels.for_each(|(rows, panel)| unsafe { pack(rows, width, panel) });
        packed
    }

    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn empty(rows: &[bf16], width: usize) -> Self {
        let rows = rows.len().checked_div(width).unwrap_or(0);
        let places = width.div_ceil(2 * LANES) * LANES;
        Packed { pairs: vec![[[0; LANES]; 2]; rows.div_ceil(PANEL) * places], rows, places }
    }
}

/// Turns up to 32 rows into a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack(rows: &[bf16], width: usize, panel: &mut [[Line; 2]]) {
    let count = rows.len() / width.max(1);
    for half in 0..2 {
        let taken = count.saturating_sub(half * LANES).min(LANES);
        let rows = &rows[(half * LANES).min(count) * width..];
        for (at, places) in panel.chunks_exact_mut(LANES).enumerate() {
            let (first, end) = (at * 2 * LANES, width.min((at + 1) * 2 * LANES));
            let mut lines = [_mm512_setzero_si512(); LANES];
            for row in 0..taken {
                lines[row] = avx512::load_some(&rows[row * width + first..row * width + end]);
            }
            let columns = turn(lines);
            for place in 0..LANES {
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(places[place][half].as_mut_ptr().cast(), columns[place]) };
            }
        }
    }
}

/// `out[token][row] = weights[row] . inputs[token]` for some tokens, the first of which begins a panel. Weights are not f32. `out` is `[tokens, stride]`, where
/// the last row may be shorter.
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
    let places = inputs.places;
    debug_assert_eq!(weights.width().div_ceil(2 * LANES) * LANES, places, "other rows");
    debug_assert!(tokens.start.is_multiple_of(PANEL), "half a panel");
    debug_assert_ne!(E::KIND, Kind::F32, "weights that bfloat16 does not hold");
    let tall = tall(weights.rows());
    let lines = DEPTH.min(places) / LANES;
    // Whole tiles.
    let most = if tokens.len() <= FEW { 1 } else { LINES };
    let each = (most / (tall * lines).max(1)).max(1) * tall;
    WEIGHTS_OF_THREAD.with_borrow_mut(|room| {
        room.resize((each.min(weights.rows()) * lines).max(room.len()), [0; LANES]);
        let mut row = 0;
        while row < weights.rows() {
            let group = weights.from(row);
            let rows = group.rows().min(each);
            let mut first = 0;
            while first < places {
                let depth = DEPTH.min(places - first);
                copy(group, rows, tall, first, &mut room[..rows * depth / LANES]);
                let mut ahead = if first + depth < places {
                    Ahead::new(group, rows, first + depth, DEPTH.min(places - first - depth))
                } else {
                    Ahead::new(weights.from(row + each), each, 0, DEPTH.min(places))
                };
                let mut token = tokens.start;
                while token < tokens.end {
                    let panel = &inputs.pairs[token / PANEL * places + first..][..depth];
                    let taken = (tokens.end - token).min(PANEL);
                    for at in (0..rows).step_by(tall) {
                        let high = tall.min(rows - at);
                        let weights = &room[at * depth / LANES..][..high * depth / LANES];
                        let out = &mut out[(token - tokens.start) * stride + row + at..];
                        let to = Target { out, stride, tokens: taken, fresh: first == 0 };
                        tile(high, weights, panel, &mut ahead, to);
                    }
                    token += taken;
                }
                first += depth;
            }
            row += rows;
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
    /// `count` pairs from `first` on, of so many rows or those that there are.
    fn new<E: Weight>(weights: Matrix<'_, E>, rows: usize, first: usize, count: usize) -> Self {
        let rows = weights.rows().min(rows);
        let part = (2 * count * size_of::<E>()).div_ceil(64).max(1);
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
        unsafe { _mm_prefetch::<_MM_HINT_T0>(self.at.cast()) };
        self.at = self.at.wrapping_add(64);
        self.lines -= 1;
        if self.lines == 0 {
            (self.at, self.lines, self.rows) = (self.at.wrapping_offset(self.jump), self.part, self.rows - 1);
        }
    }
}

/// Rows of the weights, from pair `first` on, as lines `[tiles][lines of a row][rows of the tile]`, filled up with 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn copy<E: Weight>(weights: Matrix<'_, E>, rows: usize, tall: usize, first: usize, to: &mut [Line]) {
    let depth = to.len() / rows.max(1);
    let (first, width) = (2 * first, weights.width());
    for row in 0..rows {
        let (from, tile) = (&weights.row(row)[first.min(width)..], row / tall);
        let high = tall.min(rows - tile * tall);
        let to = &mut to[tile * tall * depth + row % tall..];
        let whole = (from.len() / (2 * LANES)).min(depth);
        let parts = &from[..whole * 2 * LANES].as_chunks::<{ 2 * LANES }>().0[..whole];
        for at in 0..whole {
            store(load(&parts[at]), &mut to[at * high]);
        }
        for at in whole..depth {
            let rest = &from[(at * 2 * LANES).min(from.len())..];
            store(load(&rest[..rest.len().min(2 * LANES)]), &mut to[at * high]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn store(line: __m512i, to: &mut Line) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), line) };
}

/// Up to 32 elements as bfloat16, which they are or become exactly, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load<E: Weight>(from: &[E]) -> __m512i {
    if let Some(from) = E::as_bf16(from) {
        avx512::load_some(from)
    } else if let Some(from) = E::as_int8(from) {
        int8::load_some(from)
    } else {
        _mm512_setzero_si512()
    }
}

/// Where a tile's sums go: `out[token][row]`.
struct Target<'a> {
    out: &'a mut [f32],
    /// Distance of neighbouring tokens.
    stride: usize,
    /// Tokens of the panel that there are.
    tokens: usize,
    /// Whether sums take the place of what is there, or are added to it.
    fresh: bool,
}

/// So many rows of weights with a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile(rows: usize, weights: &[Line], panel: &[[Line; 2]], ahead: &mut Ahead, to: Target<'_>) {
    match rows {
        1 => tile_of::<1>(weights, panel, ahead, to),
        2 => tile_of::<2>(weights, panel, ahead, to),
        3 => tile_of::<3>(weights, panel, ahead, to),
        4 => tile_of::<4>(weights, panel, ahead, to),
        5 => tile_of::<5>(weights, panel, ahead, to),
        6 => tile_of::<6>(weights, panel, ahead, to),
        7 => tile_of::<7>(weights, panel, ahead, to),
        8 => tile_of::<8>(weights, panel, ahead, to),
        9 => tile_of::<9>(weights, panel, ahead, to),
        10 => tile_of::<10>(weights, panel, ahead, to),
        11 => tile_of::<11>(weights, panel, ahead, to),
        12 => tile_of::<12>(weights, panel, ahead, to),
        13 => tile_of::<13>(weights, panel, ahead, to),
        _ => tile_of::<TALLEST>(weights, panel, ahead, to),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile_of<const R: usize>(weights: &[Line], panel: &[[Line; 2]], ahead: &mut Ahead, to: Target<'_>) {
    if to.tokens > LANES {
        halves::<R, 2>(weights, panel, ahead, to);
    } else {
        halves::<R, 1>(weights, panel, ahead, to);
    }
}

/// `R` rows of weights with the first `C` halves of a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn halves<const R: usize, const C: usize>(weights: &[Line], panel: &[[Line; 2]], ahead: &mut Ahead, to: Target<'_>) {
    let blocks = weights.as_chunks::<R>().0;
    let places = &panel.as_chunks::<LANES>().0[..blocks.len()];
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    for at in 0..blocks.len() {
        let (weights, places) = (&blocks[at], &places[at]);
        for place in 0..LANES {
            ahead.fetch();
            let mut inputs = [_mm512_setzero_si512(); C];
            for half in 0..C {
                // SAFETY: 64 bytes.
                inputs[half] = unsafe { _mm512_loadu_si512(places[place][half].as_ptr().cast()) };
            }
            for row in 0..R {
                let weight = pairs(_mm512_set1_epi32(weights[row][place].cast_signed()));
                for half in 0..C {
                    sums[row][half] = _mm512_dpbf16_ps(sums[row][half], pairs(inputs[half]), weight);
                }
            }
        }
    }
    for half in 0..C {
        let mut lines = [_mm512_setzero_si512(); LANES];
        for row in 0..R {
            lines[row] = _mm512_castps_si512(sums[row][half]);
        }
        let columns = turn(lines);
        for at in 0..LANES.min(to.tokens - half * LANES) {
            give(_mm512_castsi512_ps(columns[at]), &mut to.out[(half * LANES + at) * to.stride..][..R], to.fresh);
        }
    }
}

/// Writes as many sums as `to` has elements, or adds them to what is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn give(sums: __m512, to: &mut [f32], fresh: bool) {
    let mask = u16::MAX >> (LANES - to.len().clamp(1, LANES));
    // SAFETY: only elements of the mask are read and written, which are there.
    unsafe {
        let sums = if fresh { sums } else { _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, to.as_ptr())) };
        _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, sums);
    }
}
