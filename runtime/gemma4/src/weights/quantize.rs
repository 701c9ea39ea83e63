//! Rows of numbers become integers and a scale.
//!
//! Invariant: with `scale` the largest size in the whole row divided by 127, all in float32, an integer is the nearest one to the
//! number divided by the scale, to even where two are as near. A row of zeros, or of numbers so small that their scale is 0,
//! becomes zeros.

use std::ops::Range;

use crate::DType;
use crate::quantization::{Array, Content};
use crate::tensors::Tensor;

/// The largest integer.
const MOST: f32 = 127.0;

/// What is made of the rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Elements of a row.
    width: usize,
    content: Content,
}

impl Rows {
    /// `None` for an array that holds elements as they are.
    pub(super) fn of(tensor: &Tensor, array: &Array) -> Option<Self> {
        let width = usize::try_from(*tensor.shape.last()?).ok().filter(|width| *width > 0)?;
        let is_quantized = array.content == Content::Scales || array.dtype == DType::I8;
        is_quantized.then_some(Rows { width, content: array.content })
    }

    /// The elements that have to be read for a run of what is wanted: whole rows.
    pub(super) fn read_for(self, wanted: Range<usize>) -> Range<usize> {
        let rows = self.rows(&wanted);
        rows.start.saturating_mul(self.width)..rows.end.saturating_mul(self.width)
    }

    /// The rows that a run of what is wanted lies in.
    fn rows(self, wanted: &Range<usize>) -> Range<usize> {
        match self.content {
            Content::Elements => wanted.start / self.width..wanted.end.div_ceil(self.width),
            Content::Scales => wanted.clone(),
        }
    }

    /// Appends a run of what is wanted. `read` appends elements of the tensor as float32, if they are there; `None` if they are not.
    pub(super) fn append(
        self,
        wanted: Range<usize>,
        read: impl Fn(Range<usize>, &mut Vec<u8>) -> Option<()>,
        target: &mut Vec<u8>,
    ) -> Option<()> {
        let mut bytes = Vec::new();
        for row in self.rows(&wanted) {
            let first = row.checked_mul(self.width)?;
            bytes.clear();
            read(first..first.checked_add(self.width)?, &mut bytes)?;
            let numbers = bytes.as_chunks::<4>().0;
            let scale = scale(numbers);
            match self.content {
                Content::Scales => target.extend(scale.to_le_bytes()),
                Content::Elements => {
                    // A part of the row, where columns are split.
                    let from = wanted.start.max(first).saturating_sub(first);
                    let to = wanted.end.saturating_sub(first).min(self.width);
                    let part = numbers.get(from..to)?;
                    target
                        .extend(part.iter().map(|number| integer(f32::from_le_bytes(*number), scale).cast_unsigned()));
                }
            }
        }
        Some(())
    }
}

/// What the integers of a row are multiplied by.
fn scale(numbers: &[[u8; 4]]) -> f32 {
    let most = numbers.iter().fold(0.0_f32, |most, number| {
        let size = f32::from_le_bytes(*number).abs();
        if size > most { size } else { most }
    });
    most / MOST
}

/// The nearest integer; 0 for what is no number.
fn integer(number: f32, scale: f32) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is within the bounds of the type")]
    let nearest = (number / scale).round_ties_even().clamp(-MOST, MOST) as i8;
    nearest
}
