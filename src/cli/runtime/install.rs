//! `runtime install TARGET`.

use std::path::PathBuf;

use gemma4_pjrt::install::{InstallError, Installer, Origin, Target};

use super::{TargetName, plugin};
use crate::cli::output::{note, report};
use crate::cli::{FINDINGS, Output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// What the plugin is for
    target: TargetName,
    /// Take the plugin from a wheel or a library instead of the Python package index
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let target = Target::from(arguments.target);
    let installer = Installer::from_environment()?;
    let installed = match &arguments.from {
        Some(file) => {
            let bar = plugin::bar();
            let found = installer.install_from(target, file, &mut |progress| plugin::show(&bar, &progress));
            bar.finish_and_clear();
            found
        }
        None => plugin::install(&installer, target),
    };
    let found = match installed {
        Ok(found) => found,
        // A file that cannot be used is a wrong command line.
        Err(error @ InstallError::File { .. }) => return Err(error.into()),
        Err(error) => {
            report(&error.into());
            return Ok(FINDINGS);
        }
    };
    match found.origin {
        Origin::Local => note("taken as it is, on your word: it is not in the lock file"),
        _ => {
            note(&format!("this is {}, checked against the lock file", installer.lock().package(target).requirement()))
        }
    }
    // Whoever has this variable set would wonder why what they installed is not used.
    let used = installer.find(target)?;
    if used.as_ref() != Some(&found)
        && let Some(used) = used
    {
        let why = match used.origin {
            Origin::Variable => format!("{} names it", target.variable()),
            _ => "it was installed with `--from`; remove it to use the other".to_owned(),
        };
        note(&format!("warning: {} is used all the same: {why}", used.path.display()));
    }
    output.line(found.path.display().to_string());
    Ok(0)
}
