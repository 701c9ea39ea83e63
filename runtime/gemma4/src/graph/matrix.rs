//! Matrices of weights in a program, quantized or not.

use std::ops::Range;

use gemma4_hlo::{Builder, ElementType, HloError, Value};

use super::weights::part;

/// Matrices `[.., out, in]`, and what each row of integers is multiplied by `[.., out]`.
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

    /// What is at `at`, an index for each of the first dimensions.
    pub(super) fn at(self, b: &mut Builder, at: &[Value]) -> Result<Self, HloError> {
        self.map(b, |b, value| part(b, value, at))
    }

    /// Some of the rows of a single matrix.
    pub(super) fn rows(self, b: &mut Builder, wanted: Range<u64>) -> Result<Self, HloError> {
        self.map(b, |b, value| b.slice_dim(value, 0, wanted.start, wanted.end))
    }

    /// Rows `[T, width]` of a single matrix by their numbers, as far as `columns` of them, as elements of `element`.
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
