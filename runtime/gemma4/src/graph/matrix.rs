//! Matrices of weights in a program, quantized or not.
//!
//! Invariant: the element type of the values says how they are quantized: integers of eight bits have a scale for each row, and
//! words of 16 bits, each with integers of four bits, one for each group of neighbours in a row
//! ([`Quantization::Int4`](crate::quantization::Quantization::Int4)).

use std::ops::Range;

use gemma4_hlo::{Builder, ElementType, HloError, Value};

use super::weights::part;
use crate::quantization::{GROUP, GROUPS_OF_BLOCK};

/// Bits of an integer in a word.
const BITS: i32 = 4;

/// Matrices `[.., out, in]`, and what each row of integers is multiplied by `[.., out]`, or each group in it `[.., out, in / 32]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) values: Value,
    pub(super) scales: Option<Value>,
}

impl Matrix {
    /// As operators of our own take it: the values, and the scales behind them.
    pub(super) fn operands(self) -> impl Iterator<Item = Value> {
        [self.values].into_iter().chain(self.scales)
    }

    /// Both, each as `of` makes it.
    pub(super) fn map(
        self,
        b: &mut Builder,
        of: impl Fn(&mut Builder, Value) -> Result<Value, HloError>,
    ) -> Result<Self, HloError> {
        let scales = self.scales.map(|scales| of(b, scales)).transpose()?;
        Ok(Matrix { values: of(b, self.values)?, scales })
    }

    /// Whether values are integers of four bits, packed into words.
    fn is_packed(self, b: &Builder) -> Result<bool, HloError> {
        Ok(b.shape(self.values)?.element() == ElementType::U16)
    }

    /// A single matrix as products of rows of `element` take it, and what their sums are multiplied by, if anything.
    pub(super) fn factors(self, b: &mut Builder, element: ElementType) -> Result<(Value, Option<Value>), HloError> {
        let Some(scales) = self.scales else { return Ok((self.values, None)) };
        if self.is_packed(b)? {
            return Ok((unpacked(b, self.values, scales, element)?, None));
        }
        // Every type that steps are computed in has all integers of eight bits.
        Ok((b.convert(self.values, element)?, Some(scales)))
    }

    /// What is at `at`, an index for each of the first dimensions.
    pub(super) fn at(self, b: &mut Builder, at: &[Value]) -> Result<Self, HloError> {
        self.map(b, |b, value| part(b, value, at))
    }

    /// Some of the rows of a single matrix.
    pub(super) fn rows(self, b: &mut Builder, wanted: Range<u64>) -> Result<Self, HloError> {
        self.map(b, |b, value| b.slice_dim(value, 0, wanted.start, wanted.end))
    }

    /// Rows `[T, width]` of a single matrix by their numbers, as far as `columns` of them, as elements of `element`. Such a matrix is
    /// not packed.
    pub(super) fn take(
        self,
        b: &mut Builder,
        numbers: Value,
        columns: Range<u64>,
        element: ElementType,
    ) -> Result<Value, HloError> {
        let mut found = b.take(self.values, numbers, 0)?;
        if columns != (0..b.shape(found)?.dims().get(1).copied().unwrap_or(0)) {
            found = b.slice_dim(found, 1, columns.start, columns.end)?;
        }
        let Some(scales) = self.scales else { return Ok(found) };
        let scales = b.take(scales, numbers, 0)?;
        let found = b.convert(found, ElementType::F32)?;
        let scales = b.broadcast_like(scales, found, &[0])?;
        let found = b.multiply(found, scales)?;
        b.convert(found, element)
    }
}

/// Weights `[out, in]` of words and of the scales of groups, multiplied in f32 and rounded to `element`.
fn unpacked(b: &mut Builder, words: Value, scales: Value, element: ElementType) -> Result<Value, HloError> {
    let size = |b: &Builder, of, at: usize| b.shape(of).map(|shape| shape.dims().get(at).copied().unwrap_or(0));
    let (rows, groups) = (size(b, scales, 0)?, size(b, scales, 1)?);
    let (group, of_block) = (GROUP as u64, GROUPS_OF_BLOCK as u64);
    let blocks = size(b, words, 1)? / group;
    let words = b.reshape(words, &[rows, blocks, group])?;
    let words = b.convert(words, ElementType::S32)?;
    let dims = [rows, blocks, of_block, group];
    let words = b.broadcast(words, &dims, &[0, 1, 3])?;
    // Up until the integer's sign is the word's, then down with copies of it.
    let places = b.iota(ElementType::S32, &dims, 2)?;
    let bits = b.splat(BITS, &dims)?;
    let places = b.multiply(places, bits)?;
    let top = b.splat(32 - BITS, &dims)?;
    let up = b.subtract(top, places)?;
    let integers = b.shift_left(words, up)?;
    let integers = b.shift_right_arithmetic(integers, top)?;
    let integers = b.reshape(integers, &[rows, blocks.saturating_mul(of_block), group])?;
    let integers = b.slice_dim(integers, 1, 0, groups)?;
    let integers = b.convert(integers, ElementType::F32)?;
    let scales = b.convert(scales, ElementType::F32)?;
    let scales = b.broadcast_like(scales, integers, &[0, 1])?;
    let weights = b.multiply(integers, scales)?;
    let weights = b.reshape(weights, &[rows, groups.saturating_mul(group)])?;
    b.convert(weights, element)
}
