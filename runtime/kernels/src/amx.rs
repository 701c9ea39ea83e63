//! Products of bfloat16 with AMX: tiles of 16 rows by 32 elements meet tiles of 32 elements by 16 columns, summed in f32.
//!
//! Weights are read as they lie, as the left factor; rows of the input become the right one once for each product, with pairs of
//! neighbours of sixteen rows side by side. So what comes out is turned, and is turned back in registers when it leaves.
//!
//! Registers of tiles are this module's alone: the compiler uses none, so they keep what they hold from one statement to the next,
//! and every function that needs them holds a [`Tiles`].

#![expect(clippy::needless_range_loop, reason = "iterators are left as calls in functions for certain instructions")]

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_permutex2var_epi16, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_storeu_si512,
};
use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use crate::avx512::{Arithmetic, Narrow, Pairs, load_some, turn};
use crate::matrix::Matrix;
use crate::threads::{self, Shared};

/// Rows of a tile, and pairs or sums in each of them.
pub(crate) const SIDE: usize = 16;
/// Elements of a row of a tile.
const PAIRS: usize = 2 * SIDE;
/// Rows of the matrix that are multiplied at a time: two tiles.
pub(crate) const BLOCK: usize = 2 * SIDE;
/// Tiles of a row that are multiplied before the next rows of the input are: with fewer, sums go to memory and back more often.
const DEPTH: usize = 32;

/// Whether the processor has AMX for bfloat16 and the system lets this process use it, which it is asked here.
pub(crate) fn request() -> bool {
    /// `AMX-BF16` and `AMX-TILE` of leaf 7.
    const BITS: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS && is_allowed()
}

/// Asks Linux for the state of tiles, which a process has to before it uses them (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn is_allowed() -> bool {
    /// The number of the call.
    const ARCH_PRCTL: usize = 158;
    /// `ARCH_REQ_XCOMP_PERM`.
    const REQUEST: usize = 0x1023;
    /// `XFEATURE_XTILE_DATA`.
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call reads no memory; the kernel keeps all registers but these.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") REQUEST, in("rsi") TILE_DATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_allowed() -> bool {
    false
}

/// How registers of tiles are laid out, as `ldtilecfg` reads it.
#[repr(C, align(64))]
struct Layout {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

/// The right to use this thread's tiles, all of 16 rows of 64 bytes. What they hold is lost with it.
struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// [`request`] has returned true, and there is no other on this thread.
    unsafe fn new() -> Self {
        let first = |value| std::array::from_fn(|tile| if tile < 8 { value } else { 0 });
        let layout =
            Layout { palette: 1, start: 0, reserved: [0; 14], bytes_of_row: first(64).map(u16::from), rows: first(16) };
        // SAFETY: the layout is one that all processors with tiles have.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(nostack, preserves_flags, readonly)) };
        Tiles(PhantomData)
    }

    /// Fills a tile with 0.
    #[inline(always)]
    fn zero<const TILE: u8>(&self) {
        // SAFETY: tiles are ours.
        unsafe { asm!("tilezero tmm{tile}", tile = const TILE, options(nostack, preserves_flags, nomem)) };
    }

