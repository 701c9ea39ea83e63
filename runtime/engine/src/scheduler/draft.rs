//! Drafts of a step.
//!
//! Invariant: drafts take only what is left. They come after everything that a step computes anyway, take no page and no
//! place from it, make nobody give pages back, and never reach past the end of a request.

use std::time::Duration;

use super::Scheduler;
use super::batch::Batch;
use super::options::SchedulerOptions;
use super::request::Sequence;
use crate::pool::SequenceBlocks;
use crate::speculation::{Acceptance, Choice, NgramIndex, SpeculationOptions, SpeculationTotals, StepTimes, Work};

/// Tokens that the estimate of one sequence remembers.
const SEQUENCE_MEMORY: u32 = 16;
/// Tokens that the estimate of all remembers, which new sequences begin with.
const ENGINE_MEMORY: u32 = 256;
/// What is expected before anything was seen.
const UNSEEN: f64 = 0.5;

/// What the scheduler knows of drafts.
#[derive(Debug)]
pub(super) struct Speculation {
    pub(super) options: SpeculationOptions,
    pub(super) totals: SpeculationTotals,
    acceptance: Acceptance,
    times: StepTimes,
}

/// What is drafted for one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    index: NgramIndex,
    acceptance: Acceptance,
    /// Tokens that may follow; a step computes the first few of them, or none.
    proposal: Vec<u32>,
}

impl Speculation {
    pub(super) fn new(options: SpeculationOptions) -> Self {
        Self {
            options,
            totals: SpeculationTotals::new(&options),
            acceptance: Acceptance::new(ENGINE_MEMORY),
            times: StepTimes::default(),
        }
    }

    pub(super) fn drafter(&self) -> Drafter {
        let SpeculationOptions { lookup_min, lookup_max, .. } = self.options;
        Drafter {
            index: NgramIndex::new(lookup_min, lookup_max),
            acceptance: Acceptance::new(SEQUENCE_MEMORY),
            proposal: Vec::new(),
        }
    }

    /// Holds what was proposed for a sequence against the tokens that it got; a step computed the first `computed` of the
    /// proposal and kept the first `accepted`.
    pub(super) fn observe(&mut self, drafter: &Drafter, got: &[u32], computed: usize, accepted: usize) -> Acceptance {
        let proposal = &drafter.proposal;
        let right = proposal.iter().zip(got).take_while(|(proposed, token)| proposed == token).count();
        let wrong = right < proposal.len().min(got.len());
        self.acceptance.observe(right, wrong);
        self.totals.add(computed, accepted, proposal.len().saturating_sub(computed));
        let mut acceptance = drafter.acceptance;
        acceptance.observe(right, wrong);
        acceptance
    }
}

impl Sequence {
    /// Looks up what may follow: not past the end of the request, and nothing from a stop token on.
    fn propose(&mut self, num_tokens: usize) -> usize {
        let Some(drafter) = self.drafter.as_mut() else { return 0 };
        // One more token is sampled after the last of the draft.
        let room = self.end.saturating_sub(self.tokens.len()).saturating_sub(1);
        drafter.index.propose(&self.tokens, num_tokens.min(room), &mut drafter.proposal);
        let stop = drafter.proposal.iter().position(|token| self.stop_tokens.contains(token));
        drafter.proposal.truncate(stop.unwrap_or(usize::MAX));
        drafter.proposal.len()
    }

    /// The first `count` tokens of what was looked up.
    pub(super) fn draft(&self, count: usize) -> &[u32] {
        self.drafter.as_ref().and_then(|drafter| drafter.proposal.get(..count)).unwrap_or_default()
    }

    /// Takes in the tokens from `from` on, of which the first `accepted` were computed as drafts.
    pub(super) fn learn(&mut self, speculation: &mut Speculation, from: usize, computed: usize, accepted: usize) {
        let Some(drafter) = self.drafter.as_mut() else { return };
        let got = self.tokens.get(from..).unwrap_or_default();
        drafter.acceptance = speculation.observe(drafter, got, computed, accepted);
        drafter.proposal.clear();
    }
}

