//! Products of rows and weight matrices `[out, in]` as checkpoints have them, summed in f32.

use crate::blocked::Blocked;
use crate::dot::Dots;
use crate::number::Number;
use crate::threads::{self, Shared};
use crate::vectors::vectorize;

/// From as many rows on, turning the weights into panels pays.
const BLOCKED_FROM: usize = 24;
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
        if tokens < BLOCKED_FROM {
            self.dots(weights, rows, tokens, out);
        } else {
            self.blocked(weights, rows, tokens, out);
        }
        Ok(())
    }

    fn dots<W: Number, Y: Number>(&self, weights: &[W], rows: usize, tokens: usize, out: &mut [Y]) {
        let width = self.width;
        let each = (PIECE / (width * size_of::<W>()).max(1)).next_multiple_of(4);
        let shared = Shared::new(out);
        threads::share(rows.div_ceil(each), |number| {
            let first = number * each;
            let count = each.min(rows - first);
            let mut sums = vec![0.0; count * tokens];
            let weights = &weights[first * width..(first + count) * width];
            vectorize(Dots { inputs: &self.values, weights, width, out: &mut sums });
            for token in 0..tokens {
                // SAFETY: each piece has columns of its own.
                let out = unsafe { shared.part(token * rows + first, count) };
                out.iter_mut().enumerate().for_each(|(row, out)| *out = Y::narrow(sums[row * tokens + token]));
            }
        });
    }

    fn blocked<W: Number, Y: Number>(&self, weights: &[W], rows: usize, tokens: usize, out: &mut [Y]) {
        let width = self.width;
        let (pieces, bands) = (rows.div_ceil(COLUMNS), tokens.div_ceil(ROWS));
        let shared = Shared::new(out);
        threads::share(pieces * bands, |number| {
            let (first, band) = (number / bands * COLUMNS, number % bands);
            let count = COLUMNS.min(rows - first);
            let begin = band * ROWS;
            let end = tokens.min(begin + ROWS);
            let mut sums = vec![0.0; (end - begin) * COLUMNS];
            let weights = &weights[first * width..(first + count) * width];
            let inputs = &self.values[begin * width..end * width];
            vectorize(Blocked { inputs, weights, width, out: &mut sums, stride: COLUMNS });
            for (token, sums) in (begin..end).zip(sums.chunks_exact(COLUMNS)) {
                // SAFETY: each piece has columns of its own, or rows of its own.
                let out = unsafe { shared.part(token * rows + first, count) };
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = Y::narrow(*sum));
            }
        });
    }
}
