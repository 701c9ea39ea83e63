//! Launches on disk: one folder each, with `launch.json` and the plan that it runs.
//!
//! Every file is written whole or not at all, the plan before the record that speaks of it, so a reader finds a state
//! that it understands whenever the writer was killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use gemma4_plan::Plan;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The format that is written, and the only one that is read.
const FORMAT: &str = "gemma4ctl.launch/1";

/// What is known of a launch. No secret ever enters it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Format of the file.
    pub format: String,
    /// Name of the launch.
    pub name: String,
    /// Where it was launched.
    pub target: String,
    /// How far it came.
    pub status: Status,
    /// Digest of the plan.
    pub digest: String,
    /// Name of the profile.
    pub profile: String,
    /// Where the service answers.
    pub base_url: String,
    /// What finds it again: the container's id; project, zone and machine; context, namespace and workload.
    #[serde(default)]
    pub ids: BTreeMap<String, String>,
    /// What it was started with, once it was.
    #[serde(default)]
    pub fingerprint: Option<Fingerprint>,
}

/// Hashes of what a plan became where it was launched. They hold what the plan's digest leaves out: `[deploy]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of what made the machine.
    pub machine: String,
    /// Of what runs on it.
    pub service: String,
}

/// How far a launch came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Written before anything is started: a crash may have left a container or not.
    Creating,
    /// It was ready.
    Running,
    /// It stopped, or did not get ready.
    Failed,
}

impl Status {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Running => "running",
            Status::Failed => "failed",
        }
    }
}

/// Why launches cannot be read or written.
#[derive(Debug, Error)]
pub enum StateError {
    /// No folder is known for them.
    #[error("no folder for launches is known: set HOME or GEMMA4CTL_STATE_DIR")]
    NoFolder,
    /// The operating system refuses.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "{path} is not a record of a launch that this gemma4ctl reads: {message}; `gemma4ctl destroy {name}` removes it"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Name of the launch.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// Another process works on the launch.
    #[error("another gemma4ctl is at work on {0}; wait for it or end it")]
    Busy(String),
}

impl Launch {
    /// A launch that is about to start.
    pub fn new(name: &str, target: &str, plan: &Plan, base_url: &str) -> Self {
        Launch {
            format: FORMAT.to_owned(),
            name: name.to_owned(),
            target: target.to_owned(),
            status: Status::Creating,
            digest: plan.digest.clone(),
            profile: plan.profile.name.clone(),
            base_url: base_url.to_owned(),
            ids: BTreeMap::new(),
            fingerprint: None,
        }
    }
}

/// The folder of all launches.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// As long as it lives, no other process changes the launch. The operating system lets go of it after a crash.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Whether `name` can be that of a launch: what Docker takes as a container's name, so never a path nor an option.
pub fn is_name(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

impl Store {
    /// `$GEMMA4CTL_STATE_DIR`, else `gemma4ctl` in the platform's folder for state.
    ///
    /// # Errors
    /// If there is neither.
    pub fn of_user() -> Result<Self, StateError> {
        let folder = match std::env::var_os("GEMMA4CTL_STATE_DIR").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => {
                use etcetera::BaseStrategy as _;
                let base = etcetera::base_strategy::choose_base_strategy().map_err(|_| StateError::NoFolder)?;
                base.state_dir().unwrap_or_else(|| base.data_dir()).join("gemma4ctl")
            }
        };
        Ok(Store { folder: folder.join("launches") })
    }

    /// Names of all launches, in order.
    ///
    /// # Errors
    /// If the folder is there and cannot be read.
    pub fn names(&self) -> Result<Vec<String>, StateError> {
        let failed = |error| StateError::File { what: "read", path: self.folder.clone(), error };
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if self.holds(&name) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is a record under `name`, readable or not.
    pub fn holds(&self, name: &str) -> bool {
        is_name(name) && self.record(name).symlink_metadata().is_ok()
    }

    /// The record of `name`.
    ///
    /// # Errors
    /// If it is there and cannot be used.
    pub fn read(&self, name: &str) -> Result<Option<Launch>, StateError> {
        let path = self.record(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::File { what: "read", path, error }),
        };
        let foreign = |message| StateError::Foreign { path: path.clone(), name: name.to_owned(), message };
        // The format first: another version may have another shape.
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| foreign(error.to_string()))?;
        if value["format"] != FORMAT {
            return Err(foreign(format!("its format is {}, not \"{FORMAT}\"", value["format"])));
        }
        let launch: Launch = serde_json::from_value(value).map_err(|error| foreign(error.to_string()))?;
        if launch.name != name {
            return Err(foreign("it is of another launch".to_owned()));
        }
        Ok(Some(launch))
    }

    /// The plan that `launch` runs. `None` if it cannot be read, or belongs to a start that never came to be recorded.
    pub fn plan(&self, launch: &Launch) -> Option<Plan> {
        let bytes = std::fs::read(self.folder.join(&launch.name).join("plan.json")).ok()?;
        gemma4_plan::read(&bytes).ok().filter(|plan| plan.digest == launch.digest)
    }

    /// Records `launch`, and the plan where it is a new one.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn write(&self, launch: &Launch, plan: Option<&str>) -> Result<(), StateError> {
        let folder = self.folder.join(&launch.name);
        make(&folder)?;
        if let Some(plan) = plan {
            write_whole(&folder.join("plan.json"), plan)?;
        }
        // Strings and an enum: this has a JSON form.
        let text = serde_json::to_string_pretty(launch).unwrap_or_default();
        write_whole(&self.record(&launch.name), &format!("{text}\n"))
    }

    /// Forgets `name`, the record first: a folder without one is no launch.
    ///
    /// # Errors
    /// If the disk does not let go of it.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let absent_is_fine = |what, path: &Path, result: std::io::Result<()>| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StateError::File { what, path: path.to_owned(), error })
            }
            _ => Ok(()),
        };
        let (record, folder) = (self.record(name), self.folder.join(name));
        if !record.is_dir() {
            absent_is_fine("remove", &record, std::fs::remove_file(&record))?;
        }
        absent_is_fine("remove", &folder, std::fs::remove_dir_all(&folder))
    }

    /// Keeps other processes from changing `name`.
    ///
    /// # Errors
    /// If one of them is at it.
    pub fn lock(&self, name: &str) -> Result<Lock, StateError> {
        make(&self.folder)?;
        // Beside the launch's folder, since that comes and goes. A dot: no launch has such a name.
        let path = self.folder.join(format!(".{name}.lock"));
        let failed = |error| StateError::File { what: "write", path: path.clone(), error };
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(StateError::Busy(name.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The folder of a launch.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn record(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("launch.json")
    }
}

fn make(folder: &Path) -> Result<(), StateError> {
    std::fs::create_dir_all(folder).map_err(|error| StateError::File { what: "make", path: folder.to_owned(), error })
}

/// Writes into a neighbour, then renames, and waits for the disk both times.
fn write_whole(path: &Path, text: &str) -> Result<(), StateError> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // A folder cannot be opened everywhere; where it can, the new name is on the disk afterwards.
        File::open(folder).and_then(|folder| folder.sync_all()).or(Ok(()))
    };
    write().map_err(|error| StateError::File { what: "write", path: path.to_owned(), error })
}