impl Scheduler {
    /// How many draft tokens each running sequence gets beside its chunk, with at most `left` tokens in all.
    pub(super) fn draft(&mut self, chunks: &[usize], left: usize) -> Vec<usize> {
        let mut drafts = vec![0; chunks.len()];
        let Some(speculation) = &self.speculation else { return drafts };
        let prior = speculation.acceptance.share(UNSEEN);
        let (mut tokens, mut sequences, mut rows) = (0, 0, 0);
        // Each token with the chance that it is kept, and its sequence.
        let mut offered: Vec<(f64, usize)> = Vec::new();
        for (place, (sequence, &count)) in self.running.iter_mut().zip(chunks).enumerate() {
            if count == 0 {
                continue;
            }
            tokens += count;
            sequences += 1;
            let written = sequence.blocks.as_ref().map_or(0, SequenceBlocks::written);
            rows += sequence.scored(written..written + count).len();
            if written + count < sequence.tokens.len() {
                continue;
            }
            rows += 1;
            let proposed = sequence.propose(speculation.options.num_tokens);
            let share = sequence.drafter.as_ref().map_or(0.0, |drafter| drafter.acceptance.share(prior));
            let chances = std::iter::successors(Some(share), |chance| Some(chance * share));
            offered.extend(chances.take(proposed).map(|chance| (chance, place)));
        }
        // Stable: tokens of one sequence stay in their order, since their chances fall.
        offered.sort_by(|left, right| right.0.total_cmp(&left.0));
        offered.truncate(left);
        let chosen = speculation.choose((tokens, sequences, rows), &offered, &self.options);
        for (_, place) in offered.iter().take(chosen) {
            if let Some(count) = drafts.get_mut(*place) {
                *count += 1;
            }
        }
        for ((sequence, &count), draft) in self.running.iter_mut().zip(chunks).zip(&mut drafts) {
            let Some(blocks) = sequence.blocks.as_mut() else { continue };
            // What is missing is not worth a page of anybody else.
            while *draft > 0 && self.pool.reserve(blocks, blocks.written() + count + *draft).is_err() {
                *draft -= 1;
            }
        }
        drafts
    }

    /// Notes what a step took from its start until its tokens were sampled. Whether drafts pay is decided by these times.
    pub fn record(&mut self, batch: &Batch, took: Duration) {
        if let Some(speculation) = &mut self.speculation {
            speculation.times.record(Work::new(*batch.shape(), batch.tokens()), took);
        }
    }

    /// What became of drafts; `None` without speculation.
    #[must_use]
    pub fn speculation(&self) -> Option<&SpeculationTotals> {
        self.speculation.as_ref().map(|speculation| &speculation.totals)
    }
}

impl Speculation {
    /// How many of the tokens in `offered` pay in a step of so many tokens, sequences and rows of logits.
    fn choose(
        &self,
        (tokens, sequences, rows): (usize, usize, usize),
        offered: &[(f64, usize)],
        options: &SchedulerOptions,
    ) -> usize {
        if offered.is_empty() {
            return 0;
        }
        let work = |drafts| {
            let shape = options.shape(tokens + drafts, sequences, rows + drafts)?;
            Some(Work::new(shape, tokens + drafts))
        };
        let Some(plain) = work(0) else { return 0 };
        let mut gain = 0.0;
        let mut choices: Vec<Choice> = Vec::new();
        for (drafts, (chance, _)) in (1..).zip(offered) {
            gain += chance;
            // More rows than any program has.
            let Some(work) = work(drafts) else { break };
            let choice = Choice { drafts, gain, work };
            match choices.last_mut() {
                // The more the better where the time is the same.
                Some(last) if last.work == work => *last = choice,
                _ => choices.push(choice),
            }
        }
        self.times.best(tokens, plain, &choices)
    }
}
