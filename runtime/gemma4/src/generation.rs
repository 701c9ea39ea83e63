//! What a checkpoint says about generating: where to stop, and how to sample if nobody asks for something else.

use std::path::Path;

use serde::Deserialize;

use crate::files::{self, FileError};

/// The part of `generation_config.json` that an engine obeys.
///
/// Every field is optional: a request's own setting comes first, then this one, then the engine's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an answer. Empty if neither file names one: then only a limit on tokens ends it.
    pub eos_token_ids: Vec<u32>,
    /// The id that a prompt begins with.
    pub bos_token_id: Option<u32>,
    /// The id that fills up batches.
    pub pad_token_id: Option<u32>,
    /// Whether to sample at all; `false` asks for the likeliest token.
    pub do_sample: Option<bool>,
    /// Divides logits before sampling, 0 or more; 0 stands for the likeliest token.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are sampled from; 0 for all.
    pub top_k: Option<u32>,
    /// The probability, above 0 and up to 1, that the tokens sampled from make up at least.
    pub top_p: Option<f32>,
    /// Tokens below this part (0 to 1) of the likeliest one's probability are left out.
    pub min_p: Option<f32>,
    /// Divides (above 1) or multiplies (below) the logits of tokens seen before; above 0.
    pub repetition_penalty: Option<f32>,
    /// How many tokens an answer has at most.
    pub max_new_tokens: Option<u32>,
}

/// A generation configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A number that means nothing.
    #[error("generation_config.json: `{field}` is {value}; expected {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it says.
        value: f32,
        /// What it may say, in words.
        expected: &'static str,
    },
}

/// One id or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a token id or a list of token ids")]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    eos_token_id: Option<Ids>,
    bos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<u32>,
}

/// The ids in `config.json`, for checkpoints without a `generation_config.json` or with one that names none.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelIds {
    eos_token_id: Option<Ids>,
    bos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    text_config: Option<Box<ModelIds>>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`, and from `config.json` the ids that it does not name. Either may be absent.
    ///
    /// # Errors
    /// [`GenerationError`]: a file that is no JSON, a field of another type, or a number out of its range. Fields that
    /// are not known are passed over, as these files carry settings of other programs too.
    pub fn open(folder: &Path) -> Result<Self, GenerationError> {
        let raw: Raw = files::read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
        let model: ModelIds = files::read_json(&folder.join("config.json"))?.unwrap_or_default();
        let text = model.text_config.map(|text| *text).unwrap_or_default();
        let eos = raw.eos_token_id.or(model.eos_token_id).or(text.eos_token_id);
        let config = Self {
            eos_token_ids: match eos {
                None => Vec::new(),
                Some(Ids::One(id)) => vec![id],
                Some(Ids::Many(ids)) => ids,
            },
            bos_token_id: raw.bos_token_id.or(model.bos_token_id).or(text.bos_token_id),
            pad_token_id: raw.pad_token_id.or(model.pad_token_id).or(text.pad_token_id),
            do_sample: raw.do_sample,
            temperature: raw.temperature,
            top_k: raw.top_k,
            top_p: raw.top_p,
            min_p: raw.min_p,
            repetition_penalty: raw.repetition_penalty,
            max_new_tokens: raw.max_new_tokens,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), GenerationError> {
        let check = |field, value: Option<f32>, fits: fn(f32) -> bool, expected| match value {
            // A number too large for 32 bits has become infinite.
            Some(value) if !(value.is_finite() && fits(value)) => {
                Err(GenerationError::OutOfRange { field, value, expected })
            }
            _ => Ok(()),
        };
        check("temperature", self.temperature, |value| value >= 0.0, "0 or more")?;
        check("top_p", self.top_p, |value| value > 0.0 && value <= 1.0, "more than 0 and at most 1")?;
        check("min_p", self.min_p, |value| (0.0..=1.0).contains(&value), "0 to 1")?;
        check("repetition_penalty", self.repetition_penalty, |value| value > 0.0, "more than 0")
    }
}
