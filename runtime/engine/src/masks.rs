//! Which tokens the rows of a step allow, and the programs that rule out the others on the devices.
//!
//! Invariant: a row that nobody spoke of allows everything. There is a program for every number of rows that a step of the
//! plan gives logits of, ready before a service is; steps themselves know nothing of masks.

use gemma4_hlo::Module;
use gemma4_model::Config;
use gemma4_model::graph::{MaskOptions, mask};

use crate::steps::{NamedStep, StepsError};

/// The program for the logits of so many rows, with its name, such as `mask.r16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedMask {
    /// The name, unique within a plan.
    pub name: String,
    /// What the program is built for.
    pub options: MaskOptions,
}

impl NamedMask {
    /// Builds the program.
    ///
    /// # Errors
    /// [`StepsError::Graph`].
    pub fn build(&self) -> Result<Module, StepsError> {
        mask(&self.options).map_err(|error| StepsError::Graph { name: self.name.clone(), error: Box::new(error) })
    }
}

/// The programs that go with these steps, in ascending order of rows.
#[must_use]
pub fn mask_programs(steps: &[NamedStep], config: &Config) -> Vec<NamedMask> {
    let vocab_size = config.text.vocab_size;
    let of_step = |step: &NamedStep| (step.options.rows, step.options.mesh.devices());
    let mut sizes: Vec<(u64, u64)> = steps.iter().map(of_step).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let named = |(rows, devices)| {
        let options = MaskOptions { devices, rows, vocab_size };
        NamedMask { name: format!("mask.r{rows}"), options }
    };
    sizes.into_iter().map(named).collect()
}

/// Tokens of a word.
const BITS: usize = u32::BITS as usize;

/// The tokens that each row of a step's logits allows, as the devices take them: bit `b` of word `w` of the `W` words of a row is 1
/// where token `W b + w` is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masks {
    words: Vec<u32>,
    /// Words of a row.
    width: usize,
    keeps_unmasked: bool,
}

impl Masks {
    /// Masks of so many rows that allow everything.
    #[must_use]
    pub fn new(rows: usize, vocab_size: usize) -> Self {
        let width = vocab_size.div_ceil(BITS);
        Self { words: vec![u32::MAX; rows.saturating_mul(width)], width, keeps_unmasked: false }
    }

    /// Lets a row allow these tokens alone: bit `b` of word `w` stands for token `32 w + b`. What the words do not reach is
    /// forbidden.
    pub fn allow(&mut self, row: usize, words: &[u32]) {
        let (width, start) = (self.width, row.saturating_mul(self.width));
        let Some(row) = self.words.get_mut(start..start.saturating_add(width)) else { return };
        if !width.is_multiple_of(BITS) {
            row.fill(0);
            for token in 0..width.saturating_mul(BITS) {
                let allowed = words.get(token / BITS).is_some_and(|word| word >> (token % BITS) & 1 == 1);
                if let Some(word) = row.get_mut(token % width) {
                    *word |= u32::from(allowed) << (token / width);
                }
            }
            return;
        }
        // Token `W b + w` is bit `w mod 32` of word `W / 32 b + w / 32`: so 32 words that lie `W / 32` apart become 32 neighbours.
        for (place, neighbours) in row.as_chunks_mut::<BITS>().0.iter_mut().enumerate() {
            for (bit, word) in neighbours.iter_mut().enumerate() {
                *word = words.get(bit * (width / BITS) + place).copied().unwrap_or(0);
            }
            turn(neighbours);
        }
    }

    /// Asks for the logits as they were before, too.
    pub const fn keep_unmasked(&mut self) {
        self.keeps_unmasked = true;
    }

    /// Whether somebody asks for the logits as they were before.
    #[must_use]
    pub const fn keeps_unmasked(&self) -> bool {
        self.keeps_unmasked
    }

    /// All rows, one after the other.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Rules tokens out of rows of `vocab_size` logits.
    pub(crate) fn apply(&self, logits: &mut [f32], vocab_size: usize) {
        if self.width == 0 {
            return;
        }
        for (words, row) in self.words.chunks(self.width).zip(logits.chunks_mut(vocab_size)) {
            for (bit, logits) in row.chunks_mut(self.width).enumerate() {
                for (word, logit) in words.iter().zip(logits) {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// Bit `b` of word `w` becomes bit `w` of word `b` (Hacker's Delight, 7-3).
fn turn(words: &mut [u32; BITS]) {
    let (mut half, mut mask) = (BITS / 2, 0x0000_ffff_u32);
    while half > 0 {
        let mut at = 0;
        while at < BITS {
            let differing = (words[at] >> half ^ words[at + half]) & mask;
            words[at] ^= differing << half;
            words[at + half] ^= differing;
            at = (at + half + 1) & !half;
        }
        half /= 2;
        mask ^= mask << half;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_its_place() {
        for vocab_size in [1_usize, 31, 32, 33, 1000, 1024, 2048, 3000] {
            let words: Vec<u32> =
                (1..=vocab_size.div_ceil(BITS)).map(|word| (word as u32).wrapping_mul(0x9e37_79b9)).collect();
            let mut masks = Masks::new(2, vocab_size);
            masks.allow(1, &words);
            let mut logits = vec![1.0; 2 * vocab_size];
            masks.apply(&mut logits, vocab_size);
            for token in 0..vocab_size {
                let allowed = words[token / BITS] >> (token % BITS) & 1 == 1;
                assert_eq!(logits[token], 1.0, "a row that nobody spoke of");
                assert_eq!(logits[vocab_size + token] == 1.0, allowed, "token {token} of {vocab_size}");
            }
        }
    }
}
