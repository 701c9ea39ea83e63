//! Matrices of weights, as they are or as integers with scales.
//!
//! Invariant: what a product with integers of eight bits gives is the sum of inputs times integers, in f32, times the row's scale,
//! also in f32; so it is the same whatever the element type of the inputs. One with integers of four bits is a product with the
//! numbers that integers and scales make, which may be rounded to the inputs' type.

use std::ops::Range;

use gemma4_model::quantization::{GROUP, packed_words};
use half::bf16;

/// Rows of a matrix `[rows, width]`.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a, W> {
    /// As they are.
    Elements(&'a [W]),
    /// As integers.
    Int8 {
        /// The integers.
        values: &'a [i8],
        /// What the sums of each row are multiplied by `[rows]`.
        scales: &'a [f32],
    },
    /// As integers of four bits, of groups of neighbours.
    Int4 {
        /// The integers, packed as [`gemma4_model::quantization::Quantization::Int4`] says `[rows, packed_words(width)]`.
        values: &'a [u16],
        /// What the integers of each group are multiplied by `[rows, width / GROUP]`.
        scales: &'a [bf16],
    },
}

impl<'a, W> From<&'a [W]> for Weights<'a, W> {
    fn from(elements: &'a [W]) -> Self {
        Weights::Elements(elements)
    }
}

impl<'a, W> From<&'a Vec<W>> for Weights<'a, W> {
    fn from(elements: &'a Vec<W>) -> Self {
        Weights::Elements(elements)
    }
}

impl<'a, W, const N: usize> From<&'a [W; N]> for Weights<'a, W> {
    fn from(elements: &'a [W; N]) -> Self {
        Weights::Elements(elements)
    }
}

impl<W> Weights<'_, W> {
    /// Elements of all rows.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Weights::Elements(elements) => elements.len(),
            Weights::Int8 { values, .. } => values.len(),
            Weights::Int4 { scales, .. } => scales.len().saturating_mul(GROUP),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a row of `width` elements in memory.
    pub(crate) fn row_bytes(&self, width: usize) -> usize {
        match self {
            Weights::Elements(_) => width * size_of::<W>(),
            Weights::Int8 { .. } => width,
            Weights::Int4 { .. } => packed_words(width) * size_of::<u16>() + width / GROUP * size_of::<bf16>(),
        }
    }

    /// Whole rows that these are, if there are as many scales, and the words of so many rows where integers are packed.
    pub(crate) fn rows(&self, width: usize) -> Option<usize> {
        let rows = self.len().checked_div(width).filter(|rows| rows * width == self.len())?;
        match self {
            Weights::Int8 { scales, .. } if scales.len() != rows => None,
            Weights::Int4 { .. } if !width.is_multiple_of(GROUP) => None,
            Weights::Int4 { values, .. } if Some(values.len()) != rows.checked_mul(packed_words(width)) => None,
            _ => Some(rows),
        }
    }

    /// Some of the rows, which are there.
    pub(crate) fn part(&self, rows: &Range<usize>, width: usize) -> Self {
        let times = |each: usize| rows.start * each..rows.end * each;
        match self {
            Weights::Elements(elements) => Weights::Elements(&elements[times(width)]),
            Weights::Int8 { values, scales } => {
                Weights::Int8 { values: &values[times(width)], scales: &scales[rows.clone()] }
            }
            Weights::Int4 { values, scales } => {
                Weights::Int4 { values: &values[times(packed_words(width))], scales: &scales[times(width / GROUP)] }
            }
        }
    }
}
