//! What lies in a checkpoint, from its headers alone.
//!
//! Invariant: no weight is read and memory stays within a small multiple of the headers. File names in an index are plain
//! names within the folder, so a hostile index cannot point elsewhere.

mod header;
mod index;
mod matching;
mod problems;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};

use index::IndexError;

pub use header::{HeaderError, HeaderTensor, MAX_HEADER_BYTES, MAX_RANK, header_of, read_header};
pub use matching::{Ignored, IgnoredBecause, Matched, Matching, STORED_TYPES, Selection, match_tensors};
pub use problems::{Found, Problems};

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
    /// Other safetensors files of the folder, by name. Nothing in them belongs to the checkpoint.
    pub unread: Vec<String>,
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

    /// Which tensors belong to the model, and what does not fit.
    #[must_use]
    pub fn matching(&self, selection: Selection) -> Matching {
        match_tensors(&self.config, selection, &self.shards)
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
    /// A file that by its name is part of the checkpoint, and that the index leaves out.
    #[error("{}: `{file}` lies beside it and is not mentioned; the index or the file is of another download", path.display())]
    NotInIndex {
        /// The index.
        path: PathBuf,
        /// Name of the file.
        file: String,
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
    let checkpoint = read_folder(folder, &mut header_of_file)?;
    let mut seen = BTreeSet::new();
    for shard in &checkpoint.shards {
        if let Some(twice) = shard.tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
            let (path, tensor) = (shard.path.clone(), twice.name.clone());
            return Err(CheckpointError::InTwoShards { path, tensor });
        }
    }
    Ok(checkpoint)
}

/// Reads the header of one file.
type ReadHeader<'a> = &'a mut dyn FnMut(&Path) -> Result<Vec<HeaderTensor>, CheckpointError>;

/// [`local`] with headers read by the caller, in the order of the shards. Leaves tensors that two files have to the caller.
pub(crate) fn read_folder(folder: &Path, read: ReadHeader<'_>) -> Result<LocalCheckpoint, CheckpointError> {
    let path = folder.join(CONFIG);
    let config_bytes = read_bounded(&path, MAX_CONFIG_BYTES)?;
    let config = Config::from_json(&config_bytes).map_err(|source| CheckpointError::Config { path, source })?;
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    let mut unread = weight_files(folder)?;
    let shards = if single.is_file() {
        vec![Shard { tensors: read(&single)?, path: single }]
    } else if index.is_file() {
        indexed(folder, &index, read)?
    } else {
        return Err(CheckpointError::NoWeights { path: folder.to_owned() });
    };
    let is_read = |name: &String| shards.iter().any(|shard| shard.path.ends_with(name));
    unread.retain(|name| !is_read(name));
    let is_single = shards.iter().any(|shard| shard.path.ends_with(SINGLE));
    if let Some(part) = unread.iter().find(|name| !is_single && is_numbered_part(name)) {
        return Err(CheckpointError::NotInIndex { path: index, file: part.clone() });
    }
    Ok(LocalCheckpoint { config, config_bytes, shards, unread })
}

fn indexed(folder: &Path, index: &Path, read: ReadHeader<'_>) -> Result<Vec<Shard>, CheckpointError> {
    let by_file = index::parse(&read_bounded(index, MAX_HEADER_BYTES)?).map_err(|error| {
        let path = index.to_owned();
        match error {
            IndexError::Json(source) => CheckpointError::Index { path, source },
            IndexError::FileName(file) => CheckpointError::ShardName { path, file },
        }
    })?;
    let mut shards: Vec<Shard> = Vec::with_capacity(by_file.len());
    for (file, listed) in by_file {
        let path = folder.join(file);
        let tensors = read(&path)?;
        let names: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some(absent) = listed.into_iter().find(|name| !names.contains(name.as_str())) {
            return Err(CheckpointError::NotInShard { path, tensor: absent });
        }
        shards.push(Shard { path, tensors });
    }
    Ok(shards)
}

/// Names of the safetensors files of a folder, sorted.
fn weight_files(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let unreadable = |source| CheckpointError::Read { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|extension| extension == "safetensors") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a name is of the form `model-00001-of-00002.safetensors`.
fn is_numbered_part(name: &str) -> bool {
    let middle = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = middle.and_then(|middle| middle.split_once("-of-"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(part, parts)| is_number(part) && is_number(parts))
}

fn header_of_file(path: &Path) -> Result<Vec<HeaderTensor>, CheckpointError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (bytes, file) = opened.map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    read_header(file, bytes).map_err(|source| CheckpointError::Header { path: path.to_owned(), source })
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
