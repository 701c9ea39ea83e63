//! Compiled programs on disk.
//!
//! Invariant: an executable is code. One is loaded only from a folder and a file that nobody but their owner, this user,
//! can write; only if every part of its key is the one that is asked for; and only whole.
//!
//! A file begins with a line that names its form, then one line of JSON with the [`Key`], length and SHA-256 of the
//! program; then the program as the plugin serialized it. Its name is made of the program's name and of what was compiled
//! (program, options, devices), so that an executable of another compiler, processor or flags is found, and refused with the
//! part that differs.

use std::fs::{DirBuilder, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gemma4_hlo::Module;
use gemma4_plan::digest::sha256;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::compile::{Devices, Identity};

/// First line of a file.
const FORM: &str = "gemma4ctl.executable/1";

/// The longest header that is read, in bytes.
const MAX_HEADER: u64 = 1 << 20;

/// How names of files begin that are being written.
const UNFINISHED: &str = ".executable-";

/// The age at which an unfinished file is taken for one whose writer was killed: writing takes seconds at most.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Everything that decides whether a compiled program may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// SHA-256 of the program as canonical StableHLO.
    pub program: String,
    /// The serialized compile options as hexadecimal digits.
    pub options: String,
    /// The devices, such as `v6e:2x2` or `cpu:4`.
    pub devices: String,
    /// The plugin's words for the version of its compiler.
    pub compiler: String,
    /// What the processor can do, where programs run on it; else empty.
    pub cpu_features: String,
    /// The variable `XLA_FLAGS`.
    pub xla_flags: String,
    /// The variable `LIBTPU_INIT_ARGS`.
    pub libtpu_init_args: String,
    /// Handlers that the program calls; each one's version is part of its name.
    pub custom_calls: Vec<String>,
}

impl Key {
    /// The key of a program on this machine, with the variables of this process.
    ///
    /// # Errors
    /// [`StoreError::File`] when the processor's features cannot be read and matter.
    pub fn new(module: &Module, devices: &Devices, identity: &Identity) -> Result<Self, StoreError> {
        let program = module.canonical();
        let variable = |name| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        let cpu_features = match devices {
            Devices::Cpu { .. } => cpu_features()?,
            Devices::Topology { .. } => String::new(),
        };
        Ok(Key {
            custom_calls: custom_calls(&program),
            program: sha256(program.as_bytes()),
            options: identity.options.clone(),
            devices: devices.name(),
            compiler: identity.compiler.clone(),
            cpu_features,
            xla_flags: variable("XLA_FLAGS"),
            libtpu_init_args: variable("LIBTPU_INIT_ARGS"),
        })
    }

