//! What is asked of an engine, and what it answers.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::constraint::Constraint;
use crate::sampling::{Logprobs, SamplingError, SamplingParams};
use crate::scheduler::{Load, Refusal};
use crate::speculation::SpeculationTotals;

/// What to generate, and how.
#[derive(Clone, Debug, Default)]
pub struct GenerationRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; the longest sequence bounds them too. 0 only with [`Self::prompt_logprobs`].
    pub max_tokens: usize,
    /// Tokens before which no stop token is generated.
    pub min_tokens: usize,
    /// Tokens that end the request. The one that does is the last that is reported.
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The grammar that its tokens keep to, at its beginning.
    pub constraint: Option<Constraint>,
    /// Gives logprobs with each token: its own and those of so many best ones.
    pub logprobs: Option<usize>,
    /// Gives logprobs with each token of the prompt but the first: its own and those of so many best ones. Logits of the whole
    /// prompt are computed for them, so no cached prefix is taken and no layer is skipped for any of its tokens.
    pub prompt_logprobs: Option<usize>,
    /// What else makes its keys and values differ from those of another request with the same tokens, such as a secret
    /// that keeps tenants apart.
    pub salt: Vec<u8>,
}

/// Why a request is not taken in.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SubmitError {
    /// It could never run, or too many wait.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A sampling parameter is out of its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The engine takes no more requests.
    #[error("the engine is shutting down and takes no more requests")]
    Closed,
    /// The engine broke.
    #[error("the engine failed and has to be started again: {0}")]
    Failed(
        /// What happened.
        String,
    ),
}

/// Something happened to a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// Its first step was planned; the first event, if it ever runs.
    Started(Started),
    /// More tokens of its prompt have their logprobs, in their order from the second token on; all come before the first
    /// token that is generated.
    Prompt(Vec<Logprobs>),
    /// It got a token.
    Token(Token),
    /// It ended; always the last event.
    End(End),
}

/// A request that begins to run. It is told at once, since whoever ends a request by dropping it gets no [`End`].
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// When its first step was planned.
    pub at: Instant,
    /// Tokens of the prompt that are not computed, since a prefix was in the cache.
    pub cached_tokens: usize,
}

/// A token that was generated.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token id.
    pub id: u32,
    /// Its logprob and the best ones, if they were asked for.
    pub logprobs: Option<Logprobs>,
    /// When it was there.
    pub at: Instant,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// When it did what.
    pub timings: Timings,
    /// Tokens of the prompt that were not computed, since a prefix was in the cache.
    pub cached_tokens: usize,
    /// Times that it gave its pages back and was computed again.
    pub preemptions: u64,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It generated one of its stop tokens.
    Stop,
    /// It generated as many tokens as it asked for, or is as long as a sequence can be.
    Length,
    /// It could not go on.
    Failed(
        /// Why.
        String,
    ),
}

/// When a request did what.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// It was taken in.
    pub arrived: Instant,
    /// The first step that it was part of was planned.
    pub scheduled: Option<Instant>,
    /// It got its first token.
    pub first_token: Option<Instant>,
    /// It ended.
    pub finished: Instant,
}

/// What an engine holds now and did so far.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// What the scheduler holds, and its totals.
    pub load: Load,
    /// What became of drafts; `None` without speculation.
    pub speculation: Option<SpeculationTotals>,
    /// Token rows of steps that were real.
    pub computed_tokens: u64,
    /// Steps by the number of their real tokens, the counts of [`STEP_TOKENS`] and one for larger steps.
    pub step_tokens: [u64; STEP_TOKENS.len() + 1],
    /// Programs that were compiled when a request waited for them: always 0, or something is wrong.
    pub compiles_while_serving: u64,
    /// Programs that came compiled from the cache at the start.
    pub warm_cache_hits: u64,
    /// Programs that were compiled at the start.
    pub warm_cache_misses: u64,
    /// Token rows that were real and that the layers which share keys and values did not run for.
    pub fast_prefill_skipped_tokens: u64,
    /// Steps whose logits were masked on the devices: those with rows of a sequence that keeps to a grammar.
    pub masked_steps: u64,
    /// How long there was a step to plan, run or tell of.
    pub busy: Duration,
    /// How long of it steps were on the devices; the rest is the host's alone.
    pub device: Duration,
}

/// Upper bounds of the classes of steps by their tokens: those of vLLM's `iteration_tokens_total`.
pub const STEP_TOKENS: [u64; 13] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];
