//! A tiny model with random weights, made on the spot: the checkpoint behind `builtin/smoke`.
//!
//! Invariant: the same seed gives the same bytes on every machine, and the folder appears whole or not at all.
//!
//! Each tensor is drawn by a ChaCha generator of 8 rounds whose 256-bit key is the SHA-256 of a label, the seed and the
//! tensor's name, so no tensor depends on another. Drawn numbers go through sums, products, quotients and square roots
//! only, which IEEE 754 rounds in one way, and then to the nearest `bfloat16`: the model is the same in both element types.

mod draw;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View};

use crate::tensors::{Tensor, tensors};
use crate::{Config, ConfigError};

/// The `config.json` of the model: E2B in miniature, with per-layer embeddings and shared keys and values, in float32.
pub const CONFIG: &str = include_str!("data/config.json");

/// The files beside the weights. The tokenizer is a byte-fallback BPE of 1024 tokens. Its control tokens have the ids of
/// published tokenizers; those of media, which a vocabulary of this size cannot have, are 1016 to 1022.
const FILES: [(&str, &str); 5] = [
    ("config.json", CONFIG),
    ("generation_config.json", include_str!("data/generation_config.json")),
    ("tokenizer.json", include_str!("data/tokenizer.json")),
    ("tokenizer_config.json", include_str!("data/tokenizer_config.json")),
    ("chat_template.jinja", include_str!("data/chat_template.jinja")),
];
const WEIGHTS: &str = "model.safetensors";

/// A model that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SeededError {
    /// The folder is there already and is not empty.
    #[error("{}: there already; a seeded model is never written over another", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder could not be written.
    #[error("{}: cannot be written, so there is no model to run", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The weights could not be written.
    #[error("{}: the weights cannot be written, so there is no model to run", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SafeTensorError,
    },
    /// The configuration that is compiled in is not valid.
    #[error("the built-in configuration is not valid")]
    Config(#[from] ConfigError),
}

/// Writes the checkpoint of `seed` to `folder`, whose parent folders are made where they are missing.
///
/// Everything is written to a folder beside it that gets the name when it is complete. Of two processes that do this at
/// once, one gets [`SeededError::Exists`].
///
/// # Errors
/// [`SeededError`]; nothing is left behind.
pub fn write(folder: &Path, seed: u64) -> Result<(), SeededError> {
    let config = Config::from_json(CONFIG.as_bytes())?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |path: &Path, source| SeededError::Write { path: path.to_owned(), source };
    fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
    let building = tempfile::Builder::new().prefix(".seeded-").tempdir_in(parent);
    let building = building.map_err(|source| failed(parent, source))?;
    for (name, text) in FILES {
        let path = building.path().join(name);
        fs::write(&path, text).map_err(|source| failed(&path, source))?;
    }
    write_weights(&building.path().join(WEIGHTS), &config, seed)?;
    let names = FILES.iter().map(|(name, _)| *name).chain([WEIGHTS]);
    for path in names.map(|name| building.path().join(name)) {
        // A name must not outlive a crash that the content does not.
        File::open(&path).and_then(|file| file.sync_all()).map_err(|source| failed(&path, source))?;
    }
    match fs::rename(building.path(), folder) {
        Ok(()) => {
            // There is nothing left at the temporary name to remove.
            let _ = building.keep();
            Ok(())
        }
        Err(_) if folder.exists() => Err(SeededError::Exists { path: folder.to_owned() }),
        Err(source) => Err(failed(folder, source)),
    }
}

fn write_weights(path: &Path, config: &Config, seed: u64) -> Result<(), SeededError> {
    let list = tensors(config);
    let drawn: Vec<(&str, Drawn<'_>)> =
        list.iter().filter_map(|tensor| Some((tensor.name.as_str(), Drawn::new(tensor, seed)?))).collect();
    // What transformers asks for before it reads a file.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(drawn, Some(metadata), path)
        .map_err(|source| SeededError::Weights { path: path.to_owned(), source })
}

/// A tensor whose numbers are drawn when they are written, one tensor at a time.
struct Drawn<'a> {
    tensor: &'a Tensor,
    seed: u64,
    shape: Vec<usize>,
    bytes: usize,
}

impl<'a> Drawn<'a> {
    /// `None` for a tensor that no memory could hold.
    fn new(tensor: &'a Tensor, seed: u64) -> Option<Self> {
        let shape: Vec<usize> = tensor.shape.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<_>>()?;
        let bytes = shape.iter().try_fold(size_of::<f32>(), |bytes, &size| bytes.checked_mul(size))?;
        Some(Self { tensor, seed, shape, bytes })
    }
}

impl View for Drawn<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(draw::numbers(self.tensor, self.seed))
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}
