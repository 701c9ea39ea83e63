//! Products of rows and weight matrices `[out, in]` as checkpoints have them, summed in f32.

use std::ops::Range;

use crate::functions::{gated, softcap};
use crate::int4::{self, Packed};
use crate::matrix::Matrix;
use crate::number::{Number, Weight};
use crate::products::{Wide, takes_narrow};
#[cfg(target_arch = "x86_64")]
use crate::sums::Tiled;
use crate::sums::{Part, Place, Sums};
use crate::threads::{self, Shared};
#[cfg(target_arch = "x86_64")]
use crate::vectors;
use crate::weights::Weights;
#[cfg(target_arch = "x86_64")]
use crate::{
    amx,
    avx512::{Pairs, Singles},
    panels,
};

/// From as many rows on, turning the weights into panels of f32 pays.
const BLOCKED_FROM: usize = 64;
/// From as many rows on, packing them into panels of their own pays, with AVX-512.
#[cfg(target_arch = "x86_64")]
const PANELS_FROM: usize = 12;
/// Bytes of weights that a thread takes at a time: enough for memory to be read in streams, and little enough that no thread waits
/// long for another's last.
const PIECE: usize = 64 << 10;
/// The same with one row of input at most, which takes less time for each.
const PIECE_OF_ONE: usize = 512 << 10;
/// Bytes of a matrix that one thread reads before another has begun.
const LEAST_OF_ONE: usize = 32 << 10;
/// The same with tiles, of which the next ones are fetched while some are multiplied.
#[cfg(target_arch = "x86_64")]
const PIECE_OF_TILES: usize = 512 << 10;
/// Rows of the input that a piece of them has at most.
#[cfg(target_arch = "x86_64")]
const ROWS_OF_TILES: usize = 256;
/// Sums of such a piece.
#[cfg(target_arch = "x86_64")]
const SUMS_OF_TILES: usize = 128 << 10;
/// Pieces for each thread there: fewer, since each reads the input again.
#[cfg(target_arch = "x86_64")]
const PIECES_OF_TILES: usize = 2;
/// Columns that a thread takes at a time where weights become panels, if that makes pieces enough.
const COLUMNS: usize = 256;
/// The same at least: a power of two less.
const LEAST_COLUMNS: usize = 32;
/// Pieces of a product for each thread: the last ones end at about the same time.
const PIECES: usize = 4;
/// Rows of a matrix that whole tiles of any shape make up.
const TILES: usize = 12;
/// The same with one row of input.
const TILES_OF_ONE: usize = 8;
/// Rows of the input that meet a panel before it is made again: bounds the sums a thread keeps.
const ROWS: usize = 384;
/// The same where sums go back to memory seldom.
#[cfg(target_arch = "x86_64")]
const ROWS_OF_PANELS: usize = 1024;
/// Sums of a piece there, and columns.
#[cfg(target_arch = "x86_64")]
const SUMS_OF_PANELS: usize = 64 << 10;

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

/// The input of one or several products with matrices of `W`.
pub struct Inputs<'a, W> {
    rows: Rows<'a, W>,
    /// Elements of all rows.
    length: usize,
    width: usize,
    /// What bounds products.
    softcap: Option<f32>,
}

/// Rows as products want them.
enum Rows<'a, W> {
    /// A few, widened.
    Wide(Wide),
    /// As they are: they need not be widened, or pieces widen what they need, which then is still in the caches.
    Narrow(&'a [W]),
    /// As panels.
    #[cfg(target_arch = "x86_64")]
    Panels(panels::Packed),
    /// As tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles(amx::Packed),
}

impl<'a, W: Number> Inputs<'a, W> {
    /// Rows of `width` elements.
    pub fn new(rows: &'a [W], width: usize) -> Self {
        let length = rows.len();
        let form = Form::of::<W>(length.checked_div(width).unwrap_or(0));
        #[cfg(target_arch = "x86_64")]
        if form == Form::Panels {
            // SAFETY: the processor has the instructions.
            let rows = Rows::Panels(unsafe { panels::Packed::new(rows, width, !W::IS_BF16) });
            return Inputs { rows, length, width, softcap: None };
        }
        #[cfg(target_arch = "x86_64")]
        if let (Form::Tiles, Some(rows)) = (form, W::as_bf16(rows)) {
            // SAFETY: the processor has the instructions.
            let rows = Rows::Tiles(unsafe { amx::Packed::new(rows, width) });
            return Inputs { rows, length, width, softcap: None };
        }
        if form == Form::Many || takes_narrow::<W>() {
            return Inputs { rows: Rows::Narrow(rows), length, width, softcap: None };
        }
        Inputs { rows: Rows::Wide(Wide::new(rows, width)), length, width, softcap: None }
    }

