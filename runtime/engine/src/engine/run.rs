//! The engine's thread: plan a step, run it, sample, tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{End, EndReason, Event, Events, STEP_TOKENS, Shared, Started, State, Timings, Token};
use crate::masks::Masks;
use crate::runner::{Logits, Runner};
use crate::sampling::{Logprobs, SampleError, Sampled, Sampler, Scratch};
use crate::scheduler::{Batch, Finish, Part, RequestId};

/// What the thread knows of a request.
pub(super) struct Live {
    sampler: Sampler,
    /// How many alternatives are wanted with each token of the prompt.
    prompt_logprobs: Option<usize>,
    events: Events,
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    cached_tokens: usize,
    preemptions: u64,
}

impl Live {
    pub(super) const fn new(
        sampler: Sampler,
        prompt_logprobs: Option<usize>,
        events: Events,
        arrived: Instant,
    ) -> Self {
        let (scheduled, first_token) = (None, None);
        Self { sampler, prompt_logprobs, events, arrived, scheduled, first_token, cached_tokens: 0, preemptions: 0 }
    }

    /// Sends the last event. Nobody may be there to take it.
    fn end(self, reason: EndReason) {
        let Self { arrived, scheduled, first_token, cached_tokens, preemptions, .. } = self;
        let timings = Timings { arrived, scheduled, first_token, finished: Instant::now() };
        let _ = self.events.send(Event::End(End { reason, timings, cached_tokens, preemptions }));
    }
}

/// Requests that run or wait.
type Requests = HashMap<RequestId, Live>;

/// Runs steps until the last handle is gone or a step fails.
pub(super) fn run(shared: &Arc<Shared>, mut runner: Box<dyn Runner>) {
    let mut guard = FailOnPanic { shared, requests: Requests::new() };
    let mut scratch = Scratch::default();
    let vocab_size = shared.lock().scheduler.options().vocab_size;
    while let Some((batch, begun)) = next_batch(shared, &mut guard.requests) {
        let start = Instant::now();
        let outcome = if needs_masks(&guard.requests, &batch) {
            runner.run_masked(&batch, &mut || masks(&mut guard.requests, &batch, vocab_size))
        } else {
            runner.run(&batch)
        };
        let outcome = outcome.map_err(|error| error.to_string());
        let outcome = outcome.and_then(|logits| step(shared, &mut guard.requests, &batch, &logits, &mut scratch));
        if let Err(reason) = outcome {
            fail(shared, &mut guard.requests, &reason);
            return;
        }
        let took = start.elapsed();
        let mut state = shared.lock();
        state.busy += begun.elapsed();
        // What logprobs of prompts take says nothing of what drafts would.
        if batch.parts().iter().all(|part| part.scored.is_empty()) {
            state.scheduler.record(&batch, took);
        }
    }
}

/// Waits for something to do and plans it; tells when it began to. `None` when the thread has to end.
fn next_batch(shared: &Shared, requests: &mut Requests) -> Option<(Batch, Instant)> {
    let mut state = shared.lock();
    loop {
        requests.extend(state.arrivals.drain(..));
        for gone in state.gone.drain(..) {
            requests.remove(&gone);
        }
        if state.ending {
            return None;
        }
        let begun = Instant::now();
        match state.scheduler.plan_step() {
            Ok(Some(batch)) => {
                count(&mut state, &batch);
                drop(state);
                let now = Instant::now();
                for started in batch.started() {
                    if let Some(live) = requests.get_mut(&started.request) {
                        live.preemptions += u64::from(live.scheduled.is_some());
                        if live.scheduled.is_none() {
                            live.scheduled = Some(now);
                            live.cached_tokens = started.cached_tokens;
                            let started = Started { at: now, cached_tokens: started.cached_tokens };
                            // Nobody may be there to take it: then the request is about to be cancelled.
                            let _ = live.events.send(Event::Started(started));
                        }
                    }
                }
                return Some((batch, begun));
            }
            Ok(None) => state = shared.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
            Err(error) => {
                drop(state);
                fail(shared, requests, &error.to_string());
                return None;
            }
        }
    }
}

fn count(state: &mut State, batch: &Batch) {
    let tokens = u64::try_from(batch.tokens()).unwrap_or(u64::MAX);
    state.computed_tokens = state.computed_tokens.saturating_add(tokens);
    let class = STEP_TOKENS.iter().position(|bound| tokens <= *bound).unwrap_or(STEP_TOKENS.len());
    if let Some(class) = state.step_tokens.get_mut(class) {
        *class += 1;
    }
}

/// Whether a sequence with a grammar has rows of logits in a step.
fn needs_masks(requests: &Requests, batch: &Batch) -> bool {
    let mut sampled = batch.parts().iter().filter(|part| !part.logits.is_empty());
    sampled.any(|part| requests.get(&part.request).is_some_and(|live| live.sampler.needs_mask()))
}

/// What the rows of a step's logits allow.
fn masks(requests: &mut Requests, batch: &Batch, vocab_size: usize) -> Masks {
    let mut masks = Masks::new(batch.shape().rows, vocab_size);
    for part in batch.parts().iter().filter(|part| !part.logits.is_empty()) {
        if let Some(live) = requests.get_mut(&part.request) {
            live.sampler.mask(part.logits.clone(), &part.draft, &mut masks);
        }
    }
    masks
}

