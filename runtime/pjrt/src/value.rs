//! Named values: options that go to a plugin and attributes that come from it.
//!
//! Invariant: values are copied out when they are read, so none outlives what it was read from.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::mem::size_of;
use std::ptr;

use crate::api::{slice, text};
use crate::ffi::{self, NamedValueUnion};

/// A value of one of PJRT's five kinds.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Text.
    String(String),
    /// An integer.
    Int(i64),
    /// Several integers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
    /// Yes or no.
    Bool(bool),
}

/// Options as C wants them; borrows from the values it was made of.
pub(crate) struct NamedValues<'a> {
    raw: Vec<ffi::NamedValue>,
    _values: std::marker::PhantomData<&'a Value>,
}

impl<'a> NamedValues<'a> {
    /// Options for a call.
    pub(crate) fn new(values: &'a [(&'a str, Value)]) -> Self {
        let raw = values.iter().map(|(name, value)| to_raw(name, value)).collect();
        NamedValues { raw, _values: std::marker::PhantomData }
    }

    /// The array for C; null when it is empty.
    pub(crate) fn as_ptr(&self) -> *const ffi::NamedValue {
        if self.raw.is_empty() { ptr::null() } else { self.raw.as_ptr() }
    }

    /// Number of options.
    pub(crate) fn len(&self) -> usize {
        self.raw.len()
    }
}

fn to_raw(name: &str, value: &Value) -> ffi::NamedValue {
    let (kind, union, value_size) = match value {
        Value::String(text) => {
            (ffi::NAMED_STRING, NamedValueUnion { string: text.as_ptr().cast::<c_char>() }, text.len())
        }
        Value::Int(number) => (ffi::NAMED_INT64, NamedValueUnion { int64: *number }, 1),
        Value::Ints(numbers) => {
            (ffi::NAMED_INT64_LIST, NamedValueUnion { int64_list: numbers.as_ptr() }, numbers.len())
        }
        Value::Float(number) => (ffi::NAMED_FLOAT, NamedValueUnion { float: *number }, 1),
        Value::Bool(yes) => (ffi::NAMED_BOOL, NamedValueUnion { boolean: *yes }, 1),
    };
    ffi::NamedValue {
        struct_size: size_of::<ffi::NamedValue>(),
        extension_start: ptr::null_mut(),
        name: name.as_ptr().cast(),
        name_size: name.len(),
        kind,
        value: union,
        value_size,
    }
}

/// A copy of an array of named values. Kinds that the header did not know are left out: they cannot be read.
///
/// # Safety
/// `count` values from `start` can be read, with the memory that they point at.
pub(crate) unsafe fn copy(start: *const ffi::NamedValue, count: usize) -> BTreeMap<String, Value> {
    // SAFETY: passed on to the caller.
    let values = unsafe { slice(start, count) };
    let read = |value: &ffi::NamedValue| {
        // SAFETY: each value carries a name of the length it says, and `kind` tells which field of the union is set.
        let (name, content) = unsafe {
            let content = match value.kind {
                ffi::NAMED_STRING => Value::String(text(value.value.string, value.value_size)),
                ffi::NAMED_INT64 => Value::Int(value.value.int64),
                ffi::NAMED_INT64_LIST => Value::Ints(slice(value.value.int64_list, value.value_size).to_vec()),
                ffi::NAMED_FLOAT => Value::Float(value.value.float),
                ffi::NAMED_BOOL => Value::Bool(value.value.boolean),
                _ => return None,
            };
            (text(value.name, value.name_size), content)
        };
        Some((name, content))
    };
    values.iter().filter_map(read).collect()
}
