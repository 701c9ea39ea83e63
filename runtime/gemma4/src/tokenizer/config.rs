//! `tokenizer_config.json`: names of special tokens, and chat templates of older checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::files::{self, FileError};

/// The file's name.
pub(crate) const FILE: &str = "tokenizer_config.json";

/// What is read of the file; everything is optional, and so is the file.
#[derive(Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    /// Whether a prompt begins with the first special token even if `tokenizer.json` does not say so.
    #[serde(default)]
    pub(crate) add_bos_token: Option<bool>,
    /// An old rule that takes spaces before punctuation away.
    #[serde(default)]
    pub(crate) clean_up_tokenization_spaces: Option<bool>,
    /// One template or a list of named ones.
    #[serde(default)]
    pub(crate) chat_template: Option<Value>,
    #[serde(default)]
    extra_special_tokens: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl TokenizerConfig {
    pub(crate) fn open(folder: &Path) -> Result<Self, FileError> {
        Ok(files::read_json(&folder.join(FILE))?.unwrap_or_default())
    }

    /// The text of a special token, for example of `bos_token`.
    pub(crate) fn token(&self, name: &str) -> Option<&str> {
        self.rest.get(name).and_then(content)
    }

    /// The names and texts of all special tokens, as templates see them: `bos_token`, `eos_token`, `image_token`, ...
    pub(crate) fn tokens(&self) -> BTreeMap<String, String> {
        let extra = self.extra_special_tokens.as_ref().and_then(Value::as_object).into_iter().flatten();
        let named = self.rest.iter().filter(|(name, _)| name.ends_with("_token"));
        let pairs = extra.chain(named);
        pairs.filter_map(|(name, value)| Some((name.clone(), content(value)?.to_owned()))).collect()
    }
}

/// A token is written as its text, or as an object with its text and how it is matched.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