    /// Fills a tile with rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    unsafe fn load<const TILE: u8>(&self, from: *const u8, stride: usize) {
        // SAFETY: the caller vouches for it.
        unsafe {
            asm!("tileloadd tmm{tile}, [{from} + {stride}]", tile = const TILE, from = in(reg) from, stride = in(reg) stride,
                options(nostack, preserves_flags, readonly));
        }
    }

    /// Writes a tile's rows one after the other.
    #[inline(always)]
    fn store<const TILE: u8>(&self, to: &mut Sums) {
        // SAFETY: 1,024 bytes.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{tile}", tile = const TILE, to = in(reg) to, stride = in(reg) 64_usize,
                options(nostack, preserves_flags));
        }
    }

    /// Adds a product of two tiles to a third.
    #[inline(always)]
    fn multiply<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(&self) {
        // SAFETY: tiles are ours.
        unsafe {
            asm!("tdpbf16ps tmm{sums}, tmm{left}, tmm{right}", sums = const SUMS, left = const LEFT, right = const RIGHT,
                options(nostack, preserves_flags, nomem));
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were ours.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Sums `[row of the matrix][row of the input]`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Sums([[f32; SIDE]; SIDE]);

/// A tile of the input: pairs `[place][row of the input]`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Right([[u32; SIDE]; SIDE]);

/// Rows as products take them.
pub(crate) struct Packed {
    /// `[rows / 16][width / 32]`, filled up with 0.
    tiles: Vec<Right>,
    /// Tiles of a row.
    deep: usize,
}

impl Packed {
    /// Rows of `width` elements, on all threads.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    pub(crate) unsafe fn new(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        let (deep, shared) = (packed.deep, Shared::new(&mut packed.tiles));
        threads::share(rows.len().div_ceil(SIDE * width.max(1)), |at| {
            // SAFETY: each piece has tiles of its own; the caller vouches for the instructions.
            unsafe { pack(&rows[at * SIDE * width..], width, shared.part(at * deep, deep)) };
        });
        packed
    }

    /// The same on this thread.
    ///
    /// # Safety
    /// As for [`Self::new`].
    pub(crate) unsafe fn here(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        for (rows, tiles) in rows.chunks(SIDE * width.max(1)).zip(packed.tiles.chunks_mut(packed.deep.max(1))) {
            // SAFETY: the caller vouches for it.
            unsafe { pack(rows, width, tiles) };
        }
        packed
    }

    fn empty(rows: &[bf16], width: usize) -> Self {
        let deep = width.div_ceil(PAIRS);
        let count = rows.len().div_ceil(SIDE * width.max(1));
        Packed { tiles: vec![Right([[0; SIDE]; SIDE]); count * deep], deep }
    }
}

/// The first sixteen rows, or as many as there are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack(rows: &[bf16], width: usize, tiles: &mut [Right]) {
    let count = (rows.len() / width.max(1)).min(SIDE);
    for (at, tile) in tiles.iter_mut().enumerate() {
        let mut pairs = [_mm512_setzero_si512(); SIDE];
        let (from, to) = (at * PAIRS, width.min((at + 1) * PAIRS));
        for row in 0..count {
            pairs[row] = load_some(&rows[row * width + from..row * width + to]);
        }
        let pairs = turn(pairs);
        for row in 0..SIDE {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(tile.0[row].as_mut_ptr().cast(), pairs[row]) };
        }
    }
}

