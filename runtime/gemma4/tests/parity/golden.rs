//! Expected values, read by the `safetensors` crate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

pub(crate) const FIXTURES: [&str; 5] = ["tiny-e2b", "tiny-moe", "tiny-dense", "tiny-mm", "tiny-unified"];

/// A tensor of f32 with its shape.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl Tensor {
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        let width = self.dims.last().copied().expect("a dimension");
        &self.values[index * width..(index + 1) * width]
    }
}

pub(crate) struct Prompt {
    pub(crate) ids: Vec<i32>,
    pub(crate) greedy: Vec<i32>,
    /// Rows of the prompt with their logits.
    pub(crate) logits: Vec<(usize, Vec<f32>)>,
    /// Logits of each continuation step, for a prompt that has them.
    pub(crate) greedy_logits: Option<Tensor>,
}

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gemma4").join(name)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Option<Tensor> {
    let view = tensors.tensor(name).ok().filter(|view| view.dtype() == Dtype::F32)?;
    let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4")));
    Some(Tensor { dims: view.shape().to_vec(), values: values.collect() })
}

fn i32s(tensors: &SafeTensors<'_>, name: &str) -> Option<Vec<i32>> {
    let view = tensors.tensor(name).ok()?;
    assert_eq!(view.dtype(), Dtype::I32, "{name}");
    let values = view.data().chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().expect("4")));
    Some(values.collect())
}

pub(crate) fn prompts(name: &str) -> Vec<Prompt> {
    let bytes = read(&folder(name).join("golden/text.safetensors"));
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let prompt = |index: usize| {
        let key = |what: &str| format!("prompt.{index}.{what}");
        let ids = i32s(&tensors, &key("input_ids"))?;
        let logits = f32s(&tensors, &key("logits")).expect("logits");
        let rows = i32s(&tensors, &key("logits_rows"));
        let rows = rows.unwrap_or_else(|| (0..i32::try_from(logits.dims[0]).expect("rows")).collect());
        let rows = rows.iter().enumerate();
        Some(Prompt {
            logits: rows.map(|(at, &row)| (usize::try_from(row).expect("a row"), logits.row(at).to_vec())).collect(),
            greedy: i32s(&tensors, &key("greedy_ids")).expect("tokens"),
            greedy_logits: f32s(&tensors, &key("greedy_logits")),
            ids,
        })
    };
    let prompts: Vec<Prompt> = (0..).map_while(prompt).collect();
    assert_eq!(prompts.len(), 8, "{name}");
    prompts
}

/// Values on the way of prompt 6.
pub(crate) fn trace(name: &str) -> BTreeMap<String, Tensor> {
    let bytes = read(&folder(name).join("golden/trace.safetensors"));
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let names = tensors.names().into_iter().map(|name| name.to_owned());
    names.filter_map(|name| Some((name.clone(), f32s(&tensors, &name)?))).collect()
}

/// Last logits of each prompt as torch computes them in bfloat16.
pub(crate) fn bf16_last_logits(name: &str) -> Vec<Vec<f32>> {
    let bytes = read(&folder(name).join("golden/bf16_reference.safetensors"));
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    (0..8).map(|index| f32s(&tensors, &format!("prompt.{index}.last_logits")).expect("logits").values).collect()
}
