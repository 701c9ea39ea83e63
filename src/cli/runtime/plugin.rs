//! Plugins for verbs that need one: the one that is there, or else the one of the lock file, installed on the way.

use anyhow::Context as _;
use gemma4_pjrt::install::{Found, InstallError, Installer, Progress, Target};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::note;

/// The plugin for `target`. When there is none it is installed, with a word about it on stderr: `why` says who needs it,
/// as the end of a sentence.
pub(in crate::cli) fn plugin(target: Target, why: &str) -> anyhow::Result<Found> {
    let installer = Installer::from_environment()?;
    if let Some(found) = installer.find(target)? {
        return Ok(found);
    }
    note(&format!(
        "installing {} from the Python package index: {why}",
        installer.lock().package(target).requirement()
    ));
    let found = install(&installer, target)
        .with_context(|| format!("`gemma4ctl runtime install {}` can be tried again by itself", target.name()))?;
    note(&format!("installed {}", found.path.display()));
    Ok(found)
}

/// Installs the plugin of the lock file, with a bar on a terminal.
pub(super) fn install(installer: &Installer, target: Target) -> Result<Found, InstallError> {
    let bar = bar();
    let found = installer.install(target, &mut |progress| show(&bar, &progress));
    bar.finish_and_clear();
    found
}

/// A bar on stderr, drawn on terminals only.
pub(super) fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {bar:40} {bytes} of {total_bytes}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Moves the bar.
pub(super) fn show(bar: &ProgressBar, progress: &Progress) {
    let (word, bytes, total) = match progress {
        Progress::Download { bytes, total } => ("fetching", *bytes, *total),
        Progress::Unpack { bytes, total } => ("unpacking", *bytes, *total),
        Progress::Check => {
            bar.set_message("checking");
            return;
        }
        _ => return,
    };
    bar.set_message(word);
    bar.set_length(total);
    bar.set_position(bytes);
}
