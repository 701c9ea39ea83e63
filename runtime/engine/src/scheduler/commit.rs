//! What a step that ran changes.
//!
//! Invariant: a commit changes everything or, if it is refused, nothing.

use thiserror::Error;

use super::batch::Batch;
use super::request::RequestId;
use super::{Scheduler, Sequence};

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It generated one of its stop tokens, which is the last token reported.
    Stop,
    /// It generated as many tokens as it asked for.
    MaxTokens,
    /// It is as long as a sequence can be.
    ModelLength,
}

/// What a request got from a step: a token, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The request.
    pub request: RequestId,
    /// The row of logits that its token was sampled from, and the token; `None` where a prompt has all of its logprobs and
    /// nothing is to be generated.
    pub sampled: Option<(usize, u32)>,
    /// Why it was the last one; `None` if more follow.
    pub finish: Option<Finish>,
}

/// Samples that do not belong to the step that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommitError {
    /// The batch is not the one that was planned last.
    #[error("step {found} is not in flight; commit the batch that was planned last, once")]
    Step {
        /// Number of the batch's step.
        found: u64,
    },
    /// Too few or too many tokens.
    #[error("{found} sampled tokens for {wanted} rows of logits; give one for each row")]
    Count {
        /// Tokens that were given.
        found: usize,
        /// Rows of logits.
        wanted: usize,
    },
    /// A token that the model does not have.
    #[error("sampled token {token} is outside of the vocabulary of {vocab_size} tokens")]
    Token {
        /// The token id.
        token: u32,
        /// Tokens that there are.
        vocab_size: usize,
    },
}

impl Scheduler {
    /// Takes in a step that ran: `sampled` has a token for each row of logits of `batch`, in their order. Rows behind a draft
    /// token that was not sampled count nothing, whatever token is given for them, and neither do those of a prompt, whose
    /// tokens have their logprobs from now on ([`Part::scored`](super::Part::scored)). Requests that were cancelled in the
    /// meantime are passed over. Returns the tokens that requests got, oldest request first, each request's in order.
    ///
    /// # Errors
    /// [`CommitError`] if the batch or the tokens are not those of the step that runs; nothing is changed then.
    pub fn commit(&mut self, batch: &Batch, sampled: &[u32]) -> Result<Vec<Progress>, CommitError> {
        if self.in_flight != Some(batch.step()) {
            return Err(CommitError::Step { found: batch.step() });
        }
        if sampled.len() != batch.logits() {
            return Err(CommitError::Count { found: sampled.len(), wanted: batch.logits() });
        }
        let vocab_size = self.options.vocab_size;
        let unknown = |token: &&u32| usize::try_from(**token).map_or(true, |token| token >= vocab_size);
        if let Some(&token) = sampled.iter().find(unknown) {
            return Err(CommitError::Token { token, vocab_size });
        }
        self.in_flight = None;
        let mut progress = Vec::with_capacity(sampled.len());
        for part in batch.parts() {
            // Both are in the order of arrival.
            let Ok(at) = self.running.binary_search_by_key(&part.request, |sequence| sequence.id) else { continue };
            let Some(sequence) = self.running.get_mut(at) else { continue };
            let (mut accepted, mut finished) = (0, false);
            for (row, &token) in part.logits.clone().zip(sampled.get(part.logits.clone()).unwrap_or_default()) {
                sequence.tokens.push(token);
                let finish = sequence.finish(token, self.options.max_model_len);
                progress.push(Progress { request: sequence.id, sampled: Some((row, token)), finish });
                finished = finish.is_some();
                if finished || part.draft.get(accepted) != Some(&token) {
                    break;
                }
                accepted += 1;
            }
            sequence.unscored.start = sequence.unscored.end.min(sequence.unscored.start + part.scored.len());
            if sequence.only_scores() && sequence.unscored.is_empty() {
                finished = true;
                let finish = Some(sequence.longest(self.options.max_model_len));
                progress.push(Progress { request: sequence.id, sampled: None, finish });
            }
            if let Some(blocks) = sequence.blocks.as_mut() {
                // What was written of the rest of the draft is overwritten when its places come again.
                let computed = sequence.tokens.get(..part.end + accepted).unwrap_or(&sequence.tokens);
                self.pool.written(blocks, &mut sequence.keys, computed);
            }
            if let Some(speculation) = self.speculation.as_mut().filter(|_| !part.logits.is_empty()) {
                sequence.learn(speculation, part.end, part.draft.len(), accepted);
            }
            if finished {
                sequence.release(&mut self.pool);
            }
        }
        // Those that finished have released their pages.
        self.running.retain(|sequence| sequence.blocks.is_some());
        Ok(progress)
    }
}

impl Sequence {
    /// Whether `token`, the last of the sequence, ends it.
    fn finish(&self, token: u32, max_model_len: usize) -> Option<Finish> {
        if self.stop_tokens.contains(&token) {
            return Some(Finish::Stop);
        }
        (self.tokens.len() >= self.end).then(|| self.longest(max_model_len))
    }

    /// What ends it where nothing else does.
    const fn longest(&self, max_model_len: usize) -> Finish {
        if self.end == max_model_len { Finish::ModelLength } else { Finish::MaxTokens }
    }
}
