//! Where a plan's weights are on this machine.
//!
//! Invariant: a folder that is found holds the checkpoint that the plan was made for, as far as the plan can tell.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy as _;
use gemma4_model::seeded::{self, SeededError};
use gemma4_plan::Plan;
use thiserror::Error;

use crate::catalog;

/// The seed of `builtin/smoke`: one model for everybody.
const SMOKE_SEED: u64 = 4;

/// A checkpoint that is not there.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// No folder is known for data or caches.
    #[error("no folder for models is known: set HOME")]
    NoFolder,
    /// The model cannot be made.
    #[error("{0}")]
    Seeded(#[from] SeededError),
    /// There is no such folder.
    #[error(
        "the plan's checkpoint `{id}` is not there (looked at {}); name its folder with `--checkpoint`",
        list(looked)
    )]
    Missing {
        /// The plan's model id.
        id: String,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// It was not downloaded.
    #[error(
        "{id} is not in {}; get it with `hf download {id}{}`, or let `model.id` name a folder that holds it",
        cache.display(),
        revision.as_deref().map(|revision| format!(" --revision {revision}")).unwrap_or_default()
    )]
    NotDownloaded {
        /// The model's id at Hugging Face.
        id: String,
        /// Its revision, if the plan pins one.
        revision: Option<String>,
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// The folder holds another checkpoint.
    #[error(
        "{} holds another checkpoint than the plan was made for: the hash of its configuration and tensors is {found}, \
         and the plan has {wanted}; make the plan again",
        path.display()
    )]
    Other {
        /// The folder.
        path: PathBuf,
        /// The plan's hash.
        wanted: String,
        /// The folder's hash.
        found: String,
    },
    /// The folder cannot be read.
    #[error("{0}")]
    Unusable(#[from] catalog::CatalogError),
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The folder with the plan's checkpoint: `asked`, if it is one; else where the plan's model id leads. `builtin/smoke` is
/// written on the spot. `near` is where a relative id may start, such as the folder of the plan's file.
///
/// # Errors
/// [`CheckpointError`].
pub fn folder(plan: &Plan, asked: Option<&Path>, near: Option<&Path>) -> Result<PathBuf, CheckpointError> {
    let found = match asked {
        Some(folder) => folder.to_owned(),
        None if plan.model.id == "builtin/smoke" => return smoke(),
        None if plan.model.fingerprint.is_some() => local(plan, near)?,
        None => return downloaded(plan),
    };
    let Some(wanted) = &plan.model.fingerprint else { return Ok(found) };
    let there = catalog::local_model(&found)?.fingerprint.unwrap_or_default();
    if there == *wanted {
        Ok(std::path::absolute(&found).unwrap_or(found))
    } else {
        Err(CheckpointError::Other { path: found, wanted: wanted.clone(), found: there })
    }
}

/// A folder that the profile names. A relative path starts where it was written.
fn local(plan: &Plan, near: Option<&Path>) -> Result<PathBuf, CheckpointError> {
    let id = Path::new(&plan.model.id);
    let written = plan.provenance.get("model.id").and_then(|origin| origin.file.as_deref()).map(Path::new);
    let starts = [written.and_then(Path::parent), near, Some(Path::new(""))];
    let mut looked: Vec<PathBuf> = starts.into_iter().flatten().map(|start| start.join(id)).collect();
    looked.dedup();
    match looked.iter().find(|folder| folder.join("config.json").is_file()) {
        Some(folder) => Ok(folder.clone()),
        None => Err(CheckpointError::Missing { id: plan.model.id.clone(), looked }),
    }
}

/// The model with random weights, written if it is not there.
fn smoke() -> Result<PathBuf, CheckpointError> {
    let data = match std::env::var_os("GEMMA4CTL_DATA_DIR").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => {
            let base = etcetera::choose_base_strategy().map_err(|_| CheckpointError::NoFolder)?;
            base.data_dir().join("gemma4ctl")
        }
    };
    // Another version of this program may draw other numbers.
    let folder = data.join("models").join(format!("smoke-{}-{SMOKE_SEED}", env!("CARGO_PKG_VERSION")));
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    match seeded::write(&folder, SMOKE_SEED) {
        // Another process was faster.
        Ok(()) | Err(SeededError::Exists { .. }) => Ok(folder),
        Err(error) => Err(error.into()),
    }
}

/// A snapshot in the cache that Hugging Face's own tools keep.
fn downloaded(plan: &Plan) -> Result<PathBuf, CheckpointError> {
    let variable = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = match (variable("HF_HUB_CACHE"), variable("HF_HOME")) {
        (Some(cache), _) => cache,
        (None, Some(home)) => home.join("hub"),
        (None, None) => {
            let base = etcetera::choose_base_strategy().map_err(|_| CheckpointError::NoFolder)?;
            base.cache_dir().join("huggingface").join("hub")
        }
    };
    let id = &plan.model.id;
    let model = cache.join(format!("models--{}", id.replace('/', "--")));
    let revision = plan.model.revision.as_deref().unwrap_or("main");
    // A branch or tag leads to a commit; a commit stands for itself.
    let commit = std::fs::read_to_string(model.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    let folder = model.join("snapshots").join(commit);
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    Err(CheckpointError::NotDownloaded { id: id.clone(), revision: plan.model.revision.clone(), cache })
}
