//! Products of rows and weight matrices `[out, in]` as checkpoints have them, summed in f32.

use crate::blocked::Blocked;
use crate::dot::Dots;
use crate::number::Number;
use crate::threads::{self, Shared};
use crate::vectors::vectorize;

/// From as many rows on, turning the weights into panels pays.
const BLOCKED_FROM: usize = 64;
/// Bytes of weights that a thread takes at a time.
const PIECE: usize = 128 << 10;
/// Columns that a thread takes at a time where weights become panels.
const COLUMNS: usize = 64;
/// Rows of the input that meet a panel before it is made again: bounds the sums a thread keeps.
const ROWS: usize = 768;

/// What does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a product of {inputs} inputs with {weights} weights of width {width} does not make {outputs} outputs")]
pub struct LinearError {
    /// Elements of the input.
    pub inputs: usize,
    /// Elements of the matrix.
    pub weights: usize,
    /// Elements of a row of either.
    pub width: usize,
    /// Elements of the output.
    pub outputs: usize,
}

/// The input of one or several products, widened once.
pub struct Inputs {
    values: Vec<f32>,
    width: usize,
}

impl Inputs {
    /// Rows of `width` elements.
    pub fn new<X: Number>(rows: &[X], width: usize) -> Self {
        let mut values = vec![0.0; rows.len()];
        let piece = 1 << 16;
        let shared = Shared::new(&mut values);
        threads::share(rows.len().div_ceil(piece), |number| {
            let from = &rows[number * piece..rows.len().min((number + 1) * piece)];
            // SAFETY: pieces do not overlap.
            let to = unsafe { shared.part(number * piece, from.len()) };
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
        });
        Inputs { values, width }
    }

    /// `out [tokens, rows] = inputs [tokens, width] * weights [rows, width]^T`, on all threads.
    ///
    /// # Errors
    /// [`LinearError`] if the lengths do not fit together.
    pub fn product<W: Number, Y: Number>(&self, weights: &[W], out: &mut [Y]) -> Result<(), LinearError> {
        let width = self.width;
        let error = LinearError { inputs: self.values.len(), weights: weights.len(), width, outputs: out.len() };
        let whole = |length: usize| if length.is_multiple_of(width) { length.checked_div(width) } else { None };
        let (tokens, rows) = (whole(self.values.len()).ok_or(error)?, whole(weights.len()).ok_or(error)?);
        if tokens.checked_mul(rows) != Some(out.len()) {
            return Err(error);
        }
        self.pieces(weights, rows, tokens, out);
        Ok(())
    }

    /// [`Self::product`] of lengths that fit together, in pieces of some columns and some rows.
    fn pieces<W: Number, Y: Number>(&self, weights: &[W], rows: usize, tokens: usize, out: &mut [Y]) {
        let width = self.width;
        let (each, band) = (columns::<W>(tokens, width), tokens.clamp(1, ROWS));
        let bands = tokens.div_ceil(band);
        let shared = Shared::new(out);
        threads::share(rows.div_ceil(each) * bands, |number| {
            let (first, begin) = (number / bands * each, number % bands * band);
            let (count, end) = (each.min(rows - first), tokens.min(begin + band));
            let weights = &weights[first * width..(first + count) * width];
            let sums = sums(&self.values[begin * width..end * width], weights, width);
            for token in begin..end {
                // SAFETY: each piece has columns of its own, or rows of its own.
                let out = unsafe { shared.part(token * rows + first, count) };
                out.iter_mut().enumerate().for_each(|(row, out)| *out = Y::narrow(sums.at(token - begin, row)));
            }
        });
    }
}

/// Columns that a thread takes at a time.
pub(crate) fn columns<W>(tokens: usize, width: usize) -> usize {
    let row = (width * size_of::<W>()).max(1);
    if tokens < BLOCKED_FROM { (PIECE / row).max(1).next_multiple_of(4) } else { COLUMNS }
}

/// Products of some rows of input with some rows of a matrix.
pub(crate) struct Sums {
    pub(crate) values: Vec<f32>,
    /// Distance of neighbouring tokens.
    token: usize,
    /// Distance of neighbouring rows of the matrix.
    row: usize,
}

impl Sums {
    #[inline(always)]
    pub(crate) fn at(&self, token: usize, row: usize) -> f32 {
        self.values[token * self.token + row * self.row]
    }
}

/// `inputs [tokens, width] * weights [rows, width]^T` on this thread. The order of the sums in memory follows from the sizes
/// alone. `width` is not 0.
pub(crate) fn sums<W: Number>(inputs: &[f32], weights: &[W], width: usize) -> Sums {
    let (tokens, rows) = (inputs.len() / width, weights.len() / width);
    if tokens < BLOCKED_FROM {
        let mut values = vec![0.0; rows * tokens];
        vectorize(Dots { inputs, weights, width, out: &mut values });
        return Sums { values, token: 1, row: tokens };
    }
    let stride = rows.next_multiple_of(16);
    let mut values = vec![0.0; tokens * stride];
    vectorize(Blocked { inputs, weights, width, out: &mut values, stride });
    Sums { values, token: stride, row: 1 }
}
