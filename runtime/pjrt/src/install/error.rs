//! Why a plugin cannot be installed.
//!
//! Invariant: each message ends with what the user can do.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a plugin is not found or installed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// No folder is known for plugins.
    #[error("no folder for plugins is known: set HOME or GEMMA4CTL_DATA_DIR")]
    NoFolder,
    /// The lock file is broken.
    #[error("the lock file of the plugins is broken: {0}")]
    Lock(String),
    /// The variable points at nothing.
    #[error("{variable} points at {}, which is no file; correct or unset it", path.display())]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Nobody publishes this plugin for this machine.
    #[error("{package} is not published for {architecture}; point {variable} at a plugin built for it")]
    Architecture {
        /// The package.
        package: String,
        /// This machine's.
        architecture: String,
        /// The variable.
        variable: &'static str,
    },
    /// Neither `pip` nor `uv` is there.
    #[error(
        "cannot fetch {package}: none of {tried} runs; install pip, or fetch the wheel elsewhere and install from that file"
    )]
    NoPip {
        /// The package and its version.
        package: String,
        /// The commands.
        tried: String,
    },
    /// The index cannot be reached.
    #[error(
        "cannot fetch {package}: the package index cannot be reached; `{command}` says: {line}\ncheck the network or the index that pip is configured with, or fetch the wheel elsewhere and install from that file, or point {variable} at the library"
    )]
    Offline {
        /// The package and its version.
        package: String,
        /// What was run.
        command: String,
        /// What it said of the network.
        line: String,
        /// The variable.
        variable: &'static str,
    },
    /// The index does not have the package.
    #[error(
        "the package index has no {package} for {platform}; `{command}` ended with: {line}\nuse an index that mirrors PyPI, or install from a file, or point {variable} at the library"
    )]
    NoPackage {
        /// The package and its version.
        package: String,
        /// The wheel's platform.
        platform: String,
        /// What was run.
        command: String,
        /// What it said at last.
        line: String,
        /// The variable.
        variable: &'static str,
    },
    /// `pip` fails in another way.
    #[error(
        "cannot fetch {package}: `{command}` ended with: {line}\ninstall from a file, or point {variable} at the library"
    )]
    Download {
        /// The package and its version.
        package: String,
        /// What was run.
        command: String,
        /// What it said at last.
        line: String,
        /// The variable.
        variable: &'static str,
    },
    /// The wheel is not the one that was reviewed.
    #[error(
        "the wheel of {package} has SHA-256 {found}, and the lock file names {wanted}; nothing was installed. Check which index pip uses: this is not the published file"
    )]
    Hash {
        /// The package.
        package: String,
        /// From the lock file.
        wanted: String,
        /// Of the file.
        found: String,
    },
    /// A wheel cannot be read, or does not hold the library.
    #[error("cannot unpack {entry} from {}: {reason}; fetch the wheel again", wheel.display())]
    Wheel {
        /// The wheel.
        wheel: PathBuf,
        /// The library's place in it.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refuses.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
}

impl InstallError {
    /// Makes errors of the operating system into ours.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| InstallError::File { action, path, error }
    }
}
