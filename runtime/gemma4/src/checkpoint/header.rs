//! The header of a safetensors file: a little-endian `u64` length `N`, then `N` bytes of JSON
//! `{name: {dtype, shape, data_offsets: [begin, end]}}`, then the data that the offsets count from.

use std::fmt;
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::DType;

/// The longest header that is accepted, in bytes; the limit of the safetensors library.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The most dimensions of a tensor that are accepted. Gemma 4 has up to four.
pub const MAX_RANK: usize = 16;

/// Bytes of the length in front of the header.
const LENGTH_BYTES: u64 = 8;
/// The key of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape, row-major; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Bytes of the data.
    pub bytes: u64,
}

/// A header that cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file could not be read.
    #[error("the header cannot be read")]
    Read(#[source] io::Error),
    /// The file is too short to hold what it announces.
    #[error("the file has {file} bytes, fewer than the {needed} that its header needs")]
    Truncated {
        /// Bytes of the file.
        file: u64,
        /// Bytes that the length and the header take.
        needed: u64,
    },
    /// The header is longer than [`MAX_HEADER_BYTES`].
    #[error("the header has {bytes} bytes, more than the {MAX_HEADER_BYTES} that are accepted")]
    TooLong {
        /// The length announced.
        bytes: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("the header is not that of a safetensors file")]
    Json(#[source] serde_json::Error),
    /// Two tensors have the same name.
    #[error("tensor `{name}` is listed twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// The element type is not known.
    #[error("tensor `{name}` has the unknown element type `{dtype}`")]
    DType {
        /// Name of the tensor.
        name: String,
        /// The code as written.
        dtype: String,
    },
    /// The offsets do not enclose as many bytes as the shape needs.
    #[error("tensor `{name}` has offsets {begin}..{end}, which do not enclose the bytes of its shape")]
    Size {
        /// Name of the tensor.
        name: String,
        /// First byte of the data.
        begin: u64,
        /// Byte after the data.
        end: u64,
    },
    /// Data of tensors overlap, leave a gap, or end elsewhere than the file.
    #[error("the data of `{name}` begin at {begin}, where {expected} was expected")]
    Layout {
        /// Name of the tensor, or `the end of the file`.
        name: String,
        /// Where its data begin.
        begin: u64,
        /// Where the data before it end.
        expected: u64,
    },
}

/// Reads the header of a safetensors file of `file_bytes` bytes. Reads no data.
///
/// Memory stays within a small multiple of the header, which is at most [`MAX_HEADER_BYTES`] and at most the file. The
/// tensors come in the order of their data.
///
/// # Errors
/// [`HeaderError`] if the reader fails or the header is not one: too long, not JSON, unknown element types, or offsets that
/// do not fit shapes and file. As in the safetensors library, the data must cover the file without gaps.
pub fn read_header(reader: impl Read, file_bytes: u64) -> Result<Vec<HeaderTensor>, HeaderError> {
    let mut reader = reader;
    if file_bytes < LENGTH_BYTES {
        return Err(HeaderError::Truncated { file: file_bytes, needed: LENGTH_BYTES });
    }
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(HeaderError::Read)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLong { bytes: length });
    }
    let start = LENGTH_BYTES.saturating_add(length);
    let truncated = |file| HeaderError::Truncated { file, needed: start };
    let data_bytes = file_bytes.checked_sub(start).ok_or_else(|| truncated(file_bytes))?;
    // Grows with what is read and not with what is announced.
    let mut json = Vec::new();
    let read = reader.take(length).read_to_end(&mut json).map_err(HeaderError::Read)?;
    if u64::try_from(read) != Ok(length) {
        return Err(truncated(LENGTH_BYTES.saturating_add(read as u64)));
    }
    let Entries(entries) = serde_json::from_slice(&json).map_err(HeaderError::Json)?;
    drop(json);
    check(entries, start, data_bytes)
}

/// [`read_header`] for a file that lies in memory.
///
/// # Errors
/// As for [`read_header`].
pub fn header_of(file: &[u8]) -> Result<Vec<HeaderTensor>, HeaderError> {
    read_header(file, file.len() as u64)
}

fn check(mut entries: Vec<(String, Entry)>, start: u64, data_bytes: u64) -> Result<Vec<HeaderTensor>, HeaderError> {
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut pairs = entries.iter().zip(entries.iter().skip(1));
    if let Some(((name, _), _)) = pairs.find(|(one, other)| one.0 == other.0) {
        return Err(HeaderError::Duplicate { name: name.clone() });
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end_before = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        let Ok(dtype) = DType::from_safetensors_code(&entry.dtype) else {
            return Err(HeaderError::DType { name, dtype: entry.dtype });
        };
        let shape = entry.shape.0;
        let bits = shape.iter().try_fold(dtype.bits(), |bits, &size| bits.checked_mul(size));
        let bytes = end.checked_sub(begin);
        if bits.is_none() || bits != bytes.and_then(|bytes| bytes.checked_mul(8)) {
            return Err(HeaderError::Size { name, begin, end });
        }
        if begin != end_before {
            return Err(HeaderError::Layout { name, begin, expected: end_before });
        }
        end_before = end;
        let (offset, bytes) = (start.saturating_add(begin), end - begin);
        tensors.push(HeaderTensor { name, dtype, shape, offset, bytes });
    }
    if end_before != data_bytes {
        let name = "the end of the file".to_owned();
        return Err(HeaderError::Layout { name, begin: data_bytes, expected: end_before });
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape that stops reading at [`MAX_RANK`], so that a long list in a header costs no memory.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a list of at most {MAX_RANK} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = list.next_element()? {
                    if sizes.len() == MAX_RANK {
                        return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// The header's entries in the order they are written, so that none hides another of the same name.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
