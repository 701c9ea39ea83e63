//! `status [NAME]`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::apply::{launch_name, not_launched, short};
use super::output::note;
use super::{Output, ResultFormat};
use crate::apply::state::{Launch, Store};
use crate::apply::{self, Difference, Found, Life, Place, Target, differences, same_digest};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Name of a launch, or its profile; all launches without it
    name: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: ResultFormat,
}

/// The state of a launch that is as it should be.
const HEALTHY: &str = "running and healthy";

/// One launch as it is now.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    target: Option<String>,
    profile: Option<String>,
    digest: Option<String>,
    recorded: Option<&'static str>,
    state: String,
    running_digest: Option<String>,
    ids: BTreeMap<String, String>,
    url: Option<String>,
    /// Settings of the running service that are not the plan's.
    differences: Vec<Difference>,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let store = Store::of_user()?;
    let names = match &arguments.name {
        None => store.names()?,
        Some(argument) => {
            let name = launch_name(&store, argument, output)?;
            if !store.holds(&name) {
                return Err(not_launched(argument, &name));
            }
            vec![name]
        }
    };
    let mut problems = Vec::new();
    let rows: Vec<Row> = names.into_iter().map(|name| look(&store, name, &mut problems)).collect();
    problems.dedup();
    problems.iter().for_each(|problem| note(&format!("warning: {problem}")));
    match (arguments.format, &arguments.name) {
        (ResultFormat::Json, _) => {
            output.line(serde_json::to_string_pretty(&serde_json::json!({ "launches": rows }))?);
        }
        (ResultFormat::Text, Some(_)) => rows.iter().for_each(|row| detail(output, row)),
        (ResultFormat::Text, None) if rows.is_empty() => note("nothing is launched"),
        (ResultFormat::Text, None) => table(output, &rows),
    }
    Ok(0)
}

fn look(store: &Store, name: String, problems: &mut Vec<String>) -> Row {
    let launch = match store.read(&name) {
        Ok(launch) => launch,
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let (state, running) = match observe(store, &name, launch.as_ref()) {
        Ok(observed) => observed,
        Err(error) => {
            problems.push(error);
            ("unknown".to_owned(), None)
        }
    };
    let differences = launch.as_ref().map(|launch| compare(store, launch, &state));
    let differences = differences.unwrap_or(Ok(Vec::new())).unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    Row {
        differences,
        target: launch.as_ref().map(|launch| launch.target.clone()),
        profile: launch.as_ref().map(|launch| launch.profile.clone()),
        digest: launch.as_ref().map(|launch| launch.digest.clone()),
        recorded: launch.as_ref().map(|launch| launch.status.word()),
        ids: launch.as_ref().map(|launch| launch.ids.clone()).unwrap_or_default(),
        url: launch.map(|launch| launch.base_url),
        name,
        state,
        running_digest: running,
    }
}

/// Where a service of the bundled engine on this machine does something else than its plan says.
fn compare(store: &Store, launch: &Launch, state: &str) -> Result<Vec<Difference>, String> {
    let here = [Target::Local, Target::Docker].iter().any(|target| target.word() == launch.target);
    match store.plan(launch) {
        Some(plan) if here && state == HEALTHY && plan.engine.kind == "bundled" => differences(&plan, &launch.base_url),
        _ => Ok(Vec::new()),
    }
}

/// What a launch is now, in a word or two, and which plan it runs.
fn observe(store: &Store, name: &str, launch: Option<&Launch>) -> Result<(String, Option<String>), String> {
    let place = apply::reopen(store, name, launch).map_err(|error| error.to_string())?;
    let Some(place) = place else { return Err(format!("the record of {name} cannot be read")) };
    let found = place.look().map_err(|error| error.to_string())?;
    Ok((word(place.as_ref(), found.as_ref()), found.and_then(|found| found.digest)))
}

fn word(place: &dyn Place, found: Option<&Found>) -> String {
    match found {
        None => "gone".to_owned(),
        Some(found) if found.digest.is_none() => "gone, its name is taken".to_owned(),
        Some(Found { life: Life::Ended, state, .. }) => state.to_lowercase(),
        Some(Found { life: Life::Coming, state, .. }) => format!("coming: {}", state.to_lowercase()),
        Some(found) if place.answers(found) => HEALTHY.to_owned(),
        Some(_) => "running, not ready".to_owned(),
    }
}

fn table(output: &mut Output, rows: &[Row]) {
    let mut lines = vec![["name", "target", "digest", "state", "url"].map(str::to_owned)];
    for row in rows {
        let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
        lines.push([
            row.name.clone(),
            or_unknown(row.target.clone()),
            or_unknown(row.digest.as_deref().map(short)),
            if row.differences.is_empty() { row.state.clone() } else { format!("{}, not as planned", row.state) },
            or_unknown(row.url.clone()),
        ]);
    }
    let widths: Vec<usize> =
        (0..5).map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0)).collect();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        output.line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn detail(output: &mut Output, row: &Row) {
    let lines = [
        ("name", Some(row.name.as_str())),
        ("profile", row.profile.as_deref()),
        ("target", row.target.as_deref()),
        ("state", Some(row.state.as_str())),
        ("recorded", row.recorded),
        ("url", row.url.as_deref()),
        ("digest", row.digest.as_deref()),
    ];
    for (key, value) in lines {
        output.line(format!("{key:<10}  {}", value.unwrap_or("?")));
    }
    for (key, value) in &row.ids {
        output.line(format!("{key:<10}  {value}"));
    }
    if row.recorded == Some("creating") {
        output.line("an apply was cut off, or is at work; `gemma4ctl apply` takes it from here");
    }
    if let (Some(running), Some(recorded)) = (&row.running_digest, &row.digest)
        && !same_digest(running, recorded)
    {
        output.line(format!("what runs is another plan than the recorded one: {running}"));
    }
    for Difference { setting, plan, running } in &row.differences {
        output.line(format!("differs     {setting}: the plan says {plan}, the service runs with {running}"));
    }
}
