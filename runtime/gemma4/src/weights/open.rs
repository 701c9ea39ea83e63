//! Opening a checkpoint: map, read headers, match.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::bytes::FileBytes;
use super::error::WeightsError;
use crate::Config;
use crate::checkpoint::{CheckpointError, Ignored, Matched, Selection, header_of, read_folder};
use crate::tensors::Tensor;

/// A checkpoint whose tensors are all found, in shape, and known by their place in the files.
pub struct Checkpoint {
    config: Config,
    config_bytes: Vec<u8>,
    files: Vec<(PathBuf, FileBytes)>,
    matched: Vec<Matched>,
    ignored: Vec<Ignored>,
    unread: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder in Hugging Face layout: `config.json`, and `model.safetensors` or the files of
    /// `model.safetensors.index.json`. `map` gives the bytes of a file; headers are read from these same bytes, so a file
    /// that is replaced meanwhile cannot have one header and other data.
    ///
    /// # Errors
    /// [`WeightsError::Checkpoint`] for files that cannot be read or trusted, [`WeightsError::Mismatch`] with everything
    /// that does not fit the configuration, [`WeightsError::Quantized`].
    pub fn open(
        folder: &Path,
        selection: Selection,
        map: impl Fn(&Path) -> io::Result<FileBytes>,
    ) -> Result<Self, WeightsError> {
        let mut files: Vec<(PathBuf, FileBytes)> = Vec::new();
        let checkpoint = read_folder(folder, &mut |path| {
            let path = path.to_owned();
            let bytes = map(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
            let header = header_of(bytes.as_ref().as_ref())
                .map_err(|source| CheckpointError::Header { path: path.clone(), source })?;
            files.push((path, bytes));
            Ok(header)
        })?;
        if let Some(method) = checkpoint.config.quantization.clone() {
            return Err(WeightsError::Quantized { folder: folder.to_owned(), method });
        }
        let matching = checkpoint.matching(selection);
        if !matching.problems.is_empty() {
            let problems = Box::new(matching.problems);
            return Err(WeightsError::Mismatch { folder: folder.to_owned(), problems });
        }
        Ok(Self {
            config: checkpoint.config,
            config_bytes: checkpoint.config_bytes,
            files,
            matched: matching.matched,
            ignored: matching.ignored,
            unread: checkpoint.unread,
        })
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The bytes of `config.json`.
    #[must_use]
    pub fn config_bytes(&self) -> &[u8] {
        &self.config_bytes
    }

    /// The tensors that are read, in the order of the model.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.matched.iter().map(|matched| &matched.tensor)
    }

    /// Tensors that are in the files and are not read, by name.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// Other safetensors files of the folder, by name. Nothing of them is read.
    #[must_use]
    pub fn unread_files(&self) -> &[String] {
        &self.unread
    }

    pub(super) fn files(&self) -> &[(PathBuf, FileBytes)] {
        &self.files
    }

    pub(super) fn matched(&self) -> &[Matched] {
        &self.matched
    }

    /// The file of a tensor and the range of its bytes there.
    pub(super) fn place_of(&self, matched: &Matched) -> Result<(&FileBytes, Range<usize>), WeightsError> {
        let range = usize::try_from(matched.entry.offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(matched.entry.bytes).ok()?)?;
            Some(start..end)
        });
        let file = self.files.get(matched.shard);
        match (file, range) {
            (Some((_, bytes)), Some(range)) if bytes.as_ref().as_ref().get(range.clone()).is_some() => {
                Ok((bytes, range))
            }
            _ => Err(self.changed(matched)),
        }
    }

    pub(super) fn changed(&self, matched: &Matched) -> WeightsError {
        let path = self.files.get(matched.shard).map(|(path, _)| path.clone()).unwrap_or_default();
        WeightsError::Changed { path, tensor: matched.tensor.name.clone() }
    }
}
