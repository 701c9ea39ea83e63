//! `runtime VERB`: what the bundled runtime needs on this machine.
//!
//! Invariant: this process loads no plugin. Hidden verbs, which run in children, do.

mod doctor;
mod install;
mod plugin;

use clap::Subcommand;
use gemma4_pjrt::install::Target;

use super::Output;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Bring a plugin of XLA onto this machine; its place is the result
    Install(install::Arguments),
    /// Say which plugins are there, whether they load, and how to get what is missing
    Doctor(doctor::Arguments),
    /// Load a plugin and print its version, for `doctor`
    #[command(hide = true)]
    Probe(doctor::ProbeArguments),
}

pub(super) fn run(verb: &Verb, output: &mut Output) -> anyhow::Result<u8> {
    match verb {
        Verb::Install(arguments) => install::run(arguments, output),
        Verb::Doctor(arguments) => doctor::run(arguments, output),
        Verb::Probe(arguments) => doctor::probe(arguments, output),
    }
}

/// A kind of devices as it stands on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TargetName {
    /// This machine's processor
    Cpu,
    /// Google's TPUs; compiles for them on any x86-64 Linux
    Tpu,
    /// NVIDIA's GPUs
    Cuda,
}

impl From<TargetName> for Target {
    fn from(name: TargetName) -> Self {
        match name {
            TargetName::Cpu => Target::Cpu,
            TargetName::Tpu => Target::Tpu,
            TargetName::Cuda => Target::Cuda,
        }
    }
}
