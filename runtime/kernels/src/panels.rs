//! Products of many rows with AVX-512.
//!
//! Rows of the input are packed once for a product, into panels of 32 whose units at one place are neighbours: they are the lanes of two
//! registers. A unit is what a lane multiplies at a time, a pair of bfloat16 or one f32. Weights are copied as they come, line by line
//! and fourteen rows side by side, and each unit of them meets a whole panel; so nothing of the weights is turned, and what comes out is
//! turned once. A tile takes 28 registers of sums, two of inputs and one of a unit of weights. The weights that come next are fetched
//! meanwhile.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_storeu_si512,
};
use std::cell::RefCell;
use std::ops::Range;

use crate::avx512::{Arithmetic, Kernel, Pairs, Singles, turn};
use crate::matrix::Matrix;
use crate::number::{Kind, Number, Weight};
use crate::threads::{self, Shared};
use crate::vectors;

/// Rows of a panel of the input: two registers of sums.
pub(crate) const PANEL: usize = 32;
/// Rows of the weights in the tallest tile.
const TALLEST: usize = 14;
/// Lanes of a register, and units of a line.
const LANES: usize = 16;
/// Bytes of a row's units that are multiplied before sums go back to memory, if those are pairs: a panel takes 256 KiB.
const DEPTH_OF_PAIRS: usize = 8 << 10;
/// The same of f32, which are half as much arithmetic.
const DEPTH_OF_SINGLES: usize = 4 << 10;
/// Lines of weights that meet a panel before the next one comes: 256 KiB.
const LINES: usize = 4096;
/// With as few tokens, one tile after the other meets all panels, so that little of a piece comes without having been fetched.
const FEW: usize = 2 * PANEL;

/// A line of a row: sixteen units. Registers are loaded from whole lines of memory, which takes half as long.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u32; LANES]);

thread_local! {
    /// Weights `[tiles][lines of a row][rows of the tile]`.
    static WEIGHTS_OF_THREAD: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Units of a row that are multiplied before sums go back to memory.
const fn depth<A: Arithmetic>() -> usize {
    let bytes = if A::UNIT == Pairs::UNIT { DEPTH_OF_PAIRS } else { DEPTH_OF_SINGLES };
    bytes / size_of::<u32>()
}

/// Rows in each tile but the last, for so many: tiles are as equal as can be.
fn tall(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TALLEST).max(1)).max(1)
}

/// Rows of the input as products take them.
pub(crate) struct Packed {
    /// `[panels][places of units]`, filled up with 0.
    units: Vec<[Line; 2]>,
    /// Whether units are pairs of bfloat16, or f32.
    in_pairs: bool,
    /// How many rows there are.
    rows: usize,
    /// Places of a panel: whole lines of the weights.
    places: usize,
}

impl Packed {
    /// Rows of `width` elements, on all threads, for weights that may be f32 or not.
    ///
    /// # Safety
    /// The processor has AVX-512.
    pub(crate) unsafe fn new<X: Number>(rows: &[X], width: usize, for_f32: bool) -> Self {
        let mut packed = Self::empty(rows, width, for_f32);
        let (each, places, in_pairs) = (PANEL * width, packed.places, packed.in_pairs);
        let shared = Shared::new(&mut packed.units);
        threads::share(rows.len().div_ceil(each.max(1)), |at| {
            let rows = &rows[at * each..rows.len().min((at + 1) * each)];
            // SAFETY: each piece has panels of its own; the caller vouches for the instructions.
            unsafe { pack(rows, width, shared.part(at * places, places), in_pairs) };
        });
        packed
    }

    /// The same on this thread.
    ///
    /// # Safety
    /// As for [`Self::new`].
    pub(crate) unsafe fn here<X: Number>(rows: &[X], width: usize, for_f32: bool) -> Self {
        let mut packed = Self::empty(rows, width, for_f32);
        let in_pairs = packed.in_pairs;
        let panels = rows.chunks((PANEL * width).max(1)).zip(packed.units.chunks_mut(packed.places.max(1)));
        // SAFETY: the caller vouches for it.
        panels.for_each(|(rows, panel)| unsafe { pack(rows, width, panel, in_pairs) });
        packed
    }

    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn empty<X: Number>(rows: &[X], width: usize, for_f32: bool) -> Self {
        let rows = rows.len().checked_div(width).unwrap_or(0);
        let in_pairs = X::IS_BF16 && !for_f32 && vectors::has_avx512_bf16();
        let line = LANES * if in_pairs { Pairs::UNIT } else { Singles::<f32>::UNIT };
        let places = width.div_ceil(line) * LANES;
        Packed { units: vec![[Line([0; LANES]); 2]; rows.div_ceil(PANEL) * places], in_pairs, rows, places }
    }
}

/// Turns up to 32 rows into a panel.
///
/// # Safety
/// The processor has AVX-512, with bfloat16 for pairs.
unsafe fn pack<X: Number>(rows: &[X], width: usize, panel: &mut [[Line; 2]], in_pairs: bool) {
    let pack = Pack { rows, width, panel };
    // SAFETY: the caller vouches for it.
    unsafe { if in_pairs { Pairs::run(pack) } else { Singles::<f32>::run(pack) } };
}

