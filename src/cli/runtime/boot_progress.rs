//! How far a boot is: a bar on a terminal, else a line now and then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gemma4_engine::runner::Stage;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written at least, when something happens.
const PAUSE: Duration = Duration::from_secs(2);

/// Shows the stages of a boot.
pub(super) struct BootProgress {
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

struct State {
    stage: &'static str,
    began: Instant,
    told: Option<Instant>,
}

impl BootProgress {
    pub(super) fn new(terminal: bool) -> Self {
        let style = ProgressStyle::with_template("{prefix:10} {bar:40} {msg}");
        let bar = || ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let state = State { stage: "", began: Instant::now(), told: None };
        Self { bar: terminal.then(bar), state: Mutex::new(state) }
    }

    /// Shows that a part of a stage is done.
    pub(super) fn show(&self, stage: &Stage) {
        let (name, done, total, what) = match stage {
            Stage::Aligning(progress) => {
                ("aligning", progress.done, progress.total, mebibytes(progress.done, progress.total))
            }
            Stage::Weights(progress) => {
                ("weights", progress.done, progress.total, mebibytes(progress.done, progress.total))
            }
            Stage::Programs(prepared) => {
                let how = if prepared.cached { "from the cache" } else { "compiled" };
                let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
                let what = format!("{} of {}, {} {how}", prepared.done, prepared.total, prepared.name);
                ("programs", count(prepared.done), count(prepared.total), what)
            }
            Stage::WarmUp => ("warm-up", 0, 1, "the first step".to_owned()),
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stage != name {
            *state = State { stage: name, began: Instant::now(), told: None };
        }
        let left = left(state.began.elapsed(), done, total);
        let text = match left {
            Some(left) if left >= Duration::from_secs(1) => format!("{what}, about {} s left", left.as_secs()),
            _ => what,
        };
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(name);
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(text);
            }
            None if done >= total || state.told.is_none_or(|told| told.elapsed() >= PAUSE) => {
                state.told = Some(Instant::now());
                tracing::info!(stage = name, done, total, "{text}");
            }
            None => {}
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn mebibytes(done: u64, total: u64) -> String {
    format!("{} of {} MiB", done >> 20, total >> 20)
}

/// How long the rest takes, if it goes on as it went.
fn left(elapsed: Duration, done: u64, total: u64) -> Option<Duration> {
    // Precise enough to be read by people.
    let share = (total.saturating_sub(done)) as f64 / (done > 0).then_some(done)? as f64;
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * share).ok()
}
