//! What `backend_config` of a custom call says.
//!
//! Invariant: an attribute of a kind that is not carried here fails the call that has it, rather than be overlooked.

use std::ffi::c_int;

use crate::api::slice;
use crate::ffi::custom_call::{
    ATTRIBUTE_ARRAY, ATTRIBUTE_SCALAR, ATTRIBUTE_STRING, Array, ByteSpan, CallAttributes, Scalar,
};

/// The attributes of a call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attributes<'a> {
    entries: Vec<(&'a str, Attribute<'a>)>,
}

/// A value. Integers of fewer bits are widened.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Attribute<'a> {
    /// `i1`.
    Bool(bool),
    /// `i8` to `i64`.
    Int(i64),
    /// `f32`.
    F32(f32),
    /// `f64`.
    F64(f64),
    /// A text.
    String(&'a str),
    /// `array<i64: ...>`.
    Ints(&'a [i64]),
}

/// Numbers of `XLA_FFI_DataType` that attributes have here.
const PRED: c_int = 1;
const S8: c_int = 2;
const S16: c_int = 3;
const S32: c_int = 4;
const S64: c_int = 5;
const F32: c_int = 11;
const F64: c_int = 12;

impl<'a> Attributes<'a> {
    /// Reads the attributes of a frame.
    ///
    /// # Safety
    /// They are those of a valid frame, valid during `'a`.
    pub(super) unsafe fn new(raw: &'a CallAttributes) -> Result<Self, String> {
        let count = usize::try_from(raw.size).map_err(|_| format!("XLA passes {} attributes", raw.size))?;
        // SAFETY: the three lists have as many entries as is told, and are as valid as the frame.
        let (kinds, names, values) =
            unsafe { (slice(raw.types, count), slice(raw.names, count), slice(raw.attributes, count)) };
        let mut entries = Vec::with_capacity(count);
        for ((kind, name), value) in kinds.iter().zip(names).zip(values) {
            // SAFETY: each name points at a span.
            let name = unsafe { span(&**name) }?;
            // SAFETY: the kind tells what the value points at.
            let attribute = unsafe { read(*kind, *value) };
            entries.push((
                name,
                attribute.ok_or_else(|| format!("attribute `{name}` is of a kind that is not supported"))?,
            ));
        }
        Ok(Attributes { entries })
    }

    /// An attribute by name.
    pub fn get(&self, name: &str) -> Option<Attribute<'a>> {
        self.entries.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
    }

    /// An integer by name.
    ///
    /// # Errors
    /// A text when there is none.
    pub fn int(&self, name: &str) -> Result<i64, String> {
        match self.get(name) {
            Some(Attribute::Int(number)) => Ok(number),
            other => Err(mismatch(name, "an integer", other)),
        }
    }

    /// A number of single precision by name.
    ///
    /// # Errors
    /// A text when there is none.
    pub fn f32(&self, name: &str) -> Result<f32, String> {
        match self.get(name) {
            Some(Attribute::F32(number)) => Ok(number),
            other => Err(mismatch(name, "an f32", other)),
        }
    }

    /// A text by name.
    ///
    /// # Errors
    /// A text when there is none.
    pub fn string(&self, name: &str) -> Result<&'a str, String> {
        match self.get(name) {
            Some(Attribute::String(text)) => Ok(text),
            other => Err(mismatch(name, "a string", other)),
        }
    }

    /// Names and values in XLA's order, which is by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, Attribute<'a>)> {
        self.entries.iter().copied()
    }
}

fn mismatch(name: &str, wanted: &str, found: Option<Attribute<'_>>) -> String {
    match found {
        None => format!("attribute `{name}` is missing"),
        Some(found) => format!("attribute `{name}` is {found:?}, not {wanted}"),
    }
}

/// A text of a frame.
///
/// # Safety
/// The span is valid during `'a`.
unsafe fn span<'a>(span: &ByteSpan) -> Result<&'a str, String> {
    // SAFETY: passed on to the caller.
    let bytes = unsafe { slice(span.ptr.cast::<u8>(), span.len) };
    std::str::from_utf8(bytes).map_err(|error| format!("an attribute's text is not UTF-8: {error}"))
}

/// Reads a value, when it is of a kind that is carried.
///
/// # Safety
/// `value` points at what XLA's FFI has for `kind`, valid during `'a`.
unsafe fn read<'a>(kind: c_int, value: *const std::ffi::c_void) -> Option<Attribute<'a>> {
    // SAFETY: the kind tells the struct, and its type tells what its pointer points at.
    unsafe {
        match kind {
            ATTRIBUTE_STRING => span(&*value.cast::<ByteSpan>()).ok().map(Attribute::String),
            ATTRIBUTE_SCALAR => {
                let Scalar { dtype, value } = &*value.cast::<Scalar>();
                Some(match *dtype {
                    PRED => Attribute::Bool(value.cast::<u8>().read_unaligned() != 0),
                    S8 => Attribute::Int(value.cast::<i8>().read_unaligned().into()),
                    S16 => Attribute::Int(value.cast::<i16>().read_unaligned().into()),
                    S32 => Attribute::Int(value.cast::<i32>().read_unaligned().into()),
                    S64 => Attribute::Int(value.cast::<i64>().read_unaligned()),
                    F32 => Attribute::F32(value.cast::<f32>().read_unaligned()),
                    F64 => Attribute::F64(value.cast::<f64>().read_unaligned()),
                    _ => return None,
                })
            }
            ATTRIBUTE_ARRAY => {
                let Array { dtype, size, data } = &*value.cast::<Array>();
                (*dtype == S64 && data.cast::<i64>().is_aligned())
                    .then(|| Attribute::Ints(slice(data.cast::<i64>(), *size)))
            }
            _ => None,
        }
    }
}
