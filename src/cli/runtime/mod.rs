//! `runtime VERB`: what the bundled runtime needs on this machine.
//!
//! Invariant: this process loads no plugin, but for `serve`. Hidden verbs, which run in children, do.

mod boot_progress;
mod doctor;
mod health;
mod install;
mod plugin;
mod precompile;
mod serve;

use clap::Subcommand;
use gemma4_engine::compile;
use gemma4_engine::steps::steps;
use gemma4_model::Config;
use gemma4_pjrt::install::Target;
use gemma4_plan::Plan;

pub(super) use plugin::plugin;
pub(super) use serve::raise_open_files;

use super::Output;
use crate::prove::{self, Compiler};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Bring a plugin of XLA onto this machine; its place is the result
    Install(install::Arguments),
    /// Say which plugins are there, whether they load, and how to get what is missing
    Doctor(doctor::Arguments),
    /// Compile all programs of a profile ahead, for devices that need not be here
    Precompile(precompile::Arguments),
    /// Run a plan of the bundled engine: the OpenAI API on the plan's address
    Serve(serve::Arguments),
    /// Load a plugin and print its version, for `doctor`
    #[command(hide = true)]
    Probe(doctor::ProbeArguments),
    /// Ask a service whether it is alive
    #[command(hide = true)]
    Health(health::Arguments),
    /// Compile one program: request on stdin, answer on stdout
    #[command(hide = true)]
    CompileStep,
}

pub(super) fn run(verb: &Verb, output: &mut Output) -> anyhow::Result<u8> {
    match verb {
        Verb::Install(arguments) => install::run(arguments, output),
        Verb::Doctor(arguments) => doctor::run(arguments, output),
        Verb::Precompile(arguments) => precompile::run(arguments, output),
        Verb::Serve(arguments) => serve::run(arguments, output),
        Verb::Health(arguments) => Ok(health::run(arguments, output)),
        Verb::Probe(arguments) => doctor::probe(arguments, output),
        Verb::CompileStep => {
            compile::serve(std::io::stdin().lock(), std::io::stdout().lock())?;
            Ok(0)
        }
    }
}

/// The compiler for a plan's devices, its plugin installed if it is not there. `why` says who needs it.
///
/// # Errors
/// If the plan is not for the bundled engine, no compiler runs without its devices, or the plugin cannot be had.
pub(super) fn compiler(plan: &Plan, config: &Config, why: &str) -> anyhow::Result<Compiler> {
    // First what costs nothing: a plan that has no programs of ours needs no plugin of 205 MB.
    steps(plan, config).map_err(prove::ProveError::from)?;
    let (devices, plugins) = prove::devices(plan)?;
    let found = plugin(plugins, why)?;
    Ok(Compiler::new(compile::Target { plugin: found.path, devices }))
}

/// Brings the plugin for a plan's devices onto this machine, if it is not there.
///
/// # Errors
/// If it cannot be had.
pub(super) fn provide_plugin(plan: &Plan) -> anyhow::Result<std::path::PathBuf> {
    let target = match plan.hardware.family.as_str() {
        "cpu" => Target::Cpu,
        "v5e" | "v5p" | "v6e" | "tpu7x" => Target::Tpu,
        _ => Target::Cuda,
    };
    Ok(plugin(target, "the bundled engine runs on it")?.path)
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