struct Pack<'a, X> {
    rows: &'a [X],
    width: usize,
    panel: &'a mut [[Line; 2]],
}

impl<X: Number, A: Arithmetic> Kernel<A> for Pack<'_, X> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Pack { rows, width, panel } = self;
        let (count, line) = (rows.len() / width.max(1), LANES * A::UNIT);
        let panel = panel.as_chunks_mut::<LANES>().0;
        for half in 0..2 {
            let taken = count.saturating_sub(half * LANES).min(LANES);
            let rows = &rows[(half * LANES).min(count) * width..];
            for at in 0..panel.len() {
                let (first, end) = (at * line, width.min((at + 1) * line));
                // SAFETY: the caller vouches for the instructions; a line is 64 bytes.
                unsafe {
                    let mut lines = [_mm512_setzero_si512(); LANES];
                    for row in 0..taken {
                        lines[row] = A::units(&rows[row * width + first..row * width + end]);
                    }
                    let columns = turn(lines);
                    for place in 0..LANES {
                        _mm512_storeu_si512((&raw mut panel[at][place][half]).cast(), columns[place]);
                    }
                }
            }
        }
    }
}

/// `out[token][row] = weights[row] . inputs[token]` for some tokens, the first of which begins a panel. Weights are f32 only where the
/// inputs were packed for that. `out` is `[tokens, stride]`, where the last row may be shorter.
///
/// # Safety
/// The processor has AVX-512.
pub(crate) unsafe fn products<E: Weight>(
    inputs: &Packed,
    tokens: Range<usize>,
    weights: Matrix<'_, E>,
    out: &mut [f32],
    stride: usize,
) {
    // SAFETY: the caller vouches for AVX-512; there are pairs only where there are the instructions for them.
    unsafe {
        if inputs.in_pairs {
            debug_assert_ne!(E::KIND, Kind::F32, "weights that bfloat16 does not hold");
            products_of::<Pairs, E>(inputs, tokens, weights, out, stride);
        } else {
            products_of::<Singles<f32>, E>(inputs, tokens, weights, out, stride);
        }
    }
}

