//! How keys and values are stored.

use crate::functions::narrow;
use crate::number::Number;
use crate::vectors::{Lanes, vectorize};

/// Element type of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// 32 bits.
    F32,
    /// The upper half of f32.
    Bf16,
    /// IEEE's 16 bits.
    F16,
    /// 8 bits, of which 3 behind the point; no infinity.
    F8E4m3fn,
    /// 8 bits, of which 2 behind the point.
    F8E5m2,
}

impl Stored {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::F8E4m3fn | Self::F8E5m2 => 1,
        }
    }

    /// Whether every element is a bfloat16 too.
    pub(crate) const fn is_exact_as_bf16(self) -> bool {
        matches!(self, Self::Bf16 | Self::F8E4m3fn | Self::F8E5m2)
    }

    /// Whether elements are stored as numbers of this type are in memory.
    pub(crate) fn is_same<E: Number>(self) -> bool {
        let same = if E::IS_BF16 { self == Self::Bf16 } else { self == Self::F32 };
        same && cfg!(target_endian = "little")
    }

    /// Reads a row as elements that hold it exactly. `wide` has room for it.
    pub(crate) fn read<E: Number>(self, from: &[u8], to: &mut [E], wide: &mut [f32]) {
        if self.is_same::<E>() {
            bytemuck::cast_slice_mut(to).copy_from_slice(from);
        } else {
            self.widen(from, wide);
            narrow(wide, to);
        }
    }

    /// Widens a row.
    pub(crate) fn widen(self, from: &[u8], to: &mut [f32]) {
        vectorize(Widen { stored: self, from, to });
    }

    #[inline(always)]
    fn widen_lanes(self, from: &[u8], to: &mut [f32]) {
        let narrow = |mantissa: i32, bias: i32, none: u8| {
            move |byte: u8| {
                let (sign, rest) = (f32::from_bits(0x3f80_0000 | (u32::from(byte & 0x80) << 24)), byte & 0x7f);
                let (exponent, fraction) = (i32::from(rest) >> mantissa, i32::from(rest) & ((1 << mantissa) - 1));
                let (whole, exponent) = if exponent == 0 { (0, 1) } else { (1 << mantissa, exponent) };
                let power = f32::from_bits((exponent - bias - mantissa + 127).cast_unsigned() << 23);
                #[expect(clippy::cast_precision_loss, reason = "below 16")]
                let number = (whole + fraction) as f32 * power;
                // Infinity of e5m2 counts as none: such a cache holds clamped numbers only.
                if rest >= none { f32::NAN } else { sign * number }
            }
        };
        match self {
            Self::F32 => to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = f32::from_le_bytes(*from)),
            Self::Bf16 => to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
            }),
            Self::F16 => to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| {
                *to = half::f16::from_le_bytes(*from).to_f32();
            }),
            Self::F8E4m3fn => to.iter_mut().zip(from).for_each(|(to, from)| *to = narrow(3, 7, 0x7f)(*from)),
            Self::F8E5m2 => to.iter_mut().zip(from).for_each(|(to, from)| *to = narrow(2, 15, 0x7c)(*from)),
        }
    }
}

struct Widen<'a> {
    stored: Stored,
    from: &'a [u8],
    to: &'a mut [f32],
}

impl Lanes for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        self.stored.widen_lanes(self.from, self.to);
    }
}
