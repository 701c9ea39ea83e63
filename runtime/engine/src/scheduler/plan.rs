//! Choosing the tokens of a step.
//!
//! Invariant: the parts of a step are in the order of arrival, each holds pages for the tokens that it computes, and running
//! sequences are all older than waiting ones. A prompt whose logprobs are wanted takes a row of logits for each token, but
//! never the row of another sequence.

use thiserror::Error;

use super::batch::{Batch, Piece, Started};
use super::{Scheduler, Sequence};
use crate::pool::SequenceBlocks;

/// A step that cannot be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StepError {
    /// The last step was not committed.
    #[error("step {0} was planned and not committed; what it samples decides the next step")]
    InFlight(
        /// Its number.
        u64,
    ),
    /// No shape holds the step; the check of the options rules it out.
    #[error("no compiled step holds {tokens} tokens of {sequences} sequences; this is a bug")]
    NoShape {
        /// Tokens of the step.
        tokens: usize,
        /// Sequences of the step.
        sequences: usize,
    },
}

/// What is left of a step.
struct Room {
    tokens: usize,
    /// Rows of logits beside one for each sequence that runs or may begin.
    rows: usize,
}

impl Room {
    /// How many of the tokens behind the first `written` of a sequence find room.
    fn bound(&self, sequence: &Sequence, written: usize) -> usize {
        let count = sequence.goal().saturating_sub(written).min(self.tokens);
        sequence.within_rows(written, count, self.rows.saturating_add(1))
    }

    /// Takes it for `count` tokens.
    fn take(&mut self, sequence: &Sequence, written: usize, count: usize) {
        self.tokens = self.tokens.saturating_sub(count);
        let rows = if sequence.unscored.is_empty() {
            0
        } else {
            // With the row that a token is sampled from, if there is one.
            (written + count).saturating_sub(written.max(sequence.unscored.start))
        };
        self.rows = self.rows.saturating_sub(rows.saturating_sub(1));
    }
}

impl Scheduler {
    /// The next step; `None` if nothing waits or runs.
    ///
    /// Running sequences come first, the oldest ahead, each with all tokens that are not computed yet or as many as still fit;
    /// then waiting ones begin, in their order, as long as there are tokens, places and pages; then drafts get what is left,
    /// where they pay. Prompts whose logprobs are wanted share the rows of logits that no other sequence of the step can
    /// need, the oldest first, and each goes on by one token at least.
    ///
    /// # Errors
    /// [`StepError::InFlight`] if the last step was not committed.
    pub fn plan_step(&mut self) -> Result<Option<Batch>, StepError> {
        if let Some(step) = self.in_flight {
            return Err(StepError::InFlight(step));
        }
        let mut left = self.room();
        let (mut chunks, preempted) = self.continue_running(&mut left);
        // The preempted sequence is the first that waits. Begun again at once, it would take pages that the older ones need next.
        let mut started = Vec::new();
        if !preempted {
            self.begin_waiting(&mut left, &mut chunks, &mut started);
        }
        // Where pages are that short, drafts would make others wait for more.
        let drafts = self.draft(&chunks, if preempted { 0 } else { left.tokens });
        let pieces: Vec<Piece<'_>> = self
            .running
            .iter()
            .zip(chunks.iter().zip(&drafts))
            .filter(|(_, (count, _))| **count > 0)
            .filter_map(|(sequence, (count, draft))| {
                let blocks = sequence.blocks.as_ref()?;
                Some(Piece { sequence, blocks, count: *count, draft: sequence.draft(*draft) })
            })
            .collect();
        if pieces.is_empty() {
            return Ok(None);
        }
        let tokens = pieces.iter().map(Piece::tokens).sum::<usize>();
        let rows = pieces.iter().map(Piece::rows).sum::<usize>();
        let sequences = pieces.len();
        let shape = self.options.shape(tokens, sequences, rows).ok_or(StepError::NoShape { tokens, sequences })?;
        let batch = Batch::new(self.totals.steps, shape, &self.options.pool, &pieces, started);
        self.in_flight = Some(self.totals.steps);
        self.totals.steps += 1;
        let padding = u64::try_from(shape.tokens.saturating_sub(tokens)).unwrap_or(u64::MAX);
        self.totals.padding_rows = self.totals.padding_rows.saturating_add(padding);
        Ok(Some(batch))
    }

    /// What a step has room for.
    fn room(&self) -> Room {
        let options = &self.options;
        let places = self.running.len().saturating_add(self.waiting.len()).min(options.max_num_seqs);
        Room { tokens: options.max_num_batched_tokens, rows: options.rows().saturating_sub(places) }
    }

    /// How many tokens each running sequence computes, and whether one had to give its pages back.
    fn continue_running(&mut self, left: &mut Room) -> (Vec<usize>, bool) {
        let mut chunks = Vec::new();
        let mut preempted = false;
        // Sequences at the end of the list go away on the way.
        while let Some(sequence) = self.running.get_mut(chunks.len()) {
            let written = sequence.blocks.as_ref().map_or(usize::MAX, SequenceBlocks::written);
            let count = left.bound(sequence, written);
            let Some(blocks) = sequence.blocks.as_mut().filter(|_| count > 0) else {
                chunks.push(0);
                continue;
            };
            match self.pool.reserve(blocks, written + count) {
                Ok(reclaimed) => {
                    self.totals.window_blocks_reclaimed += count_of(reclaimed);
                    left.take(sequence, written, count);
                    chunks.push(count);
                }
                Err(_) => {
                    // The youngest may be this one: then no older one is left out.
                    if let Some(mut youngest) = self.running.pop() {
                        youngest.release(&mut self.pool);
                        self.waiting.push_front(youngest);
                        self.totals.preemptions += 1;
                        preempted = true;
                    }
                }
            }
        }
        (chunks, preempted)
    }

    fn begin_waiting(&mut self, left: &mut Room, chunks: &mut Vec<usize>, started: &mut Vec<Started>) {
        while left.tokens > 0 && self.running.len() < self.options.max_num_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            let Some(count) = self.begin(&mut sequence, left) else {
                self.waiting.push_front(sequence);
                return;
            };
            let cached_tokens = sequence.blocks.as_ref().map_or(0, SequenceBlocks::written);
            left.take(&sequence, cached_tokens, count);
            chunks.push(count);
            started.push(Started { request: sequence.id, cached_tokens });
            self.running.push(sequence);
        }
    }

    /// Gives a sequence its prefix hit and the pages of its first chunk, whose tokens are returned; `None` if there are too few.
    fn begin(&mut self, sequence: &mut Sequence, left: &Room) -> Option<usize> {
        let cacheable = sequence.cacheable();
        let mut blocks = self.pool.admit(&mut sequence.keys, &sequence.tokens, sequence.prompt, cacheable);
        let hit = blocks.written();
        let count = left.bound(sequence, hit);
        if self.pool.reserve(&mut blocks, hit + count).is_err() {
            self.pool.release(blocks, &sequence.keys);
            return None;
        }
        // As in vLLM, who may not look is not counted among those that found nothing.
        if cacheable > 0 {
            self.totals.prefix_queries += count_of(sequence.tokens.len());
            self.totals.prefix_hits += count_of(hit);
        }
        sequence.blocks = Some(blocks);
        Some(count)
    }
}

fn count_of(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
