//! What is there, what is missing, and how to get it.
//!
//! Invariant: looking changes nothing.

use std::path::Path;

use super::{Found, InstallError, Installer, Target};
use crate::{ApiVersion, Plugin};

/// What is known of a target's plugin.
#[derive(Debug)]
pub struct Report {
    /// The target.
    pub target: Target,
    /// Package and version that an installation gives, such as `libtpu==0.0.51`.
    pub requirement: String,
    /// Version of the C API that an installation gives.
    pub api: String,
    /// Whether it is there, and works.
    pub state: State,
}

/// Whether a plugin is there.
#[derive(Debug)]
pub enum State {
    /// It is there; `api` is its version of the C API, or why it does not load.
    Found {
        /// Where.
        found: Found,
        /// What the probe says.
        api: Result<ApiVersion, String>,
    },
    /// It is not there, but can be installed; the bytes that have to be fetched.
    Missing {
        /// Size of the wheel.
        bytes: u64,
    },
    /// It is not there and cannot be installed, or the variable points at nothing.
    Unavailable(InstallError),
}

impl Installer {
    /// Looks at all targets. `probe` loads a plugin and gives its version: [`probe_here`], or a function that starts a
    /// process for it, since a plugin that is broken can end the one that loads it, and TPU plugins lock the device.
    pub fn doctor(&self, probe: &dyn Fn(Target, &Path) -> Result<ApiVersion, String>) -> Vec<Report> {
        let report = |target: Target| {
            let package = self.lock().package(target);
            let state = match self.find(target) {
                Ok(Some(found)) => State::Found { api: probe(target, &found.path), found },
                Ok(None) => match package.wheel(target) {
                    Ok(wheel) => State::Missing { bytes: wheel.bytes },
                    Err(error) => State::Unavailable(error),
                },
                Err(error) => State::Unavailable(error),
            };
            Report { target, requirement: package.requirement(), api: package.api.clone(), state }
        };
        Target::ALL.map(report).into()
    }
}

/// Loads a plugin into this process, for good, and gives its version.
///
/// # Errors
/// The text of [`Plugin::load`]'s.
pub fn probe_here(_target: Target, path: &Path) -> Result<ApiVersion, String> {
    Plugin::load(path).map(|plugin| plugin.api_version()).map_err(|error| error.to_string())
}
