//! Compares the tensors of a checkpoint with those its configuration asks for.
//!
//! Invariant: every tensor of the files ends in exactly one place: taken, ignored for a stated reason, or a problem.

use std::collections::BTreeMap;

use super::problems::{Found, Problems};
use super::{HeaderTensor, Shard};
use crate::tensors::{Component, Role, Tensor, tensors};
use crate::{Config, DType};

/// Parts of a model that are wanted beside the language model, which always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The image encoder and its projection.
    pub vision: bool,
    /// The audio encoder and its projection.
    pub audio: bool,
}

impl Selection {
    /// Everything that a configuration has.
    pub const ALL: Self = Self { vision: true, audio: true };

    /// Whether tensors of a component are wanted.
    #[must_use]
    pub const fn has(self, component: Component) -> bool {
        match component {
            Component::Vision => self.vision,
            Component::Audio => self.audio,
            _ => true,
        }
    }
}

/// Why a tensor of a checkpoint is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IgnoredBecause {
    /// Keys and values of a layer that borrows them; published files hold these, and nothing reads them.
    BorrowedKeysAndValues,
    /// It belongs to the image or audio encoder, which is not wanted.
    NotSelected,
    /// A head beside a token embedding that serves as head (`tie_word_embeddings`).
    TiedHead,
}

/// A tensor that is in the files and is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// Name.
    pub name: String,
    /// Bytes in the file.
    pub bytes: u64,
    /// Why.
    pub because: IgnoredBecause,
}

/// A tensor of the model and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// What the model reads.
    pub tensor: Tensor,
    /// Index of its file among the shards.
    pub shard: usize,
    /// Its entry in that file's header; the shape is that of `tensor`.
    pub entry: HeaderTensor,
}

/// What a checkpoint holds of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// Tensors to read, in the order of the model.
    pub matched: Vec<Matched>,
    /// Tensors that are known and not read, by name.
    pub ignored: Vec<Ignored>,
    /// What does not fit.
    pub problems: Problems,
}

/// Element types that weights may be stored in.
pub const STORED_TYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

const HEAD: &str = "lm_head.weight";
const VISION_PREFIXES: [&str; 3] = ["model.vision_tower.", "model.vision_embedder.", "model.embed_vision."];
const AUDIO_PREFIXES: [&str; 2] = ["model.audio_tower.", "model.embed_audio."];

/// Assigns every tensor of the files to the model, or says why it cannot.
///
/// Shapes and element types of ignored tensors are not looked at, and they may be absent.
#[must_use]
pub fn match_tensors(config: &Config, selection: Selection, shards: &[Shard]) -> Matching {
    let mut matching = Matching::default();
    let mut by_name: BTreeMap<&str, (usize, &HeaderTensor)> = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        for entry in &shard.tensors {
            if let Some((first, _)) = by_name.insert(&entry.name, (index, entry)) {
                let files = [first, index].map(|index| file_of(shards, index));
                matching.problems.doubly_given.push((entry.name.clone(), files));
            }
        }
    }
    for tensor in tensors(config) {
        let found = by_name.remove(tensor.name.as_str());
        let wanted = selection.has(tensor.component);
        match found {
            Some((_, entry)) if !wanted || !tensor.used => {
                let because = if wanted { IgnoredBecause::BorrowedKeysAndValues } else { IgnoredBecause::NotSelected };
                matching.ignore(entry, because);
            }
            Some((shard, entry)) => matching.take(tensor, shard, entry, shards),
            None if wanted && tensor.used => matching.problems.missing.push(tensor.name),
            None => {}
        }
    }
    for (name, (shard, entry)) in by_name {
        let starts_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let other_media =
            !selection.vision && starts_with(&VISION_PREFIXES) || !selection.audio && starts_with(&AUDIO_PREFIXES);
        if other_media {
            matching.ignore(entry, IgnoredBecause::NotSelected);
        } else if name == HEAD && config.text.tied_embeddings {
            matching.ignore(entry, IgnoredBecause::TiedHead);
        } else {
            matching.problems.unexpected.push(found(entry, shards, shard));
        }
    }
    matching.ignored.sort_by(|one, other| one.name.cmp(&other.name));
    matching.problems.other_prefix = matching.problems.find_other_prefix(config.tensor_prefix);
    matching
}

impl Matching {
    fn ignore(&mut self, entry: &HeaderTensor, because: IgnoredBecause) {
        self.ignored.push(Ignored { name: entry.name.clone(), bytes: entry.bytes, because });
    }

    fn take(&mut self, tensor: Tensor, shard: usize, entry: &HeaderTensor, shards: &[Shard]) {
        let shape_fits = entry.shape == tensor.shape || is_same_scalar(&tensor, entry);
        let type_fits = STORED_TYPES.contains(&entry.dtype);
        if !type_fits {
            self.problems.wrong_type.push(found(entry, shards, shard));
        }
        if shape_fits && type_fits {
            self.matched.push(Matched { tensor, shard, entry: entry.clone() });
        } else if !shape_fits {
            self.problems.misshapen.push((found(entry, shards, shard), tensor.shape));
        }
    }
}

/// Bounds of clipped layers are scalars; some writers store them as `[1]`.
fn is_same_scalar(tensor: &Tensor, entry: &HeaderTensor) -> bool {
    tensor.role == Role::ClipScalar && tensor.shape.is_empty() && entry.shape == [1]
}

fn found(entry: &HeaderTensor, shards: &[Shard], shard: usize) -> Found {
    Found { name: entry.name.clone(), file: file_of(shards, shard), dtype: entry.dtype, shape: entry.shape.clone() }
}

/// Name of a file without its folder, which errors name once.
fn file_of(shards: &[Shard], index: usize) -> String {
    let name = shards.get(index).and_then(|shard| shard.path.file_name());
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
