//! A table that stays in its file, read row by row.

use super::bytes::FileBytes;
use super::convert::Conversion;
use super::error::WeightsError;
use super::open::Checkpoint;
use crate::DType;
use crate::tensors::Role;

/// A table `[rows, width]` of a checkpoint in the host's memory. Rows are copied out of the file, in the element type asked
/// for; pages of the file that nobody asks for take no memory.
#[derive(Clone)]
pub struct RowTable {
    file: FileBytes,
    /// Where the first row begins in the file.
    start: usize,
    rows: usize,
    /// Bytes of a row in the file.
    stored_bytes: usize,
    /// Bytes of a row in the type asked for.
    row_bytes: usize,
    conversion: Conversion,
}

impl Checkpoint {
    /// The table with this role, outside of the layers, with its elements as `dtype`.
    ///
    /// # Errors
    /// [`WeightsError`] if the model has no such table, no conversion leads to `dtype`, or the file has changed.
    pub fn row_table(&self, role: Role, dtype: DType) -> Result<RowTable, WeightsError> {
        let matched =
            self.matched().iter().find(|matched| matched.tensor.role == role && matched.tensor.layer.is_none());
        let matched = matched.ok_or_else(|| WeightsError::UnknownTensor { tensor: format!("{role:?}") })?;
        let tensor = &matched.tensor.name;
        let from = matched.entry.dtype;
        let conversion = Conversion::between(from, dtype);
        let conversion =
            conversion.ok_or_else(|| WeightsError::Conversion { tensor: tensor.clone(), from, to: dtype })?;
        let (file, range) = self.place_of(matched)?;
        let (rows, width) = match *matched.tensor.shape {
            [rows, width] => (rows, width),
            _ => return Err(WeightsError::UnknownTensor { tensor: tensor.clone() }),
        };
        let size = |bytes: Option<u64>| bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let sizes = (size(Some(rows)), size(from.bytes(width)), size(dtype.bytes(width)));
        let (Some(rows), Some(stored_bytes), Some(row_bytes)) = sizes else { return Err(self.changed(matched)) };
        Ok(RowTable { file: FileBytes::clone(file), start: range.start, rows, stored_bytes, row_bytes, conversion })
    }
}

impl RowTable {
    /// Bytes of a row, in the element type asked for.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The rows of `ids` one after another, in place of what `into` held. An id without a row gives zeros.
    pub fn gather(&self, ids: &[i32], into: &mut Vec<u8>) {
        into.clear();
        into.reserve(ids.len().saturating_mul(self.row_bytes));
        let file = self.file.as_ref().as_ref();
        for (index, id) in ids.iter().enumerate() {
            let row = usize::try_from(*id).ok().filter(|row| *row < self.rows).and_then(|row| {
                let start = self.start.checked_add(row.checked_mul(self.stored_bytes)?)?;
                file.get(start..start.checked_add(self.stored_bytes)?)
            });
            self.conversion.append(row.unwrap_or_default(), into);
            into.resize(index.saturating_add(1).saturating_mul(self.row_bytes), 0);
        }
    }
}
