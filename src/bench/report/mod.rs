//! Runs beside each other: as a table for people, as CSV for programs, and as a page with heat maps.

mod csv;
mod html;
mod map;

use serde::Serialize;

use super::account::Figures;
use super::point::{Load, Point};
use super::record::{Measured, Run, Status};
use super::spike::{Spike, spikes};
use crate::words::{commas, plural};

pub use csv::csv;
pub use html::{PageError, html};

/// The point at which runs are compared beside their extremes: many users with a page of text each.
const BUSY: Point = Point { load: Load::Users(256), context: 2048 };

/// Runs, and what is worth telling of them.
#[derive(Debug)]
pub struct Report<'a> {
    runs: Vec<(&'a Run, Vec<Spike>)>,
}

/// A line of the comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What is compared.
    pub label: String,
    /// What it is of each run.
    pub cells: Vec<Cell>,
}

/// What a run has in a line of the comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// The value.
    pub text: String,
    /// The point that it is of, or more about it.
    pub detail: String,
    /// Whether something is wrong with it.
    pub marked: bool,
}

impl Cell {
    fn new(text: impl Into<String>, detail: impl Into<String>, marked: bool) -> Self {
        Self { text: text.into(), detail: detail.into(), marked }
    }

    fn absent() -> Self {
        Self::new("–", "", false)
    }
}

impl<'a> Report<'a> {
    /// Of these runs, in this order.
    pub fn new(runs: &'a [Run]) -> Self {
        Self { runs: runs.iter().map(|run| (run, spikes(run))).collect() }
    }

    /// The runs and their spikes.
    pub fn runs(&self) -> impl Iterator<Item = (&'a Run, &[Spike])> {
        self.runs.iter().map(|(run, spikes)| (*run, spikes.as_slice()))
    }

    /// The comparison. A line that says nothing of any run is left out.
    pub fn rows(&self) -> Vec<Row> {
        let row = |label: &str, cell: &dyn Fn(&Run, &[Spike]) -> Cell| Row {
            label: label.to_owned(),
            cells: self.runs().map(|(run, spikes)| cell(run, spikes)).collect(),
        };
        let mut rows = vec![
            row("Model", &|run, _| Cell::new(&run.endpoint.model, "", false)),
            row("Plan", &plan),
            row("Passed", &passed),
            row("Peak output", &|run, _| best(run, |figures| Some(figures.output_tokens_per_second), "tokens/s")),
            row("Peak prompt", &|run, _| best(run, |figures| Some(figures.prompt_tokens_per_second), "tokens/s")),
            row("Peak requests", &|run, _| best(run, |figures| Some(figures.requests_per_second), "requests/s")),
            row("First token, alone", &alone),
            row("256 users x 2,048 tokens", &busy),
            row("Slowest point", &slowest),
            row("Spikes", &|_, spikes| match spikes.first() {
                None => Cell::new("none", "", false),
                Some(worst) => Cell::new(commas(spikes.len() as u64), of_spike(worst), true),
            }),
            row("Failed requests", &failures),
            row("Prompt tokens from the cache", &cached),
        ];
        let mut notes: Vec<&String> = self.runs().flat_map(|(run, _)| run.notes.keys()).collect();
        notes.sort();
        notes.dedup();
        rows.extend(notes.into_iter().map(|key| {
            Row {
                label: format!("{key} (as noted)"),
                cells: self
                    .runs()
                    .map(|(run, _)| run.notes.get(key).map_or_else(Cell::absent, |note| Cell::new(note, "", false)))
                    .collect(),
            }
        }));
        rows.retain(|row| row.cells.iter().any(|cell| *cell != Cell::absent()));
        rows
    }
}

/// A spike in words.
pub fn of_spike(spike: &Spike) -> String {
    let Spike { point, seconds: took, factor, than, than_seconds } = spike;
    format!("{point}: {}, {factor:.0} times as slow as {than} ({})", seconds(*took), seconds(*than_seconds))
}

/// What came of a run, in a line.
pub fn outcome(run: &Run) -> String {
    let counts = [Status::Passed, Status::Failed, Status::Skipped, Status::Waiting]
        .into_iter()
        .map(|status| (status, run.count(status)))
        .filter(|(status, count)| *count > 0 || *status == Status::Passed);
    let counts: Vec<String> = counts.map(|(status, count)| format!("{count} {}", status.word())).collect();
    format!("{}: {}", plural(run.points.len(), "point"), counts.join(", "))
}

fn measured(run: &Run) -> impl Iterator<Item = (&Measured, &Figures)> {
    run.points.iter().filter_map(|measured| Some((measured, measured.figures.as_ref()?)))
}

