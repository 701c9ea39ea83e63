//! A heat map: the points of a run with one figure each, coloured on a scale that all runs share.

use serde::Serialize;

use super::super::account::Figures;
use super::super::point::{Load, Point};
use super::super::record::{Run, Status};
use super::super::spike::Spike;
use super::{of_spike, rate, seconds};
use crate::words::commas;

/// What a map shows.
pub(super) struct Kind {
    pub(super) title: &'static str,
    pub(super) note: &'static str,
    /// The name of its colours in the style sheet.
    pub(super) palette: &'static str,
    pub(super) of: fn(&Figures) -> Option<f64>,
    pub(super) show: fn(f64) -> String,
}

/// The maps of a run.
pub(super) const KINDS: [Kind; 4] = [
    Kind {
        title: "Output throughput",
        note: "generated tokens a second; prompt tokens are not in it",
        palette: "rate",
        of: |figures| Some(figures.output_tokens_per_second).filter(|rate| *rate > 0.0),
        show: rate,
    },
    Kind {
        title: "Time to first token",
        note: "median",
        palette: "time",
        of: |figures| Some(figures.ttft?.p50),
        show: seconds,
    },
    Kind {
        title: "Time between tokens",
        note: "median over requests",
        palette: "time",
        of: |figures| Some(figures.inter_token?.p50),
        show: seconds,
    },
    Kind {
        title: "End to end",
        note: "99th percentile",
        palette: "time",
        of: |figures| Some(figures.end_to_end?.p99),
        show: seconds,
    },
];

/// A map, ready to be drawn.
#[derive(Debug, Serialize)]
pub(super) struct Map {
    title: &'static str,
    note: &'static str,
    palette: &'static str,
    row_title: &'static str,
    columns: Vec<String>,
    rows: Vec<MapRow>,
    /// The ends of the scale.
    low: String,
    high: String,
}

#[derive(Debug, Serialize)]
struct MapRow {
    label: String,
    cells: Vec<MapCell>,
}

#[derive(Debug, Serialize)]
struct MapCell {
    /// `value`, `failed`, `skipped`, `waiting` or `absent`.
    kind: &'static str,
    text: String,
    /// Place on the scale in percent.
    heat: u32,
    spike: bool,
    /// More about it.
    title: String,
}

/// The least and the greatest value of all runs.
pub(super) fn scale(runs: &[&Run], kind: &Kind) -> (f64, f64) {
    let figures = runs.iter().flat_map(|run| &run.points).filter_map(|measured| measured.figures.as_ref());
    let values = figures.filter_map(kind.of);
    values.fold((f64::INFINITY, 0.0), |(low, high), value| (low.min(value), high.max(value)))
}

pub(super) fn map(run: &Run, spikes: &[Spike], kind: &Kind, (low, high): (f64, f64)) -> Map {
    let grid = &run.settings.grid;
    let rows = grid.loads.iter().map(|&load| MapRow {
        label: label(load),
        cells: grid
            .contexts
            .iter()
            .map(|&context| cell(run, Point { load, context }, spikes, kind, (low, high)))
            .collect(),
    });
    let is_open = grid.loads.iter().any(|load| matches!(load, Load::PerSecond(_)));
    let end = |value: f64| if value.is_finite() { (kind.show)(value) } else { String::new() };
    Map {
        title: kind.title,
        note: kind.note,
        palette: kind.palette,
        row_title: if is_open { "requests/s" } else { "users" },
        columns: grid.contexts.iter().map(|context| commas(*context)).collect(),
        // The most users at the top, as on a chart.
        rows: rows.rev().collect(),
        low: end(low),
        high: end(high),
    }
}

fn label(load: Load) -> String {
    match load {
        Load::Users(users) => commas(users),
        Load::PerSecond(rate) => rate.to_string(),
    }
}

fn cell(run: &Run, point: Point, spikes: &[Spike], kind: &Kind, (low, high): (f64, f64)) -> MapCell {
    let Some(measured) = run.points.iter().find(|measured| measured.point == point) else {
        // The diagonal leaves out the others.
        return MapCell { kind: "absent", text: String::new(), heat: 0, spike: false, title: point.to_string() };
    };
    let spike = spikes.iter().find(|spike| spike.point == point);
    let value = measured.figures.as_ref().and_then(kind.of);
    let span = (high / low).ln();
    // Times and rates span orders of magnitude.
    let heat = value.map_or(0.0, |value| if span > 0.0 { (value / low).ln() / span } else { 0.0 });
    let failures = measured.figures.iter().flat_map(|figures| &figures.failures);
    let failures: Vec<String> =
        failures.map(|failures| format!("{} {}: {}", failures.count, failures.reason, failures.example)).collect();
    let mut title = vec![point.to_string()];
    title.extend(value.map(kind.show));
    title.extend(measured.reason.clone());
    title.extend(failures);
    title.extend(spike.map(|spike| format!("spike: {}", of_spike(spike))));
    let (name, text) = match measured.status {
        Status::Skipped => ("skipped", String::new()),
        Status::Waiting => ("waiting", String::new()),
        Status::Failed => ("failed", value.map(kind.show).unwrap_or_default()),
        Status::Passed => ("value", value.map(kind.show).unwrap_or_default()),
    };
    MapCell {
        kind: name,
        text,
        heat: (heat.clamp(0.0, 1.0) * 100.0).round() as u32,
        spike: spike.is_some(),
        title: title.join("\n"),
    }
}
