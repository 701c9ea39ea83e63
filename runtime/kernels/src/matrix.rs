//! Rows that may lie apart.

use std::borrow::Cow;

/// Rows of `width` elements, the first elements of which are `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, W> {
    values: &'a [W],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a, W: Copy> Matrix<'a, W> {
    /// Rows that are neighbours.
    pub(crate) fn dense(values: &'a [W], width: usize) -> Self {
        Matrix { values, rows: values.len().checked_div(width).unwrap_or(0), width, stride: width }
    }

    /// Rows within `values` from its beginning on; `None` if there are fewer.
    pub(crate) fn apart(values: &'a [W], rows: usize, width: usize, stride: usize) -> Option<Self> {
        let end = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(width));
        (end? <= values.len() && width > 0 && width <= stride).then_some(Matrix { values, rows, width, stride })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Elements from the beginning of a row to that of the next one.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [W] {
        &self.values[row * self.stride..][..self.width]
    }

    /// The rows from this one on.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn from(&self, row: usize) -> Self {
        let values = self.values.get(row * self.stride..).unwrap_or_default();
        Matrix { values, rows: self.rows.saturating_sub(row), ..*self }
    }

    /// All rows as neighbours.
    pub(crate) fn values(&self) -> Cow<'a, [W]> {
        if self.stride == self.width {
            return Cow::Borrowed(&self.values[..self.rows * self.width]);
        }
        Cow::Owned((0..self.rows).flat_map(|row| self.row(row)).copied().collect())
    }

    /// The first elements of all rows as neighbours.
    pub(crate) fn starts(&self, width: usize) -> Vec<W> {
        (0..self.rows).flat_map(|row| &self.row(row)[..width]).copied().collect()
    }

    /// The same rows of elements that `of` takes for the same.
    pub(crate) fn map<V>(&self, of: impl FnOnce(&'a [W]) -> Option<&'a [V]>) -> Option<Matrix<'a, V>> {
        let values = of(self.values)?;
        Some(Matrix { values, rows: self.rows, width: self.width, stride: self.stride })
    }
}
