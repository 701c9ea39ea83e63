//! Hidden verbs of this program in a process of their own: a compiler can abort, and a broken plugin ends whoever loads
//! it.
//!
//! Invariant: whatever the child does, the caller gets its output or an error, and the child is gone when it does.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

/// How often it is looked whether the child has ended.
const POLL: Duration = Duration::from_millis(10);

/// How many of the last lines on stderr are told of a child that failed.
const LAST_LINES: usize = 8;

/// A child without an answer.
#[derive(Debug, Error)]
pub enum ChildError {
    /// The operating system does not start it, or its streams cannot be read.
    #[error("cannot run gemma4ctl in a process of its own: {0}")]
    Start(#[from] std::io::Error),
    /// It ended otherwise than it should.
    #[error("the process for `{verb}` ended with {status}{}", said(lines))]
    Died {
        /// The verb.
        verb: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to stderr.
        lines: Vec<String>,
    },
    /// It took too long and was ended.
    #[error("the process for `{verb}` was ended, since it had not finished after {} s{}", limit.as_secs(), said(lines))]
    TimeOut {
        /// The verb.
        verb: String,
        /// How long it was waited for.
        limit: Duration,
        /// The last lines that it wrote to stderr.
        lines: Vec<String>,
    },
}

fn said(lines: &[String]) -> String {
    if lines.is_empty() {
        return ", and wrote nothing to stderr".to_owned();
    }
    format!("; its last words:\n{}", lines.join("\n"))
}

/// Runs this program with `arguments`, the verb first, with `variables` where the user has not set them and `input` on
/// stdin. Gives what it wrote to stdout.
///
/// # Errors
/// [`ChildError`]: it did not start, did not end with exit code 0, or not within `limit`.
pub fn run(
    arguments: &[&OsStr],
    variables: &[(&str, &str)],
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, ChildError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    command.envs(variables.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied());
    let verb: Vec<_> = arguments.iter().take(2).map(|word| word.to_string_lossy()).collect();
    finish(command, &verb.join(" "), input, limit)
}

/// Runs a command to its end.
fn finish(mut command: Command, verb: &str, input: &[u8], limit: Duration) -> Result<Vec<u8>, ChildError> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // One thread a stream, so that neither side waits for the other on a full pipe.
    let (ended, written, answer, errors) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input)));
        let answer = scope.spawn(move || read(stdout));
        let errors = scope.spawn(move || read(stderr));
        let start = Instant::now();
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(Some(status)),
                Ok(None) if start.elapsed() < limit => std::thread::sleep(POLL),
                Ok(None) => break child.kill().and_then(|()| child.wait()).map(|_| None),
                Err(error) => break Err(error),
            }
        };
        (ended, join(writer), join(answer), join(errors))
    });
    let lines = last_lines(&errors?);
    let verb = verb.to_owned();
    match ended? {
        None => Err(ChildError::TimeOut { verb, limit, lines }),
        Some(status) if !status.success() => Err(ChildError::Died { verb, status, lines }),
        // Only now: a child that died has also not read everything, and its own words tell more.
        Some(_) => written.and(answer).map_err(ChildError::Start),
    }
}

fn read(stream: Option<impl Read>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, std::io::Result<T>>) -> std::io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread that serves its streams panicked")))
}

fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines.iter().skip(lines.len().saturating_sub(LAST_LINES)).map(|line| (*line).to_owned()).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, input: &[u8], limit: u64) -> Result<Vec<u8>, ChildError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        finish(command, "a test", input, Duration::from_millis(limit))
    }

    #[test]
    fn large_inputs_and_answers_pass() {
        let input = vec![b'x'; 3 << 20];
        assert_eq!(shell("cat; echo words >&2", &input, 60_000).expect("an answer"), input);
    }

    #[test]
    fn whoever_dies_is_quoted() {
        let error = shell("echo first >&2; echo last >&2; kill -ABRT $$", &[0; 1 << 20], 60_000).expect_err("dead");
        let text = error.to_string();
        assert!(text.contains("signal: 6") && text.ends_with("first\nlast"), "{text}");
        assert!(shell("exit 3", b"", 60_000).expect_err("dead").to_string().ends_with("wrote nothing to stderr"));
    }

    #[test]
    fn whoever_hangs_is_ended() {
        let error = shell("echo busy >&2; exec sleep 60", b"", 300).expect_err("too slow").to_string();
        assert!(error.contains("was ended") && error.contains("busy"), "{error}");
    }
}
