//! Drafts: tokens that may follow, computed together with the last one and kept where the model says the same.
//!
//! Invariant: drafts never change what a request gets. The token for a place is drawn from the model's own row of logits with
//! that place's own random number, and a draft token is kept while it equals the token that was drawn. Since every draft
//! is one certain token, that is the rejection rule of speculative sampling, and more: with the same seed the tokens are the
//! same ones as without drafts, not only the same distribution.
//!
//! * [`NgramIndex`]: looks drafts up in prompt and output
//! * [`Acceptance`]: how often drafts are right
//! * [`StepTimes`]: what steps take, and so whether drafts pay

mod acceptance;
mod ngram;
mod times;

use gemma4_plan::Speculative;
use serde::{Deserialize, Serialize};

pub use acceptance::Acceptance;
pub use ngram::NgramIndex;
pub use times::{Choice, StepTimes, Work};

/// The only way to make drafts, as plans name it.
pub const NGRAM: &str = "ngram";

/// Tokens of an n-gram at most. Each length up to the longest is looked at with every token.
pub const LONGEST_LOOKUP: usize = 64;

/// Lengths that are looked up when nobody says otherwise: vLLM's.
const LOOKUP: usize = 5;

/// How drafts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeculationOptions {
    /// Tokens of a draft at most.
    pub num_tokens: usize,
    /// Shortest n-gram that is looked up.
    pub lookup_min: usize,
    /// Longest n-gram that is looked up.
    pub lookup_max: usize,
}

impl SpeculationOptions {
    /// What a plan asks for; as in vLLM, a bound that is left out equals the other, and both are 5 if neither is given.
    #[must_use]
    pub fn of_plan(speculative: &Speculative) -> Self {
        // Beyond what this machine counts to is as good as without bound.
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (min, max) = (speculative.prompt_lookup_min, speculative.prompt_lookup_max);
        Self {
            num_tokens: count(speculative.num_tokens),
            lookup_min: min.or(max).map_or(LOOKUP, count),
            lookup_max: max.or(min).map_or(LOOKUP, count),
        }
    }
}

impl SpeculationOptions {
    /// Whether drafts can be made, for sequences of up to `max_model_len` tokens.
    #[must_use]
    pub fn is_sound(&self, max_model_len: usize) -> bool {
        let lookup = 1 <= self.lookup_min && self.lookup_min <= self.lookup_max && self.lookup_max <= LONGEST_LOOKUP;
        lookup && (1..max_model_len).contains(&self.num_tokens)
    }
}

/// What became of drafts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeculationTotals {
    /// Drafts that were computed, one for each sequence and step.
    pub drafts: u64,
    /// Their tokens.
    pub draft_tokens: u64,
    /// Those of them that were kept.
    pub accepted_tokens: u64,
    /// The kept ones by their place in the draft.
    pub accepted_per_position: Vec<u64>,
    /// Tokens that were looked up and not computed, since they would not have paid or had no room.
    pub declined_tokens: u64,
}

impl SpeculationTotals {
    pub(crate) fn new(options: &SpeculationOptions) -> Self {
        // No draft is longer than the longest sequence, which is counted in 31 bits; a plan bounds both.
        Self { accepted_per_position: vec![0; options.num_tokens], ..Self::default() }
    }

    /// Notes a draft of `computed` tokens, the first `accepted` of which were kept, and that `declined` were left out.
    pub(crate) fn add(&mut self, computed: usize, accepted: usize, declined: usize) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.declined_tokens += count(declined);
        if computed == 0 {
            return;
        }
        self.drafts += 1;
        self.draft_tokens += count(computed);
        self.accepted_tokens += count(accepted);
        for position in self.accepted_per_position.iter_mut().take(accepted) {
            *position += 1;
        }
    }
}