fn plan(run: &Run, _: &[Spike]) -> Cell {
    match &run.endpoint.plan {
        Some(plan) => Cell::new(&plan.profile, short(&plan.digest), false),
        None => Cell::absent(),
    }
}

/// The first digits of a digest.
fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn passed(run: &Run, _: &[Spike]) -> Cell {
    let (passed, failed) = (run.count(Status::Passed), run.count(Status::Failed));
    let tried = passed + failed;
    let share = if tried == 0 { 0.0 } else { 100.0 * passed as f64 / tried as f64 };
    let others = [(run.count(Status::Skipped), "do not fit"), (run.count(Status::Waiting), "not measured")];
    let others: Vec<String> =
        others.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let share = if passed == tried { 100.0 } else { share.min(99.9) };
    Cell::new(format!("{passed} of {tried} ({share:.0} %)"), others.join(", "), failed > 0)
}

fn best(run: &Run, of: fn(&Figures) -> Option<f64>, unit: &str) -> Cell {
    let values = measured(run).filter_map(|(measured, figures)| Some((measured.point, of(figures)?)));
    let best = values.max_by(|left, right| left.1.total_cmp(&right.1)).filter(|(_, value)| *value > 0.0);
    best.map_or_else(Cell::absent, |(point, value)| {
        Cell::new(format!("{} {unit}", rate(value)), point.to_string(), false)
    })
}

/// The least load with the shortest context that was measured.
fn alone(run: &Run, _: &[Spike]) -> Cell {
    let first = measured(run).find_map(|(measured, figures)| Some((measured.point, figures.ttft?.p50)));
    first.map_or_else(Cell::absent, |(point, ttft)| Cell::new(seconds(ttft), point.to_string(), false))
}

fn busy(run: &Run, spikes: &[Spike]) -> Cell {
    let found = measured(run).find(|(measured, _)| measured.point == BUSY);
    let Some(times) = found.and_then(|(_, figures)| figures.end_to_end) else { return Cell::absent() };
    let spike = spikes.iter().any(|spike| spike.point == BUSY);
    Cell::new(seconds(times.p50), if spike { "end to end, median; spike" } else { "end to end, median" }, spike)
}

fn slowest(run: &Run, _: &[Spike]) -> Cell {
    let slowest = measured(run).max_by(|left, right| left.1.seconds.total_cmp(&right.1.seconds));
    slowest.map_or_else(Cell::absent, |(measured, figures)| {
        Cell::new(seconds(figures.seconds), measured.point.to_string(), false)
    })
}

fn failures(run: &Run, _: &[Spike]) -> Cell {
    let mut reasons = std::collections::BTreeMap::<&str, u64>::new();
    for failures in measured(run).flat_map(|(_, figures)| &figures.failures) {
        *reasons.entry(&failures.reason).or_default() += failures.count;
    }
    let total: u64 = reasons.values().sum();
    if total == 0 {
        return Cell::new("none", "", false);
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{} {reason}", commas(*count))).collect();
    Cell::new(commas(total), reasons.join(", "), true)
}

fn cached(run: &Run, _: &[Spike]) -> Cell {
    let counts = measured(run).map(|(_, figures)| Some((figures.prompt_tokens, figures.cached_prompt_tokens?)));
    let Some(counts) = counts.collect::<Option<Vec<(u64, u64)>>>() else {
        return Cell::new("unknown", "the endpoint does not say", false);
    };
    let (prompt, cached) =
        counts.iter().fold((0, 0), |(prompt, cached), counts| (prompt + counts.0, cached + counts.1));
    if prompt == 0 {
        return Cell::absent();
    }
    let share = 100.0 * cached as f64 / prompt as f64;
    Cell::new(format!("{share:.1} %"), format!("{} of {}", commas(cached), commas(prompt)), false)
}

/// A time with three digits, in the unit that suits it.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 9.995 => format!("{seconds:.2} s"),
        _ if seconds < 99.95 => format!("{seconds:.1} s"),
        _ => format!("{} s", commas(seconds.round() as u64)),
    }
}

/// A rate with three digits at least.
pub fn rate(rate: f64) -> String {
    match rate {
        _ if rate < 9.995 => format!("{rate:.2}"),
        _ if rate < 99.95 => format!("{rate:.1}"),
        _ => commas(rate.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let times = [0.000_44, 0.009_96, 0.3021, 0.9999, 1.157, 12.34, 131.99, 1234.5].map(seconds);
        assert_eq!(times, ["0.4 ms", "10.0 ms", "302 ms", "1.00 s", "1.16 s", "12.3 s", "132 s", "1,235 s"]);
        assert_eq!([3.814, 72.83, 231.19, 467_825.4].map(rate), ["3.81", "72.8", "231", "467,825"]);
    }
}
