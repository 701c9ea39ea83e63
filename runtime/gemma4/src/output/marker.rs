//! The tokens that tell the parts of an output apart.

use crate::tokenizer::Tokenizer;

/// A token that begins or ends something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// `<|channel>`
    ThoughtBegin,
    /// `<channel|>`
    ThoughtEnd,
    /// `<|tool_call>`
    CallBegin,
    /// `<tool_call|>`
    CallEnd,
    /// `<|"|>`, around strings in calls.
    Quote,
}

impl Marker {
    const ALL: [Self; 5] = [Self::ThoughtBegin, Self::ThoughtEnd, Self::CallBegin, Self::CallEnd, Self::Quote];

    /// How the vocabulary writes it.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::ThoughtBegin => "<|channel>",
            Self::ThoughtEnd => "<channel|>",
            Self::CallBegin => "<|tool_call>",
            Self::CallEnd => "<tool_call|>",
            Self::Quote => "<|\"|>",
        }
    }
}

/// The ids of markers in a vocabulary.
#[derive(Clone, Debug)]
pub struct Markers([(u32, Marker); 5]);

/// A vocabulary without a marker: outputs of its model cannot be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tokenizer.json has no control token {:?}; use the tokenizer of a Gemma 4 checkpoint, or no parsers of tool calls and \
     reasoning",
    marker.token()
)]
pub struct MissingMarker {
    /// Which.
    pub marker: Marker,
}

impl Markers {
    /// Those of a tokenizer.
    ///
    /// # Errors
    /// [`MissingMarker`]
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, MissingMarker> {
        let mut ids = Marker::ALL.map(|marker| (0, marker));
        for (id, marker) in &mut ids {
            *id = tokenizer.control_token(marker.token()).ok_or(MissingMarker { marker: *marker })?;
        }
        Ok(Self(ids))
    }

    /// The marker that a token is.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<Marker> {
        self.0.iter().find(|(known, _)| *known == id).map(|(_, marker)| *marker)
    }

    /// The token that a marker is.
    #[must_use]
    pub fn id(&self, marker: Marker) -> u32 {
        self.0.iter().find(|(_, known)| *known == marker).map_or(0, |(id, _)| *id)
    }

    /// What a prompt has of a thought that it does not end: templates begin one after the results of tools. The last control
    /// token decides, so that no text of a message can look like one.
    #[must_use]
    pub fn open_thought(&self, tokenizer: &Tokenizer, prompt: &[u32]) -> Option<String> {
        let last = prompt.iter().rposition(|id| tokenizer.is_special(*id))?;
        let (_, after) = prompt.split_at_checked(last + 1)?;
        let begins = prompt.get(last).and_then(|id| self.get(*id)) == Some(Marker::ThoughtBegin);
        begins.then(|| after.iter().filter_map(|id| tokenizer.token_text(*id)).collect())
    }
}
