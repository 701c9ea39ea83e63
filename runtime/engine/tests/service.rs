//! The engine's thread with a model made of arithmetic: what goes in comes out, whatever happens around it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use gemma4_engine::engine::{EndReason, Engine, Event, Generation, GenerationRequest, SubmitError};
use gemma4_engine::pool::PoolOptions;
use gemma4_engine::runner::{Logits, RunError, Runner};
use gemma4_engine::sampling::SamplingParams;
use gemma4_engine::scheduler::{Batch, Refusal, Scheduler, SchedulerOptions, StepShape};
use gemma4_model::graph::StepInput;

const VOCABULARY: usize = 97;

/// What follows `token` at `position`.
fn next(token: i32, position: i32) -> u32 {
    u32::try_from((token * 31 + position * 7 + 11).rem_euclid(97)).expect("a token")
}

fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let position = i32::try_from(tokens.len() - 1).expect("small");
        tokens.push(next(i32::try_from(*tokens.last().expect("a prompt")).expect("small"), position));
    }
    tokens.split_off(prompt.len())
}

/// Opens and closes the way of steps.
#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Door {
    fn set(&self, open: bool) {
        *self.open.lock().expect("a lock") = open;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let guard = self.open.lock().expect("a lock");
        drop(self.changed.wait_while(guard, |open| !*open).expect("a lock"));
    }
}

struct Arithmetic {
    door: Arc<Door>,
    steps: Arc<AtomicU64>,
    fail_at: Option<u64>,
}

impl Runner for Arithmetic {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        self.door.pass();
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        if self.fail_at == Some(step) {
            return Err(RunError { step: batch.step(), reason: "the device went away".to_owned() });
        }
        let (tokens, positions) = (batch.input(StepInput::TokenIds), batch.input(StepInput::Positions));
        let mut values = Vec::new();
        for row in batch.input(StepInput::LogitRows) {
            let row = usize::try_from(*row).expect("a row");
            let best = next(tokens[row], positions[row]);
            values.extend((0_u32..).take(VOCABULARY).map(|token| if token == best { 9.0 } else { 0.0 }));
        }
        Ok(Logits::new(values, VOCABULARY))
    }
}

struct Setup {
    engine: Engine,
    door: Arc<Door>,
    steps: Arc<AtomicU64>,
}

fn scheduler(pages: usize, max_queue: usize) -> Scheduler {
    let shape =
        StepShape { tokens: 32, sequences: 8, rows: 8, query_tile: 16, items: 10, full_table: 32, sliding_table: 12 };
    let options = SchedulerOptions {
        max_model_len: 256,
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_queue,
        vocab_size: VOCABULARY,
        shapes: vec![shape],
        pool: PoolOptions { pages, full_block: 8, sliding_block: 8, window: 16, prefix_caching: true },
        speculation: None,
    };
    Scheduler::new(options).expect("a scheduler")
}

fn setup(pages: usize, max_queue: usize, fail_at: Option<u64>) -> Setup {
    let (door, steps) = (Arc::new(Door::default()), Arc::new(AtomicU64::new(0)));
    door.set(true);
    let runner = Arithmetic { door: Arc::clone(&door), steps: Arc::clone(&steps), fail_at };
    let engine = Engine::start(scheduler(pages, max_queue), Box::new(runner)).expect("a thread");
    Setup { engine, door, steps }
}

fn greedy(prompt: &[u32], max_tokens: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: SamplingParams::greedy(),
        ..GenerationRequest::default()
    }
}

