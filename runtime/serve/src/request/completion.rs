//! `/v1/completions`.

use gemma4_model::output::Before;
use serde_json::{Map, Value};

use super::take::{token, wrong};
use super::{Prompt, Take as _, TextRequest, sampling};
use crate::error::ApiError;
use crate::fields::{self, Endpoint};
use crate::service::State;

/// Tokens to generate if the client does not say: OpenAI's number.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A prompt as it came.
enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// Reads a request.
pub(crate) fn completion(state: &State, body: Map<String, Value>) -> Result<TextRequest, ApiError> {
    let mut body = fields::check(Endpoint::Completions, body)?;
    let take = &mut body;
    let inputs = inputs(take)?;
    let echo = take.flag("echo")?.unwrap_or(false);
    let add_special_tokens = take.flag("add_special_tokens")?.unwrap_or(true);
    let max_tokens = take.size("max_tokens", 0)?;
    let logprobs = sampling::logprobs(state, take, "logprobs")?;
    if max_tokens == Some(0) && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "`max_tokens` of 0 needs `echo`: the answer is the prompt then, and else nothing.",
        ));
    }
    let mut request = TextRequest::common(state, body)?;
    let mut prompts = Vec::with_capacity(inputs.len());
    for input in inputs {
        prompts.push(prompt(state, input, add_special_tokens, echo, request.skip_special_tokens)?);
    }
    request.echo = echo;
    request.max_tokens = max_tokens;
    request.logprobs = logprobs;
    request.constrain(state, Before::Nothing, None)?;
    request.with_prompts(state, "prompt", prompts, DEFAULT_MAX_TOKENS)
}

fn prompt(state: &State, input: Input, special: bool, echo: bool, skip_special: bool) -> Result<Prompt, ApiError> {
    Ok(match input {
        Input::Text(text) => {
            let tokens = state.encode("prompt", &text, special)?;
            Prompt { tokens, text: if echo { text } else { String::new() } }
        }
        Input::Tokens(tokens) => {
            let text = if echo { state.decode("prompt", &tokens, skip_special)? } else { String::new() };
            Prompt { tokens, text }
        }
    })
}

fn inputs(take: &mut Map<String, Value>) -> Result<Vec<Input>, ApiError> {
    const WANTED: &str = "a text, a list of texts, a list of token ids, or a list of such lists, and not empty";
    let tokens = |list: &[Value]| -> Option<Input> { list.iter().map(token).collect::<Option<_>>().map(Input::Tokens) };
    let inputs = match take.value("prompt") {
        None => return Err(ApiError::missing("prompt")),
        Some(Value::String(text)) => Some(vec![Input::Text(text)]),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => tokens(&list).map(|input| vec![input]),
            Some(Value::String(_)) => list
                .into_iter()
                .map(|value| match value {
                    Value::String(text) => Some(Input::Text(text)),
                    _ => None,
                })
                .collect(),
            Some(Value::Array(_)) => list.iter().map(|value| value.as_array().and_then(|list| tokens(list))).collect(),
            _ => None,
        },
        Some(_) => None,
    };
    inputs.ok_or_else(|| wrong("prompt", WANTED))
}
