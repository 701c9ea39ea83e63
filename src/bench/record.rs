//! A run on disk: what was asked for, of whom, and what came of each point.
//!
//! Invariant: the file is replaced whole after each point, so a reader finds a run that it understands whenever the writer
//! was killed; what is lost is the point that was under way.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::account::Figures;
use super::endpoint::Facts;
use super::point::{Grid, Point};

/// The format that is written, and the only one that is read.
pub const FORMAT: &str = "gemma4ctl.bench/1";

/// What a sweep is made of. Two runs with equal settings and seeds send the same requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The points.
    pub grid: Grid,
    /// Tokens of an answer; half the context where that is less.
    pub output_tokens: u64,
    /// In a closed loop, requests of each user at a point.
    pub requests_per_user: u64,
    /// In an open loop, seconds for which requests arrive at a point.
    pub seconds: f64,
    /// Requests before each point that are not counted, one after another.
    pub warm_up: u64,
    /// Seconds after which a request has failed.
    pub timeout: f64,
    /// What prompts and arrivals are drawn by.
    pub seed: u64,
}

/// How far a point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not measured yet.
    Waiting,
    /// Cannot run there.
    Skipped,
    /// Every request was answered as it had to be.
    Passed,
    /// Some were not.
    Failed,
}

impl Status {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Skipped => "skipped",
            Status::Passed => "passed",
            Status::Failed => "failed",
        }
    }
}

/// A point and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The point.
    #[serde(flatten)]
    pub point: Point,
    /// Tokens of each prompt.
    pub prompt_tokens: u64,
    /// Tokens of each answer.
    pub output_tokens: u64,
    /// How far it is.
    pub status: Status,
    /// Why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub figures: Option<Figures>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Format of the file.
    pub format: String,
    /// Name of the run.
    pub name: String,
    /// What the operator says of it, which nobody measured.
    pub notes: BTreeMap<String, String>,
    /// The endpoint.
    pub endpoint: Facts,
    /// What was asked for.
    pub settings: Settings,
    /// When it began.
    pub began: String,
    /// When its last point was done.
    pub ended: Option<String>,
    /// All points of the grid.
    pub points: Vec<Measured>,
}

/// A run that cannot be read, written or gone on with.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The operating system refuses.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path} is not a run of `gemma4ctl bench` that this gemma4ctl reads: {message}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Another process writes it.
    #[error("another `gemma4ctl bench` writes {0}; wait for it or end it, or choose another `--out`")]
    Busy(PathBuf),
}

/// As long as it lives, no other bench writes the file. The operating system lets go of it after a crash.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Run {
    /// A run with nothing measured; points that do not fit are skipped from the start.
    pub fn new(name: String, notes: BTreeMap<String, String>, endpoint: Facts, settings: Settings) -> Self {
        let pool = endpoint.kv_pool.as_ref().map(|pool| pool.tokens);
        let points = settings.grid.points().map(|point| {
            let (prompt_tokens, output_tokens) = point.tokens(settings.output_tokens);
            let reason = point.does_not_fit(endpoint.max_model_len, pool);
            let status = if reason.is_some() { Status::Skipped } else { Status::Waiting };
            Measured { point, prompt_tokens, output_tokens, status, reason, figures: None }
        });
        let points = points.collect();
        Self { format: FORMAT.to_owned(), name, notes, endpoint, settings, began: now(), ended: None, points }
    }

    /// Points with this status.
    pub fn count(&self, status: Status) -> usize {
        self.points.iter().filter(|point| point.status == status).count()
    }

    /// Why `other`, asked for now, is another run than this one; `None` if it goes on with it.
    pub fn differs(&self, other: &Run) -> Option<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, here: String, there: String| {
            if here != there {
                differences.push(format!("{what} was {here} and is {there}"));
            }
        };
        compare("the model", json(&self.endpoint.model), json(&other.endpoint.model));
        compare("the plan", json(&self.endpoint.plan), json(&other.endpoint.plan));
        compare("the longest sequence", json(&self.endpoint.max_model_len), json(&other.endpoint.max_model_len));
        compare("the KV pool", json(&self.endpoint.kv_pool), json(&other.endpoint.kv_pool));
        compare("what is asked for", json(&self.settings), json(&other.settings));
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// The file's text.
    ///
    /// # Errors
    /// If there is no JSON for it.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// The run in a file.
    ///
    /// # Errors
    /// If it cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let bytes =
            std::fs::read(path).map_err(|error| RecordError::File { what: "read", path: path.to_owned(), error })?;
        let foreign = |message: String| RecordError::Foreign { path: path.to_owned(), message };
        // The format first: another version may have another shape.
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| foreign(error.to_string()))?;
        if value["format"] != FORMAT {
            return Err(foreign(format!("its format is {}, not \"{FORMAT}\"", value["format"])));
        }
        serde_json::from_value(value).map_err(|error| foreign(error.to_string()))
    }
}

/// A value as JSON, to compare and to show.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl Lock {
    /// Keeps other benches from writing `path`.
    ///
    /// # Errors
    /// If one of them does, or the folder takes no file.
    pub fn of(path: &Path) -> Result<Self, RecordError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Beside the file, which is replaced each time it is written.
        let beside = path.with_file_name(format!(".{name}.lock"));
        let failed = |error| RecordError::File { what: "write", path: beside.clone(), error };
        let file = File::options().create(true).append(true).open(&beside).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(RecordError::Busy(path.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// This moment, to the second.
pub(crate) fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
