//! Weights of all kinds as bfloat16, line by line.

use std::arch::x86_64::{__m512i, _MM_HINT_T1, _mm_prefetch};

use gemma4_model::quantization::GROUPS_OF_BLOCK;
use half::bf16;

use super::PAIRS;
use crate::avx512::{Arithmetic, Pairs};
use crate::int4;
use crate::matrix::Matrix;

/// Rows of a matrix that are read as lines of 32 bfloat16.
#[derive(Clone, Copy)]
pub(crate) enum Lines<'a> {
    /// As they are.
    Elements(Matrix<'a, bf16>),
    /// Without their scales.
    Int8(Matrix<'a, i8>),
    /// Times the scales of their groups, which are lines, rounded once.
    Int4(int4::Packed<'a>),
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) enum Row<'a> {
    Elements(&'a [bf16]),
    Int8(&'a [i8]),
    Int4(int4::Row<'a>),
}

impl<'a> Lines<'a> {
    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Elements(rows) => rows.rows(),
            Self::Int8(rows) => rows.rows(),
            Self::Int4(rows) => rows.rows(),
        }
    }

    /// Elements of each.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Elements(rows) => rows.width(),
            Self::Int8(rows) => rows.width(),
            Self::Int4(rows) => rows.width(),
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Row<'a> {
        match self {
            Self::Elements(rows) => Row::Elements(rows.row(row)),
            Self::Int8(rows) => Row::Int8(rows.row(row)),
            Self::Int4(rows) => Row::Int4(rows.row(row)),
        }
    }

    /// All rows, if tiles can be loaded where they lie.
    pub(super) fn in_place(&self) -> Option<Matrix<'a, bf16>> {
        match self {
            Self::Elements(rows) => Some(*rows).filter(|rows| rows.width().is_multiple_of(PAIRS)),
            _ => None,
        }
    }
}

impl Row<'_> {
    /// Elements from `32 * at` on, of which there is one at least, and 0 in place of those that are missing.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    #[inline(always)]
    pub(super) unsafe fn line(self, at: usize) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            match self {
                Self::Elements(row) => Pairs::weights(&row[at * PAIRS..]),
                Self::Int8(row) => Pairs::weights(&row[at * PAIRS..]),
                Self::Int4(row) => int4::avx512::group(row, at),
            }
        }
    }

    /// Fetches what [`Self::line`] reads.
    #[inline(always)]
    pub(super) fn fetch(self, at: usize) {
        let from: *const u8 = match self {
            Self::Elements(row) => row.as_ptr().wrapping_add(at * PAIRS).cast(),
            Self::Int8(row) => row.as_ptr().wrapping_add(at * PAIRS).cast(),
            Self::Int4(row) => row.words().as_ptr().wrapping_add(at / GROUPS_OF_BLOCK * PAIRS).cast(),
        };
        // SAFETY: every such processor has it, and it has no effect that can be seen, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
}
