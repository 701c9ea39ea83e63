//! Which tokens of which requests a step computes.
//!
//! Invariants:
//! * a request that was accepted ends: finished with exactly the tokens that it would get alone, or cancelled. None is lost,
//!   none waits for ever;
//! * first come, first served: a request never gets pages or a place in a step that an older one asked for in vain;
//! * a step fits one of the compiled shapes, and holds at most [`SchedulerOptions::max_num_batched_tokens`] tokens of at most
//!   [`SchedulerOptions::max_num_seqs`] sequences;
//! * everything is a function of the calls: no clock, no threads, no XLA. What steps took is told ([`Scheduler::record`]), and
//!   decides whether drafts are computed, never which tokens a request gets.
//!
//! The engine's loop is [`Scheduler::plan_step`], running the [`Batch`], sampling a token for each row of logits, and
//! [`Scheduler::commit`]; requests come and go ([`Scheduler::submit`], [`Scheduler::cancel`]) at any time.
//!
//! **Why it never stops.** When pages run out, the youngest running sequence gives all of its pages back and is computed again
//! later, tokens that it generated included. So the oldest sequence can take every page that it needs, since a request that
//! needs more than the pool has was refused; it ends, and the next is the oldest.

mod batch;
mod commit;
mod draft;
mod options;
mod plan;
mod request;

use std::collections::VecDeque;

pub use batch::{Batch, KindInputs, Part, Started};
pub use commit::{CommitError, Finish, Progress};
use draft::Speculation;
pub use options::{OptionsError, SchedulerOptions, StepShape};
pub use plan::StepError;
use request::Sequence;
pub use request::{Refusal, Request, RequestId};

use crate::pool::{PageCounts, Pool};

/// The scheduler of one copy of the model.
#[derive(Debug)]
pub struct Scheduler {
    options: SchedulerOptions,
    pool: Pool,
    /// Hold pages; oldest first.
    running: Vec<Sequence>,
    /// Hold none; oldest first, and all younger than those that run.
    waiting: VecDeque<Sequence>,
    next_id: u64,
    /// The number of the step that was planned and not committed.
    in_flight: Option<u64>,
    totals: Totals,
    /// Drafts; `None` without speculation.
    speculation: Option<Speculation>,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Steps planned.
    pub steps: u64,
    /// Times that a sequence gave its pages back to be computed again.
    pub preemptions: u64,
    /// Tokens of requests at the time they began to run, computed again after a preemption included. Requests that may take
    /// nothing from the cache, since they want all logits of their prompts, are left out.
    pub prefix_queries: u64,
    /// Those of them that prefix caching found.
    pub prefix_hits: u64,
    /// Sliding blocks that were given back because they fell behind a window.
    pub window_blocks_reclaimed: u64,
    /// Token rows of steps that were not real.
    pub padding_rows: u64,
}

/// What the scheduler holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Sequences that hold pages.
    pub running: usize,
    /// Requests that wait for their first step, or for another after a preemption.
    pub waiting: usize,
    /// Pages by state.
    pub pages: PageCounts,
    /// What happened since the start.
    pub totals: Totals,
}

impl Scheduler {
    /// A scheduler without requests, and its pool.
    ///
    /// # Errors
    /// [`OptionsError`] if no step or no sequence would ever fit.
    pub fn new(options: SchedulerOptions) -> Result<Self, OptionsError> {
        options.check()?;
        let pool = Pool::new(options.pool)?;
        let speculation = options.speculation.map(Speculation::new);
        Ok(Self {
            options,
            pool,
            running: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 0,
            in_flight: None,
            totals: Totals::default(),
            speculation,
        })
    }

    /// Its limits.
    #[must_use]
    pub const fn options(&self) -> &SchedulerOptions {
        &self.options
    }

    /// What it holds now, and what it did so far.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages: self.pool.counts(),
            totals: self.totals,
        }
    }

    /// Takes a request in, behind all others.
    ///
    /// # Errors
    /// [`Refusal`] if it could never run, or if too many wait.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refusal> {
        request.check(&self.options)?;
        if self.waiting.len() >= self.options.max_queue {
            return Err(Refusal::QueueFull { limit: self.options.max_queue });
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let drafter = self.speculation.as_ref().map(Speculation::drafter);
        self.waiting.push_back(Sequence::new(id, request, self.options.max_model_len, drafter));
        Ok(id)
    }

    /// Ends a request now and frees its pages, also while a step that holds it runs: no page gets another owner before the
    /// next step. Returns whether there was such a request; there is none after it finished.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
            return true;
        }
        let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else { return false };
        let mut sequence = self.running.remove(at);
        sequence.release(&mut self.pool);
        true
    }
}
