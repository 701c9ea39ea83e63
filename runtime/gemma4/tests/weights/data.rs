//! Checkpoints that the tests share, and an independent reader of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemma4_model::DType;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::weights::{Checkpoint, FileBytes, Selection, Target, WeightsError};
use safetensors::{Dtype, SafeTensors};

pub(crate) const FIXTURES: [&str; 5] = ["tiny-e2b", "tiny-moe", "tiny-dense", "tiny-mm", "tiny-unified"];

/// The bfloat16 checkpoint of a fixture.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gemma4").join(name).join("bf16")
}

/// Reads a file whole, where a runtime would map it.
pub(crate) fn read(path: &Path) -> io::Result<FileBytes> {
    Ok(Arc::new(std::fs::read(path)?))
}

pub(crate) fn open(folder: &Path, selection: Selection) -> Result<Checkpoint, WeightsError> {
    Checkpoint::open(folder, selection, read)
}

pub(crate) fn opened(name: &str) -> Checkpoint {
    open(&fixture(name), Selection::ALL).expect("a good checkpoint")
}

pub(crate) fn target(model: u64, dtype: DType) -> Target {
    Target { mesh: Mesh { data: 1, model }, experts: ExpertSharding::Tensor, dtype, quantization: None }
}

/// A tensor as the safetensors library reads it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Whole {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// All tensors of a folder.
pub(crate) fn whole(folder: &Path) -> BTreeMap<String, Whole> {
    let mut tensors = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(path).expect("a file");
            for (name, view) in SafeTensors::deserialize(&bytes).expect("a safetensors file").tensors() {
                let whole = Whole { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
                tensors.insert(name, whole);
            }
        }
    }
    tensors
}

/// Writes tensors into one file.
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Whole>) {
    let views = tensors.iter().map(|(name, whole)| {
        let view = safetensors::tensor::TensorView::new(whole.dtype, whole.shape.clone(), &whole.bytes);
        (name, view.expect("a view"))
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

/// A copy of a fixture's tensors in a new folder, changed by `edit`.
pub(crate) fn edited(name: &str, edit: impl FnOnce(&mut BTreeMap<String, Whole>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let source = fixture(name);
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).expect("copied");
    let mut tensors = whole(&source);
    edit(&mut tensors);
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}
