//! Running steps: what a plan becomes on devices.

mod boot;
mod programs;
mod xla;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use thiserror::Error;

pub use boot::{BootError, Booted, Durations, Places, Stage, boot};
pub use programs::{Prepared, ProgramError};

use crate::masks::Masks;
use crate::scheduler::Batch;

/// Runs steps: the devices, the weights and the pages are behind it.
pub trait Runner: Send {
    /// Runs a step and waits for its logits.
    ///
    /// # Errors
    /// [`RunError`], after which no further step is run: what the pages hold is not known any more.
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError>;

    /// Runs a step whose logits lose the tokens that masks forbid. `masks` is called once, if it can be while the step runs:
    /// making them takes as long as many a step. What stands here is for runners without a device, and masks on the host.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    fn run_masked(&mut self, batch: &Batch, masks: &mut dyn FnMut() -> Masks) -> Result<Logits, RunError> {
        let logits = self.run(batch)?;
        Ok(logits.masked(&masks()))
    }

    /// What it counts.
    fn counters(&self) -> Arc<Counters> {
        Arc::default()
    }
}

/// What a runner counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Programs that were compiled when a step waited for them.
    pub compiles_while_serving: AtomicU64,
    /// Programs that came compiled from the cache at the start.
    pub warm_cache_hits: AtomicU64,
    /// Programs that were compiled at the start.
    pub warm_cache_misses: AtomicU64,
    /// Token rows that were real and that the layers which share keys and values did not run for.
    pub fast_prefill_skipped_tokens: AtomicU64,
    /// Steps whose logits were masked on the devices.
    pub masked_steps: AtomicU64,
    /// Nanoseconds in which steps were on the devices: from their start to the end of the last device.
    pub device_nanoseconds: AtomicU64,
}

impl Counters {
    /// The value of a counter.
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Counts one more.
    pub fn add(counter: &AtomicU64) {
        Self::add_all(counter, 1);
    }

    /// Counts the time since `start`, in nanoseconds.
    pub fn add_since(counter: &AtomicU64, start: Instant) {
        Self::add_all(counter, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts several more.
    pub fn add_all(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// A step that failed.
#[derive(Debug, Error)]
#[error("step {step} failed: {reason}")]
pub struct RunError {
    /// Number of the step.
    pub step: u64,
    /// What happened.
    pub reason: String,
}

/// Logits `[R, V]` of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    /// What they were before masks, where masks asked for that.
    unmasked: Option<Vec<f32>>,
    vocab_size: usize,
}

impl Logits {
    /// Takes rows of `vocab_size` logits each.
    #[must_use]
    pub const fn new(values: Vec<f32>, vocab_size: usize) -> Self {
        Self { values, unmasked: None, vocab_size }
    }

    /// Keeps beside masked logits what they were before.
    #[must_use]
    pub fn with_unmasked(self, unmasked: Option<Vec<f32>>) -> Self {
        Self { unmasked, ..self }
    }

    /// These without the tokens that `masks` forbid.
    #[must_use]
    pub fn masked(mut self, masks: &Masks) -> Self {
        self.unmasked = masks.keeps_unmasked().then(|| self.values.clone());
        masks.apply(&mut self.values, self.vocab_size);
        self
    }

    /// A row; empty if there is none.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        self.row_of(&self.values, row)
    }

    /// A row as the model computed it, if no mask touched it or its masks asked for that.
    #[must_use]
    pub fn unmasked_row(&self, row: usize) -> &[f32] {
        self.row_of(self.unmasked.as_ref().unwrap_or(&self.values), row)
    }

    fn row_of<'a>(&self, values: &'a [f32], row: usize) -> &'a [f32] {
        let start = row.saturating_mul(self.vocab_size);
        values.get(start..start.saturating_add(self.vocab_size)).unwrap_or_default()
    }
}