/// `out[token][row] = weights[row] . inputs[token]` for some tokens, the first a multiple of 16. `out` is `[tokens, stride]`, where the
/// last row may be shorter; sixteen columns are written at a time, so what is behind the last row's is lost, and they must be there.
///
/// # Safety
/// [`request`] has returned true, the processor has AVX-512 with bfloat16, and rows of the matrix are as wide as those of the input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn products(
    inputs: &Packed,
    tokens: Range<usize>,
    weights: Matrix<'_, bf16>,
    out: &mut [f32],
    stride: usize,
) {
    let deep = inputs.deep;
    debug_assert_eq!(weights.width().div_ceil(PAIRS), deep, "other rows");
    let right = &inputs.tiles[tokens.start / SIDE * deep..tokens.end.div_ceil(SIDE) * deep];
    // SAFETY: the caller vouches for it.
    let tiles = unsafe { Tiles::new() };
    let each = tokens.len().div_ceil(SIDE);
    let mut sums = vec![[Sums([[0.0; SIDE]; SIDE]); 2]; each * weights.rows().div_ceil(BLOCK)];
    // Rows that are not whole tiles, as such.
    let mut whole: Vec<bf16> = Vec::new();
    // A part of all rows at a time: with the sums, they stay in the second cache.
    for first in (0..deep).step_by(DEPTH) {
        let depth = DEPTH.min(deep - first);
        for (row, sums) in (0..weights.rows()).step_by(BLOCK).zip(sums.chunks_mut(each)) {
            let block = weights.from(row);
            let left = if block.rows() >= BLOCK && weights.width().is_multiple_of(PAIRS) {
                let next = block.rows() >= 2 * BLOCK;
                Left { start: block.row(0).as_ptr(), stride: weights.stride(), next }.at(first)
            } else {
                whole.clear();
                whole.resize(BLOCK * depth * PAIRS, bf16::ZERO);
                for (at, to) in whole.chunks_exact_mut(depth * PAIRS).enumerate().take(block.rows()) {
                    let from = &block.row(at)[first * PAIRS..weights.width().min((first + depth) * PAIRS)];
                    to[..from.len()].copy_from_slice(from);
                }
                Left { start: whole.as_ptr(), stride: depth * PAIRS, next: false }
            };
            for (number, (right, sums)) in right.chunks(2 * deep).zip(sums.chunks_mut(2)).enumerate() {
                let ahead = number == 0 && left.next;
                // SAFETY: all rows have this many tiles.
                unsafe {
                    match sums {
                        [sums] => tiles.narrow(left, ahead, &right[first..][..depth], sums, first == 0),
                        [one, two] => {
                            let right = [&right[first..][..depth], &right[deep + first..][..depth]];
                            tiles.wide(left, ahead, right, [one, two], first == 0);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    for (row, sums) in (0..weights.rows()).step_by(BLOCK).zip(sums.chunks(each)) {
        for (sums, out) in sums.iter().zip(out.chunks_mut(SIDE * stride)) {
            for (sums, column) in sums.iter().zip((row..weights.rows()).step_by(SIDE)) {
                give(sums, column, out, stride);
            }
        }
    }
}

/// Rows of the matrix of which two tiles are read at a time.
#[derive(Clone, Copy)]
struct Left {
    start: *const bf16,
    /// Elements from the beginning of one row to that of the next.
    stride: usize,
    /// Whether as many rows follow.
    next: bool,
}

impl Left {
    /// The same rows from a tile on.
    fn at(self, tile: usize) -> Self {
        Left { start: self.start.wrapping_add(tile * PAIRS), ..self }
    }

    fn row(self, row: usize) -> *const u8 {
        self.start.wrapping_add(row * self.stride).cast()
    }

    /// Fetches what lies as many rows on as are multiplied at a time.
    #[inline(always)]
    fn fetch(self) {
        for row in BLOCK..2 * BLOCK {
            // SAFETY: every such processor has it, and it has no effect that can be seen, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.row(row).cast()) };
        }
    }
}

impl Tiles {
    /// 32 rows with 16 of the input.
    ///
    /// # Safety
    /// The rows are as long as the tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn narrow(&self, left: Left, ahead: bool, right: &[Right], sums: &mut [Sums; 2], fresh: bool) {
        self.begin::<0>(&sums[0], fresh);
        self.begin::<1>(&sums[1], fresh);
        for (at, right) in right.iter().enumerate() {
            let left = left.at(at);
            // SAFETY: the caller vouches for it.
            unsafe {
                self.load::<6>(right.0.as_ptr().cast(), 64);
                self.load::<4>(left.row(0), 2 * left.stride);
                self.multiply::<0, 4, 6>();
                self.load::<5>(left.row(SIDE), 2 * left.stride);
                self.multiply::<1, 5, 6>();
            }
            if ahead {
                left.fetch();
            }
        }
        self.store::<0>(&mut sums[0]);
        self.store::<1>(&mut sums[1]);
    }

    /// 32 rows with 32 of the input.
    ///
    /// # Safety
    /// The rows are as long as the tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn wide(&self, left: Left, ahead: bool, right: [&[Right]; 2], sums: [&mut [Sums; 2]; 2], fresh: bool) {
        let [one, two] = sums;
        self.begin::<0>(&one[0], fresh);
        self.begin::<1>(&one[1], fresh);
        self.begin::<2>(&two[0], fresh);
        self.begin::<3>(&two[1], fresh);
        for (at, (first, second)) in right[0].iter().zip(right[1]).enumerate() {
            let left = left.at(at);
            // SAFETY: the caller vouches for it.
            unsafe {
                self.load::<4>(left.row(0), 2 * left.stride);
                self.load::<6>(first.0.as_ptr().cast(), 64);
                self.multiply::<0, 4, 6>();
                self.load::<5>(left.row(SIDE), 2 * left.stride);
                self.multiply::<1, 5, 6>();
                self.load::<7>(second.0.as_ptr().cast(), 64);
                self.multiply::<2, 4, 7>();
                self.multiply::<3, 5, 7>();
            }
            if ahead {
                left.fetch();
            }
        }
        self.store::<0>(&mut one[0]);
        self.store::<1>(&mut one[1]);
        self.store::<2>(&mut two[0]);
        self.store::<3>(&mut two[1]);
    }

    #[inline(always)]
    fn begin<const TILE: u8>(&self, sums: &Sums, fresh: bool) {
        if fresh {
            self.zero::<TILE>();
        } else {
            // SAFETY: 1,024 bytes.
            unsafe { self.load::<TILE>(sums.0.as_ptr().cast(), 64) };
        }
    }
}

/// Writes sums to the columns from `column` on of as many rows as there are, at most 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn give(sums: &Sums, column: usize, out: &mut [f32], stride: usize) {
    let mut rows: [__m512i; SIDE] = [_mm512_setzero_si512(); SIDE];
    for row in 0..SIDE {
        // SAFETY: 64 bytes.
        rows[row] = unsafe { _mm512_loadu_si512(sums.0[row].as_ptr().cast()) };
    }
    let rows = turn(rows);
    for row in 0..SIDE {
        let Some(to) = out.get_mut(row * stride + column..).and_then(|rest| rest.first_chunk_mut::<SIDE>()) else {
            break;
        };
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), rows[row]) };
    }
}

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[row][key] * values[key]`, with weights `[rows, keys]` rounded to
/// bfloat16, values in several matrices of rows of `width` elements that together are as many as there are keys or fewer, and sums
/// `[rows, width]`.
///
/// # Safety
/// As for [`products`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn weigh(
    weights: &[f32],
    values: &[Matrix<'_, bf16>],
    width: usize,
    rescale: &[f32],
    total: &mut [f32],
    scratch: &mut Scratch,
) {
    let rows = rescale.len();
    let keys = weights.len().checked_div(rows).unwrap_or(0);
    let (deep, wide) = (keys.div_ceil(PAIRS), width.div_ceil(SIDE));
    scratch.right.clear();
    scratch.right.resize(deep * wide, Right([[0; SIDE]; SIDE]));
    let mut each = values.iter().flat_map(|values| (0..values.rows()).map(|row| values.row(row)));
    for place in 0..deep * SIDE {
        let Some(even) = each.next() else { break };
        let odd = each.next().unwrap_or_default();
        interleave(even, odd, &mut scratch.right, (place / SIDE, place % SIDE), deep);
    }
    scratch.left.clear();
    scratch.left.resize(rows.next_multiple_of(BLOCK) * deep * PAIRS, bf16::ZERO);
    for (from, to) in weights.chunks_exact(keys.max(1)).zip(scratch.left.chunks_exact_mut(deep * PAIRS)) {
        // SAFETY: the caller vouches for it.
        unsafe { Pairs::run(Narrow { from, to }) };
    }
    // SAFETY: the caller vouches for it.
    let tiles = unsafe { Tiles::new() };
    let mut sums = [[Sums([[0.0; SIDE]; SIDE]); 2]; 2];
    for row in (0..rows).step_by(BLOCK) {
        let left = Left { start: scratch.left[row * deep * PAIRS..].as_ptr(), stride: deep * PAIRS, next: false };
        for (pair, right) in scratch.right.chunks(2 * deep).enumerate() {
            let (first, second) = right.split_at(deep);
            let [one, two] = &mut sums;
            // SAFETY: all rows have as many tiles.
            unsafe {
                if second.is_empty() {
                    tiles.narrow(left, false, first, one, true);
                } else {
                    tiles.wide(left, false, [first, second], [one, two], true);
                }
            }
            for half in 0..right.len() / deep {
                let column = (2 * pair + half) * SIDE;
                for at in 0..BLOCK.min(rows - row) {
                    let total = &mut total[(row + at) * width..][column..width.min(column + SIDE)];
                    add(&sums[half][at / SIDE].0[at % SIDE], rescale[row + at], total);
                }
            }
        }
    }
}

/// What [`weigh`] needs room for.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[rows][keys]`, filled up to whole tiles.
    left: Vec<bf16>,
    /// `[width / 16][keys / 32]`.
    right: Vec<Right>,
}

