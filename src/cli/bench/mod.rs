//! `bench ENDPOINT` and `bench report RUN...`.

mod progress;
mod report;
mod run;

use clap::Subcommand;

use super::Output;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: run::Arguments,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show runs, beside each other if there are several
    Report(report::Arguments),
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    match &arguments.verb {
        Some(Verb::Report(arguments)) => report::run(arguments, output),
        None => run::run(&arguments.run, output),
    }
}
