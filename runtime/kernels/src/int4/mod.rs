//! Rows of integers of four bits with scales of groups, widened for products.
//!
//! Invariant: a weight is its integer times the scale of its group, in f32, exactly; where products want bfloat16 it is rounded to that
//! once.
//!
//! Some rows are widened after the others in a place that stays in the caches, and then are multiplied like any others. One row of
//! input has a form of its own with AVX-512, which keeps what is widened in registers.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use std::cell::RefCell;

use gemma4_model::quantization::{GROUP, GROUPS_OF_BLOCK, packed_words};
use half::bf16;

use crate::number::Weight;
use crate::vectors::{Lanes, vectorize};

/// Bytes of widened rows at a time, unless inputs take more: they stay in the second cache.
const ROOM: usize = 256 << 10;
/// Rows that are widened at a time are so many or a multiple of it: tiles and panels of all forms are whole.
const BLOCK: usize = 32;
/// Bits of a word.
const BITS: usize = 16;
/// Those of an integer.
const BITS_OF_INTEGER: usize = BITS / GROUPS_OF_BLOCK;

/// Rows of `width` integers, as [`gemma4_model::quantization::Quantization::Int4`] packs them.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    /// `[rows, packed_words(width)]`.
    words: &'a [u16],
    /// `[rows, width / GROUP]`.
    scales: &'a [bf16],
    width: usize,
}

impl<'a> Packed<'a> {
    /// Rows of which there are words and scales, of whole groups.
    pub(crate) fn new(words: &'a [u16], scales: &'a [bf16], width: usize) -> Self {
        Packed { words, scales, width }
    }

    pub(crate) fn rows(&self) -> usize {
        self.words.len().checked_div(packed_words(self.width)).unwrap_or(0)
    }

    /// Elements of a row.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn row(&self, row: usize) -> Row<'a> {
        let (words, groups) = (packed_words(self.width), self.width / GROUP);
        Row { words: &self.words[row * words..][..words], scales: &self.scales[row * groups..][..groups] }
    }
}

/// A row of integers.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Of four groups each.
    words: &'a [u16],
    /// Of each group.
    scales: &'a [bf16],
}

impl<'a> Row<'a> {
    /// As many words as groups need.
    #[cfg(test)]
    pub(crate) fn new(words: &'a [u16], scales: &'a [bf16]) -> Self {
        Row { words, scales }
    }

    /// Its words, those of four groups side by side.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn words(&self) -> &'a [u16] {
        self.words
    }
}

/// What a thread widens.
#[derive(Default)]
struct Room {
    #[cfg(target_arch = "x86_64")]
    narrow: Vec<bf16>,
    wide: Vec<f32>,
}

thread_local! {
    static ROOM_OF_THREAD: RefCell<Room> = RefCell::default();
}

/// Gives rows to `multiply` as bfloat16, with the number of the first: some after the other, so that each is read from memory once
/// and is in the caches when it is multiplied. `tokens` is how many rows of input they meet.
///
/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn in_bf16(weights: Packed<'_>, tokens: usize, multiply: impl FnMut(usize, &[bf16])) {
    ROOM_OF_THREAD.with_borrow_mut(|Room { narrow, .. }| {
        // SAFETY: the caller vouches for it.
        in_parts(weights, tokens, narrow, |row, to| unsafe { avx512::widen(row, to) }, multiply);
    });
}

/// The same as f32.
pub(crate) fn in_f32(weights: Packed<'_>, tokens: usize, multiply: impl FnMut(usize, &[f32])) {
    let widen = |row: Row<'_>, to: &mut [f32]| vectorize(Widen { row, to });
    ROOM_OF_THREAD.with_borrow_mut(|Room { wide, .. }| in_parts(weights, tokens, wide, widen, multiply));
}

fn in_parts<E: Copy + Default>(
    weights: Packed<'_>,
    tokens: usize,
    room: &mut Vec<E>,
    widen: impl Fn(Row<'_>, &mut [E]),
    mut multiply: impl FnMut(usize, &[E]),
) {
    let (rows, width) = (weights.rows(), weights.width.max(1));
    // With more rows of input, inputs come from further away for each part of the weights.
    let each = (ROOM / (size_of::<E>() * width)).max(tokens).next_multiple_of(BLOCK).min(rows);
    if room.len() < each * width {
        room.resize(each * width, E::default());
    }
    for first in (0..rows).step_by(each.max(1)) {
        let count = each.min(rows - first);
        for (row, to) in (first..first + count).zip(room.chunks_exact_mut(width)) {
            widen(weights.row(row), to);
        }
        multiply(first, &room[..count * width]);
    }
}

/// A row becomes f32.
pub(crate) struct Widen<'a> {
    pub(crate) row: Row<'a>,
    pub(crate) to: &'a mut [f32],
}

impl Lanes for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        let blocks = self.row.words.as_chunks::<GROUP>().0;
        for (at, (to, scale)) in self.to.as_chunks_mut::<GROUP>().0.iter_mut().zip(self.row.scales).enumerate() {
            let (words, scale) = (&blocks[at / GROUPS_OF_BLOCK], scale.widen());
            // Up until the integer's sign is the word's, then down with copies of it.
            let up = BITS - BITS_OF_INTEGER * (at % GROUPS_OF_BLOCK + 1);
            for place in 0..GROUP {
                let integer = (words[place] << up).cast_signed() >> (BITS - BITS_OF_INTEGER);
                to[place] = f32::from(integer) * scale;
            }
        }
    }
}
