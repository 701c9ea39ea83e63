//! Element types of matrices: stored as they are, computed in f32.

use half::bf16;

/// What kernels that are written for certain instructions know of an element; nobody else implements it.
///
/// # Safety
/// [`Pairs::IS_BF16`] is true only of 16 bits that are the upper half of f32, and false only of f32.
pub unsafe trait Pairs: Copy {
    /// Whether elements are bfloat16; float32 else.
    const IS_BF16: bool;

    /// The elements, where they are f32.
    fn as_f32(elements: &[Self]) -> Option<&[f32]>;

    /// The elements, where they are bfloat16.
    fn as_bf16(elements: &[Self]) -> Option<&[bf16]>;

    /// The same, to be written.
    fn as_bf16_mut(elements: &mut [Self]) -> Option<&mut [bf16]>;
}

// SAFETY: as its name says.
unsafe impl Pairs for bf16 {
    const IS_BF16: bool = true;

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn as_bf16(elements: &[Self]) -> Option<&[bf16]> {
        Some(elements)
    }

    fn as_bf16_mut(elements: &mut [Self]) -> Option<&mut [bf16]> {
        Some(elements)
    }
}

// SAFETY: as its name says.
unsafe impl Pairs for f32 {
    const IS_BF16: bool = false;

    fn as_f32(elements: &[Self]) -> Option<&[f32]> {
        Some(elements)
    }

    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }

    fn as_bf16_mut(_: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }
}

/// An element of a matrix.
pub trait Number: gemma4_pjrt::Element + Pairs + Default + Send + Sync {
    /// As f32, exactly.
    fn widen(self) -> f32;

    /// The nearest number, to even where two are as near.
    fn narrow(value: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

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
