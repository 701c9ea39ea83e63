//! Plugins on this machine: fetched from the user's Python index, checked, unpacked, found again.
//!
//! Invariant: a library has its final name only when it is whole and came from a wheel with the hash in the lock file,
//! or from a file that the user pointed at.

mod doctor;
mod download;
mod error;
mod lock;
mod unpack;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy as _;

pub use doctor::{Report, State, probe_here};
pub use error::InstallError;
pub use lock::{Lock, Package, Wheel};

/// Kind of devices that a plugin drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The processor; any number of devices can be made of it.
    Cpu,
    /// Google's TPUs. Without one, programs can still be compiled for them.
    Tpu,
    /// NVIDIA's GPUs.
    Cuda,
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 3] = [Target::Cpu, Target::Tpu, Target::Cuda];

    /// The word for it, as in the lock file.
    pub fn name(self) -> &'static str {
        match self {
            Target::Cpu => "cpu",
            Target::Tpu => "tpu",
            Target::Cuda => "cuda",
        }
    }

    /// The environment variable that points at a plugin to use instead of an installed one.
    pub fn variable(self) -> &'static str {
        match self {
            Target::Cpu => "GEMMA4CTL_PJRT_CPU",
            Target::Tpu => "GEMMA4CTL_PJRT_TPU",
            Target::Cuda => "GEMMA4CTL_PJRT_CUDA",
        }
    }
}

/// A plugin on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The library.
    pub path: PathBuf,
    /// Why this one.
    pub origin: Origin,
}

/// Where a plugin comes from. The first one that is there wins, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The environment variable of [`Target::variable`] names it.
    Variable,
    /// The user installed it from a file that is not in the lock file.
    Local,
    /// It is the one in the lock file.
    Locked,
}

/// How far an installation came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// This command was started.
    Command(String),
    /// Bytes of the wheel that have arrived, of so many.
    Download {
        /// Arrived.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// The wheel's hash is being computed.
    Check,
    /// Bytes of the library that have been written, of so many.
    Unpack {
        /// Written.
        bytes: u64,
        /// In all.
        total: u64,
    },
}

/// Finds and installs plugins.
#[derive(Debug, Clone)]
pub struct Installer {
    folder: PathBuf,
    search_path: Option<OsString>,
    lock: Lock,
}

/// The plugin for a target, with the user's folder and environment; see [`Installer::find`].
///
/// # Errors
/// As for [`Installer::find`], and [`InstallError::NoFolder`].
pub fn find(target: Target) -> Result<Option<Found>, InstallError> {
    Installer::from_environment()?.find(target)
}

impl Installer {
    /// For the user's folder: `$GEMMA4CTL_DATA_DIR`, else `gemma4ctl` in the platform's folder for data.
    ///
    /// # Errors
    /// [`InstallError::NoFolder`] when there is neither variable nor home.
    pub fn from_environment() -> Result<Self, InstallError> {
        let folder = match std::env::var_os("GEMMA4CTL_DATA_DIR").filter(|path| !path.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => etcetera::choose_base_strategy().map_err(|_| InstallError::NoFolder)?.data_dir().join("gemma4ctl"),
        };
        Ok(Installer::new(&folder, std::env::var_os("PATH"), Lock::built_in()?))
    }

    /// For any folder, list of folders with programs, and lock.
    pub fn new(folder: &Path, search_path: Option<OsString>, lock: Lock) -> Self {
        Installer { folder: folder.join("plugins"), search_path, lock }
    }

    /// The packages that are installed.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The plugin for a target, if there is one. Looks at [`Target::variable`] first.
    ///
    /// # Errors
    /// [`InstallError::Variable`] when the variable points at nothing.
    pub fn find(&self, target: Target) -> Result<Option<Found>, InstallError> {
        let variable = target.variable();
        if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) {
            if !path.is_file() {
                return Err(InstallError::Variable { variable, path });
            }
            return Ok(Some(Found { path, origin: Origin::Variable }));
        }
        Ok(self.find_installed(target))
    }

    /// [`Installer::find`] without the variable.
    pub fn find_installed(&self, target: Target) -> Option<Found> {
        [Origin::Local, Origin::Locked]
            .map(|origin| Found { path: self.place(target, origin), origin })
            .into_iter()
            .find(|found| found.path.is_file())
    }

    /// Where a plugin is installed.
    fn place(&self, target: Target, origin: Origin) -> PathBuf {
        let package = self.lock.package(target);
        let version = if origin == Origin::Local { "local" } else { &package.version };
        self.folder.join(format!("{}-{version}", package.package)).join(package.file_name())
    }

    /// Fetches the plugin of the lock file, unless it is there. Calls `pip` with the user's own configuration of
    /// indexes; any number of processes may do this at once.
    ///
    /// # Errors
    /// [`InstallError`] says what failed, and how to go on without a network.
    pub fn install(&self, target: Target, progress: &mut dyn FnMut(Progress)) -> Result<Found, InstallError> {
        let found = Found { path: self.place(target, Origin::Locked), origin: Origin::Locked };
        let _guard = self.guard()?;
        // Another process may have installed it while this one waited.
        if found.path.is_file() {
            return Ok(found);
        }
        let package = self.lock.package(target);
        let wheel = package.wheel(target)?;
        let download = tempfile::Builder::new().prefix(".download-").tempdir_in(&self.folder);
        let download = download.map_err(InstallError::file("create a folder in", &self.folder))?;
        let file = download::fetch(target, package, wheel, download.path(), self.search_path.as_deref(), progress)?;
        progress(Progress::Check);
        let sha256 = unpack::sha256(&file)?;
        if sha256 != wheel.sha256 {
            let (wanted, found) = (wheel.sha256.clone(), sha256);
            return Err(InstallError::Hash { package: package.package.clone(), wanted, found });
        }
        unpack::library(&file, &package.library, &found.path, progress)?;
        Ok(found)
    }

    /// Installs a plugin from a wheel or a library. A wheel of the lock file takes its place there; anything else is
    /// taken as it is, on the user's word, and goes before it.
    ///
    /// # Errors
    /// [`InstallError::File`], [`InstallError::Wheel`].
    pub fn install_from(
        &self,
        target: Target,
        file: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Found, InstallError> {
        let package = self.lock.package(target);
        let _guard = self.guard()?;
        if file.extension().is_none_or(|extension| extension != "whl") {
            let found = Found { path: self.place(target, Origin::Local), origin: Origin::Local };
            unpack::copy(file, &found.path, progress)?;
            return Ok(found);
        }
        progress(Progress::Check);
        let sha256 = unpack::sha256(file)?;
        let known = package.wheels.iter().any(|wheel| wheel.sha256 == sha256);
        let origin = if known { Origin::Locked } else { Origin::Local };
        let found = Found { path: self.place(target, origin), origin };
        unpack::library(file, &package.library, &found.path, progress)?;
        Ok(found)
    }

    /// Keeps other processes from installing at the same time. The operating system lets go of it after a crash.
    fn guard(&self) -> Result<File, InstallError> {
        std::fs::create_dir_all(&self.folder).map_err(InstallError::file("create", &self.folder))?;
        let path = self.folder.join(".lock");
        let file = File::create(&path).map_err(InstallError::file("create", &path))?;
        file.lock().map_err(InstallError::file("lock", &path))?;
        Ok(file)
    }
}
