//! Element types of matrices: stored as they are, computed in f32.

use half::bf16;

/// An element of a matrix.
pub trait Number: gemma4_pjrt::Element + Copy + Default + Send + Sync {
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
