//! Rows of numbers become integers and scales.
//!
//! Invariant: what is made of a row, or of a group in it, follows from its numbers alone, in float32, whatever they are stored as.
//!
//! With eight bits, `scale` is the largest size in the whole row divided by 127, and an integer is the nearest one to the number
//! divided by the scale, to even where two are as near. A row of zeros, or of numbers so small that their scale is 0, becomes
//! zeros. Groups of four bits are in [`super::groups`].

use std::ops::Range;

use super::groups;
use crate::quantization::{Array, Content, Quantization};
use crate::sharding::Placement;
use crate::tensors::Tensor;

/// The largest integer.
const MOST: f32 = 127.0;

/// What is made of the rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    quantization: Quantization,
    /// Elements of a row.
    width: usize,
    /// Those of a device's part of it.
    local_width: usize,
    content: Content,
}

impl Rows {
    /// `None` for an array that holds elements as they are.
    pub(super) fn of(
        tensor: &Tensor,
        placement: &Placement,
        array: &Array,
        quantization: Option<Quantization>,
    ) -> Option<Self> {
        let quantization = quantization?.of(tensor, placement)?;
        let width = |shape: &[u64]| usize::try_from(*shape.last()?).ok().filter(|width| *width > 0);
        let (width, local_width) = (width(&tensor.shape)?, width(&placement.local_shape)?);
        Some(Rows { quantization, width, local_width, content: array.content })
    }

    /// Whether a run of what is wanted is a run of rows, not of elements.
    pub(super) fn are_wanted(self) -> bool {
        self.quantization == Quantization::Int8 && self.content == Content::Scales
    }

    /// The elements that have to be read for a run of what is wanted.
    pub(super) fn read_for(self, wanted: Range<usize>) -> Range<usize> {
        match self.quantization {
            // A scale follows from a whole row.
            Quantization::Int8 => {
                let rows = self.rows(&wanted);
                rows.start.saturating_mul(self.width)..rows.end.saturating_mul(self.width)
            }
            Quantization::Int4 => wanted,
        }
    }

    /// The rows that a run of what is wanted lies in.
    fn rows(self, wanted: &Range<usize>) -> Range<usize> {
        if self.are_wanted() {
            return wanted.clone();
        }
        wanted.start / self.width..wanted.end.div_ceil(self.width)
    }

    /// Appends a run of what is wanted. `read` appends elements of the tensor as float32, if they are there; `None` if they are not.
    pub(super) fn append(
        self,
        wanted: Range<usize>,
        read: impl Fn(Range<usize>, &mut Vec<u8>) -> Option<()>,
        target: &mut Vec<u8>,
    ) -> Option<()> {
        match self.quantization {
            Quantization::Int8 => self.append_rows(&wanted, read, target),
            Quantization::Int4 => self.append_groups(wanted, read, target),
        }
    }

    fn append_rows(
        self,
        wanted: &Range<usize>,
        read: impl Fn(Range<usize>, &mut Vec<u8>) -> Option<()>,
        target: &mut Vec<u8>,
    ) -> Option<()> {
        let mut bytes = Vec::new();
        for row in self.rows(wanted) {
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

    /// A run is a device's part of one row, or several whole rows, which then are that.
    fn append_groups(
        self,
        wanted: Range<usize>,
        read: impl Fn(Range<usize>, &mut Vec<u8>) -> Option<()>,
        target: &mut Vec<u8>,
    ) -> Option<()> {
        let mut bytes = Vec::new();
        for first in wanted.clone().step_by(self.local_width) {
            let row = first..first.checked_add(self.local_width).filter(|end| *end <= wanted.end)?;
            bytes.clear();
            read(row, &mut bytes)?;
            let numbers = bytes.as_chunks::<4>().0;
            match self.content {
                Content::Scales => groups::append_scales(numbers, target),
                Content::Elements => groups::append_integers(numbers, target),
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
