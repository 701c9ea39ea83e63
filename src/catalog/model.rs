//! Models: the Gemma 4 family by size, and checkpoints in a folder.

use std::path::Path;

use gemma4_model::{Config, RawConfig};
use serde::Deserialize;

use super::{CatalogError, parse, user_entries};

/// A model.
#[derive(Debug, Clone)]
pub struct Model {
    /// Size in the family, such as `26B-A4B`.
    pub size: String,
    /// Where the dimensions come from.
    pub source: String,
    /// The dimensions.
    pub config: Config,
    /// Whether the id itself is in the catalog, rather than recognised by its name.
    pub exact: bool,
    /// For a checkpoint in a folder: SHA-256 of its configuration and tensor headers.
    pub fingerprint: Option<String>,
    /// For a checkpoint in a folder: bytes of its tensors.
    pub checkpoint_bytes: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    ids: Vec<String>,
    pattern: String,
    source: String,
    config: RawConfig,
}

macro_rules! files {
    ($($name:literal: $pattern:literal),*) => { [$(($name, $pattern, include_str!(concat!("data/models/", $name, ".toml")))),*] };
}

/// File, the pattern that its ids contain (so that one file is read, not six), and text.
const FILES: [(&str, &str, &str); 6] = files![
    "e2b": "gemma-4-e2b",
    "e4b": "gemma-4-e4b",
    "12b": "gemma-4-12b",
    "26b-a4b": "gemma-4-26b-a4b",
    "31b": "gemma-4-31b",
    "smoke": "builtin/smoke"
];

impl Entry {
    fn into_model(self, id: &str, path: &str) -> Result<Model, CatalogError> {
        let config = Config::from_raw(&self.config)
            .map_err(|error| CatalogError::Parse { path: path.to_owned(), message: format!("[config]: {error}") })?;
        let exact = self.ids.iter().any(|known| known == id);
        Ok(Model { size: self.name, source: self.source, config, exact, fingerprint: None, checkpoint_bytes: None })
    }
}

/// The model with this id, recognised by the catalog's ids or by the size in its name; or the model of `size`.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn model(id: &str, size: Option<&str>) -> Result<Option<Model>, CatalogError> {
    let lower = id.to_lowercase();
    for entry in user_entries::<Entry>("models")? {
        let named = size.is_some_and(|size| size.eq_ignore_ascii_case(&entry.name));
        if named
            || (size.is_none()
                && (entry.ids.iter().any(|known| known == id) || lower.contains(&entry.pattern.to_lowercase())))
        {
            return entry.into_model(id, "catalog").map(Some);
        }
    }
    for (name, pattern, text) in FILES {
        let matches = match size {
            Some(size) => size.eq_ignore_ascii_case(name),
            None => lower.contains(pattern),
        };
        if matches {
            let path = format!("builtin:{name}");
            return parse::<Entry>(&path, text)?.into_model(id, &path).map(Some);
        }
    }
    Ok(None)
}

/// Every id in the catalog.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn model_names() -> Result<Vec<String>, CatalogError> {
    let mut names: Vec<String> = user_entries::<Entry>("models")?.into_iter().flat_map(|entry| entry.ids).collect();
    for (name, _, text) in FILES {
        names.extend(parse::<Entry>(&format!("builtin:{name}"), text)?.ids);
    }
    Ok(names)
}

/// The model in a checkpoint folder.
///
/// # Errors
/// If the folder does not hold a Gemma 4 checkpoint that can be read.
pub fn local_model(folder: &Path) -> Result<Model, CatalogError> {
    let checkpoint = gemma4_model::checkpoint::local(folder).map_err(|error| {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            message = format!("{message}: {inner}");
            source = inner.source();
        }
        CatalogError::Checkpoint(message)
    })?;
    let mut hashed = checkpoint.config_bytes.clone();
    let mut bytes = 0_u64;
    for tensor in checkpoint.sorted_tensors() {
        hashed.extend_from_slice(format!("\n{} {} {:?}", tensor.name, tensor.dtype.name(), tensor.shape).as_bytes());
        let elements = tensor.shape.iter().fold(1_u64, |product, &size| product.saturating_mul(size));
        bytes = bytes.saturating_add(tensor.dtype.bytes(elements).unwrap_or(0));
    }
    Ok(Model {
        size: "local".to_owned(),
        source: format!("{} and the headers beside it", folder.join("config.json").display()),
        config: checkpoint.config,
        exact: true,
        fingerprint: Some(gemma4_plan::digest::sha256(&hashed)),
        checkpoint_bytes: Some(bytes),
    })
}
