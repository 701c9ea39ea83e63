//! The lock file: which packages, and what their files hash to.
//!
//! Invariant: every target has a package.

use serde::Deserialize;

use super::{InstallError, Target};

/// The packages of all targets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    cpu: Package,
    tpu: Package,
    cuda: Package,
}

/// A package on PyPI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub package: String,
    /// The one version that is installed.
    pub version: String,
    /// Place of the library in the wheel.
    pub library: String,
    /// Version of the PJRT C API that it speaks.
    pub api: String,
    /// Its wheels, one per processor architecture.
    pub wheels: Vec<Wheel>,
}

/// A file on PyPI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// Processor architecture, as Rust names it.
    pub architecture: String,
    /// Platform tag, for `pip download --platform`.
    pub platform: String,
    /// Version of CPython, for `pip download --python-version`; the library itself does not use Python.
    pub python: String,
    /// Name of the file.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal digits.
    pub sha256: String,
}

impl Lock {
    /// The lock file that was compiled in.
    ///
    /// # Errors
    /// [`InstallError::Lock`] never, as long as the tests pass.
    pub fn built_in() -> Result<Self, InstallError> {
        Lock::parse(include_str!("../../plugins.lock.toml"))
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// [`InstallError::Lock`].
    pub fn parse(text: &str) -> Result<Self, InstallError> {
        toml::from_str(text).map_err(|error| InstallError::Lock(error.to_string()))
    }

    /// The package of a target.
    pub fn package(&self, target: Target) -> &Package {
        match target {
            Target::Cpu => &self.cpu,
            Target::Tpu => &self.tpu,
            Target::Cuda => &self.cuda,
        }
    }
}

impl Package {
    /// Name and version as pip wants them.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// Name of the library's file.
    pub fn file_name(&self) -> &str {
        self.library.rsplit('/').next().unwrap_or(&self.library)
    }

    /// The wheel for this machine.
    pub(super) fn wheel(&self, target: Target) -> Result<&Wheel, InstallError> {
        let here = std::env::consts::ARCH;
        let wheel = self.wheels.iter().find(|wheel| wheel.architecture == here && cfg!(target_os = "linux"));
        wheel.ok_or_else(|| InstallError::Architecture {
            package: self.package.clone(),
            architecture: format!("{} {here}", std::env::consts::OS),
            variable: target.variable(),
        })
    }
}