    /// The same rows, whose products `y` become `cap * tanh(y / cap)` if there is a cap.
    #[must_use]
    pub fn capped(self, softcap: Option<f32>) -> Self {
        Inputs { softcap, ..self }
    }

    /// `out [tokens, rows] = inputs [tokens, width] * weights [rows, width]^T`, on all threads.
    ///
    /// # Errors
    /// [`LinearError`] if the lengths do not fit together.
    pub fn product<'w, Y: Number>(&self, weights: impl Into<Weights<'w, W>>, out: &mut [Y]) -> Result<(), LinearError>
    where
        W: 'w,
    {
        self.products(vec![(weights.into(), out)])
    }

    /// [`Self::product`] with each matrix, all at a time.
    ///
    /// # Errors
    /// [`LinearError`] if lengths do not fit together.
    pub fn products<Y: Number>(&self, products: Vec<(Weights<'_, W>, &mut [Y])>) -> Result<(), LinearError> {
        let mut works = Vec::with_capacity(products.len());
        let mut pieces = 0;
        for (weights, out) in products {
            let cut = self.cut(&weights, 1, out.len())?;
            works.push((pieces, cut, weights, Shared::new(out)));
            pieces += cut.pieces();
        }
        threads::share(pieces, |number| {
            let work =
                works.partition_point(|(first, ..)| *first <= number).checked_sub(1).and_then(|at| works.get(at));
            let Some((start, cut, weights, out)) = work else { return };
            let (columns, tokens) = cut.piece(number - start);
            self.parts([weights], &columns, &tokens, |[sums], place| {
                if let Some(cap) = self.softcap {
                    softcap(sums.values, cap);
                }
                // SAFETY: each piece has columns of its own, or rows of its own, and so has each part of it.
                unsafe { sums.give(out, cut.rows, place) };
            });
        });
        Ok(())
    }

    /// `gelu(inputs * gate^T) * (inputs * up^T)`, with each of the three factors rounded to the weights' type.
    ///
    /// # Errors
    /// [`LinearError`] if the lengths do not fit together.
    pub fn gated<Y: Number>(
        &self,
        gate: &Weights<'_, W>,
        up: &Weights<'_, W>,
        out: &mut [Y],
    ) -> Result<(), LinearError> {
        let cut = self.cut(gate, 2, out.len())?;
        self.cut(up, 2, out.len())?;
        let out = Shared::new(out);
        threads::share(cut.pieces(), |number| {
            let (columns, tokens) = cut.piece(number);
            self.parts([gate, up], &columns, &tokens, |[gate, up], place| {
                gated::<W>(gate.values, up.values);
                // SAFETY: as above.
                unsafe { gate.give(&out, cut.rows, place) };
            });
        });
        Ok(())
    }

    /// `gelu(inputs * gate^T) * rows`, with both factors rounded to the weights' type.
    ///
    /// # Errors
    /// [`LinearError`] if the lengths do not fit together.
    pub fn gated_rows<Y: Number>(
        &self,
        gate: &Weights<'_, W>,
        rows: &LayerRows<'_, W>,
        out: &mut [Y],
    ) -> Result<(), LinearError> {
        let cut = self.cut(gate, 1, out.len())?;
        let LayerRows { values, layers, width, layer } = *rows;
        let all = cut.tokens.checked_mul(layers).and_then(|all| all.checked_mul(width));
        if width != cut.rows || layer >= layers || all != Some(values.len()) {
            return Err(LinearError { inputs: values.len(), weights: gate.len(), width, outputs: out.len() });
        }
        let out = Shared::new(out);
        threads::share(cut.pieces(), |number| {
            let (columns, tokens) = cut.piece(number);
            self.parts([gate], &columns, &tokens, |[sums], place| {
                let mut factors = vec![0.0; sums.values.len()];
                for (at, factors) in factors.chunks_mut(sums.stride).enumerate().take(sums.tokens) {
                    let row = &values[((place.token + at) * layers + layer) * width..][place.column..width];
                    factors.iter_mut().zip(&row[..sums.rows]).for_each(|(factor, row)| *factor = row.widen());
                }
                gated::<W>(sums.values, &factors);
                // SAFETY: as above.
                unsafe { sums.give(&out, cut.rows, place) };
            });
        });
        Ok(())
    }

    /// The pieces of a product with `weights`, and as many other matrices side by side as make `matrices`, whose results have `length`
    /// elements.
    fn cut(&self, weights: &Weights<'_, W>, matrices: usize, length: usize) -> Result<Cut, LinearError> {
        let width = self.width;
        let error = LinearError { inputs: self.length, weights: weights.len(), width, outputs: length };
        let tokens = self.length.checked_div(width).filter(|tokens| tokens * width == self.length).ok_or(error)?;
        let rows = weights.rows(width).ok_or(error)?;
        if tokens.checked_mul(rows) != Some(length) {
            return Err(error);
        }
        let form = Form::of::<W>(tokens);
        let mut cut = Cut { rows, tokens, each: columns(weights, matrices, tokens, width), band: form.band(tokens) };
        // Panels and widened rows are made anew for each piece, but no thread may be without one.
        let is_cut = tokens >= BLOCKED_FROM || form == Form::Panels;
        #[cfg(target_arch = "x86_64")]
        let least = if form == Form::Tiles { PIECES_OF_TILES } else { PIECES };
        #[cfg(not(target_arch = "x86_64"))]
        let least = PIECES;
        let is_few = |cut: &Cut| is_cut && cut.pieces() < least * threads::count();
        while is_few(&cut) && cut.each > LEAST_COLUMNS {
            cut.each = (cut.each / 2).next_multiple_of(LEAST_COLUMNS);
        }
        #[cfg(target_arch = "x86_64")]
        while is_few(&cut) && form == Form::Panels && cut.band > panels::PANEL {
            cut.band = (cut.band / 2).next_multiple_of(panels::PANEL);
        }
        Ok(cut)
    }

    /// Products of some rows of the input with some rows of each matrix, all of which have as many, on this thread. Gives them to `take`
    /// part by part, with their place in the result.
    pub(crate) fn parts<const N: usize>(
        &self,
        weights: [&Weights<'_, W>; N],
        columns: &Range<usize>,
        tokens: &Range<usize>,
        mut take: impl FnMut([Part<'_>; N], Place),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Rows::Tiles(inputs) = &self.rows {
            let weights = weights.map(|weights| weights.part(columns, self.width));
            return Tiled { inputs, width: self.width, columns, tokens }.parts(&weights, take);
        }
        let mut sums = weights.map(|weights| self.sums(weights, columns, tokens));
        take(sums.each_mut().map(Sums::part), Place { column: columns.start, token: tokens.start });
    }

    /// All of those with one matrix, where inputs are no tiles.
    fn sums(&self, weights: &Weights<'_, W>, columns: &Range<usize>, tokens: &Range<usize>) -> Sums {
        match weights.part(columns, self.width) {
            Weights::Elements(elements) => self.sums_of(elements, tokens),
            Weights::Int8 { values, scales } => {
                let mut sums = self.sums_of(values, tokens);
                sums.part().scale(scales);
                sums
            }
            Weights::Int4 { values, scales } => self.sums_of_packed(Packed::new(values, scales, self.width), tokens),
        }
    }

    /// Products of some rows of the input with all of these weights, which are widened some after the other.
    fn sums_of_packed(&self, weights: Packed<'_>, tokens: &Range<usize>) -> Sums {
        let (rows, count) = (weights.rows(), tokens.len());
        let mut all = Sums { values: vec![0.0; rows * count], tokens: count, rows, stride: rows };
        #[cfg(target_arch = "x86_64")]
        if W::IS_BF16 && vectors::has_avx512() {
            let of = tokens.start * self.width..tokens.end * self.width;
            match &self.rows {
                Rows::Narrow(rows) if count == 1 && vectors::has_avx512_bf16() => {
                    if let Some(input) = W::as_bf16(&rows[of]) {
                        // SAFETY: the processor has the instructions.
                        unsafe { int4::avx512::dots_of_one::<Pairs>(input, weights, &mut all.values) };
                        return all;
                    }
                }
                Rows::Wide(rows) if count == 1 => {
                    // SAFETY: the processor has the instructions.
                    unsafe {
                        int4::avx512::dots_of_one::<Singles<W>>(rows.part(tokens).row(0), weights, &mut all.values)
                    };
                    return all;
                }
                _ => {}
            }
            // SAFETY: the processor has the instructions.
            unsafe { int4::in_bf16(weights, count, |first, part| all.place(first, &self.sums_of(part, tokens))) };
            return all;
        }
        int4::in_f32(weights, count, |first, part| all.place(first, &self.sums_of(part, tokens)));
        all
    }

    /// Products of some rows of the input with all of these weights.
    fn sums_of<E: Weight>(&self, weights: &[E], tokens: &Range<usize>) -> Sums {
        let width = self.width;
        let weights = Matrix::dense(weights, width);
        let (of, form) = (tokens.start * width..tokens.end * width, Form::of::<W>(self.length / width));
        match &self.rows {
            Rows::Wide(rows) => Sums::of_few::<W, _, _>(rows.part(tokens), weights),
            Rows::Narrow(values) if form == Form::Few => {
                Sums::of_few::<W, _, _>(Matrix::dense(&values[of], width), weights)
            }
            Rows::Narrow(values) => Sums::of_many(&values[of], weights),
            #[cfg(target_arch = "x86_64")]
            Rows::Panels(inputs) => {
                let stride = weights.rows();
                let mut values = vec![0.0; tokens.len() * stride];
                // SAFETY: who has panels may use the instructions.
                unsafe { panels::products(inputs, tokens.clone(), weights, &mut values, stride) };
                Sums { values, tokens: tokens.len(), rows: weights.rows(), stride }
            }
            // Tiles give parts, and never all sums at a time.
            #[cfg(target_arch = "x86_64")]
            Rows::Tiles(_) => Sums::none(),
        }
    }
}

/// Rows `[T, L, width]`, of which those of one layer are meant.
#[derive(Clone, Copy, Debug)]
pub struct LayerRows<'a, W> {
    /// All of them.
    pub values: &'a [W],
    /// `L`.
    pub layers: usize,
    /// Elements of a row.
    pub width: usize,
    /// Which layer.
    pub layer: usize,
}

/// A product in pieces of some columns of the result and some of its rows.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Rows of the matrix, which are columns of the result.
    rows: usize,
    tokens: usize,
    /// Columns of a piece.
    each: usize,
    /// Rows of a piece.
    band: usize,
}

