//! How far a sweep is: a line for each point that is done, and on a terminal the point under way.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::record::{Measured, Run, Status};
use crate::bench::report::{rate, seconds};
use crate::bench::sweep::{Clock, News};
use crate::cli::output::note;

/// Shows news of a sweep.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    clock: Clock,
}

impl Progress {
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {wide_msg}");
        let bar = || {
            let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        };
        Self { bar: std::io::stderr().is_terminal().then(bar), clock: Clock::default() }
    }

    pub(super) fn show(&mut self, run: &Run, news: &News<'_>) {
        let done = run.points.len() - run.count(Status::Waiting);
        let left =
            |clock: &Clock| clock.left(run).map(|left| format!(", about {} left", time(left))).unwrap_or_default();
        match news {
            News::Begins(measured) => {
                self.clock.begins();
                if let Some(bar) = &self.bar {
                    bar.set_message(format!(
                        "{} of {}: {}{}",
                        done + 1,
                        run.points.len(),
                        measured.point,
                        left(&self.clock)
                    ));
                }
            }
            News::Done(measured) => {
                self.clock.done(measured.point);
                let line = format!("{done}/{} {}{}", run.points.len(), result(measured), left(&self.clock));
                match &self.bar {
                    Some(bar) => bar.suspend(|| note(&line)),
                    None => note(&line),
                }
            }
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What came of a point, in a line.
fn result(measured: &Measured) -> String {
    let mut text = format!("{}: {}", measured.point, measured.status.word());
    let Some(figures) = &measured.figures else { return text };
    text.push_str(&format!(" in {}", seconds(figures.seconds)));
    if figures.succeeded > 0 {
        text.push_str(&format!(", {} tokens/s out", rate(figures.output_tokens_per_second)));
    }
    if let Some(ttft) = figures.ttft {
        text.push_str(&format!(", first token {}", seconds(ttft.p50)));
    }
    for failures in &figures.failures {
        text.push_str(&format!(
            "; {} of {} {}: {}",
            failures.count, figures.requests, failures.reason, failures.example
        ));
    }
    text
}

/// A time to wait.
fn time(left: Duration) -> String {
    match left.as_secs() {
        seconds @ 0..=89 => format!("{seconds} s"),
        seconds @ 90..=5399 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}
