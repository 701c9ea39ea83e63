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

/// The tokens that each row of a step's logits allows, as the devices take them: bit `b` of word `w` of a row is 1 where
/// token `32 w + b` is allowed.
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

    /// Lets a row allow these tokens alone. What the words do not reach is forbidden.
    pub fn allow(&mut self, row: usize, words: &[u32]) {
        let start = row.saturating_mul(self.width);
        let Some(row) = self.words.get_mut(start..start.saturating_add(self.width)) else { return };
        let (given, rest) = row.split_at_mut(words.len().min(self.width));
        given.copy_from_slice(words.get(..given.len()).unwrap_or_default());
        rest.fill(0);
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
            for (word, logits) in words.iter().zip(row.chunks_mut(BITS)) {
                // Most words are all or nothing.
                match *word {
                    0 => logits.fill(f32::NEG_INFINITY),
                    u32::MAX => {}
                    word => {
                        let bits = (0..).map(|bit| word >> bit & 1 == 1);
                        logits.iter_mut().zip(bits).filter(|(_, allowed)| !allowed).for_each(|(logit, _)| {
                            *logit = f32::NEG_INFINITY;
                        });
                    }
                }
            }
        }
    }
}
