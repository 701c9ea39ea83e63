//! Logprobs in the formats of both endpoints.

use gemma4_engine::sampling::Logprobs;
use gemma4_model::tokenizer::Tokenizer;
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

/// The format of chats: `{"content": [...]}`.
pub(super) fn chat(tokenizer: &Tokenizer, tokens: &[OutputToken]) -> Value {
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
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// The older format: parallel lists. `offset` counts the characters of the tokens before these.
pub(super) fn completion(tokenizer: &Tokenizer, tokens: &[OutputToken], offset: &mut usize) -> Value {
    let (mut texts, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for token in tokens {
        let Some(Logprobs { logprob, top, .. }) = &token.logprobs else { continue };
        let own = text(tokenizer, token.id);
        let mut best = Map::new();
        // As in vLLM the token itself is among them. Tokens with the same text share an entry, the best one's.
        for (token, logprob) in top.iter().copied().chain([(token.id, *logprob)]) {
            best.entry(text(tokenizer, token)).or_insert_with(|| finite(logprob).into());
        }
        offsets.push(*offset);
        *offset += own.chars().count();
        texts.push(own);
        logprobs.push(finite(*logprob));
        tops.push(best);
    }
    json!({"text_offset": offsets, "token_logprobs": logprobs, "tokens": texts, "top_logprobs": tops})
}
