//! Groups of numbers become integers of four bits and a scale.
//!
//! Invariant: `scale` is the number of the largest size in the group, the first of them where there are several, divided by -8 and
//! rounded to bfloat16: that number becomes -8, of which there is one integer more than on the other side. An integer is the
//! nearest one to the number divided by the rounded scale, to even where two are as near, and at most 7. A group whose scale is 0
//! becomes zeros.

use half::bf16;

use crate::quantization::{GROUP, GROUPS_OF_BLOCK};

/// What the number of the largest size becomes.
const LEAST: f32 = -8.0;
/// The largest integer.
const MOST: f32 = 7.0;
/// Bits of an integer in a word.
const BITS: usize = 4;

/// Appends a bfloat16 for each group of a row.
pub(super) fn append_scales(row: &[[u8; 4]], target: &mut Vec<u8>) {
    for group in row.chunks(GROUP) {
        target.extend(scale(group).to_le_bytes());
    }
}

/// Appends the words of a row, packed as [`crate::quantization::Quantization::Int4`] says.
pub(super) fn append_integers(row: &[[u8; 4]], target: &mut Vec<u8>) {
    for block in row.chunks(GROUP * GROUPS_OF_BLOCK) {
        let mut words = [0_u16; GROUP];
        for (at, group) in block.chunks(GROUP).enumerate() {
            let scale = f32::from(scale(group));
            for (word, number) in words.iter_mut().zip(group) {
                *word |= bits(f32::from_le_bytes(*number), scale) << (BITS * at);
            }
        }
        words.iter().for_each(|word| target.extend(word.to_le_bytes()));
    }
}

/// What the integers of a group are multiplied by.
fn scale(group: &[[u8; 4]]) -> bf16 {
    let largest = group.iter().fold(0.0_f32, |largest, number| {
        let number = f32::from_le_bytes(*number);
        if number.abs() > largest.abs() { number } else { largest }
    });
    let scale = bf16::from_f32(largest / LEAST);
    if scale.to_f32() == 0.0 { bf16::ZERO } else { scale }
}

/// The nearest integer in two's complement; 0 for what is no number.
fn bits(number: f32, scale: f32) -> u16 {
    if scale == 0.0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is within the bounds of the type")]
    let nearest = (number / scale).round_ties_even().clamp(LEAST, MOST) as i16;
    nearest.cast_unsigned() & 0xf
}
