//! `/tokenize` and `/detokenize`, with vLLM's fields.

use serde_json::{Map, Value};

use super::Take as _;
use super::chat::Conversation;
use super::take::{token, wrong};
use super::tools;
use crate::error::ApiError;
use crate::service::State;

/// Fields that vLLM knows and that are not served.
const REFUSED: [&str; 4] = ["chat_template", "mm_processor_kwargs", "continue_final_message", "documents"];

/// Reads a request: its tokens, and whether their texts are wanted too.
pub(crate) fn tokenize(state: &State, mut body: Map<String, Value>) -> Result<(Vec<u32>, bool), ApiError> {
    let take = &mut body;
    state.model(take.string("model")?)?;
    let texts = take.flag("return_token_strs")?.unwrap_or(false);
    let prompt = take.string("prompt")?;
    let tokens = match prompt {
        Some(text) => {
            let special = take.flag("add_special_tokens")?.unwrap_or(true);
            refuse_rest(body)?;
            state.encode("prompt", &text, special)?
        }
        None if take.get("messages").is_none_or(Value::is_null) => return Err(ApiError::missing("prompt")),
        None => {
            let mut conversation = Conversation::take(take, false)?;
            conversation.input.tools = tools::declared(take)?.map(|(values, _)| values);
            refuse_rest(body)?;
            conversation.tokens(state)?
        }
    };
    Ok((tokens, texts))
}

/// Reads a request: the tokens.
pub(crate) fn detokenize(state: &State, mut body: Map<String, Value>) -> Result<Vec<u32>, ApiError> {
    let take = &mut body;
    state.model(take.string("model")?)?;
    let tokens = take.list("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
    refuse_rest(body)?;
    let known = |value: &Value| token(value).filter(|token| state.is_token(*token));
    let tokens: Option<Vec<u32>> = tokens.iter().map(known).collect();
    tokens.ok_or_else(|| wrong("tokens", "a list of token ids of the vocabulary"))
}

/// What was not taken is unknown or refused.
fn refuse_rest(body: Map<String, Value>) -> Result<(), ApiError> {
    match body.into_iter().find(|(_, value)| !value.is_null()) {
        Some((name, _)) if REFUSED.contains(&name.as_str()) => Err(ApiError::unsupported(name, "it is not served")),
        Some((name, _)) => Err(ApiError::unknown_field(name)),
        None => Ok(()),
    }
}
