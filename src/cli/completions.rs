//! `completions SHELL`.

use super::Output;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(arguments: &Arguments, command: &mut clap::Command, output: &mut Output) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "gemma4ctl", &mut script);
    output.push(&String::from_utf8_lossy(&script));
    Ok(0)
}
