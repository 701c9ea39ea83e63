//! Logprobs in the formats of both endpoints.

use std::sync::Arc;

use gemma4_engine::sampling::Logprobs;
use gemma4_model::tokenizer::Tokenizer;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::generate::OutputToken;

/// Stands for the logprob of a token that cannot come: JSON has no infinity. vLLM's number.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST } else { logprob.max(LEAST) }
}

/// A token as text; half a character becomes the replacement character.
fn text(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer.token_text(token).unwrap_or_default()
}

/// The logprobs of an answer's tokens.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum WireLogprobs {
    Chat(Value),
    Completion(CompletionLogprobs),
}

/// The format of chats: `{"content": [...]}`.
pub(super) fn chat(tokenizer: &Tokenizer, tokens: &[OutputToken]) -> WireLogprobs {
    let entry = |token: u32, logprob: f32| {
        let mut entry = Map::new();
        entry.insert("token".to_owned(), text(tokenizer, token).into());
        entry.insert("logprob".to_owned(), finite(logprob).into());
        entry.insert("bytes".to_owned(), tokenizer.token_bytes(token).into());
        entry
    };
    let content = tokens.iter().filter_map(|token| {
        let Logprobs { logprob, top, .. } = token.logprobs.as_ref()?;
        let mut own = entry(token.id, *logprob);
        let top = top.iter().map(|(token, logprob)| Value::from(entry(*token, *logprob)));
        own.insert("top_logprobs".to_owned(), top.collect());
        Some(Value::from(own))
    });
    WireLogprobs::Chat(json!({"content": content.collect::<Vec<_>>(), "refusal": null}))
}

/// The older format: parallel lists. Only the first token of a prompt has no logprob.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Best>>,
}

impl CompletionLogprobs {
    /// Adds a token. `count` alternatives are shown; `offset` counts the characters of the tokens before it.
    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        (id, logprobs): (u32, Option<&Logprobs>),
        count: usize,
        offset: &mut usize,
    ) {
        let own = text(tokenizer, id);
        self.text_offset.push(*offset);
        *offset += own.chars().count();
        self.tokens.push(own);
        self.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        self.top_logprobs.push(logprobs.map(|logprobs| {
            let mut best = Best(Vec::with_capacity(count.saturating_add(1)));
            // As in vLLM the token itself is among them.
            for (token, logprob) in logprobs.top.iter().copied().take(count).chain([(id, logprobs.logprob)]) {
                best.add(text(tokenizer, token), finite(logprob));
            }
            best
        }));
    }
}

/// The best tokens of a place with their logprobs, written as a map.
#[derive(Debug)]
struct Best(Vec<(String, f32)>);

impl Best {
    /// Tokens with the same text share an entry, the best one's. There are few.
    fn add(&mut self, text: String, logprob: f32) {
        if self.0.iter().all(|(other, _)| *other != text) {
            self.0.push((text, logprob));
        }
    }
}

impl Serialize for Best {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

/// The older format: of a prompt, if the answer begins with one, and of tokens. `offset` counts the characters of the tokens
/// before these.
pub(super) fn completion(
    tokenizer: &Tokenizer,
    prompt: Option<&Scored>,
    tokens: &[OutputToken],
    count: usize,
    offset: &mut usize,
) -> WireLogprobs {
    let mut lists = CompletionLogprobs::default();
    for (id, logprobs) in prompt.into_iter().flat_map(Scored::tokens) {
        lists.push(tokenizer, (id, logprobs), count, offset);
    }
    for token in tokens.iter().filter(|token| token.logprobs.is_some()) {
        lists.push(tokenizer, (token.id, token.logprobs.as_ref()), count, offset);
    }
    WireLogprobs::Completion(lists)
}

/// A prompt whose tokens get logprobs; answers to one prompt share it.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    tokens: Arc<[u32]>,
    /// From the second token on, as far as they are known.
    logprobs: Vec<Logprobs>,
}

impl Scored {
    pub(super) fn new(tokens: &[u32]) -> Self {
        Self { tokens: tokens.into(), logprobs: Vec::new() }
    }

    /// Takes those that follow.
    pub(super) fn extend(&mut self, logprobs: Vec<Logprobs>) {
        self.logprobs.extend(logprobs);
    }

    /// Whether all are there.
    pub(super) fn is_complete(&self) -> bool {
        self.logprobs.len() + 1 >= self.tokens.len()
    }

    /// Each token; the first has no logprob, since nothing comes before it.
    fn tokens(&self) -> impl Iterator<Item = (u32, Option<&Logprobs>)> {
        self.tokens.iter().copied().zip(std::iter::once(None).chain(self.logprobs.iter().map(Some)))
    }
}

/// vLLM's `prompt_logprobs`: `null` for the first token, then for each token a map from token ids to logprob, rank and text:
/// its own, and those of the `count` best tokens. Written as it goes, since prompts are long.
#[derive(Clone, Copy)]
pub(super) struct PromptLogprobs<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) scored: &'a Scored,
    pub(super) count: usize,
}

impl std::fmt::Debug for PromptLogprobs<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PromptLogprobs").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.scored.tokens.len()))?;
        for (id, logprobs) in self.scored.tokens() {
            list.serialize_element(&logprobs.map(|logprobs| Ranked {
                tokenizer: self.tokenizer,
                id,
                logprobs,
                count: self.count,
            }))?;
        }
        list.end()
    }
}

/// The entries of one token.
struct Ranked<'a> {
    tokenizer: &'a Tokenizer,
    id: u32,
    logprobs: &'a Logprobs,
    count: usize,
}

/// One of them.
#[derive(Serialize)]
struct Entry {
    logprob: f32,
    rank: usize,
    decoded_token: String,
}

impl Serialize for Ranked<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Logprobs { logprob, rank, top } = self.logprobs;
        let mut map = serializer.serialize_map(None)?;
        let own = (self.id, *logprob, *rank);
        let best = (1..).zip(top.iter().take(self.count)).map(|(rank, (id, logprob))| (*id, *logprob, rank));
        for (id, logprob, rank) in std::iter::once(own).chain(best.filter(|(id, ..)| *id != self.id)) {
            let entry = Entry { logprob: finite(logprob), rank, decoded_token: text(self.tokenizer, id) };
            map.serialize_entry(&id, &entry)?;
        }
        map.end()
    }
}