fn collect(mut generation: Generation) -> (Vec<u32>, EndReason) {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().expect("an end") {
            Event::Started(_) => assert!(tokens.is_empty(), "it starts before its first token"),
            Event::Prompt(_) => assert!(tokens.is_empty(), "the prompt comes first"),
            Event::Token(token) => tokens.push(token.id),
            Event::End(end) => {
                assert!(generation.blocking_next().is_none(), "the end is the last event");
                return (tokens, end.reason);
            }
        }
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn many_requests_get_what_each_would_get_alone() {
    let Setup { engine, steps, .. } = setup(40, 4096, None);
    let prompts: Vec<Vec<u32>> =
        (0..200_u32).map(|seed| (0..seed % 60 + 1).map(|at| (seed + at * 3) % 97).collect()).collect();
    let generations: Vec<Generation> = prompts
        .iter()
        .enumerate()
        .map(|(at, prompt)| engine.submit(greedy(prompt, at % 30 + 1)).expect("taken"))
        .collect();
    for (at, (generation, prompt)) in generations.into_iter().zip(&prompts).enumerate() {
        let (tokens, reason) = collect(generation);
        assert_eq!((tokens, reason), (expected(prompt, at % 30 + 1), EndReason::Length), "request {at}");
    }
    assert!(engine.is_idle());
    let statistics = engine.statistics();
    assert_eq!(statistics.load.pages.used, 0);
    assert!(statistics.load.totals.preemptions > 0, "the pool was small enough to preempt");
    assert_eq!(statistics.step_tokens.iter().sum::<u64>(), steps.load(Ordering::SeqCst));
}

#[test]
fn a_stop_token_ends_a_request_and_min_tokens_rule_it_out() {
    let Setup { engine, .. } = setup(40, 4096, None);
    let tokens = expected(&[5], 10);
    let stop = GenerationRequest { stop_tokens: vec![tokens[3]], ..greedy(&[5], 10) };
    let until = tokens.iter().position(|token| *token == tokens[3]).expect("there") + 1;
    assert_eq!(collect(engine.submit(stop.clone()).expect("taken")), (tokens[..until].to_vec(), EndReason::Stop));
    let later = GenerationRequest { min_tokens: 6, ..stop };
    let (others, _) = collect(engine.submit(later).expect("taken"));
    assert!(others.len() >= 7 && !others[..6].contains(&tokens[3]), "{others:?}");
}

#[test]
fn whoever_goes_away_gives_the_pages_back_before_the_next_step() {
    let Setup { engine, door, steps } = setup(40, 4096, None);
    door.set(false);
    let generation = engine.submit(greedy(&[1, 2, 3], 200)).expect("taken");
    wait_for("the first step", || engine.statistics().load.running == 1);
    assert!(engine.statistics().load.pages.used > 0);
    // The step of this request runs, and waits at the door.
    drop(generation);
    assert_eq!(engine.statistics().load.pages.used, 0);
    assert!(engine.is_idle());
    door.set(true);
    let (tokens, _) = collect(engine.submit(greedy(&[9], 3)).expect("taken"));
    assert_eq!(tokens, expected(&[9], 3));
    assert_eq!(steps.load(Ordering::SeqCst), 4, "one step of the request that went, three of the other");
}

#[test]
fn a_full_queue_refuses_and_forgets_nobody() {
    let Setup { engine, door, .. } = setup(40, 3, None);
    door.set(false);
    let first = engine.submit(greedy(&[1], 4)).expect("taken");
    wait_for("the first step", || engine.statistics().load.running == 1);
    let waiting: Vec<Generation> = (2..5).map(|token| engine.submit(greedy(&[token], 4)).expect("taken")).collect();
    let refused = engine.submit(greedy(&[6], 4)).err();
    assert_eq!(refused, Some(SubmitError::Refused(Refusal::QueueFull { limit: 3 })));
    door.set(true);
    assert_eq!(collect(first).0, expected(&[1], 4));
    for (token, generation) in (2..5).zip(waiting) {
        assert_eq!(collect(generation).0, expected(&[token], 4));
    }
}

#[test]
fn a_step_that_fails_ends_every_request_and_refuses_the_next() {
    let Setup { engine, door, .. } = setup(40, 4096, Some(2));
    door.set(false);
    let generations: Vec<Generation> =
        (1..20).map(|token| engine.submit(greedy(&[token], 50)).expect("taken")).collect();
    door.set(true);
    for generation in generations {
        let EndReason::Failed(reason) = collect(generation).1 else { panic!("it cannot have gone on") };
        assert!(reason.contains("the device went away"), "{reason}");
    }
    assert!(matches!(engine.submit(greedy(&[1], 1)), Err(SubmitError::Failed(_))));
    assert!(engine.failure().is_some_and(|failure| failure.contains("the device went away")));
    assert_eq!(engine.statistics().load.pages.used, 0);
}

#[test]
fn a_closed_engine_finishes_what_it_has() {
    let Setup { engine, .. } = setup(40, 4096, None);
    let generation = engine.submit(greedy(&[3], 100)).expect("taken");
    engine.close();
    assert_eq!(engine.submit(greedy(&[3], 1)).err(), Some(SubmitError::Closed));
    assert_eq!(collect(generation).0, expected(&[3], 100));
}

#[test]
fn a_cached_prefix_is_told() {
    let Setup { engine, .. } = setup(40, 4096, None);
    let prompt: Vec<u32> = (0..50).collect();
    assert_eq!(collect(engine.submit(greedy(&prompt, 2)).expect("taken")).0, expected(&prompt, 2));
    let mut again = engine.submit(greedy(&prompt, 2)).expect("taken");
    let Some(Event::Started(started)) = again.blocking_next() else { panic!("the start is the first event") };
    assert_eq!(started.cached_tokens, 48);
    let end = loop {
        match again.blocking_next() {
            Some(Event::End(end)) => break end,
            other => assert!(other.is_some()),
        }
    };
    assert_eq!(end.cached_tokens, 48);
    let timings = end.timings;
    assert!(timings.arrived <= timings.scheduled.expect("ran") && timings.scheduled <= timings.first_token);
    assert_eq!(timings.scheduled, Some(started.at));
}

/// Logits of 0, but for tokens behind token 13: those are not numbers.
struct Unlucky;

impl Runner for Unlucky {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        let tokens = batch.input(StepInput::TokenIds);
        let of_row = |row: &i32| {
            let unlucky = tokens[usize::try_from(*row).expect("a row")] == 13;
            std::iter::repeat_n(if unlucky { f32::NAN } else { 0.0 }, VOCABULARY)
        };
        Ok(Logits::new(batch.input(StepInput::LogitRows).iter().flat_map(of_row).collect(), VOCABULARY))
    }
}

