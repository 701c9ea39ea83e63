//! From a row of logits to a token.
//!
//! Invariant: the token is a function of the logits, the parameters, the tokens of its own sequence and, when it is drawn,
//! the seed and the place in the sequence. What else is in the batch plays no part.
//!
//! The order is that of vLLM: what a grammar forbids is ruled out (before, on the devices, by the masks that
//! [`Sampler::mask`] makes), then stop tokens below the least length, then come biases, then penalties; the best token is taken for temperature 0, else the logits are divided by the temperature, cut by min-p,
//! top-k and top-p, and one token is drawn. Logprobs are those of the model's own logits, before all of this.
//!
//! A grammar decides before a least length does: where it allows nothing but stop tokens, the sequence ends.

mod draw;
mod logprobs;
mod params;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use thiserror::Error;

use crate::constraint::{Constraint, ConstraintError};
use crate::masks::Masks;

pub use logprobs::Logprobs;
pub use params::{SamplingError, SamplingParams};

/// Logits that give no token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SampleError {
    /// The model computed something that is not a number.
    #[error("the model's logits are not all numbers; the weights or their data type are wrong, or memory is broken")]
    NotANumber,
    /// Nothing is left to choose from.
    #[error("biases rule out every token")]
    NothingLeft,
    /// The grammar that the sequence keeps to gave out.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// What a row of logits became.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token id.
    pub token: u32,
    /// Its logprob and the best ones, if they were asked for.
    pub logprobs: Option<Logprobs>,
}

