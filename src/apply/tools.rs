//! The programs that launches are made with. Arguments go to them as they are, never through a shell, and what they say
//! is shown without what looks like a token.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Command, ExitStatus, Output, Stdio};

use serde_json::Value;

use super::LaunchError;
use crate::profile::redact;

/// A program, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    name: &'static str,
    help: &'static str,
}

/// Docker's command line.
pub(super) const DOCKER: Tool =
    Tool { name: "docker", help: "https://docs.docker.com/engine/install/ tells how to get it" };

/// Google Cloud's command line.
pub(super) const GCLOUD: Tool =
    Tool { name: "gcloud", help: "https://cloud.google.com/sdk/docs/install tells how to get it" };

/// The command line of Kubernetes.
pub(super) const KUBECTL: Tool = Tool {
    name: "kubectl",
    help: "https://kubernetes.io/docs/tasks/tools/ tells how to get it; for a cluster of Google's also `gcloud components install gke-gcloud-auth-plugin`",
};

impl Tool {
    /// The error of its absence.
    pub(super) fn missing(self) -> LaunchError {
        LaunchError::MissingTool { tool: self.name, help: self.help }
    }

    /// A call of it that reads nothing.
    pub(super) fn command<S: AsRef<std::ffi::OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> Call {
        let mut command = Command::new(self.name);
        command.args(arguments).stdin(Stdio::null());
        Call { tool: self, command }
    }
}

/// A call of a program that is about to be made.
#[derive(Debug)]
pub(super) struct Call {
    tool: Tool,
    /// The command line.
    pub(super) command: Command,
}

impl Call {
    fn started<T>(&self, result: std::io::Result<T>) -> Result<T, LaunchError> {
        result.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => self.tool.missing(),
            _ => LaunchError::Tool { command: self.tool.name.to_owned(), message: error.to_string() },
        })
    }

    /// Runs it to its end, whatever that is.
    pub(super) fn output(&mut self) -> Result<Output, LaunchError> {
        let output = self.command.output();
        self.started(output)
    }

    /// Runs it, which `what` is short for, and wants it to succeed.
    pub(super) fn done(&mut self, what: &str) -> Result<Output, LaunchError> {
        let output = self.output()?;
        if output.status.success() { Ok(output) } else { Err(failed(what, &output)) }
    }

    /// Like [`Self::done`], with `input` as its standard input.
    pub(super) fn done_with(&mut self, what: &str, input: &str) -> Result<Output, LaunchError> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.command.spawn();
        let mut child = self.started(child)?;
        // A program that ends without reading says why itself.
        let _ = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
        let output = child.wait_with_output();
        let output = self.started(output)?;
        if output.status.success() { Ok(output) } else { Err(failed(what, &output)) }
    }

    /// Runs it with its output on this program's own, line by line, without what looks like a token.
    pub(super) fn pass_through(&mut self) -> Result<ExitStatus, LaunchError> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.command.spawn();
        let mut child = self.started(child)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| err.map(|pipe| copy_lines(pipe, std::io::stderr())));
            out.map(|pipe| copy_lines(pipe, std::io::stdout()))
        });
        let status = child.wait();
        self.started(status)
    }
}

/// Reads JSON that `what` printed.
pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Value, LaunchError> {
    serde_json::from_slice(bytes).map_err(|error| LaunchError::Tool {
        command: what.to_owned(),
        message: format!("what it printed is not JSON: {error}"),
    })
}

/// The error of a call that ended badly.
pub(super) fn failed(what: &str, output: &Output) -> LaunchError {
    let message = String::from_utf8_lossy(&output.stderr);
    let message = match redact(message.trim()) {
        text if text.is_empty() => output.status.to_string(),
        text => text.into_owned(),
    };
    LaunchError::Tool { command: what.to_owned(), message }
}

/// Copies lines until either side ends: a reader that went away (`| head`) is no error.
fn copy_lines(from: impl Read, mut to: impl std::io::Write) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) {
        let text = String::from_utf8_lossy(&line);
        if to.write_all(redact(&text).as_bytes()).and_then(|()| to.flush()).is_err() {
            return;
        }
        line.clear();
    }
}
