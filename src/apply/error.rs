//! Why a launch failed.

use std::path::PathBuf;

use thiserror::Error;

use super::state::StateError;
use crate::checkpoint::CheckpointError;
use crate::emit::EmitError;

/// Why a launch failed.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A program is missing.
    #[error("{tool} is not installed, or not on PATH; {help}")]
    MissingTool {
        /// Its name.
        tool: &'static str,
        /// How to get it.
        help: &'static str,
    },
    /// A program failed.
    #[error("`{command}` failed: {message}")]
    Tool {
        /// What was run, without arguments that say nothing.
        command: String,
        /// What it says.
        message: String,
    },
    /// What has the name is somebody else's.
    #[error("{what} {name} is there that gemma4ctl did not start, and it stays; {help}")]
    Foreign {
        /// What it is, such as `a container`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        help: String,
    },
    /// The name cannot be that of a container.
    #[error(
        "`{0}` cannot name a container: use letters, digits, `_`, `.` and `-`, two at least, a letter or digit first"
    )]
    Name(String),
    /// A secret cannot be had.
    #[error("the secret {name} is not there: {message}")]
    Secret {
        /// Its name in the profile.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A folder or file for the launch cannot be made.
    #[error("cannot make {path}: {error}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// Another server has the port.
    #[error("port {0} of this machine is taken; stop what listens there, or choose another `server.port`")]
    PortTaken(u16),
    /// The service ended before it answered.
    #[error("{what} stopped before it was ready ({how}); above are its last lines")]
    Stopped {
        /// What it was.
        what: String,
        /// How it ended.
        how: String,
    },
    /// The service ended while this program stayed with it.
    #[error("{what} ended ({how}); its log is above")]
    Ended {
        /// What it was.
        what: String,
        /// How it ended.
        how: String,
    },
    /// The user has had enough.
    #[error("interrupted before it was ready; what was started is ended")]
    Interrupted,
    /// The weights are not there.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What was started is not there any more.
    #[error("{0} was removed by somebody else before it was ready")]
    Gone(String),
    /// It did not answer in time.
    #[error(
        "{name} was not ready after {seconds} s: {last}; it is left as it is: look at `gemma4ctl logs {name}`, `gemma4ctl apply` goes on waiting"
    )]
    NotReady {
        /// Name of the launch.
        name: String,
        /// How long it had.
        seconds: u64,
        /// What it said last.
        last: String,
    },
    /// It answers, but will not complete.
    #[error("{name} is up but refuses a completion (status {status}): {message}")]
    Refused {
        /// Its name.
        name: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// The plan and what is there cannot be brought together without losing something.
    #[error("{what}; {help}")]
    Kept {
        /// What stands in the way.
        what: String,
        /// What to do.
        help: String,
    },
    /// A setting is missing here and in the profile.
    #[error("{what} is not known; {help}")]
    Unset {
        /// What is missing.
        what: &'static str,
        /// How to say it.
        help: &'static str,
    },
    /// The record cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The plan cannot be launched this way.
    #[error(transparent)]
    Plan(#[from] EmitError),
}
