//! Models: the Gemma 4 family by size, and checkpoints in a folder.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use gemma4_model::tensors::{Role, Tensor, tensors};
use gemma4_model::{Config, RawConfig};
use serde::Deserialize;

use super::{Cache, CatalogError, parse, user_entries};

/// A model.
#[derive(Debug, Clone)]
pub struct Model {
    /// Size in the family, such as `26B-A4B`.
    pub size: String,
    /// Where the dimensions come from.
    pub source: String,
    /// The dimensions.
    pub config: Config,
    /// Ids in the catalog; a derived checkpoint is recognised by its name and is not among them.
    pub ids: Vec<String>,
    /// The tensors, equal ones together.
    pub kinds: Vec<TensorKind>,
    /// For a checkpoint in a folder: SHA-256 of its configuration and tensor headers.
    pub fingerprint: Option<String>,
}

/// Tensors that differ in nothing but their layer.
#[derive(Debug, Clone)]
pub struct TensorKind {
    /// The first of them.
    pub tensor: Tensor,
    /// The layers that have one, in their own stack; empty for tensors outside the layers.
    pub layers: Vec<u32>,
    /// How many there are.
    pub count: u64,
}

/// Groups the tensors of `config`: same role and shape, in layers with the same attention.
fn kinds(config: &Config) -> Vec<TensorKind> {
    let mut kinds: Vec<TensorKind> = Vec::new();
    let mut index: HashMap<_, usize> = HashMap::new();
    for tensor in tensors(config) {
        // Engines place K and V by the heads behind them, everything else by its shape.
        let by_heads = matches!(tensor.role, Role::KProj | Role::VProj);
        let layer = tensor.layer.filter(|_| by_heads).and_then(|layer| config.text.layers.get(layer));
        let attention = layer.map(|layer| (layer.kv_heads, layer.head_dim, layer.k_eq_v));
        let key = (
            tensor.role,
            tensor.component,
            tensor.used,
            tensor.shape.clone(),
            attention,
            tensor.layer.is_none().then(|| tensor.name.clone()),
        );
        let number = tensor.layer.and_then(|layer| u32::try_from(layer).ok());
        match index.get(&key).and_then(|&at| kinds.get_mut(at)) {
            Some(kind) => {
                kind.count += 1;
                if let Some(number) = number
                    && kind.layers.last() != Some(&number)
                {
                    kind.layers.push(number);
                }
            }
            None => {
                index.insert(key, kinds.len());
                kinds.push(TensorKind { tensor, layers: number.into_iter().collect(), count: 1 });
            }
        }
    }
    kinds
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
    fn into_model(self, path: &str) -> Result<Model, CatalogError> {
        let config = Config::from_raw(&self.config)
            .map_err(|error| CatalogError::Parse { path: path.to_owned(), message: format!("[config]: {error}") })?;
        let kinds = kinds(&config);
        Ok(Model { size: self.name, source: self.source, config, ids: self.ids, kinds, fingerprint: None })
    }
}

/// The model with this id, recognised by the catalog's ids or by the size in its name; or the model of `size`.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn model(id: &str, size: Option<&str>) -> Result<Option<Arc<Model>>, CatalogError> {
    static READ: Cache<Model> = Cache::new();
    READ.get(&format!("{id} {}", size.unwrap_or("")), || {
        let lower = id.to_lowercase();
        for entry in user_entries::<Entry>("models")? {
            let matches = match size {
                Some(size) => size.eq_ignore_ascii_case(&entry.name),
                None => entry.ids.iter().any(|known| known == id) || lower.contains(&entry.pattern.to_lowercase()),
            };
            if matches {
                return entry.into_model("catalog").map(Some);
            }
        }
        for (name, pattern, text) in FILES {
            let matches = match size {
                Some(size) => size.eq_ignore_ascii_case(name),
                None => lower.contains(pattern),
            };
            if matches {
                let path = format!("builtin:{name}");
                return parse::<Entry>(&path, text)?.into_model(&path).map(Some);
            }
        }
        Ok(None)
    })
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
    for tensor in checkpoint.sorted_tensors() {
        hashed.extend_from_slice(format!("\n{} {} {:?}", tensor.name, tensor.dtype.name(), tensor.shape).as_bytes());
    }
    Ok(Model {
        size: "local".to_owned(),
        source: format!("{} and the headers beside it", folder.join("config.json").display()),
        ids: Vec::new(),
        kinds: kinds(&checkpoint.config),
        config: checkpoint.config,
        fingerprint: Some(gemma4_plan::digest::sha256(&hashed)),
    })
}
