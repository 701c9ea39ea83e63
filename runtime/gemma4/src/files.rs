//! The small JSON files beside the weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A file of a checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system does not give the file.
    #[error("{}: cannot be read; see that the checkpoint is complete and may be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The text is not JSON, or a field has a type that no such file gives it.
    #[error("{}: is not what the file of a checkpoint should be; fetch it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
}

/// The text of a file, `None` if there is no such file.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Read { path: path.to_owned(), source }),
    }
}

/// A file with an object of JSON, `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    // Serde would take a list for the fields of a struct in their order.
    let value = if text.trim_start().starts_with('[') {
        Err(serde::de::Error::custom("expected an object"))
    } else {
        serde_json::from_str(&text).map(Some)
    };
    value.map_err(|source| FileError::Json { path: path.to_owned(), source })
}