#[test]
fn logits_of_a_prompt_that_are_no_numbers_fail_its_request_alone() {
    let engine = Engine::start(scheduler(64, 8), Box::new(Unlucky)).expect("a thread");
    let ask = |prompt: &[u32], prompt_logprobs, max_tokens| {
        let request = GenerationRequest { prompt_logprobs, ..greedy(prompt, max_tokens) };
        engine.submit(request).expect("taken")
    };
    let mut long: Vec<u32> = (20..40).collect();
    let whole = ask(&long, Some(2), 3);
    long[15] = 13;
    let (broken, blind) = (ask(&long, Some(2), 3), ask(&long, None, 3));
    let only = ask(&long[..15], Some(0), 0);
    assert_eq!(collect(whole), (vec![0; 3], EndReason::Length));
    assert!(
        matches!(collect(broken), (tokens, EndReason::Failed(why)) if tokens.is_empty() && why.contains("numbers"))
    );
    assert_eq!(collect(blind), (vec![0; 3], EndReason::Length));
    let mut scored = Vec::new();
    let mut only = only;
    while let Some(event) = only.blocking_next() {
        match event {
            Event::Started(_) => {}
            Event::Prompt(logprobs) => scored.extend(logprobs),
            Event::Token(token) => panic!("nothing was to be generated: {token:?}"),
            Event::End(end) => assert_eq!((end.reason, end.timings.first_token), (EndReason::Length, None)),
        }
    }
    assert_eq!(scored.len(), 14);
    assert!(scored.iter().all(|logprobs| logprobs.rank == 1 && logprobs.top.is_empty()), "{scored:?}");
    assert!(engine.is_idle() && engine.failure().is_none());
}
