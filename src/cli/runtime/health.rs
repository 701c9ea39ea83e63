//! `runtime health URL`: whether a service says that it is alive, for images that have nothing else to ask with.

use crate::apply;
use crate::cli::output::note;
use crate::cli::{FINDINGS, Output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// What to ask, such as http://127.0.0.1:8000/health
    url: String,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> u8 {
    match apply::alive(&arguments.url) {
        Ok(()) => {
            output.line("alive");
            0
        }
        Err(why) => {
            note(&why);
            FINDINGS
        }
    }
}
