//! Fetches the CPU plugin for the tests, unless it is there: `cargo run -p gemma4-pjrt --example install-cpu`.

use std::io::Write as _;
use std::process::ExitCode;

use gemma4_pjrt::install::{InstallError, Installer, Progress, Target};

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    let line = match install() {
        Ok(path) => format!("the CPU plugin is {path}"),
        Err(error) => format!("error: {error}"),
    };
    let failed = line.starts_with("error: ") || writeln!(out, "{line}").is_err();
    if failed {
        // Nothing is left to say it with when even this fails.
        drop(writeln!(std::io::stderr(), "{line}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn install() -> Result<String, InstallError> {
    let installer = Installer::from_environment()?;
    let found = match installer.find(Target::Cpu)? {
        Some(found) => found,
        None => installer.install(Target::Cpu, &mut |progress| {
            if let Progress::Command(command) = progress {
                // Only news: the installation does not depend on it.
                drop(writeln!(std::io::stderr(), "{command}"));
            }
        })?,
    };
    Ok(found.path.display().to_string())
}
