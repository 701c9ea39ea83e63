//! Rows of the input as the right factors of products of tiles.

use std::arch::x86_64::{_mm512_setzero_si512, _mm512_storeu_si512};

use half::bf16;

use super::{DEPTH, DEPTH_OF_FEW, FEW, PAIRS, SIDE};
use crate::avx512::{load_some, turn};
use crate::threads::{self, Shared};

/// A tile of the input: pairs `[place][row of the input]`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Right(pub(super) [[u32; SIDE]; SIDE]);

impl Right {
    pub(super) const ZERO: Self = Right([[0; SIDE]; SIDE]);
}

/// Rows as products take them.
pub(crate) struct Packed {
    /// `[width / 32 / part][rows / 16][part]`, filled up with 0: what is multiplied at a time lies side by side.
    tiles: Vec<Right>,
    /// Tiles of a row.
    deep: usize,
    /// Those of them that are neighbours.
    part: usize,
    /// Sixteens of rows.
    count: usize,
}

impl Packed {
    /// Rows of `width` elements, on all threads.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    pub(crate) unsafe fn new(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        let Packed { deep, part, count, .. } = packed;
        let shared = Shared::new(&mut packed.tiles);
        threads::share(count, |at| {
            // SAFETY: each piece has tiles of its own; the caller vouches for the instructions.
            let tile = |tile: usize| unsafe { shared.part(place(deep, part, count, at, tile), 1) };
            // SAFETY: as above.
            unsafe { pack(&rows[at * SIDE * width..], width, deep, tile) };
        });
        packed
    }

    /// The same on this thread.
    ///
    /// # Safety
    /// As for [`Self::new`].
    pub(crate) unsafe fn here(rows: &[bf16], width: usize) -> Self {
        let mut packed = Self::empty(rows, width);
        let Packed { deep, part, count, .. } = packed;
        let shared = Shared::new(&mut packed.tiles);
        for at in 0..count {
            // SAFETY: each is gone before the next is there.
            let tile = |tile: usize| unsafe { shared.part(place(deep, part, count, at, tile), 1) };
            // SAFETY: the caller vouches for it.
            unsafe { pack(&rows[at * SIDE * width..], width, deep, tile) };
        }
        packed
    }

    fn empty(rows: &[bf16], width: usize) -> Self {
        let deep = width.div_ceil(PAIRS);
        let count = rows.len().div_ceil(SIDE * width.max(1));
        let part = if count > FEW { DEPTH } else { DEPTH_OF_FEW }.min(deep.max(1));
        Packed { tiles: vec![Right::ZERO; count * deep], deep, part, count }
    }

    /// Tiles of a row.
    pub(super) fn deep(&self) -> usize {
        self.deep
    }

    /// Those of them that are neighbours.
    pub(super) fn part(&self) -> usize {
        self.part
    }

    /// Some of the tiles of sixteen rows, from `first` on, the first of a part. None if there are no such rows.
    pub(super) fn tiles(&self, at: usize, first: usize) -> &[Right] {
        let count = if at < self.count { self.part.min(self.deep - first) } else { 0 };
        &self.tiles[place(self.deep, self.part, self.count, at.min(self.count.saturating_sub(1)), first)..][..count]
    }
}

/// Where a tile of the rows lies.
fn place(deep: usize, part: usize, count: usize, at: usize, tile: usize) -> usize {
    let first = tile / part * part;
    first * count + at * part.min(deep - first) + tile - first
}

/// The first sixteen rows, or as many as there are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack<'a>(rows: &[bf16], width: usize, deep: usize, tile: impl Fn(usize) -> &'a mut [Right]) {
    let count = (rows.len() / width.max(1)).min(SIDE);
    for at in 0..deep {
        let mut pairs = [_mm512_setzero_si512(); SIDE];
        let (from, to) = (at * PAIRS, width.min((at + 1) * PAIRS));
        for row in 0..count {
            pairs[row] = load_some(&rows[row * width + from..row * width + to]);
        }
        let pairs = turn(pairs);
        let [tile] = tile(at) else { return };
        for row in 0..SIDE {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(tile.0[row].as_mut_ptr().cast(), pairs[row]) };
        }
    }
}
