//! Configurations and tensor lists the tests share.

use gemma4_model::Config;
use serde_json::Value;

/// Published-form configurations of the five sizes.
pub(crate) const E2B: &[u8] = include_bytes!("../published/e2b.json");
pub(crate) const E4B: &[u8] = include_bytes!("../published/e4b.json");
pub(crate) const B12: &[u8] = include_bytes!("../published/12b.json");
pub(crate) const B26: &[u8] = include_bytes!("../published/26b-a4b.json");
pub(crate) const B31: &[u8] = include_bytes!("../published/31b.json");
/// The same as [`B26`] in TOML.
pub(crate) const B26_TOML: &str = include_str!("../published/26b-a4b.toml");

/// A tiny checkpoint: its configuration in both forms, and `{name: [type, shape]}` of its files.
pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    pub(crate) published: &'static [u8],
    pub(crate) per_layer: &'static [u8],
    pub(crate) tensors: &'static str,
}

macro_rules! fixture {
    ($name:literal) => {
        Fixture {
            name: $name,
            published: include_bytes!(concat!("../../../../tests/fixtures/gemma4/", $name, "/bf16/config.json")),
            per_layer: include_bytes!(concat!("../../../../tests/fixtures/gemma4/", $name, "/f32/config.json")),
            tensors: include_str!(concat!("../tensor_lists/", $name, ".json")),
        }
    };
}

pub(crate) const FIXTURES: [Fixture; 5] =
    [fixture!("tiny-e2b"), fixture!("tiny-moe"), fixture!("tiny-dense"), fixture!("tiny-mm"), fixture!("tiny-unified")];

/// Resolves a configuration that must be good.
pub(crate) fn config(bytes: &[u8]) -> Config {
    Config::from_json(bytes).expect("a usable configuration")
}

/// The configuration with the value at a JSON pointer replaced; the parent has to exist.
pub(crate) fn edited(bytes: &[u8], edits: &[(&str, Value)]) -> Vec<u8> {
    let mut root: Value = serde_json::from_slice(bytes).expect("JSON");
    for (pointer, value) in edits {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = root.pointer_mut(parent).expect("the parent exists");
        match parent {
            Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value.clone(),
            other => other[key] = value.clone(),
        }
    }
    serde_json::to_vec(&root).expect("JSON")
}

/// The configuration without the key at a JSON pointer.
pub(crate) fn without(bytes: &[u8], pointer: &str) -> Vec<u8> {
    let mut root: Value = serde_json::from_slice(bytes).expect("JSON");
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = root.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    assert!(parent.shift_remove(key).is_some(), "{pointer} was not there");
    serde_json::to_vec(&root).expect("JSON")
}
