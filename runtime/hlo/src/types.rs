//! Element types and shapes. Invariant: the text of a [`Shape`] is the MLIR type that both plugins parse.

use std::fmt;

use crate::Problem;

/// What one element of a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementType {
    /// A truth value, `i1`.
    Pred,
    /// Signed 8-bit integer.
    S8,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 32-bit integer.
    S32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 64-bit integer.
    S64,
    /// IEEE 754 binary32.
    F32,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP FP8 E4M3).
    F8E4m3fn,
    /// 8-bit float, 5 exponent and 2 mantissa bits, with infinities (OCP FP8 E5M2).
    F8E5m2,
}

impl ElementType {
    /// All element types, in the order of the enum.
    pub const ALL: [Self; 12] = [
        Self::Pred,
        Self::S8,
        Self::U8,
        Self::U16,
        Self::S32,
        Self::U32,
        Self::S64,
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::F8E4m3fn,
        Self::F8E5m2,
    ];

    /// The name in MLIR text. Signed integers are signless there (`i32`).
    pub const fn mlir(self) -> &'static str {
        match self {
            Self::Pred => "i1",
            Self::S8 => "i8",
            Self::U8 => "ui8",
            Self::U16 => "ui16",
            Self::S32 => "i32",
            Self::U32 => "ui32",
            Self::S64 => "i64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F8E4m3fn => "f8E4M3FN",
            Self::F8E5m2 => "f8E5M2",
        }
    }

    /// Bytes of one element in a buffer.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Pred | Self::S8 | Self::U8 | Self::F8E4m3fn | Self::F8E5m2 => 1,
            Self::U16 | Self::Bf16 | Self::F16 => 2,
            Self::S32 | Self::U32 | Self::F32 => 4,
            Self::S64 => 8,
        }
    }

    /// Whether this is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16 | Self::F16 | Self::F8E4m3fn | Self::F8E5m2)
    }

    /// Whether this is an integer type. [`ElementType::Pred`] is not.
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::U16 | Self::S32 | Self::U32 | Self::S64)
    }

    /// Whether numbers of this type have a sign.
    pub const fn is_signed(self) -> bool {
        self.is_float() || matches!(self, Self::S8 | Self::S32 | Self::S64)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.mlir())
    }
}

/// The sizes of a tensor, major dimension first, and its element type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    element: ElementType,
    dims: Vec<u64>,
}

impl Shape {
    /// A shape of `dims`, major dimension first. No dims is a scalar. Sizes are checked where the shape is used.
    pub fn new(element: ElementType, dims: impl Into<Vec<u64>>) -> Self {
        Self { element, dims: dims.into() }
    }

    /// A scalar.
    pub const fn scalar(element: ElementType) -> Self {
        Self { element, dims: Vec::new() }
    }

    /// The element type.
    pub const fn element(&self) -> ElementType {
        self.element
    }

    /// The sizes, major dimension first.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The same sizes with another element type.
    pub fn with_element(&self, element: ElementType) -> Self {
        Self { element, dims: self.dims.clone() }
    }

    /// The same element type with other sizes.
    pub fn with_dims(&self, dims: impl Into<Vec<u64>>) -> Self {
        Self { element: self.element, dims: dims.into() }
    }

    /// The number of elements, or nothing where it does not fit into 63 bits.
    pub fn elements(&self) -> Option<u64> {
        // A size beyond 63 bits is wrong even where another size is 0.
        if self.dims.iter().any(|size| i64::try_from(*size).is_err()) {
            return None;
        }
        if self.dims.contains(&0) {
            return Some(0);
        }
        let product = self.dims.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))?;
        i64::try_from(product).is_ok().then_some(product)
    }

    /// Bytes of a dense buffer of this shape, or nothing where they do not fit into 63 bits.
    pub fn bytes(&self) -> Option<u64> {
        let bytes = self.elements()?.checked_mul(self.element.bytes())?;
        i64::try_from(bytes).is_ok().then_some(bytes)
    }

    /// The size of one dimension.
    pub(crate) fn dim(&self, dim: usize) -> Result<u64, Problem> {
        self.dims.get(dim).copied().ok_or(Problem::DimOutOfRange { dim, rank: self.rank() })
    }

    /// This shape, if its bytes can be counted.
    pub(crate) fn checked(self) -> Result<Self, Problem> {
        if self.bytes().is_some() { Ok(self) } else { Err(Problem::TooLarge { shape: self }) }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("tensor<")?;
        for size in &self.dims {
            write!(formatter, "{size}x")?;
        }
        write!(formatter, "{}>", self.element)
    }
}