/// Writes two rows as pairs to a row of the tiles `[width / 16][deep]`, those at `tile` of each `deep`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleave(even: &[bf16], odd: &[bf16], tiles: &mut [Right], (tile, row): (usize, usize), deep: usize) {
    /// Elements of the first register, each with its counterpart of the second, which begins at 32.
    static ORDERS: [[u16; PAIRS]; 2] = orders();
    for at in 0..even.len().div_ceil(PAIRS) {
        let part = |of: &[bf16]| load_some(&of[of.len().min(at * PAIRS)..of.len().min((at + 1) * PAIRS)]);
        let (even, odd) = (part(even), part(odd));
        for half in 0..2 {
            let Some(tile) = tiles.get_mut((2 * at + half) * deep + tile) else { continue };
            // SAFETY: 64 bytes each.
            unsafe {
                let order = _mm512_loadu_si512(ORDERS[half].as_ptr().cast());
                let pairs = _mm512_permutex2var_epi16(even, order, odd);
                _mm512_storeu_si512(tile.0[row].as_mut_ptr().cast(), pairs);
            }
        }
    }
}

/// The lower and the upper half of two registers, in turn.
const fn orders() -> [[u16; PAIRS]; 2] {
    let mut orders = [[0; PAIRS]; 2];
    let mut at = 0;
    while at < PAIRS {
        orders[0][at] = (at / 2 + at % 2 * PAIRS) as u16;
        orders[1][at] = orders[0][at] + SIDE as u16;
        at += 1;
    }
    orders
}

