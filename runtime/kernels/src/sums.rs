//! What products of a piece give: all sums at a time, or part by part, so that what is done with them finds them in the caches.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use crate::functions::narrow_rows;
use crate::matrix::Matrix;
use crate::number::{Number, Weight};
use crate::products::{Many, PANEL, few_of};
use crate::threads::Shared;
#[cfg(target_arch = "x86_64")]
use crate::{amx, int4::Packed, weights::Weights};

/// Products of some rows of input with some rows of a matrix.
pub(crate) struct Sums {
    /// `[tokens, stride]`; behind those of a token may be anything.
    pub(crate) values: Vec<f32>,
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    /// Distance of neighbouring tokens.
    pub(crate) stride: usize,
}

impl Sums {
    /// `inputs [tokens, width] * weights [rows, width]^T` on this thread. Widened inputs are as [`crate::products::spread`] has set them for elements
    /// of `W`.
    pub(crate) fn of_few<W: Number, X: Number, E: Weight>(inputs: Matrix<'_, X>, weights: Matrix<'_, E>) -> Self {
        let (rows, tokens) = (weights.rows(), inputs.rows());
        let mut values = vec![0.0; rows * tokens];
        few_of::<W, X, E>(inputs, weights, &mut values);
        Sums { values, tokens, rows, stride: rows }
    }

    /// The same of many rows, which are as they were.
    pub(crate) fn of_many<X: Number, E: Weight>(inputs: &[X], weights: Matrix<'_, E>) -> Self {
        let (rows, tokens) = (weights.rows(), inputs.len() / weights.width());
        let stride = rows.next_multiple_of(PANEL);
        let mut values = vec![0.0; tokens * stride];
        Many::new(inputs, weights.width()).products(weights, &mut values, stride);
        Sums { values, tokens, rows, stride }
    }

    /// None.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn none() -> Self {
        Sums { values: Vec::new(), tokens: 0, rows: 0, stride: 0 }
    }

    /// All of them.
    pub(crate) fn part(&mut self) -> Part<'_> {
        Part { values: &mut self.values, tokens: self.tokens, rows: self.rows, stride: self.stride }
    }

    /// Takes over those of some rows of the matrix, from row `first` on.
    pub(crate) fn place(&mut self, first: usize, part: &Self) {
        for token in 0..self.tokens {
            let from = &part.values[token * part.stride..][..part.rows];
            self.values[token * self.stride + first..][..part.rows].copy_from_slice(from);
        }
    }
}

/// Some of the sums of a piece.
pub(crate) struct Part<'a> {
    /// `[tokens, stride]`; behind those of a token may be anything.
    pub(crate) values: &'a mut [f32],
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    /// Distance of neighbouring tokens.
    pub(crate) stride: usize,
}

/// Where a part's sums belong in the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The row of the matrix.
    pub(crate) column: usize,
    /// The row of the input.
    pub(crate) token: usize,
}

impl Part<'_> {
    /// Multiplies those of each row of the matrix by its scale.
    pub(crate) fn scale(&mut self, scales: &[f32]) {
        for sums in self.values.chunks_mut(self.stride.max(1)) {
            sums.iter_mut().zip(scales).for_each(|(sum, scale)| *sum *= scale);
        }
    }

    /// Those of each row of the input.
    pub(crate) fn of_tokens(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.stride.max(1)).take(self.tokens).map(|row| &row[..self.rows])
    }

    /// Rounds them into `out` `[.., width]`.
    ///
    /// # Safety
    /// Nobody else has these elements of `out`.
    pub(crate) unsafe fn give<Y: Number>(&self, out: &Shared<'_, Y>, width: usize, place: Place) {
        let first = place.token * width + place.column;
        // SAFETY: the caller vouches for it.
        unsafe {
            narrow_rows(self.values, self.stride, self.rows, self.tokens, |at| out.part(first + at * width, self.rows))
        };
    }
}

/// A piece of a product with an input that is tiles.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Tiled<'a> {
    pub(crate) inputs: &'a amx::Packed,
    /// Elements of a row.
    pub(crate) width: usize,
    /// Which rows of the matrices.
    pub(crate) columns: &'a Range<usize>,
    /// Which rows of the input.
    pub(crate) tokens: &'a Range<usize>,
}

#[cfg(target_arch = "x86_64")]
impl Tiled<'_> {
    /// Products with these rows of matrices, part by part.
    pub(crate) fn parts<W: Number, const N: usize>(
        &self,
        weights: &[Weights<'_, W>; N],
        mut take: impl FnMut([Part<'_>; N], Place),
    ) {
        let (rows, count, width) = (self.columns.len(), self.tokens.len(), self.width);
        let take = |squares: &mut [amx::Square; N], row: usize, token: usize| {
            let (rows, tokens) = ((rows - row).min(amx::BLOCK), (count - token).min(amx::BLOCK));
            let part = |square| Part { values: amx::Square::rows(square, tokens), tokens, rows, stride: amx::BLOCK };
            let mut parts = squares.each_mut().map(part);
            for (part, weights) in parts.iter_mut().zip(weights) {
                if let Weights::Int8 { scales, .. } = weights {
                    part.scale(&scales[row..]);
                }
            }
            take(parts, Place { column: self.columns.start + row, token: self.tokens.start + token });
        };
        let lines = weights.map(|weights| match weights {
            // Inputs of tiles are bfloat16, and so are elements.
            Weights::Elements(elements) => {
                amx::Lines::Elements(Matrix::dense(W::as_bf16(elements).unwrap_or(&[]), width))
            }
            Weights::Int8 { values, .. } => amx::Lines::Int8(Matrix::dense(values, width)),
            Weights::Int4 { values, scales } => amx::Lines::Int4(Packed::new(values, scales, width)),
        });
        // SAFETY: who has tiles may use the instructions.
        unsafe { amx::products(self.inputs, self.tokens.clone(), lines, take) };
    }
}