/// Logprobs of prompts' tokens by request, or the first thing that was wrong with one.
type Scores = HashMap<RequestId, Result<Vec<Logprobs>, SampleError>>;

/// Logprobs of the prompts' tokens that come from a step's rows, by request.
fn scores(requests: &Requests, batch: &Batch, logits: &Logits) -> Scores {
    let wanted = |part: &Part| {
        let count = requests.get(&part.request).and_then(|live| live.prompt_logprobs);
        let rows = count.map_or(0..0, |_| part.scored_rows());
        let rows = rows.zip(part.scored.clone()).map(move |(row, token)| (row, token, count.unwrap_or_default()));
        rows.collect::<Vec<_>>()
    };
    let of_parts: Vec<(RequestId, Vec<_>)> = batch.parts().iter().map(|part| (part.request, wanted(part))).collect();
    let rows: Vec<_> = of_parts.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
    let mut logprobs = Logprobs::of_prompts(logits, &rows).into_iter();
    let of_parts = of_parts.into_iter().filter(|(_, rows)| !rows.is_empty());
    let of_part = |(request, rows): (RequestId, Vec<_>)| {
        // All of its rows first: what is wrong with one of them must not shift those of the next request.
        let of_rows: Vec<_> = logprobs.by_ref().take(rows.len()).collect();
        (request, of_rows.into_iter().collect())
    };
    of_parts.map(of_part).collect()
}

/// Samples the step's tokens, takes them in and tells whoever waits for them.
fn step(
    shared: &Shared,
    requests: &mut Requests,
    batch: &Batch,
    logits: &Logits,
    scratch: &mut Scratch,
) -> Result<(), String> {
    let mut sampled: Vec<Option<Sampled>> = Vec::with_capacity(batch.logits());
    let mut failed: Vec<(RequestId, String)> = Vec::new();
    let mut scores = scores(requests, batch, logits);
    for part in batch.parts() {
        // Rows of its prompt.
        sampled.resize_with(part.logits.start, || None);
        if let Some(Err(error)) = scores.get(&part.request) {
            failed.push((part.request, error.to_string()));
            sampled.resize_with(part.logits.end, || None);
            continue;
        }
        for row in part.logits.clone() {
            // Requests that went away have no sampler; the scheduler passes over them too.
            let Some(live) = requests.get_mut(&part.request) else { break };
            match live.sampler.sample_masked(logits.row(row), logits.unmasked_row(row), scratch) {
                Ok(token) => {
                    let follows = part.draft.get(row - part.logits.start) == Some(&token.token);
                    sampled.push(Some(token));
                    if !follows {
                        break;
                    }
                }
                Err(error) => {
                    failed.push((part.request, error.to_string()));
                    break;
                }
            }
        }
        // Rows that follow a draft token which was not sampled.
        sampled.resize_with(part.logits.end, || None);
    }
    let tokens: Vec<u32> = sampled.iter().map(|sampled| sampled.as_ref().map_or(0, |sampled| sampled.token)).collect();
    let progress = {
        let mut state = shared.lock();
        for (request, _) in &failed {
            state.scheduler.cancel(*request);
        }
        state.scheduler.commit(batch, &tokens).map_err(|error| error.to_string())?
    };
    let now = Instant::now();
    for (request, reason) in failed {
        if let Some(live) = requests.remove(&request) {
            live.end(EndReason::Failed(reason));
        }
    }
    for (request, scores) in scores.drain() {
        if let (Some(live), Ok(scores)) = (requests.get(&request), scores) {
            // Nobody may be there to take them: then the request is about to be cancelled.
            let _ = live.events.send(Event::Prompt(scores));
        }
    }
    for progress in progress {
        let Some(live) = requests.get_mut(&progress.request) else { continue };
        if let Some((row, id)) = progress.sampled {
            let sampled = sampled.get_mut(row).and_then(Option::take);
            live.first_token.get_or_insert(now);
            let logprobs = sampled.and_then(|sampled| sampled.logprobs);
            let _ = live.events.send(Event::Token(Token { id, logprobs, at: now }));
        }
        let Some(finish) = progress.finish else { continue };
        if let Some(live) = requests.remove(&progress.request) {
            live.end(match finish {
                Finish::Stop => EndReason::Stop,
                Finish::MaxTokens | Finish::ModelLength => EndReason::Length,
            });
        }
    }
    Ok(())
}

/// Ends all requests and takes no more.
fn fail(shared: &Shared, requests: &mut Requests, reason: &str) {
    let mut state = shared.lock();
    state.failure = Some(reason.to_owned());
    state.closed = true;
    requests.extend(state.arrivals.drain(..));
    for request in requests.keys() {
        state.scheduler.cancel(*request);
    }
    drop(state);
    for (_, live) in requests.drain() {
        live.end(EndReason::Failed(reason.to_owned()));
    }
}

/// Tells all requests, should the thread ever panic.
struct FailOnPanic<'a> {
    shared: &'a Shared,
    requests: Requests,
}

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(self.shared, &mut self.requests, "the engine panicked; this is a bug");
        }
    }
}