/// Samples the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    /// Where the sequence is in its grammar.
    constraint: Option<Constraint>,
    /// The place in the output for which no mask could be made, and why.
    without_mask: Option<(usize, ConstraintError)>,
    /// How many alternatives are wanted with each token.
    logprobs: Option<usize>,
    /// Tokens that are ruled out before so many were generated.
    stop_tokens: Vec<u32>,
    min_tokens: usize,
    prompt: usize,
    /// Tokens generated so far.
    generated: usize,
    /// How often each token was generated; kept only for penalties.
    counts: HashMap<u32, u32>,
    /// Tokens of the prompt; kept only for the repetition penalty.
    in_prompt: HashSet<u32>,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`. `seed` stands in for one that the parameters do not have.
    #[must_use]
    pub fn new(params: SamplingParams, seed: u64, prompt: &[u32]) -> Self {
        let in_prompt = if params.repeats() { prompt.iter().copied().collect() } else { HashSet::new() };
        Self {
            seed: params.seed.unwrap_or(seed),
            params,
            constraint: None,
            without_mask: None,
            logprobs: None,
            stop_tokens: Vec::new(),
            min_tokens: 0,
            prompt: prompt.len(),
            generated: 0,
            counts: HashMap::new(),
            in_prompt,
        }
    }

    /// Keeps the sequence to a grammar.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Option<Constraint>) -> Self {
        self.constraint = constraint;
        self
    }

    /// Gives the `count` best tokens' logprobs with each token.
    #[must_use]
    pub fn with_logprobs(mut self, count: Option<usize>) -> Self {
        self.logprobs = count;
        self
    }

    /// Rules out `stop_tokens` until `min_tokens` were generated.
    #[must_use]
    pub fn with_min_tokens(mut self, min_tokens: usize, stop_tokens: &[u32]) -> Self {
        self.min_tokens = min_tokens;
        self.stop_tokens = if min_tokens > 0 { stop_tokens.to_vec() } else { Vec::new() };
        self
    }

    /// Whether the logits have to be masked before tokens are sampled from them.
    #[must_use]
    pub const fn needs_mask(&self) -> bool {
        self.constraint.is_some()
    }

    /// Makes the masks of the sequence's rows of logits in a step: of the next token, and of those that follow the tokens of
    /// a draft. Rows behind a draft token that its own row forbids allow everything: nothing is sampled from them.
    pub fn mask(&mut self, rows: Range<usize>, draft: &[u32], masks: &mut Masks) {
        let Some(constraint) = &mut self.constraint else { return };
        if self.logprobs.is_some() {
            masks.keep_unmasked();
        }
        let mut allowed = constraint.allowed();
        let mut ahead: Option<Constraint> = None;
        for (place, row) in rows.enumerate() {
            let here = match allowed {
                Ok(here) => here,
                // It matters only if the sequence gets there.
                Err(error) => {
                    self.without_mask = Some((self.generated.saturating_add(place), error));
                    return;
                }
            };
            masks.allow(row, here.words());
            let Some(token) = draft.get(place).filter(|token| here.has(**token)) else { return };
            let ahead = ahead.get_or_insert_with(|| constraint.clone());
            allowed = ahead.advance(*token).and_then(|()| ahead.allowed());
        }
    }

    /// Samples the sequence's next token from its row of logits, from which what a grammar forbids is ruled out. `scratch` is
    /// only room to work in.
    ///
    /// # Errors
    /// [`SampleError`]; the sequence cannot go on then.
    pub fn sample(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<Sampled, SampleError> {
        self.sample_masked(logits, logits, scratch)
    }

    /// As [`Self::sample`], with the row as the model computed it for the logprobs.
    ///
    /// # Errors
    /// [`SampleError`]; the sequence cannot go on then.
    pub fn sample_masked(
        &mut self,
        logits: &[f32],
        unmasked: &[f32],
        scratch: &mut Scratch,
    ) -> Result<Sampled, SampleError> {
        if let Some((_, error)) = self.without_mask.take_if(|(place, _)| *place == self.generated) {
            return Err(error.into());
        }
        let token = self.choose(logits, scratch)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.advance(token)?;
        }
        let logprobs = self.logprobs.map(|count| Logprobs::of(unmasked, token, count));
        self.generated += 1;
        if self.params.penalizes() {
            *self.counts.entry(token).or_default() += 1;
        }
        Ok(Sampled { token, logprobs })
    }

    /// Whether stop tokens are ruled out: below the least length, unless a grammar left nothing else.
    fn rules_out_stops(&self, logits: &[f32]) -> bool {
        let mut left = (0_u32..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.generated < self.min_tokens
            && !self.stop_tokens.is_empty()
            && (self.constraint.is_none() || left.any(|(token, _)| !self.stop_tokens.contains(&token)))
    }

    fn choose(&self, logits: &[f32], scratch: &mut Scratch) -> Result<u32, SampleError> {
        let params = &self.params;
        let ruled_out = self.rules_out_stops(logits);
        if params.is_greedy() && !params.changes_logits() && !ruled_out {
            return best(logits);
        }
        let row = &mut scratch.row;
        row.clear();
        row.extend_from_slice(logits);
        let mut change = |token: u32, change: &mut dyn FnMut(f32) -> f32| {
            if let Some(logit) = usize::try_from(token).ok().and_then(|token| row.get_mut(token)) {
                *logit = change(*logit);
            }
        };
        if ruled_out {
            for &token in &self.stop_tokens {
                change(token, &mut |_| f32::NEG_INFINITY);
            }
        }
        for &(token, bias) in &params.logit_bias {
            change(token, &mut |logit| logit + bias);
        }
        if params.repeats() {
            let repetition = params.repetition_penalty;
            let mut penalize = |token| {
                change(token, &mut |logit| if logit > 0.0 { logit / repetition } else { logit * repetition });
            };
            self.in_prompt.iter().for_each(|token| penalize(*token));
            self.counts.keys().filter(|token| !self.in_prompt.contains(token)).for_each(|token| penalize(*token));
        }
        for (&token, &count) in &self.counts {
            // Counts are far below what f32 holds exactly.
            let penalty = params.frequency_penalty * count as f32 + params.presence_penalty;
            change(token, &mut |logit| logit - penalty);
        }
        if params.is_greedy() {
            return best(row);
        }
        let position = self.prompt.saturating_add(self.generated);
        draw::draw(row, params, draw::uniform(self.seed, position), &mut scratch.candidates)
    }
}

/// Room that samplers share, so that a step takes no memory of its own.
#[derive(Debug, Default)]
pub struct Scratch {
    row: Vec<f32>,
    candidates: Vec<draw::Candidate>,
}

/// The token with the largest logit; of equal ones the first.
fn best(logits: &[f32]) -> Result<u32, SampleError> {
    // A maximum over lanes first: this way the compiler makes it a vector loop, and a NaN does not get lost in it.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut sound = true;
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
            sound &= !logit.is_nan();
        }
    }
    sound &= !rest.iter().any(|logit| logit.is_nan());
    if !sound {
        return Err(SampleError::NotANumber);
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return Err(SampleError::NothingLeft);
    }
    let token = logits.iter().position(|logit| *logit == largest);
    token.and_then(|token| u32::try_from(token).ok()).ok_or(SampleError::NothingLeft)
}
