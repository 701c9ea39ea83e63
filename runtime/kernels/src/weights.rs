//! Matrices of weights, as they are or as integers with a scale for each row.
//!
//! Invariant: what a product with integers gives is the sum of inputs times integers, in f32, times the row's scale, also in f32;
//! so it is the same whatever the element type of the inputs.

use std::ops::Range;

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
        }
    }

    /// Whole rows that these are, if there are as many scales.
    pub(crate) fn rows(&self, width: usize) -> Option<usize> {
        let rows = self.len().checked_div(width).filter(|rows| rows * width == self.len())?;
        match self {
            Weights::Int8 { scales, .. } if scales.len() != rows => None,
            _ => Some(rows),
        }
    }

    /// Some of the rows, which are there.
    pub(crate) fn part(&self, rows: &Range<usize>, width: usize) -> Self {
        let of = rows.start * width..rows.end * width;
        match self {
            Weights::Elements(elements) => Weights::Elements(&elements[of]),
            Weights::Int8 { values, scales } => Weights::Int8 { values: &values[of], scales: &scales[rows.clone()] },
        }
    }
}
