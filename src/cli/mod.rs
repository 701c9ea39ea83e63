//! The command line: one file a verb.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 findings at error level, it does not fit or
//! the launch failed, 2 a wrong command line or a file that cannot be opened, 3 with `--detailed-exitcode` if there are
//! changes.

mod apply;
mod bench;
mod completions;
mod destroy;
mod emit;
mod explain;
mod init;
mod lint;
mod logs;
mod output;
mod plan;
mod plan_text;
mod profiles;
mod proof_text;
mod runtime;
mod schema;
mod status;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};
use gemma4_pjrt::environment;

pub use output::Output;

/// Proves that Gemma 4 fits, says exactly what will run, and runs it.
#[derive(Debug, Parser)]
#[command(name = "gemma4ctl", version, propagate_version = true, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what will run, whether it fits, and what is wrong with it
    Plan(plan::Arguments),
    /// Check profiles
    Lint(lint::Arguments),
    /// Make files that run as they are
    Emit(emit::Arguments),
    /// Launch a plan and wait until it serves, or change what is launched
    Apply(apply::Arguments),
    /// Say what is launched and whether it serves
    Status(status::Arguments),
    /// Print what a launch writes
    Logs(logs::Arguments),
    /// End a launch and forget it
    Destroy(destroy::Arguments),
    /// Tell where a value of a plan comes from, or what a lint rule is about
    Explain(explain::Arguments),
    /// List the profiles that can be named
    Profiles(profiles::Arguments),
    /// Write a profile to start from
    Init(init::Arguments),
    /// Put an endpoint under load and measure it, or show what was measured
    Bench(Box<bench::Arguments>),
    /// Look after the plugins and programs of the bundled runtime
    #[command(subcommand)]
    Runtime(runtime::Verb),
    /// Print a JSON Schema, or check files against it
    Schema(schema::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// Exit code for findings at error level, a plan that does not fit, or a launch that failed.
const FINDINGS: u8 = 1;
/// Exit code for a wrong command line, or a file that cannot be opened.
const USAGE: u8 = 2;
/// Exit code for changes, with `--detailed-exitcode`.
const CHANGES: u8 = 3;

/// Sets the variables that plugins of XLA read, where the user has not. To be called first thing in `main`.
pub fn prepare() {
    // There are no plugins for other systems, and no way to tell there how many threads run.
    if cfg!(target_os = "linux")
        && let Err(error) = environment::prepare(&[environment::QUIET])
    {
        output::note(&format!("warning: {error}"));
    }
}

/// Runs the command line `arguments`, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version are results; the rest is a usage error. Printing fails only on a closed pipe.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let mut output = Output::default();
    let result = match parsed.verb {
        Verb::Plan(arguments) => plan::run(&arguments, &mut output),
        Verb::Lint(arguments) => lint::run(&arguments, &mut output),
        Verb::Emit(arguments) => emit::run(&arguments, &mut output),
        Verb::Apply(arguments) => apply::run(&arguments, &mut output),
        Verb::Status(arguments) => status::run(&arguments, &mut output),
        Verb::Logs(arguments) => logs::run(&arguments),
        Verb::Destroy(arguments) => destroy::run(&arguments, &mut output),
        Verb::Explain(arguments) => explain::run(&arguments, &mut output),
        Verb::Profiles(arguments) => profiles::run(&arguments, &mut output),
        Verb::Init(arguments) => init::run(&arguments, &mut output),
        Verb::Bench(arguments) => bench::run(&arguments, &mut output),
        Verb::Runtime(verb) => runtime::run(&verb, &mut output),
        Verb::Schema(arguments) => schema::run(&arguments, &mut output),
        Verb::Completions(arguments) => completions::run(&arguments, &mut Arguments::command(), &mut output),
    };
    // What was found goes out also when something failed afterwards.
    let written = output.finish().context("cannot write the result to stdout");
    match result.and_then(|code| written.map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::report(&error);
            ExitCode::from(USAGE)
        }
    }
}

/// How one result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ResultFormat {
    /// For people.
    Text,
    /// For programs; stable.
    Json,
}
