//! Numbers as text. Invariant: floats are written as their bits, so what XLA reads is exactly what was given.

use half::{bf16, f16};

use crate::{ElementType, Problem};

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is an element type of its own.
pub trait Native: Copy + sealed::Sealed {
    /// The element type.
    const ELEMENT: ElementType;

    /// The number in an MLIR `dense` attribute.
    #[doc(hidden)]
    fn literal(self) -> String;
}

macro_rules! native {
    ($($native:ty, $element:ident, $value:ident => $text:expr;)*) => {$(
        impl sealed::Sealed for $native {}
        impl Native for $native {
            const ELEMENT: ElementType = ElementType::$element;
            fn literal(self) -> String {
                let $value = self;
                $text
            }
        }
    )*};
}

native! {
    bool, Pred, value => value.to_string();
    i8, S8, value => value.to_string();
    u8, U8, value => value.to_string();
    u16, U16, value => value.to_string();
    i32, S32, value => value.to_string();
    u32, U32, value => value.to_string();
    i64, S64, value => value.to_string();
    f32, F32, value => format!("0x{:08X}", value.to_bits());
    bf16, Bf16, value => format!("0x{:04X}", value.to_bits());
    f16, F16, value => format!("0x{:04X}", value.to_bits());
}

/// A number as a literal of `element`: f32, bf16 and f16 round to nearest even; integers, truth values (0 or 1) and
/// 8-bit floats must hold the number exactly. NaN is refused.
pub(crate) fn number(value: f64, element: ElementType) -> Result<String, Problem> {
    let refused = Problem::NotRepresentable { value, element };
    if value.is_nan() {
        // The bits of a converted NaN differ between machines, and the text must not.
        return Err(refused);
    }
    // A finite number that rounds to infinity would be a silent error.
    let finite = |rounded: f64, literal: String| {
        if rounded.is_finite() || !value.is_finite() { Ok(literal) } else { Err(refused.clone()) }
    };
    match element {
        ElementType::F32 => {
            // The cast from f64 rounds to nearest even, which is what is wanted.
            let rounded = value as f32;
            finite(f64::from(rounded), rounded.literal())
        }
        ElementType::Bf16 => finite(bf16::from_f64(value).to_f64(), bf16::from_f64(value).literal()),
        ElementType::F16 => finite(f16::from_f64(value).to_f64(), f16::from_f64(value).literal()),
        ElementType::F8E4m3fn | ElementType::F8E5m2 => (0..=u8::MAX)
            .find(|code| same(decode_f8(*code, element), value))
            .map(|code| format!("0x{code:02X}"))
            .ok_or(refused),
        ElementType::Pred if value == 0.0 => Ok("false".to_owned()),
        ElementType::Pred if value == 1.0 => Ok("true".to_owned()),
        ElementType::Pred => Err(refused),
        ElementType::S8 => integer(value, i128::from(i8::MIN), i128::from(i8::MAX)).ok_or(refused),
        ElementType::U8 => integer(value, 0, i128::from(u8::MAX)).ok_or(refused),
        ElementType::U16 => integer(value, 0, i128::from(u16::MAX)).ok_or(refused),
        ElementType::S32 => integer(value, i128::from(i32::MIN), i128::from(i32::MAX)).ok_or(refused),
        ElementType::U32 => integer(value, 0, i128::from(u32::MAX)).ok_or(refused),
        ElementType::S64 => integer(value, i128::from(i64::MIN), i128::from(i64::MAX)).ok_or(refused),
    }
}

/// The smallest number of an element type: minus infinity where there is one.
pub(crate) fn lowest(element: ElementType) -> &'static str {
    match element {
        ElementType::Pred => "false",
        ElementType::S8 => "-128",
        ElementType::U8 | ElementType::U16 | ElementType::U32 => "0",
        ElementType::S32 => "-2147483648",
        ElementType::S64 => "-9223372036854775808",
        ElementType::F32 => "0xFF800000",
        ElementType::Bf16 => "0xFF80",
        ElementType::F16 => "0xFC00",
        // -448, the largest finite number with the sign bit set: there is no infinity.
        ElementType::F8E4m3fn => "0xFE",
        ElementType::F8E5m2 => "0xFC",
    }
}

/// The largest number of an element type: infinity where there is one.
pub(crate) fn highest(element: ElementType) -> &'static str {
    match element {
        ElementType::Pred => "true",
        ElementType::S8 => "127",
        ElementType::U8 => "255",
        ElementType::U16 => "65535",
        ElementType::S32 => "2147483647",
        ElementType::U32 => "4294967295",
        ElementType::S64 => "9223372036854775807",
        ElementType::F32 => "0x7F800000",
        ElementType::Bf16 => "0x7F80",
        ElementType::F16 => "0x7C00",
        ElementType::F8E4m3fn => "0x7E",
        ElementType::F8E5m2 => "0x7C",
    }
}

fn integer(value: f64, least: i128, most: i128) -> Option<String> {
    if value.fract() != 0.0 || !value.is_finite() {
        return None;
    }
    // The cast saturates, and every bound here is far below its ends.
    let whole = value as i128;
    (least..=most).contains(&whole).then(|| whole.to_string())
}

/// Equal, and for zeros of the same sign. Never true for NaN.
fn same(left: f64, right: f64) -> bool {
    left == right && left.is_sign_negative() == right.is_sign_negative()
}

/// The number that a code of an 8-bit float stands for (OCP 8-bit Floating Point Specification, tables 1 and 2).
fn decode_f8(code: u8, element: ElementType) -> f64 {
    let (mantissa_bits, bias) = if element == ElementType::F8E4m3fn { (3, 7) } else { (2, 15) };
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((code & 0x7F) >> mantissa_bits);
    let mantissa = code & ((1 << mantissa_bits) - 1);
    let fraction = f64::from(mantissa) / f64::from(1_u8 << mantissa_bits);
    match (element, code & 0x7F) {
        (ElementType::F8E4m3fn, 0x7F) => return f64::NAN,
        (ElementType::F8E5m2, 0x7C) => return sign * f64::INFINITY,
        (ElementType::F8E5m2, 0x7D..) => return f64::NAN,
        _ => {}
    }
    if exponent == 0 {
        sign * fraction * 2_f64.powi(1 - bias)
    } else {
        sign * (1.0 + fraction) * 2_f64.powi(exponent - bias)
    }
}

/// The nested list of a `dense` attribute, for `literals` in row-major order of `dims`.
pub(crate) fn nested(literals: &[String], dims: &[u64]) -> String {
    let Some((_, inner)) = dims.split_first() else {
        return literals.first().cloned().unwrap_or_default();
    };
    let chunk = inner
        .iter()
        .try_fold(1_usize, |product, size| usize::try_from(*size).ok().and_then(|size| product.checked_mul(size)));
    // Callers have checked that the product of all dims is the number of literals, so it is not 0 here.
    let chunk = chunk.unwrap_or(1).max(1);
    let items: Vec<String> = literals.chunks(chunk).map(|part| nested(part, inner)).collect();
    format!("[{}]", items.join(", "))
}
