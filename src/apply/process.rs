//! A process that serves, and the file by which it is found again.
//!
//! Invariant: the process itself writes the file, before it does anything that takes long; so whoever is killed while
//! starting it leaves nothing that nobody knows. A process is only taken for the one of the file if it also began when the
//! file says, since systems use their numbers again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it began, in the system's ticks.
    pub started: u64,
    /// Digest of the plan that it serves.
    pub digest: String,
    /// Where it answers.
    pub base_url: String,
}

impl Process {
    /// The calling process.
    ///
    /// # Errors
    /// If the system does not say when it began.
    pub fn this(digest: &str, base_url: &str) -> std::io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(std::io::Error::other)?;
        let started =
            started(pid).ok_or_else(|| std::io::Error::other("/proc does not say when this process began"))?;
        Ok(Self { pid, started, digest: digest.to_owned(), base_url: base_url.to_owned() })
    }

    /// The file of a launch's folder.
    pub fn file(folder: &Path) -> PathBuf {
        folder.join("process.json")
    }

    /// What a process wrote; `None` if there is no such file, or nothing that makes sense.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::file(folder)).ok()?).ok()
    }

    /// Whether it still runs.
    pub(super) fn runs(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Asks it to end, waits `grace` for the requests that it answers, and then ends it.
    pub(super) fn end(&self, grace: Duration) -> std::io::Result<()> {
        self.ask_to_end()?;
        if self.is_gone_within(grace) {
            return Ok(());
        }
        self.signal(rustix::process::Signal::KILL)?;
        if self.is_gone_within(Duration::from_secs(10)) {
            return Ok(());
        }
        Err(std::io::Error::other(format!("process {} does not end", self.pid)))
    }

    /// Asks it to end once its requests are answered.
    pub(super) fn ask_to_end(&self) -> std::io::Result<()> {
        self.signal(rustix::process::Signal::TERM)
    }

    fn signal(&self, signal: rustix::process::Signal) -> std::io::Result<()> {
        match rustix::process::Pid::from_raw(self.pid).filter(|_| self.runs()) {
            Some(pid) => Ok(rustix::process::kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    fn is_gone_within(&self, limit: Duration) -> bool {
        let begin = Instant::now();
        while self.runs() {
            if begin.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// When a process began, in ticks since the machine started; `None` if there is none, or only what its parent has not
/// looked at yet.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything; the state is the third field, the start the 22nd.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