/// `total = total * factor + sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn add(sums: &[f32; SIDE], factor: f32, total: &mut [f32]) {
    let mask = if total.len() >= SIDE { u16::MAX } else { (1_u16 << total.len()) - 1 };
    // SAFETY: only elements of the mask are read and written, which are there.
    unsafe {
        let before = _mm512_maskz_loadu_ps(mask, total.as_ptr());
        let after = _mm512_fmadd_ps(before, _mm512_set1_ps(factor), _mm512_loadu_ps(sums.as_ptr()));
        _mm512_mask_storeu_ps(total.as_mut_ptr(), mask, after);
    }
}

/// Multiplies tiles as they lie in the first cache, `rounds` times over. Returns how many operations that were.
///
/// # Safety
/// As for [`products`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn multiply(rounds: usize) -> f64 {
    let right = [Right([[0x3f00_3f00; SIDE]; SIDE]); DEPTH];
    let left = [bf16::ONE; BLOCK * DEPTH * PAIRS];
    let mut sums = [[Sums([[0.0; SIDE]; SIDE]); 2]; 2];
    // SAFETY: the caller vouches for it.
    let tiles = unsafe { Tiles::new() };
    let rounds = rounds.div_ceil(DEPTH);
    for _ in 0..rounds {
        let left = Left { start: left.as_ptr(), stride: DEPTH * PAIRS, next: false };
        let [one, two] = &mut sums;
        // SAFETY: the rows are as long.
        unsafe { tiles.wide(left, false, [&right, &right], [one, two], true) };
    }
    std::hint::black_box(sums);
    (2 * rounds * DEPTH * 2 * SIDE * 2 * SIDE * PAIRS) as f64
}
