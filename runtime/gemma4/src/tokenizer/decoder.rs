//! What a token stands for: text, or one byte of text.

use serde::Deserialize;
use tokenizers::DecoderWrapper;

/// What one token adds to a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whole characters.
    Text(String),
    /// A byte of a character that the vocabulary does not have.
    Byte(u8),
}

/// The chain of Gemma's tokenizers: replacements within each token, then tokens such as `<0xE2>` as bytes, then everything in a row.
///
/// A chain of this kind looks at one token at a time, except for runs of bytes, which is what makes exact streaming possible.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    replacements: Vec<(String, String)>,
}

/// The steps that the file of a tokenizer may list here.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    Sequence { decoders: Vec<Step> },
    Replace { pattern: Pattern, content: String },
    ByteFallback,
    Fuse,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
}

impl Decoder {
    /// Reads the chain that a tokenizer has.
    ///
    /// # Errors
    /// In words, what the chain has that is not supported.
    pub(super) fn new(wrapper: Option<&DecoderWrapper>) -> Result<Self, String> {
        let wrapper = wrapper.ok_or("there is none")?;
        let step = serde_json::to_value(wrapper).and_then(serde_json::from_value).map_err(|error| error.to_string())?;
        let steps = match step {
            Step::Sequence { decoders } => decoders,
            single => vec![single],
        };
        let [replacements @ .., Step::ByteFallback, Step::Fuse] = steps.as_slice() else {
            return Err("it does not end with ByteFallback and Fuse".to_owned());
        };
        let replacements = replacements.iter().map(|step| match step {
            Step::Replace { pattern: Pattern::String(from), content } if !from.is_empty() => {
                Ok((from.clone(), content.clone()))
            }
            _ => Err("something other than Replace comes before ByteFallback".to_owned()),
        });
        Ok(Self { replacements: replacements.collect::<Result<_, _>>()? })
    }

    /// What a token of the vocabulary stands for.
    pub(super) fn piece(&self, mut token: String) -> Piece {
        for (from, to) in &self.replacements {
            if token.contains(from) {
                token = token.replace(from, to);
            }
        }
        match byte(&token) {
            Some(byte) => Piece::Byte(byte),
            None => Piece::Text(token),
        }
    }
}

/// The byte that a token such as `<0xE2>` stands for, by the rule of the `ByteFallback` step.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
