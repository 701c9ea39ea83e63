//! Element types of tensors, and their names in the two places a checkpoint writes them.

use std::fmt;
use std::str::FromStr;

/// The type of one element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number; what Gemma 4 is published in.
    Bf16,
    /// Eight bits, four of exponent, finite values only ("fn").
    F8E4M3,
    /// Eight bits, five of exponent.
    F8E5M2,
    /// Eight bits of exponent alone; scales of microscaling formats.
    F8E8M0,
    /// Four bits, two of exponent.
    F4E2M1,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Signed, 4 bits. safetensors has no code for it.
    I4,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 4 bits. safetensors has no code for it.
    U4,
    /// A truth value, stored in 8 bits.
    Bool,
}

/// A name of an element type that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown element type `{0}`")]
pub struct UnknownDType(
    /// The name as it was written.
    pub String,
);

impl DType {
    /// All element types.
    pub const ALL: [Self; 19] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::F8E8M0,
        Self::F4E2M1,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::I4,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::U4,
        Self::Bool,
    ];

    /// Size of one element in bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 64,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 | Self::I8 | Self::U8 | Self::Bool => 8,
            Self::F4E2M1 | Self::I4 | Self::U4 => 4,
        }
    }

    /// Bytes of `elements` packed elements, rounded up to a whole byte; `None` where that does not fit 64 bits.
    #[must_use]
    pub const fn bytes(self, elements: u64) -> Option<u64> {
        match elements.checked_mul(self.bits()) {
            Some(bits) => Some(bits.div_ceil(8)),
            None => None,
        }
    }

    /// Whether this is a floating-point type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 | Self::F4E2M1
        )
    }

    /// The name in a `config.json` (the name torch uses), for example `bfloat16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E5M2 => "float8_e5m2",
            Self::F8E8M0 => "float8_e8m0fnu",
            Self::F4E2M1 => "float4_e2m1fn",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::I4 => "int4",
            Self::U64 => "uint64",
            Self::U32 => "uint32",
            Self::U16 => "uint16",
            Self::U8 => "uint8",
            Self::U4 => "uint4",
            Self::Bool => "bool",
        }
    }

    /// The code in a safetensors header, for example `BF16`; `None` where the format has none.
    #[must_use]
    pub const fn safetensors_code(self) -> Option<&'static str> {
        Some(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::F4E2M1 => "F4",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::I4 | Self::U4 => return None,
        })
    }

    /// The type with this code in a safetensors header.
    ///
    /// # Errors
    /// [`UnknownDType`] for a code that is not in the table.
    pub fn from_safetensors_code(code: &str) -> Result<Self, UnknownDType> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.safetensors_code() == Some(code))
            .ok_or_else(|| UnknownDType(code.to_owned()))
    }
}

impl FromStr for DType {
    type Err = UnknownDType;

    /// Reads the name of a `config.json`; `torch.bfloat16` and `bfloat16` are the same.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_prefix("torch.").unwrap_or(text);
        Self::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| UnknownDType(text.to_owned()))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl serde::Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for DType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_lead_back() {
        for dtype in DType::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
            if let Some(code) = dtype.safetensors_code() {
                assert_eq!(DType::from_safetensors_code(code), Ok(dtype));
            }
        }
        assert_eq!("torch.bfloat16".parse(), Ok(DType::Bf16));
        assert!("bf17".parse::<DType>().is_err());
    }

    #[test]
    fn bytes_round_up_and_do_not_overflow() {
        assert_eq!(DType::I4.bytes(3), Some(2));
        assert_eq!(DType::Bf16.bytes(3), Some(6));
        assert_eq!(DType::F32.bytes(u64::MAX / 4), None);
    }
}
