//! `runtime doctor`, and the child that loads a plugin for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use gemma4_pjrt::environment::TPU_COMPILE_ONLY;
use gemma4_pjrt::install::{Installer, Origin, Report, State, Target};
use gemma4_pjrt::{ApiVersion, Plugin};
use serde::Serialize;

use crate::child;
use crate::cli::{FINDINGS, Output, ResultFormat};
use crate::words::size;

/// How long a plugin may take to load; they take seconds on a slow disk.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// How to print what was found
    #[arg(long, value_enum, default_value = "text")]
    format: ResultFormat,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ProbeArguments {
    /// The plugin
    library: PathBuf,
}

/// What is told of a target. The names are a contract.
#[derive(Debug, Serialize)]
struct Row {
    target: &'static str,
    /// `ready`, `broken`, `missing` or `unavailable`.
    state: &'static str,
    /// What an installation gives, such as `libtpu==0.0.51`.
    package: String,
    /// Version of the C API, of the plugin that is there or else of the package.
    api: String,
    path: Option<PathBuf>,
    /// `variable`, `local` or `locked`.
    origin: Option<&'static str>,
    /// What is wrong.
    problem: Option<String>,
    /// What to do.
    help: Option<String>,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let reports = Installer::from_environment()?.doctor(&probe_in_child);
    let rows: Vec<Row> = reports.into_iter().map(row).collect();
    match arguments.format {
        ResultFormat::Json => output.line(serde_json::to_string_pretty(&serde_json::json!({ "targets": rows }))?),
        ResultFormat::Text => rows.iter().for_each(|row| text(output, row)),
    }
    let failed =
        rows.iter().any(|row| row.state == "broken" || row.path.is_none() && row.state == "unavailable" && wanted(row));
    Ok(if failed { FINDINGS } else { 0 })
}

/// Whether somebody asked for a plugin that is not there, by its variable.
fn wanted(row: &Row) -> bool {
    Target::ALL.iter().any(|target| target.name() == row.target && std::env::var_os(target.variable()).is_some())
}

fn row(report: Report) -> Row {
    let Report { target, requirement, api, state } = report;
    let command = format!("`gemma4ctl runtime install {}`", target.name());
    let row = Row {
        target: target.name(),
        state: "ready",
        package: requirement,
        api,
        path: None,
        origin: None,
        problem: None,
        help: None,
    };
    match state {
        State::Found { found, api } => {
            let row = Row { origin: Some(origin(found.origin)), path: Some(found.path.clone()), ..row };
            match api {
                Ok(api) => Row { api: api.to_string(), ..row },
                Err(problem) => {
                    let help = match found.origin {
                        Origin::Variable => format!("correct or unset {}", target.variable()),
                        _ => format!("remove {} and run {command}", found.path.display()),
                    };
                    Row { state: "broken", problem: Some(problem), help: Some(help), ..row }
                }
            }
        }
        State::Missing { bytes } => {
            Row { state: "missing", help: Some(format!("{command} fetches {}", size(bytes))), ..row }
        }
        State::Unavailable(error) => Row { state: "unavailable", problem: Some(error.to_string()), ..row },
    }
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Variable => "variable",
        Origin::Local => "local",
        Origin::Locked => "locked",
    }
}

fn text(output: &mut Output, row: &Row) {
    let what = match row.origin {
        Some("locked") | None => row.package.clone(),
        Some("local") => "installed from a file".to_owned(),
        Some(_) => "named by a variable".to_owned(),
    };
    output.line(format!("{:<5} {:<12} {what}, C API {}", row.target, row.state, row.api));
    let path = row.path.as_ref().map(|path| path.display().to_string());
    for line in [path, row.problem.clone(), row.help.clone()].iter().flatten().flat_map(|text| text.lines()) {
        output.line(format!("{:<19}{line}", ""));
    }
}

fn probe_in_child(_target: Target, path: &Path) -> Result<ApiVersion, String> {
    let words = ["runtime", "probe"].map(OsStr::new);
    // A TPU plugin otherwise takes the lock that a running service holds.
    let answer = child::run(&[words[0], words[1], path.as_os_str()], &TPU_COMPILE_ONLY, b"", LIMIT);
    let answer = answer.map_err(|error| error.to_string())?;
    let answer: Probed =
        serde_json::from_slice(&answer).map_err(|error| format!("the probe's answer makes no sense: {error}"))?;
    match answer {
        Probed::Api { major, minor } => Ok(ApiVersion { major, minor }),
        Probed::Problem(problem) => Err(problem),
    }
}

/// The child's answer.
#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Probed {
    Api { major: i32, minor: i32 },
    Problem(String),
}

/// The child: loads a plugin and prints what came of it.
pub(super) fn probe(arguments: &ProbeArguments, output: &mut Output) -> anyhow::Result<u8> {
    let probed = match Plugin::load(&arguments.library) {
        Ok(plugin) => {
            let ApiVersion { major, minor } = plugin.api_version();
            Probed::Api { major, minor }
        }
        Err(error) => Probed::Problem(error.to_string()),
    };
    output.line(serde_json::to_string(&probed).context("the answer cannot be written as JSON")?);
    Ok(0)
}
