//! The log of a process that serves.

use std::error::Error;
use std::str::FromStr as _;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// A log that cannot be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The level has no such form.
    #[error("`{level}` is no log level; expected error, warn, info, debug, trace, or filters such as info,hyper=debug")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is one already.
    #[error("the process has a log already")]
    Twice(#[source] Box<dyn Error + Send + Sync>),
}

/// Writes the log to stderr: a JSON object a line, or text for people. `level` is one of `error`, `warn`, `info`, `debug` and
/// `trace`, or filters by target.
///
/// # Errors
/// [`LoggingError`] if the level is none, or the process has a log already.
pub fn init(level: &str, json: bool) -> Result<(), LoggingError> {
    let invalid = |source: Box<dyn Error + Send + Sync>| LoggingError::Level { level: level.to_owned(), source };
    // A word alone would be taken for a target, whose name can be anything.
    let filter = if level.contains('=') {
        EnvFilter::try_new(level).map_err(|error| invalid(error.into()))?
    } else {
        let level = LevelFilter::from_str(level).map_err(|error| invalid(error.into()))?;
        EnvFilter::default().add_directive(level.into())
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    let done = if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
    done.map_err(LoggingError::Twice)
}
