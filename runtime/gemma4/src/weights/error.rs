//! What can go wrong with weights.

use std::io;
use std::path::PathBuf;

use crate::DType;
use crate::checkpoint::{CheckpointError, Problems};
use crate::sharding::ShardingError;

/// Weights that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The folder holds no usable checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tensors of the files are not those of the configuration.
    #[error(
        "{}: {} tensors do not fit config.json, so the model would not be the one it says; \
         fetch the files again, or the config.json that belongs to them{problems}",
        folder.display(), problems.count()
    )]
    Mismatch {
        /// The folder.
        folder: PathBuf,
        /// All of them.
        problems: Box<Problems>,
    },
    /// The checkpoint is quantized, and nothing here knows how to read that.
    #[error("{}: the weights are quantized ({method}), which is not supported; use a bfloat16 checkpoint", folder.display())]
    Quantized {
        /// The folder.
        folder: PathBuf,
        /// Name of the method.
        method: String,
    },
    /// No conversion leads to the element type asked for.
    #[error("`{tensor}` is stored as {from} and cannot become {to}; a model runs in bfloat16 or float32")]
    Conversion {
        /// Name of the tensor.
        tensor: String,
        /// Type in the file.
        from: DType,
        /// Type asked for.
        to: DType,
    },
    /// The mesh cannot split a tensor.
    #[error("the weights cannot be split")]
    Sharding(#[from] ShardingError),
    /// A rank outside the mesh, or listed twice.
    #[error("rank {rank} is listed twice or is not one of the {devices} that a copy of the model is split over")]
    Rank {
        /// The rank.
        rank: u64,
        /// Size of the model axis.
        devices: u64,
    },
    /// No tensor has this name, or it is not read.
    #[error("the model has no tensor `{tensor}` that is read")]
    UnknownTensor {
        /// The name.
        tensor: String,
    },
    /// A file gives fewer bytes than when it was opened.
    #[error("{}: the bytes of `{tensor}` are gone; the file was changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// There is no memory for a part.
    #[error("{bytes} bytes of memory for `{tensor}` were refused; use fewer workers or more devices")]
    Memory {
        /// Name of the tensor.
        tensor: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The file with aligned parts cannot be used.
    #[error("cannot {what} {}, where weights are kept as devices take them: {error}", path.display())]
    Store {
        /// What was tried.
        what: &'static str,
        /// The file, or one of the checkpoint.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// A thread could not be started.
    #[error("a thread to load weights with could not be started")]
    Thread(#[source] io::Error),
}