    /// The parts with their names, in the order in which they are compared.
    fn parts(&self) -> [(&'static str, String); 8] {
        [
            ("program", self.program.clone()),
            ("compile options", self.options.clone()),
            ("devices", self.devices.clone()),
            ("compiler version", self.compiler.clone()),
            ("CPU features", self.cpu_features.clone()),
            ("XLA_FLAGS", self.xla_flags.clone()),
            ("LIBTPU_INIT_ARGS", self.libtpu_init_args.clone()),
            ("custom calls", self.custom_calls.join(" ")),
        ]
    }

    /// SHA-256 of what is compiled for which devices, in 16 hexadecimal digits.
    fn short(&self) -> String {
        let text = [self.program.as_str(), &self.options, &self.devices].join("\n");
        sha256(text.as_bytes()).trim_start_matches("sha256:").chars().take(16).collect()
    }
}

/// Names of the handlers that a program calls, sorted, each once.
fn custom_calls(program: &str) -> Vec<String> {
    let name = |rest: &str| rest.split('"').next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = program.split("call_target_name = \"").skip(1).map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// What the processor can do, as the system lists it, sorted.
fn cpu_features() -> Result<String, StoreError> {
    let path = Path::new("/proc/cpuinfo");
    if !cfg!(target_os = "linux") {
        return Ok(std::env::consts::ARCH.to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(StoreError::file("read", path))?;
    // `flags` on x86, `Features` on Arm.
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let mut words: Vec<&str> = line
        .and_then(|line| line.split_once(':'))
        .map(|(_, words)| words.split_whitespace().collect())
        .unwrap_or_default();
    words.sort_unstable();
    Ok(format!("{} {}", std::env::consts::ARCH, words.join(" ")))
}

/// The second line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    name: String,
    key: Key,
    bytes: u64,
    sha256: String,
}

/// Why an executable is not kept or not used.
#[derive(Debug, Error)]
pub enum StoreError {
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
    /// Somebody else could put code there.
    #[error(
        "{} is refused, since {reason}: compiled programs are code that this process would run; use a folder of your own",
        path.display()
    )]
    Untrusted {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It was compiled for or by something else.
    #[error("{} was made for another {part}: it has `{found}`, and `{wanted}` is needed; compile it again", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The part of the key that differs.
        part: &'static str,
        /// What the file says.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// It is no such file, or not all of it.
    #[error("{} is not a whole executable: {reason}; delete it and compile it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl StoreError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| StoreError::File { action, path, error }
    }
}

/// A folder of compiled programs.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens a folder, which is made if it is not there, for this user alone.
    ///
    /// # Errors
    /// [`StoreError::Untrusted`] for a folder that others can write or that is not this user's.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder).map_err(StoreError::file("create", folder))?;
        let metadata = std::fs::metadata(folder).map_err(StoreError::file("look at", folder))?;
        trust(folder, &metadata)?;
        let store = Store { folder: folder.to_owned() };
        store.remove_abandoned();
        Ok(store)
    }

    /// Removes what killed writers left. It harms nobody, but every kill would add the size of a program.
    fn remove_abandoned(&self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
                && age.is_some_and(|age| age > ABANDONED)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::debug!(path = %entry.path().display(), %error, "an abandoned file stays");
            }
        }
    }

    /// The file of a program.
    pub fn path(&self, name: &str, key: &Key) -> PathBuf {
        self.folder.join(format!("{name}-{}.xla", key.short()))
    }

    /// Keeps a compiled program, whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn write(&self, name: &str, key: &Key, executable: &[u8]) -> Result<PathBuf, StoreError> {
        let path = self.path(name, key);
        let failed = |error| StoreError::File { action: "write", path: path.clone(), error };
        let bytes = u64::try_from(executable.len()).unwrap_or(u64::MAX);
        let header = Header { name: name.to_owned(), key: key.clone(), bytes, sha256: sha256(executable) };
        let header = serde_json::to_string(&header).map_err(|error| failed(error.into()))?;
        let temporary = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder);
        let mut temporary = temporary.map_err(failed)?;
        write!(temporary, "{FORM}\n{header}\n").map_err(failed)?;
        temporary.write_all(executable).and_then(|()| temporary.as_file().sync_all()).map_err(failed)?;
        temporary.persist(&path).map_err(|error| failed(error.error))?;
        Ok(path)
    }

    /// The compiled program; `None` if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] names the part of the key that differs, [`StoreError::Damaged`] what is wrong,
    /// [`StoreError::Untrusted`] who could have written it.
    pub fn read(&self, name: &str, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(name, key);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::File { action: "open", path, error }),
        };
        let metadata = file.metadata().map_err(StoreError::file("look at", &path))?;
        trust(&path, &metadata)?;
        let mut file = BufReader::new(file);
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        let mut line = || -> Result<String, StoreError> {
            let mut line = String::new();
            let read = (&mut file).take(MAX_HEADER).read_line(&mut line);
            read.map_err(|error| damaged(format!("its header cannot be read: {error}")))?;
            Ok(line.trim_end_matches('\n').to_owned())
        };
        let (form, header) = (line()?, line()?);
        if form != FORM {
            return Err(damaged(format!("it does not begin with `{FORM}`")));
        }
        let header: Header =
            serde_json::from_str(&header).map_err(|error| damaged(format!("its header makes no sense: {error}")))?;
        for ((part, found), (_, wanted)) in header.key.parts().into_iter().zip(key.parts()) {
            if found != wanted {
                return Err(StoreError::Mismatch { path, part, found, wanted });
            }
        }
        // Not more than the file has, whatever the header says.
        let mut executable = Vec::new();
        file.read_to_end(&mut executable).map_err(StoreError::file("read", &path))?;
        if u64::try_from(executable.len()) != Ok(header.bytes) {
            return Err(damaged(format!("it holds {} bytes, and its header says {}", executable.len(), header.bytes)));
        }
        if sha256(&executable) != header.sha256 {
            return Err(damaged("its SHA-256 is another than its header says".to_owned()));
        }
        Ok(Some(executable))
    }
}

/// Whether nobody but this user can have written it.
#[cfg(unix)]
fn trust(path: &Path, metadata: &std::fs::Metadata) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt as _;
    let refuse = |reason: String| Err(StoreError::Untrusted { path: path.to_owned(), reason });
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own {
        return refuse(format!("it belongs to user {} and not to {own}", metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return refuse(format!("others can write it (its mode is {:03o})", metadata.mode() & 0o777));
    }
    Ok(())
}

/// Other systems do not tell.
#[cfg(not(unix))]
fn trust(_: &Path, _: &std::fs::Metadata) -> Result<(), StoreError> {
    Ok(())
}
