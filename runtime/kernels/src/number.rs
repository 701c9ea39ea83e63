//! Element types of matrices: stored as they are, computed in f32.

use half::bf16;

/// What the bits of an element are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE single precision.
    F32,
    /// The upper half of that.
    Bf16,
    /// A signed integer of eight bits.
    Int8,
}

/// An element of a matrix of weights, and what kernels that are written for certain instructions know of it; nobody else
/// implements it.
///
/// # Safety
/// Elements are what [`Weight::KIND`] says.
pub unsafe trait Weight: Copy + Send + Sync {
    /// What elements are.
    const KIND: Kind;
    /// Whether they are bfloat16.
    const IS_BF16: bool = matches!(Self::KIND, Kind::Bf16);

    /// As f32, exactly.
    fn widen(self) -> f32;

    /// The elements, where they are f32.
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    /// The elements, where they are bfloat16.
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }

    /// The same, to be written.
    fn as_bf16_mut(_: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }

    /// The elements, where they are integers.
    fn as_int8(_: &[Self]) -> Option<&[i8]> {
        None
    }
}

// SAFETY: as its name says.
unsafe impl Weight for bf16 {
    const KIND: Kind = Kind::Bf16;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn as_bf16(elements: &[Self]) -> Option<&[bf16]> {
        Some(elements)
    }

    fn as_bf16_mut(elements: &mut [Self]) -> Option<&mut [bf16]> {
        Some(elements)
    }
}

// SAFETY: as its name says.
unsafe impl Weight for f32 {
    const KIND: Kind = Kind::F32;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn as_f32(elements: &[Self]) -> Option<&[f32]> {
        Some(elements)
    }
}

// SAFETY: as its name says.
unsafe impl Weight for i8 {
    const KIND: Kind = Kind::Int8;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    fn as_int8(elements: &[Self]) -> Option<&[i8]> {
        Some(elements)
    }
}

/// An element of rows.
pub trait Number: gemma4_pjrt::Element + Weight + Default {
    /// The nearest number, to even where two are as near.
    fn narrow(value: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        // Half of what is cut off, or a little less where the last bit that is kept is 0: ties go to even.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // Rounding could carry a NaN over to another number; it keeps its upper half, with one bit that is never 0.
        let kept = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        let upper = (kept >> 16) as u16;
        bf16::from_bits(upper)
    }
}
