//! What is known of models, accelerators and engines: data files with their sources, and typed access.
//!
//! The files in `data/` are compiled into the binary and read when they are first asked for; a plan reads three of
//! them. A user's own entries stand in files of the same form, in `catalog/{models,accelerators,engines}` of the
//! current folder or of the user's configuration folder, and win over the built-in ones.

mod accelerator;
mod engine;
mod model;
mod version;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub use accelerator::{Accelerator, AcceleratorKind, Prices, Slice, accelerator, accelerator_names};
pub use engine::{Default as EngineDefault, Engine, Flag, IgnoredEnv, IgnoredFlag, MeasuredWeights, Programs, engine};
pub use model::{Model, TensorKind, local_model, model, model_names};
pub use version::Version;

/// An entry of a user's catalog that cannot be used.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// The file cannot be read.
    #[error("cannot read the catalog file {path}: {error}; mend it or move it away")]
    Read {
        /// The file.
        path: String,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// The file is not of the form that its folder holds.
    #[error("the catalog file {path} is not valid: {message}; mend it or move it away")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong, with line and column.
        message: String,
    },
    /// The checkpoint folder cannot be used.
    #[error("{0}")]
    Checkpoint(String),
}

/// The folders that may hold entries of a user.
fn user_folders(kind: &str) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("catalog").join(kind)];
    if let Some(config) = crate::profile::config_dir() {
        folders.push(config.join("catalog").join(kind));
    }
    folders
}

/// Reads every entry of a user for one kind.
fn user_entries<T: DeserializeOwned>(kind: &str) -> Result<Vec<T>, CatalogError> {
    let mut entries = Vec::new();
    for folder in user_folders(kind) {
        let Ok(listing) = std::fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if path.extension().is_some_and(|extension| extension == "toml") {
                let shown = path.display().to_string();
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| CatalogError::Read { path: shown.clone(), error })?;
                entries.push(parse(&shown, &text)?);
            }
        }
    }
    Ok(entries)
}

fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T, CatalogError> {
    toml::from_str(text)
        .map_err(|error| CatalogError::Parse { path: path.to_owned(), message: error.to_string().trim().to_owned() })
}

/// Entries that were read already: a run over many profiles reads each file once.
struct Cache<T>(Mutex<BTreeMap<String, Option<Arc<T>>>>);

impl<T> Cache<T> {
    const fn new() -> Self {
        Cache(Mutex::new(BTreeMap::new()))
    }

    /// The entry of `key`, read with `load` the first time.
    fn get(
        &self,
        key: &str,
        load: impl FnOnce() -> Result<Option<T>, CatalogError>,
    ) -> Result<Option<Arc<T>>, CatalogError> {
        // Entries are never changed, so a panic elsewhere leaves nothing half done.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key) {
            return Ok(entry.clone());
        }
        let entry = load()?.map(Arc::new);
        entries.insert(key.to_owned(), entry.clone());
        Ok(entry)
    }
}
