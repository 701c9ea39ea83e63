//! A model without weights: the next token is arithmetic on the last one and its position.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use gemma4_engine::runner::{Logits, RunError, Runner};
use gemma4_engine::scheduler::Batch;
use gemma4_model::graph::StepInput;

/// Tokens of the seeded tokenizer.
pub(crate) const VOCABULARY: u32 = 1024;
/// The end of a turn, one of the end tokens of the seeded checkpoint.
pub(crate) const END: u32 = 106;
/// The token of byte 0.
const BYTES: u32 = 238;

/// What follows `token` at `position`: words, and at times the two bytes of an e with an acute accent.
pub(crate) fn next(token: u32, position: u32) -> u32 {
    match position % 7 {
        3 => BYTES + 0xC3,
        4 => BYTES + 0xA9,
        _ => 500 + (token.wrapping_mul(31) + position * 17 + 11) % 260,
    }
}

/// What the model generates greedily.
pub(crate) fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let position = u32::try_from(tokens.len() - 1).expect("small");
        tokens.push(next(*tokens.last().expect("a prompt"), position));
    }
    tokens.split_off(prompt.len())
}

/// Opens and closes the way of steps.
#[derive(Default)]
pub(crate) struct Door {
    /// Steps that may go through, at most.
    limit: Mutex<Option<u64>>,
    changed: Condvar,
    steps: AtomicU64,
}

impl Door {
    pub(crate) fn set(&self, open: bool) {
        self.limit((!open).then_some(0));
    }

    /// Lets so many steps through, counted from the first; `None` for all.
    pub(crate) fn limit(&self, steps: Option<u64>) {
        *self.limit.lock().expect("a lock") = steps;
        self.changed.notify_all();
    }

    /// Steps that went through.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    fn pass(&self) {
        let guard = self.limit.lock().expect("a lock");
        let closed = |limit: &mut Option<u64>| limit.is_some_and(|limit| self.steps() >= limit);
        drop(self.changed.wait_while(guard, closed).expect("a lock"));
        self.steps.fetch_add(1, Ordering::SeqCst);
    }
}

/// A model that says what it is told to, and then ends its turn.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    tokens: Vec<u32>,
    /// Where the prompt of the request ends that runs.
    base: u32,
    last: Option<u32>,
}

impl Script {
    /// Has every request answered with these tokens. Requests come one after another, or with the same prompt.
    pub(crate) fn say(&self, tokens: &[u32]) {
        self.0.lock().expect("a lock").tokens = tokens.to_vec();
    }

    /// What comes after `token` at `position`.
    fn next(&self, token: u32, position: u32) -> u32 {
        let mut told = self.0.lock().expect("a lock");
        let said = |told: &Told| usize::try_from(position.checked_sub(told.base)?).ok();
        // What goes on was said before, or lies at the next position, where a grammar had another token said. Answers to one prompt
        // need not begin in one step.
        let was_said = said(&told)
            .is_some_and(|said| said.checked_sub(1).is_none_or(|before| told.tokens.get(before) == Some(&token)));
        if !was_said && !told.last.is_some_and(|last| position == last || position == last + 1) {
            told.base = position;
        }
        told.last = Some(position);
        said(&told).and_then(|said| told.tokens.get(said).copied()).unwrap_or(END)
    }
}

impl Runner for Script {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        let (tokens, positions) = (batch.input(StepInput::TokenIds), batch.input(StepInput::Positions));
        let mut values = Vec::new();
        for row in &batch.input(StepInput::LogitRows)[..batch.logits()] {
            let row = usize::try_from(*row).expect("a row");
            let best = self.next(tokens[row].cast_unsigned(), positions[row].cast_unsigned());
            values.extend((0..VOCABULARY).map(|token| if token == best { 9.0_f32 } else { 0.0 }));
        }
        Ok(Logits::new(values, VOCABULARY as usize))
    }
}

pub(crate) struct Arithmetic {
    pub(crate) door: Arc<Door>,
    /// Every sequence ends when it has so many tokens.
    pub(crate) end_at: Option<u32>,
    /// The step that fails.
    pub(crate) fail_at: Option<u64>,
}

impl Runner for Arithmetic {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        self.door.pass();
        if self.fail_at == Some(batch.step()) {
            return Err(RunError { step: batch.step(), reason: "the secret device went away".to_owned() });
        }
        let (tokens, positions) = (batch.input(StepInput::TokenIds), batch.input(StepInput::Positions));
        let mut values = Vec::new();
        for row in &batch.input(StepInput::LogitRows)[..batch.logits()] {
            let row = usize::try_from(*row).expect("a row");
            let (token, position) = (tokens[row].cast_unsigned(), positions[row].cast_unsigned());
            let best = if self.end_at == Some(position + 1) { END } else { next(token, position) };
            // At temperature 1 another token comes up now and then.
            values.extend((0..VOCABULARY).map(|token| if token == best { 9.0_f32 } else { 0.0 }));
        }
        Ok(Logits::new(values, VOCABULARY as usize))
    }
}
