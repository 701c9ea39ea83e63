//! From the element type of a file to that of the model.
//!
//! Invariant: to `float32` every number arrives unchanged; to `bfloat16` it is rounded once, to nearest and ties to even.
//! Nothing is converted to `float16`, whose range ends at 65504: numbers of a `bfloat16` checkpoint would overflow.

use half::{bf16, f16};

use crate::DType;

/// Source bytes converted at a time, so that what is written stays in the first-level cache.
const CHUNK: usize = 8192;

/// How the elements of a tensor are brought to another type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    Same,
    Bf16ToF32,
    F16ToF32,
    F32ToBf16,
    F16ToBf16,
}

impl Conversion {
    /// `None` where there is none.
    pub(super) fn between(from: DType, to: DType) -> Option<Self> {
        match (from, to) {
            (DType::Bf16, DType::F32) => Some(Self::Bf16ToF32),
            (DType::F16, DType::F32) => Some(Self::F16ToF32),
            (DType::F32, DType::Bf16) => Some(Self::F32ToBf16),
            (DType::F16, DType::Bf16) => Some(Self::F16ToBf16),
            (from, to) if from == to => Some(Self::Same),
            _ => None,
        }
    }

    /// Appends the converted elements. Both sides are little-endian, as safetensors files and all supported systems are.
    pub(super) fn append(self, source: &[u8], target: &mut Vec<u8>) {
        match self {
            Self::Same => target.extend_from_slice(source),
            // A shift keeps also the payloads of NaNs.
            Self::Bf16ToF32 => map(source, target, |bits| (u32::from(u16::from_le_bytes(bits)) << 16).to_le_bytes()),
            Self::F16ToF32 => map(source, target, |bits| f16::from_le_bytes(bits).to_f32().to_le_bytes()),
            Self::F32ToBf16 => map(source, target, |bits| bf16::from_f32(f32::from_le_bytes(bits)).to_le_bytes()),
            Self::F16ToBf16 => {
                map(source, target, |bits| bf16::from_f32(f16::from_le_bytes(bits).to_f32()).to_le_bytes());
            }
        }
    }
}

fn map<const FROM: usize, const TO: usize>(
    source: &[u8],
    target: &mut Vec<u8>,
    convert: impl Fn([u8; FROM]) -> [u8; TO],
) {
    for chunk in source.chunks(CHUNK) {
        let (elements, _) = chunk.as_chunks::<FROM>();
        let start = target.len();
        target.resize(start.saturating_add(elements.len().saturating_mul(TO)), 0);
        let (written, _) = target.get_mut(start..).unwrap_or_default().as_chunks_mut::<TO>();
        for (element, written) in elements.iter().zip(written) {
            *written = convert(*element);
        }
    }
}
