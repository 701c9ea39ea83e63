//! Types of array elements, and the Rust types that stand for them.
//!
//! Invariant: every type here takes a whole number of bytes, so the bytes of an array are its elements side by side.

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Type of the elements of an array, by XLA's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ElementType {
    /// A truth value in a byte, 0 or 1.
    Pred,
    /// Signed, 8 bits.
    S8,
    /// Signed, 16 bits.
    S16,
    /// Signed, 32 bits.
    S32,
    /// Signed, 64 bits.
    S64,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// The upper half of single precision.
    BF16,
    /// 5 bits of exponent, 2 of mantissa, with infinities.
    F8E5M2,
    /// 4 bits of exponent, 3 of mantissa, no infinities.
    F8E4M3FN,
}

/// Each type with its number in `PJRT_Buffer_Type`, its number in `XLA_FFI_DataType`, and its size in bytes.
const NUMBERS: [(ElementType, i32, i32, usize); 15] = [
    (ElementType::Pred, 1, 1, 1),
    (ElementType::S8, 2, 2, 1),
    (ElementType::S16, 3, 3, 2),
    (ElementType::S32, 4, 4, 4),
    (ElementType::S64, 5, 5, 8),
    (ElementType::U8, 6, 6, 1),
    (ElementType::U16, 7, 7, 2),
    (ElementType::U32, 8, 8, 4),
    (ElementType::U64, 9, 9, 8),
    (ElementType::F16, 10, 10, 2),
    (ElementType::F32, 11, 11, 4),
    (ElementType::F64, 12, 12, 8),
    (ElementType::BF16, 13, 16, 2),
    (ElementType::F8E5M2, 16, 19, 1),
    (ElementType::F8E4M3FN, 17, 20, 1),
];

impl ElementType {
    fn numbers(self) -> (i32, usize) {
        // The table has every variant, which a test checks; the fallback is an invalid type that XLA refuses.
        NUMBERS.iter().find(|entry| entry.0 == self).map_or((0, 1), |entry| (entry.1, entry.3))
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.numbers().1
    }

    /// Bytes of an array.
    ///
    /// # Errors
    /// [`Error::Shape`] for a negative dimension or a product beyond the address space.
    pub fn bytes(self, dims: &[i64]) -> Result<usize> {
        let count = dims.iter().try_fold(self.size(), |bytes, dim| bytes.checked_mul(usize::try_from(*dim).ok()?));
        count.filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or_else(|| Error::Shape(dims.to_vec()))
    }

    /// The number in `PJRT_Buffer_Type`.
    pub(crate) fn to_raw(self) -> i32 {
        self.numbers().0
    }

    /// The type of a number in `PJRT_Buffer_Type`.
    pub(crate) fn from_raw(number: i32) -> Result<Self> {
        NUMBERS.iter().find(|entry| entry.1 == number).map(|entry| entry.0).ok_or(Error::ElementType(number))
    }

    /// The type of a number in `XLA_FFI_DataType`, which is XLA's `PrimitiveType`.
    pub(crate) fn from_ffi(number: i32) -> Option<Self> {
        NUMBERS.iter().find(|entry| entry.2 == number).map(|entry| entry.0)
    }
}

/// A Rust type whose values are elements of an array. 8-bit floats have none: they travel as bytes.
pub trait Element: bytemuck::Pod {
    /// The type in XLA.
    const TYPE: ElementType;
}

macro_rules! elements {
    ($($rust:ty => $element:ident),* $(,)?) => {$(
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$element;
        }
    )*};
}

elements!(i8 => S8, i16 => S16, i32 => S32, i64 => S64, u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64);

#[cfg(test)]
mod tests {
    use super::{ElementType, NUMBERS};

    #[test]
    fn every_type_has_one_row() {
        for (index, entry) in NUMBERS.iter().enumerate() {
            assert_eq!(entry.0 as usize, index, "rows follow the variants");
            assert_eq!(ElementType::from_raw(entry.0.to_raw()).unwrap(), entry.0);
        }
        assert_eq!(ElementType::F8E4M3FN as usize, NUMBERS.len() - 1);
    }

    #[test]
    fn bytes_refuses_shapes_without_a_size() {
        assert_eq!(ElementType::BF16.bytes(&[3, 5]).unwrap(), 30);
        assert_eq!(ElementType::F32.bytes(&[]).unwrap(), 4);
        assert_eq!(ElementType::F32.bytes(&[7, 0]).unwrap(), 0);
        assert!(ElementType::F32.bytes(&[-1]).is_err());
        assert!(ElementType::F32.bytes(&[i64::MAX, 2]).is_err());
    }
}
