//! The operands and outputs of one call.
//!
//! Invariant: the memory of an output is borrowed by nobody else: an operand that shares it has no bytes, and two
//! outputs that share it fail the call.

use std::marker::PhantomData;
use std::ops::Range;

use super::Attributes;
use crate::api::slice;
use crate::element::{Element, ElementType};
use crate::ffi::custom_call::{CallBuffer, CallBuffers, CallFrame, KIND_BUFFER};

/// One call of a handler.
#[derive(Debug)]
pub struct Call<'a> {
    /// What the program passes.
    pub operands: Vec<Operand<'a>>,
    /// What the handler has to fill. The bytes are whatever was there before.
    pub outputs: Vec<Output<'a>>,
    /// `backend_config` of the call.
    pub attributes: Attributes<'a>,
}

/// An array that is passed.
#[derive(Debug)]
pub struct Operand<'a> {
    view: View<'a>,
    /// The output that shares its memory, when the program asks for that.
    shared_with: Option<usize>,
    /// Its position, for messages.
    index: usize,
}

/// An array to be filled.
#[derive(Debug)]
pub struct Output<'a> {
    view: View<'a>,
}

/// Where an array lies.
#[derive(Debug)]
struct View<'a> {
    element: ElementType,
    dims: &'a [i64],
    start: *mut u8,
    length: usize,
    _memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: a view stands for a slice, shared or exclusive as its owner says, and slices of bytes may go to any thread.
unsafe impl Send for View<'_> {}
// SAFETY: through a shared view memory is only read.
unsafe impl Sync for View<'_> {}

impl<'a> Call<'a> {
    /// Reads a frame.
    ///
    /// # Safety
    /// The frame is one that XLA passes, valid during `'a`.
    pub(super) unsafe fn new(frame: &'a CallFrame) -> Result<Self, String> {
        if frame.struct_size < size_of::<CallFrame>() {
            return Err(format!("XLA's call frame has {} bytes, too few for its version", frame.struct_size));
        }
        // SAFETY: passed on to the caller.
        let outputs = unsafe { views(&frame.results, "output") }?;
        // SAFETY: as above.
        let operands = unsafe { views(&frame.arguments, "operand") }?;
        // SAFETY: as above.
        let attributes = unsafe { Attributes::new(&frame.attributes) }?;
        for (index, output) in outputs.iter().enumerate() {
            if let Some(other) = outputs[..index].iter().position(|other| overlap(other, output)) {
                return Err(format!("outputs {other} and {index} share memory"));
            }
        }
        let operand = |(index, view): (usize, View<'a>)| {
            let shared_with = outputs.iter().position(|output| overlap(output, &view));
            Operand { view, shared_with, index }
        };
        let operands = operands.into_iter().enumerate().map(operand).collect();
        let outputs = outputs.into_iter().map(|view| Output { view }).collect();
        Ok(Call { operands, outputs, attributes })
    }
}

impl Operand<'_> {
    /// Type of the elements.
    pub fn element(&self) -> ElementType {
        self.view.element
    }

    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[i64] {
        self.view.dims
    }

    /// The output that shares its memory, when the program asks for that with `output_operand_aliases`. The operand's
    /// values are then what that output holds before it is written.
    pub fn shared_with(&self) -> Option<usize> {
        self.shared_with
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// A text when an output shares the memory.
    pub fn bytes(&self) -> Result<&[u8], String> {
        if let Some(output) = self.shared_with {
            return Err(format!("operand {} shares its memory with output {output}: read it there", self.index));
        }
        // SAFETY: XLA vouches for the memory during the call, and no output overlaps it.
        Ok(unsafe { slice(self.view.start.cast_const(), self.view.length) })
    }

    /// The elements as numbers.
    ///
    /// # Errors
    /// A text when they are of another type, not aligned, or shared with an output.
    pub fn values<T: Element>(&self) -> Result<&[T], String> {
        check::<T>(self.view.element)?;
        bytemuck::try_cast_slice(self.bytes()?).map_err(|error| format!("operand {}: {error}", self.index))
    }
}

impl Output<'_> {
    /// Type of the elements.
    pub fn element(&self) -> ElementType {
        self.view.element
    }

    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[i64] {
        self.view.dims
    }

    /// Place for the elements in row-major order.
    pub fn bytes(&mut self) -> &mut [u8] {
        if self.view.start.is_null() || self.view.length == 0 {
            return &mut [];
        }
        // SAFETY: XLA vouches for the memory during the call, this is its only output, no operand that overlaps it
        // gives its bytes away, and `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.view.start, self.view.length) }
    }

    /// Place for the elements as numbers.
    ///
    /// # Errors
    /// A text when they are of another type or not aligned.
    pub fn values<T: Element>(&mut self) -> Result<&mut [T], String> {
        check::<T>(self.view.element)?;
        bytemuck::try_cast_slice_mut(self.bytes()).map_err(|error| format!("an output: {error}"))
    }
}

fn check<T: Element>(found: ElementType) -> Result<(), String> {
    if found == T::TYPE { Ok(()) } else { Err(format!("the array holds {found:?}, not {:?}", T::TYPE)) }
}

/// Whether two arrays have a byte in common.
fn overlap(one: &View<'_>, other: &View<'_>) -> bool {
    let range = |view: &View<'_>| -> Range<usize> { view.start.addr()..view.start.addr().saturating_add(view.length) };
    let (one, other) = (range(one), range(other));
    one.start.max(other.start) < one.end.min(other.end)
}

/// Reads a list of arrays.
///
/// # Safety
/// The list is one of a valid frame, valid during `'a`.
unsafe fn views<'a>(list: &'a CallBuffers, what: &str) -> Result<Vec<View<'a>>, String> {
    let count = usize::try_from(list.size).map_err(|_| format!("XLA passes {} {what}s", list.size))?;
    // SAFETY: both lists have as many entries as is told, and are as valid as the frame.
    let (kinds, pointers) = unsafe { (slice(list.types, count), slice(list.buffers, count)) };
    let mut views = Vec::with_capacity(count);
    for (index, (kind, pointer)) in kinds.iter().zip(pointers).enumerate() {
        if *kind != KIND_BUFFER || pointer.is_null() {
            return Err(format!("{what} {index} is no array"));
        }
        // SAFETY: an entry of this kind points at this struct.
        let buffer = unsafe { &*pointer.cast::<CallBuffer>() };
        let element = ElementType::from_ffi(buffer.dtype).ok_or_else(|| {
            format!("{what} {index} is of XLA's type number {}, which is not supported", buffer.dtype)
        })?;
        let rank = usize::try_from(buffer.rank).map_err(|_| format!("{what} {index} has rank {}", buffer.rank))?;
        // SAFETY: there are as many dimensions as the rank says.
        let dims = unsafe { slice(buffer.dims, rank) };
        let length = element.bytes(dims).map_err(|error| format!("{what} {index}: {error}"))?;
        views.push(View { element, dims, start: buffer.data.cast(), length, _memory: PhantomData });
    }
    Ok(views)
}
