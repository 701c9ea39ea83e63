//! From a plan to a running service, and back.
//!
//! A launch is a plan that was started somewhere under a name. What is to be done follows from three things: the record
//! of the launch ([`state`]), what really runs, and the plan. Programs are started with argument arrays, never through
//! a shell; secrets are fetched when they are needed and go into the environment of the one program that passes them
//! on.

pub mod docker;
mod http;
mod secrets;
pub mod state;

use std::path::PathBuf;

use gemma4_plan::Plan;
use thiserror::Error;

use state::{Launch, StateError, Status};

/// Where a plan is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// A container on this machine
    Docker,
}

/// What a launch needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is there.
    Create,
    /// Something is there that has to go first.
    Replace(Reason),
    /// The right thing runs already; it has to be seen to answer.
    Await,
    /// The right thing runs and answers.
    Nothing,
}

/// Why something is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It runs another plan.
    OtherPlan,
    /// It runs the plan, but stopped.
    Stopped,
}

/// A container as Docker has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Whether it runs now.
    pub running: bool,
    /// How often Docker started it again.
    pub restarts: u64,
    /// What it last ended with.
    pub exit_code: i64,
    /// Digest of the plan that gemma4ctl started it with. Without one it is not ours.
    pub digest: Option<String>,
}

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
    /// The container is somebody else's.
    #[error(
        "a container named {0} is there that gemma4ctl did not start, and it stays; rename it, remove it with `docker rm {0}`, or give the launch another name with `deploy.docker.name`"
    )]
    Foreign(String),
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
    /// A folder for the container cannot be made.
    #[error("cannot make the folder {path}: {error}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// Another server has the port.
    #[error("port {0} of this machine is taken; stop what listens there, or choose another `server.port`")]
    PortTaken(u16),
    /// The container ended before it answered.
    #[error("the container {name} stopped before it was ready (exit code {code}); above are its last lines")]
    Stopped {
        /// Its name.
        name: String,
        /// Its exit code.
        code: i64,
    },
    /// The container is not there any more.
    #[error("the container {0} was removed by somebody else before it was ready")]
    Gone(String),
    /// It did not answer in time.
    #[error(
        "{name} was not ready after {seconds} s: {last}; it is left running: look at `gemma4ctl logs {name}`, `gemma4ctl apply` goes on waiting"
    )]
    NotReady {
        /// Its name.
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
    /// The record cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What `plan` needs under `name`, where `answers` is whether the server says now that it is alive.
///
/// # Errors
/// If the container is not ours: it is never touched.
pub fn decide(
    name: &str,
    plan: &Plan,
    recorded: Option<&Launch>,
    container: Option<&Container>,
    answers: bool,
) -> Result<Decision, LaunchError> {
    let Some(container) = container else { return Ok(Decision::Create) };
    let Some(digest) = &container.digest else { return Err(LaunchError::Foreign(name.to_owned())) };
    if *digest != plan.digest {
        return Ok(Decision::Replace(Reason::OtherPlan));
    }
    if !container.running {
        return Ok(Decision::Replace(Reason::Stopped));
    }
    // A record that is behind (a crash, a failed wait) is brought up to date by waiting, which is short if it serves.
    let known = recorded.is_some_and(|launch| launch.status == Status::Running && launch.digest == plan.digest);
    Ok(if answers && known { Decision::Nothing } else { Decision::Await })
}
