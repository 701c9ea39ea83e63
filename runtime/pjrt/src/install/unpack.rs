//! Files into their place.
//!
//! Invariant: a file is written under another name, flushed to the disk and renamed, so its own name stands for the
//! whole of it, whenever the writer was killed.

use std::fs::{File, Permissions};
use std::io::{BufReader, Read, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{InstallError, Progress};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// SHA-256 of a file in lower-case hexadecimal digits.
pub(super) fn sha256(path: &Path) -> Result<String, InstallError> {
    let mut file = File::open(path).map_err(InstallError::file("open", path))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(InstallError::file("read", path))? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Unpacks one entry of a wheel to a place.
pub(super) fn library(
    wheel: &Path,
    entry: &str,
    place: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    let broken = |reason: String| InstallError::Wheel { wheel: wheel.to_owned(), entry: entry.to_owned(), reason };
    let file = File::open(wheel).map_err(InstallError::file("open", wheel))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| broken(error.to_string()))?;
    let mut content = archive.by_name(entry).map_err(|error| broken(error.to_string()))?;
    let total = content.size();
    write(&mut content, total, place, &|error| broken(error.to_string()), progress)
}

/// Copies a library to a place.
pub(super) fn copy(from: &Path, place: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
    let mut file = File::open(from).map_err(InstallError::file("open", from))?;
    let metadata = file.metadata().map_err(InstallError::file("look at", from))?;
    let failed = |error| InstallError::File { action: "read", path: from.to_owned(), error };
    write(&mut file, metadata.len(), place, &failed, progress)
}

/// Writes all of `content` to a place.
fn write(
    content: &mut dyn Read,
    total: u64,
    place: &Path,
    unreadable: &dyn Fn(std::io::Error) -> InstallError,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    let folder = place.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(InstallError::file("create", folder))?;
    let temporary = tempfile::Builder::new().prefix(".unpack-").tempfile_in(folder);
    let mut temporary = temporary.map_err(InstallError::file("create a file in", folder))?;
    let mut chunk = vec![0; CHUNK];
    let mut written = 0;
    loop {
        let count = content.read(&mut chunk).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        temporary.write_all(&chunk[..count]).map_err(InstallError::file("write", place))?;
        written += count as u64;
        progress(Progress::Unpack { bytes: written, total });
    }
    if written != total {
        return Err(unreadable(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
    }
    let file = temporary.as_file();
    executable(file).map_err(InstallError::file("make executable", place))?;
    file.sync_all().map_err(InstallError::file("write", place))?;
    temporary.persist(place).map_err(|error| InstallError::file("rename a file to", place)(error.error))?;
    // The rename, too, has to reach the disk.
    let folder_file = File::open(folder).map_err(InstallError::file("open", folder))?;
    folder_file.sync_all().map_err(InstallError::file("write", folder))
}

/// Readable and executable for all, writable for the owner.
#[cfg(unix)]
fn executable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn executable(_file: &File) -> std::io::Result<()> {
    Ok(())
}
