//! What lies in a checkpoint, from its headers alone.
//!
//! Invariant: no weight is read and memory stays within a small multiple of the headers. File names in an index are plain
//! names within the folder, so a hostile index cannot point elsewhere.

mod header;
mod matching;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{Config, ConfigError};

pub use header::{HeaderError, HeaderTensor, MAX_HEADER_BYTES, MAX_RANK, header_of, read_header};
pub use matching::{Mismatch, mismatches};

/// The longest `config.json` that is accepted, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint in a folder.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalCheckpoint {
    /// The configuration.
    pub config: Config,
    /// The bytes of `config.json`, for a digest over them.
    pub config_bytes: Vec<u8>,
    /// The files, in the order of their names.
    pub shards: Vec<Shard>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Where it is.
    pub path: PathBuf,
    /// Its tensors, in the order of their data.
    pub tensors: Vec<HeaderTensor>,
}

impl LocalCheckpoint {
    /// All tensors, sorted by name: together with [`Self::config_bytes`] what identifies a checkpoint without reading it.
    /// A digest should use name, type and shape only; offsets change when files are split differently.
    #[must_use]
    pub fn sorted_tensors(&self) -> Vec<&HeaderTensor> {
        let mut tensors: Vec<_> = self.shards.iter().flat_map(|shard| &shard.tensors).collect();
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        tensors
    }

    /// Where the checkpoint differs from what its configuration says it holds.
    #[must_use]
    pub fn mismatches(&self) -> Vec<Mismatch> {
        let tensors = self.shards.iter().flat_map(|shard| &shard.tensors);
        mismatches(&self.config, tensors)
    }
}

/// A folder that holds no usable checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is longer than it can sensibly be.
    #[error("{}: more than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// `config.json` describes no model that is supported.
    #[error("{}: not a usable configuration", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The folder has neither `model.safetensors` nor an index.
    #[error("{}: neither {SINGLE} nor {INDEX} is there", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The index is not one.
    #[error("{}: not an index of safetensors files", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The index names a file that is not a plain name within the folder.
    #[error("{}: `{file}` is not the name of a file in the same folder", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name found.
        file: String,
    },
    /// The index says that a file has a tensor, and it has not.
    #[error("{}: `{tensor}` is not in this file, where the index puts it", path.display())]
    NotInShard {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor of the same name is in an earlier file.
    #[error("{}: `{tensor}` is also in another file of the checkpoint", path.display())]
    InTwoShards {
        /// The later file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// The header of a file is not usable.
    #[error("{}: not a usable safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: HeaderError,
    },
}

/// Reads `config.json` and the headers of all weight files of a folder.
///
/// `model.safetensors` is taken if it exists, else the files of `model.safetensors.index.json`; transformers looks in the
/// same order.
///
/// # Errors
/// [`CheckpointError`], always with the path of the file.
pub fn local(folder: &Path) -> Result<LocalCheckpoint, CheckpointError> {
    let path = folder.join(CONFIG);
    let config_bytes = read_bounded(&path, MAX_CONFIG_BYTES)?;
    let config = Config::from_json(&config_bytes).map_err(|source| CheckpointError::Config { path, source })?;
    let single = folder.join(SINGLE);
    let shards = if single.is_file() {
        vec![shard(single)?]
    } else {
        let index = folder.join(INDEX);
        if !index.is_file() {
            return Err(CheckpointError::NoWeights { path: folder.to_owned() });
        }
        indexed(folder, &index)?
    };
    Ok(LocalCheckpoint { config, config_bytes, shards })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn indexed(folder: &Path, index: &Path) -> Result<Vec<Shard>, CheckpointError> {
    let bytes = read_bounded(index, MAX_HEADER_BYTES)?;
    let parsed: Result<Index, _> = serde_json::from_slice(&bytes);
    let Index { weight_map } = parsed.map_err(|source| CheckpointError::Index { path: index.to_owned(), source })?;
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in &weight_map {
        by_file.entry(file).or_default().push(tensor);
    }
    let mut seen = BTreeSet::new();
    let mut shards: Vec<Shard> = Vec::with_capacity(by_file.len());
    for (file, tensors) in by_file {
        if !is_plain_name(file) {
            let (path, file) = (index.to_owned(), file.to_owned());
            return Err(CheckpointError::ShardName { path, file });
        }
        let shard = shard(folder.join(file))?;
        let mut names: Vec<&str> = shard.tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        if let Some(absent) = tensors.iter().find(|name| names.binary_search(name).is_err()) {
            let (path, tensor) = (shard.path, (*absent).to_owned());
            return Err(CheckpointError::NotInShard { path, tensor });
        }
        let twice = names.into_iter().find(|name| !seen.insert((*name).to_owned()));
        if let Some(tensor) = twice.map(str::to_owned) {
            return Err(CheckpointError::InTwoShards { path: shard.path, tensor });
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// A name without folders. Backslashes and colons count as separators everywhere, so that an index means the same on
/// every system.
fn is_plain_name(file: &str) -> bool {
    !matches!(file, "" | "." | "..") && !file.contains(['/', '\\', ':', '\0'])
}

fn shard(path: PathBuf) -> Result<Shard, CheckpointError> {
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (bytes, file) = match opened {
        Ok(opened) => opened,
        Err(source) => return Err(CheckpointError::Read { path, source }),
    };
    match read_header(file, bytes) {
        Ok(tensors) => Ok(Shard { path, tensors }),
        Err(source) => Err(CheckpointError::Header { path, source }),
    }
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes));
    match read {
        Ok(read) if read as u64 > limit => Err(CheckpointError::TooLong { path: path.to_owned(), limit }),
        Ok(_) => Ok(bytes),
        Err(source) => Err(CheckpointError::Read { path: path.to_owned(), source }),
    }
}