unsafe fn products_of<A: Arithmetic, E: Weight>(
    inputs: &Packed,
    tokens: Range<usize>,
    weights: Matrix<'_, E>,
    out: &mut [f32],
    stride: usize,
) {
    let places = inputs.places;
    debug_assert_eq!(weights.width().div_ceil(A::UNIT * LANES) * LANES, places, "other rows");
    debug_assert!(tokens.start.is_multiple_of(PANEL), "half a panel");
    let tall = tall(weights.rows());
    let most_deep = depth::<A>();
    let lines = most_deep.min(places) / LANES;
    // Whole tiles.
    let most = if tokens.len() <= FEW { 1 } else { LINES };
    let each = (most / (tall * lines).max(1)).max(1) * tall;
    WEIGHTS_OF_THREAD.with_borrow_mut(|room| {
        room.resize((each.min(weights.rows()) * lines).max(room.len()), Line([0; LANES]));
        let mut row = 0;
        while row < weights.rows() {
            let group = weights.from(row);
            let rows = group.rows().min(each);
            let mut first = 0;
            while first < places {
                let depth = most_deep.min(places - first);
                let to = &mut room[..rows * depth / LANES];
                // SAFETY: the caller vouches for the instructions.
                unsafe { A::run(Copying { weights: group, rows, tall, first: first * A::UNIT, to }) };
                let mut ahead = if first + depth < places {
                    Ahead::new::<A, E>(group, rows, first + depth, most_deep.min(places - first - depth))
                } else {
                    Ahead::new::<A, E>(weights.from(row + each), each, 0, most_deep.min(places))
                };
                let mut token = tokens.start;
                while token < tokens.end {
                    let panel = &inputs.units[token / PANEL * places + first..][..depth];
                    let taken = (tokens.end - token).min(PANEL);
                    for at in (0..rows).step_by(tall) {
                        let high = tall.min(rows - at);
                        let weights = &room[at * depth / LANES..][..high * depth / LANES];
                        let out = &mut out[(token - tokens.start) * stride + row + at..];
                        let to = Target { out, stride, tokens: taken, fresh: first == 0 };
                        // SAFETY: as above.
                        unsafe { tile::<A>(high, weights, panel, &mut ahead, to) };
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
    /// `count` units from `first` on, of so many rows or those that there are.
    fn new<A: Arithmetic, E: Weight>(weights: Matrix<'_, E>, rows: usize, first: usize, count: usize) -> Self {
        let rows = weights.rows().min(rows);
        let part = (count * A::UNIT * size_of::<E>()).div_ceil(64).max(1);
        let at = if rows == 0 { [].as_ptr() } else { weights.row(0).as_ptr() };
        let jump = (weights.stride() * size_of::<E>()).cast_signed() - (part * 64).cast_signed();
        Ahead { at: at.wrapping_add(first * A::UNIT).cast(), lines: part, rows, part, jump }
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

/// Rows of the weights, from element `first` on, as lines `[tiles][lines of a row][rows of the tile]`, filled up with 0.
struct Copying<'a, E> {
    weights: Matrix<'a, E>,
    rows: usize,
    tall: usize,
    first: usize,
    to: &'a mut [Line],
}

impl<E: Weight, A: Arithmetic> Kernel<A> for Copying<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Copying { weights, rows, tall, first, to } = self;
        let (depth, line) = (to.len() / rows.max(1), LANES * A::UNIT);
        for row in 0..rows {
            let (from, tile) = (&weights.row(row)[first.min(weights.width())..], row / tall);
            let high = tall.min(rows - tile * tall);
            let to = &mut to[tile * tall * depth + row % tall..];
            let whole = (from.len() / line).min(depth);
            // SAFETY: the caller vouches for the instructions; a line is 64 bytes.
            unsafe {
                for at in 0..whole {
                    let line = A::units(&from[at * line..][..line]);
                    _mm512_storeu_si512((&raw mut to[at * high]).cast(), line);
                }
                for at in whole..depth {
                    let rest = &from[(at * line).min(from.len())..];
                    let line = A::units(&rest[..rest.len().min(line)]);
                    _mm512_storeu_si512((&raw mut to[at * high]).cast(), line);
                }
            }
        }
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
unsafe fn tile<A: Arithmetic>(rows: usize, weights: &[Line], panel: &[[Line; 2]], ahead: &mut Ahead, to: Target<'_>) {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match rows {
            1 => tile_of::<A, 1>(weights, panel, ahead, to),
            2 => tile_of::<A, 2>(weights, panel, ahead, to),
            3 => tile_of::<A, 3>(weights, panel, ahead, to),
            4 => tile_of::<A, 4>(weights, panel, ahead, to),
            5 => tile_of::<A, 5>(weights, panel, ahead, to),
            6 => tile_of::<A, 6>(weights, panel, ahead, to),
            7 => tile_of::<A, 7>(weights, panel, ahead, to),
            8 => tile_of::<A, 8>(weights, panel, ahead, to),
            9 => tile_of::<A, 9>(weights, panel, ahead, to),
            10 => tile_of::<A, 10>(weights, panel, ahead, to),
            11 => tile_of::<A, 11>(weights, panel, ahead, to),
            12 => tile_of::<A, 12>(weights, panel, ahead, to),
            13 => tile_of::<A, 13>(weights, panel, ahead, to),
            _ => tile_of::<A, TALLEST>(weights, panel, ahead, to),
        }
    }
}

unsafe fn tile_of<A: Arithmetic, const R: usize>(
    weights: &[Line],
    panel: &[[Line; 2]],
    ahead: &mut Ahead,
    to: Target<'_>,
) {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        if to.tokens > LANES {
            A::run(Halves::<R, 2> { weights, panel, ahead, to });
        } else {
            A::run(Halves::<R, 1> { weights, panel, ahead, to });
        }
    }
}

/// `R` rows of weights with the first `C` halves of a panel.
struct Halves<'a, const R: usize, const C: usize> {
    weights: &'a [Line],
    panel: &'a [[Line; 2]],
    ahead: &'a mut Ahead,
    to: Target<'a>,
}

impl<const R: usize, const C: usize, A: Arithmetic> Kernel<A> for Halves<'_, R, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Halves { weights, panel, ahead, to } = self;
        let blocks = weights.as_chunks::<R>().0;
        let places = &panel.as_chunks::<LANES>().0[..blocks.len()];
        // SAFETY: the caller vouches for the instructions; a line is 64 bytes.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); C]; R];
            for at in 0..blocks.len() {
                let (weights, places) = (&blocks[at], &places[at]);
                for place in 0..LANES {
                    ahead.fetch();
                    let mut inputs = [_mm512_setzero_si512(); C];
                    for half in 0..C {
                        inputs[half] = _mm512_loadu_si512((&raw const places[place][half]).cast());
                    }
                    for row in 0..R {
                        let weight = _mm512_set1_epi32(weights[row].0[place].cast_signed());
                        for half in 0..C {
                            sums[row][half] = A::add_units(sums[row][half], inputs[half], weight);
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
                    let to_row = &mut to.out[(half * LANES + at) * to.stride..][..R];
                    give(_mm512_castsi512_ps(columns[at]), to_row, to.fresh);
                }
            }
        }
    }
}

/// Writes as many sums as `to` has elements, or adds them to what is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn give(sums: __m512, to: &mut [f32], fresh: bool) {
    let mask = u16::MAX >> (LANES - to.len().clamp(1, LANES));
    // SAFETY: only elements of the mask are read and written, which are there.
    unsafe {
        let sums = if fresh { sums } else { _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, to.as_ptr())) };
        _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, sums);
    }
}