impl Cut {
    fn pieces(&self) -> usize {
        self.rows.div_ceil(self.each) * self.tokens.div_ceil(self.band)
    }

    /// Columns and rows of a piece.
    fn piece(&self, number: usize) -> (Range<usize>, Range<usize>) {
        let bands = self.tokens.div_ceil(self.band);
        let (column, token) = (number / bands * self.each, number % bands * self.band);
        (column..self.rows.min(column + self.each), token..self.tokens.min(token + self.band))
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Of few rows: weights are read as they lie.
    Few,
    /// Of many rows: weights become panels of f32 first.
    Many,
    /// Of many rows: inputs become panels first, with AVX-512.
    Panels,
    /// By [`crate::amx`].
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Form {
    /// The fastest one for so many rows.
    fn of<W: Number>(tokens: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if W::IS_BF16 && vectors::has_amx() && tokens >= TILES_FROM {
            return Self::Tiles;
        }
        #[cfg(target_arch = "x86_64")]
        if vectors::has_avx512() && tokens >= PANELS_FROM {
            return Self::Panels;
        }
        if tokens < BLOCKED_FROM { Self::Few } else { Self::Many }
    }

    /// Rows of a piece.
    fn band(self, tokens: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Panels {
            return ROWS_OF_PANELS.min(tokens).next_multiple_of(panels::PANEL);
        }
        #[cfg(target_arch = "x86_64")]
        if self == Self::Tiles {
            let bands = tokens.div_ceil(ROWS_OF_TILES).max(1);
            return tokens.div_ceil(bands).next_multiple_of(amx::BLOCK);
        }
        tokens.clamp(1, ROWS)
    }
}

/// Columns that a thread takes at a time, of `matrices` side by side.
pub(crate) fn columns<W: Number>(weights: &Weights<'_, W>, matrices: usize, tokens: usize, width: usize) -> usize {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = matrices;
    let (piece, tiles) = match Form::of::<W>(tokens) {
        Form::Few if tokens == 1 => return columns_of_pieces(weights, width, PIECE_OF_ONE, TILES_OF_ONE),
        Form::Few => (PIECE, TILES),
        #[cfg(target_arch = "x86_64")]
        Form::Tiles if tokens < BLOCKED_FROM => return columns_of_pieces(weights, width, PIECE_OF_TILES, amx::BLOCK),
        #[cfg(target_arch = "x86_64")]
        Form::Tiles => {
            return (SUMS_OF_TILES / matrices.max(1) / tokens.min(ROWS_OF_TILES) / amx::BLOCK * amx::BLOCK)
                .clamp(2 * amx::BLOCK, 2 * COLUMNS);
        }
        #[cfg(target_arch = "x86_64")]
        Form::Panels => {
            let columns = SUMS_OF_PANELS / tokens / panels::PANEL * panels::PANEL;
            return columns.clamp(2 * panels::PANEL, 2 * COLUMNS);
        }
        _ => return COLUMNS,
    };
    // More than one row of input meets widened weights.
    (piece / (width * size_of::<W>()).max(1)).max(1).next_multiple_of(tiles)
}

/// The same for products that take as long as their weights take to be read: as much for each thread, in whole tiles and in pieces of at
/// most so many bytes.
fn columns_of_pieces<W: Number>(weights: &Weights<'_, W>, width: usize, most: usize, tile: usize) -> usize {
    let rows = weights.rows(width).unwrap_or(0);
    let bytes = rows * weights.row_bytes(width);
    let threads = if bytes < LEAST_OF_ONE { 1 } else { threads::count() };
    let pieces = bytes.div_ceil(most).max(1).next_multiple_of(threads);
    rows.div_ceil(pieces).max(1).next_multiple_of(tile)
}

/// Rows from which on tiles pay.
#[cfg(target_arch = "x86_64")]
const TILES_FROM: usize = 2;
