//! The page: one file without scripts, fonts or pictures from elsewhere.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;
use thiserror::Error;

use super::super::point::Load;
use super::super::record::{Run, Status};
use super::super::spike::{FACTOR, SECONDS, Spike};
use super::map::{KINDS, Map, map, scale};
use super::{Report, Row, of_spike, outcome, seconds};
use crate::words::{commas, plural};

/// The page's template.
const TEMPLATE: &str = include_str!("../../../templates/bench-report.html.j2");

/// A page that cannot be made.
#[derive(Debug, Error)]
#[error("the report cannot be written as HTML: {0}; this is a bug")]
pub struct PageError(#[from] minijinja::Error);

#[derive(Serialize)]
struct Page<'a> {
    title: String,
    names: Vec<&'a str>,
    rows: Vec<Row>,
    runs: Vec<Section<'a>>,
    changes: Vec<Changes<'a>>,
    factor: f64,
    spike_seconds: String,
}

/// A run on the page.
#[derive(Serialize)]
struct Section<'a> {
    name: &'a str,
    outcome: String,
    facts: Vec<(&'static str, String)>,
    maps: Vec<Map>,
    spikes: Vec<String>,
    failures: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    point: String,
    reason: String,
    count: String,
    example: String,
}

/// Points that are much slower or faster than in the first run.
#[derive(Serialize)]
struct Changes<'a> {
    name: &'a str,
    first: &'a str,
    slower: Vec<Change>,
    faster: usize,
    compared: usize,
}

#[derive(Serialize)]
struct Change {
    point: String,
    before: String,
    after: String,
    factor: String,
}

/// A change of a point's median that is told, in times.
const CHANGED: f64 = 1.5;

/// The report as a page.
///
/// # Errors
/// If the template does not render.
pub fn html(report: &Report<'_>) -> Result<String, PageError> {
    let runs: Vec<&Run> = report.runs().map(|(run, _)| run).collect();
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let sections = report.runs().map(|(run, spikes)| section(run, spikes, &runs)).collect();
    let changes = runs.iter().skip(1).filter_map(|run| Some((run, runs.first()?)));
    let page = Page {
        title: names.join(", "),
        rows: report.rows(),
        changes: changes.map(|(run, first)| compare(run, first)).collect(),
        runs: sections,
        names,
        factor: FACTOR,
        spike_seconds: seconds(SECONDS),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    Ok(environment.render_named_str("bench-report.html", TEMPLATE, Value::from(Serde(&page)))?)
}

fn section<'a>(run: &'a Run, spikes: &[Spike], all: &[&Run]) -> Section<'a> {
    let failures = run.points.iter().filter_map(|measured| Some((measured.point, measured.figures.as_ref()?)));
    let failures = failures.flat_map(|(point, figures)| {
        figures.failures.iter().map(move |failures| Failed {
            point: point.to_string(),
            reason: failures.reason.clone(),
            count: commas(failures.count),
            example: failures.example.clone(),
        })
    });
    Section {
        name: &run.name,
        outcome: outcome(run),
        facts: facts(run),
        maps: KINDS.iter().map(|kind| map(run, spikes, kind, scale(all, kind))).collect(),
        spikes: spikes.iter().map(of_spike).collect(),
        failures: failures.collect(),
    }
}

/// What the figures hold under.
fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let (endpoint, settings) = (&run.endpoint, &run.settings);
    let mut facts = Vec::new();
    if let Some(plan) = &endpoint.plan {
        facts.push(("Plan", plan.profile.clone()));
        facts.push(("Digest", plan.digest.clone()));
    }
    facts.push(("Endpoint", endpoint.url.clone()));
    facts.push(("Model", endpoint.model.clone()));
    if let Some(longest) = endpoint.max_model_len {
        facts.push(("Longest sequence", format!("{} tokens", commas(longest))));
    }
    if let Some(pool) = &endpoint.kv_pool {
        facts.push(("KV pool", format!("{} tokens ({})", commas(pool.tokens), pool.from)));
    }
    let is_open = settings.grid.loads.iter().any(|load| matches!(load, Load::PerSecond(_)));
    facts.push((
        "Load",
        if is_open {
            format!("open loop, {} s of arrivals a point", settings.seconds)
        } else {
            format!(
                "closed loop, {} of each user a point",
                plural(usize::try_from(settings.requests_per_user).unwrap_or(usize::MAX), "request")
            )
        },
    ));
    facts.push(("Answers", format!("{} tokens, half the context where that is less", settings.output_tokens)));
    facts.push((
        "Warm-up",
        format!("{} a point, not counted", plural(usize::try_from(settings.warm_up).unwrap_or(usize::MAX), "request")),
    ));
    facts.push(("Seed", settings.seed.to_string()));
    let ended = match &run.ended {
        Some(ended) => format!("{} to {ended}", run.began),
        None => format!("{}, not complete: {} wait", run.began, plural(run.count(Status::Waiting), "point")),
    };
    facts.push(("Measured", ended));
    facts
}

/// Points of `run` that are not as they are in `first`.
fn compare<'a>(run: &'a Run, first: &'a Run) -> Changes<'a> {
    let median = |run: &Run, point| {
        let measured = run.points.iter().find(|measured| measured.point == point)?;
        Some(measured.figures.as_ref()?.end_to_end?.p50)
    };
    let pairs = run.points.iter().filter_map(|measured| {
        let point = measured.point;
        Some((point, median(first, point)?, median(run, point)?))
    });
    let pairs: Vec<_> = pairs.collect();
    let mut slower: Vec<_> = pairs.iter().filter(|(_, before, after)| after / before > CHANGED).collect();
    slower.sort_by(|left, right| (right.2 / right.1).total_cmp(&(left.2 / left.1)));
    Changes {
        name: &run.name,
        first: &first.name,
        faster: pairs.iter().filter(|(_, before, after)| before / after > CHANGED).count(),
        compared: pairs.len(),
        slower: slower
            .into_iter()
            .map(|(point, before, after)| Change {
                point: point.to_string(),
                before: seconds(*before),
                after: seconds(*after),
                factor: format!("{:.1}", after / before),
            })
            .collect(),
    }
}
