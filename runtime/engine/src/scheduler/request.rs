//! Requests, and what the scheduler knows of one.
//!
//! Invariant: a request that passes the check can run alone to its end in an empty pool.

use std::ops::Range;

use thiserror::Error;

use super::draft::Drafter;
use super::options::SchedulerOptions;
use crate::pool::{BlockKeys, Pool, SequenceBlocks};

/// Names a request; later requests have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

impl RequestId {
    /// The number, for logs.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; the longest sequence bounds them too. 0 only with [`Self::prompt_logprobs`].
    pub max_tokens: usize,
    /// Whether the logits of the prompt are wanted too, for the logprobs of all of its tokens but the first. Then no cached
    /// prefix stands in for them.
    pub prompt_logprobs: bool,
    /// Tokens that end the request when they are generated.
    pub stop_tokens: Vec<u32>,
    /// What else makes its keys and values differ from those of another request with the same tokens.
    pub salt: Vec<u8>,
}

/// Why a request is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There is nothing to begin with.
    #[error("the prompt has no tokens; a request needs one or more")]
    EmptyPrompt,
    /// There is nothing to compute.
    #[error(
        "max_tokens is 0; a request generates one token or more, or wants logprobs of a prompt of two tokens or more"
    )]
    NothingToGenerate,
    /// A token that the model does not have.
    #[error("token {token} of the prompt (at {position}) is outside of the vocabulary of {vocab_size} tokens")]
    Token {
        /// The token id.
        token: u32,
        /// Its place in the prompt.
        position: usize,
        /// Tokens that there are.
        vocab_size: usize,
    },
    /// The prompt leaves no room for a token, if one is to be generated.
    #[error("the prompt has {prompt} tokens; the longest sequence has {max_model_len}, what is generated included")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Longest sequence in tokens.
        max_model_len: usize,
    },
    /// The pool is too small for it even alone.
    #[error(
        "the request needs up to {needed} KV pages for {tokens} tokens, and the pool has {pages}; lower max_tokens"
    )]
    PoolTooSmall {
        /// Pages that it may need at once.
        needed: usize,
        /// Prompt and output.
        tokens: usize,
        /// Pages of the pool.
        pages: usize,
    },
    /// Too many wait; try again later (429 with Retry-After).
    #[error("{limit} requests wait already; try again later")]
    QueueFull {
        /// Requests that may wait.
        limit: usize,
    },
}

impl Request {
    pub(super) fn check(&self, options: &SchedulerOptions) -> Result<(), Refusal> {
        let prompt = self.prompt.len();
        if prompt == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if self.max_tokens == 0 && !(self.prompt_logprobs && prompt > 1) {
            return Err(Refusal::NothingToGenerate);
        }
        let max_model_len = options.max_model_len;
        if prompt.saturating_add(self.max_tokens.min(1)) > max_model_len {
            return Err(Refusal::PromptTooLong { prompt, max_model_len });
        }
        let vocab_size = options.vocab_size;
        let unknown = |token: u32| usize::try_from(token).map_or(true, |token| token >= vocab_size);
        if let Some((position, token)) = self.prompt.iter().enumerate().find(|(_, token)| unknown(**token)) {
            return Err(Refusal::Token { token: *token, position, vocab_size });
        }
        // The last token of a sequence is never computed.
        let tokens = prompt.saturating_add(self.max_tokens).min(max_model_len) - 1;
        let needed = options.pool.pages_for(tokens, options.max_num_batched_tokens.min(tokens));
        let pages = options.pool.pages;
        if needed > pages {
            return Err(Refusal::PoolTooSmall { needed, tokens, pages });
        }
        Ok(())
    }
}

/// A request that was taken in.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// The prompt and what was generated.
    pub(super) tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub(super) prompt: usize,
    /// It ends with this many tokens at the latest.
    pub(super) end: usize,
    pub(super) stop_tokens: Vec<u32>,
    /// Places in the prompt whose logits are still wanted for logprobs of the tokens behind them. What was given stays
    /// given, also if the sequence is computed again.
    pub(super) unscored: Range<usize>,
    pub(super) keys: BlockKeys,
    /// `None` while it waits.
    pub(super) blocks: Option<SequenceBlocks>,
    /// What may follow; `None` without speculation.
    pub(super) drafter: Option<Drafter>,
}

impl Sequence {
    pub(super) fn new(id: RequestId, request: Request, max_model_len: usize, drafter: Option<Drafter>) -> Self {
        let prompt = request.prompt.len();
        Self {
            id,
            prompt,
            end: prompt.saturating_add(request.max_tokens).min(max_model_len),
            tokens: request.prompt,
            unscored: 0..if request.prompt_logprobs { prompt - 1 } else { 0 },
            stop_tokens: request.stop_tokens,
            keys: BlockKeys::new(&request.salt),
            blocks: None,
            drafter,
        }
    }

    /// How many of its tokens are computed before it goes on or ends: all, or all but the last if nothing follows a prompt.
    pub(super) const fn goal(&self) -> usize {
        if self.only_scores() { self.prompt.saturating_sub(1) } else { self.tokens.len() }
    }

    /// Whether it generates nothing.
    pub(super) const fn only_scores(&self) -> bool {
        self.end == self.prompt
    }

    /// Those of these places whose logits are wanted for logprobs of the prompt.
    pub(super) fn scored(&self, places: Range<usize>) -> Range<usize> {
        let start = places.start.max(self.unscored.start);
        start..places.end.min(self.unscored.end).max(start)
    }

    /// How many of `count` tokens behind the first `written` can be computed with at most `rows` rows of logits, one or more.
    pub(super) fn within_rows(&self, written: usize, count: usize, rows: usize) -> usize {
        if self.unscored.is_empty() {
            return count;
        }
        // From the first place that is wanted on, each has a row: behind the last of them comes the one that is sampled from.
        let before = self.unscored.start.saturating_sub(written);
        count.min(before.saturating_add(rows))
    }

    /// Tokens of a prefix that may come from the cache: logits that are wanted have to be computed.
    pub(super) const fn cacheable(&self) -> usize {
        if self.unscored.start < self.unscored.end { self.unscored.start } else { usize::MAX }
    }

    /// Gives all pages back.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        if let Some(blocks) = self.blocks.take() {
            pool.release(blocks, &self.keys);
        }
    }
}
