//! `/v1/chat/completions`.

use std::time::SystemTime;

use gemma4_model::chat::{ChatError, ChatInput};
use serde_json::{Map, Value};

use super::take::wrong;
use super::{Prompt, Take as _, TextRequest};
use crate::error::{ApiError, sentence};
use crate::fields::{self, Endpoint};
use crate::service::State;

/// Reads a request.
pub(crate) fn chat(state: &State, body: Map<String, Value>) -> Result<TextRequest, ApiError> {
    let mut body = fields::check(Endpoint::Chat, body)?;
    let take = &mut body;
    let conversation = Conversation::take(take, false)?;
    let max_tokens = match (take.size("max_completion_tokens", 1)?, take.size("max_tokens", 1)?) {
        (Some(new), Some(old)) if new != old => {
            let message = "`max_tokens` is the older name of `max_completion_tokens`; give one of the two.";
            return Err(ApiError::invalid("max_tokens", message));
        }
        (new, old) => new.or(old),
    };
    let logprobs = take.flag("logprobs")?.unwrap_or(false);
    let most = u64::try_from(state.options.max_logprobs).unwrap_or(u64::MAX);
    let top_logprobs = take.integer("top_logprobs", 0, most)?;
    if top_logprobs.is_some_and(|count| count > 0) && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`."));
    }
    let mut request = TextRequest::common(state, body)?;
    request.max_tokens = max_tokens;
    request.logprobs = logprobs.then(|| top_logprobs.and_then(|count| usize::try_from(count).ok()).unwrap_or(0));
    let tokens = conversation.tokens(state)?;
    request.with_prompts(state, "messages", vec![Prompt { tokens, text: String::new() }], usize::MAX)
}

/// Messages, and how they become a prompt.
pub(super) struct Conversation {
    input: ChatInput,
    add_special_tokens: bool,
}

impl Conversation {
    /// Takes what belongs to it.
    pub(super) fn take(take: &mut Map<String, Value>, add_special_tokens: bool) -> Result<Self, ApiError> {
        let messages = take.list("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            return Err(wrong("messages", "a list of one message or more"));
        }
        let messages: Result<Vec<Value>, ApiError> = messages
            .into_iter()
            .enumerate()
            .map(|(index, value)| message(&format!("messages[{index}]"), value))
            .collect();
        let kwargs = take.object("chat_template_kwargs")?.unwrap_or_default();
        Ok(Self {
            input: ChatInput {
                messages: messages?,
                tools: None,
                add_generation_prompt: take.flag("add_generation_prompt")?.unwrap_or(true),
                kwargs,
                now: SystemTime::now(),
            },
            add_special_tokens: take.flag("add_special_tokens")?.unwrap_or(add_special_tokens),
        })
    }

    /// The prompt.
    pub(super) fn tokens(&self, state: &State) -> Result<Vec<u32>, ApiError> {
        let Some(template) = &state.chat_template else {
            return Err(ApiError::unsupported("messages", "the checkpoint has no chat template; use /v1/completions"));
        };
        let text = template.render(&self.input).map_err(|error| match error {
            ChatError::Thread(_) => {
                tracing::error!(%error, "a chat template could not be run");
                ApiError::internal()
            }
            ChatError::Reserved { name } => {
                let param = format!("chat_template_kwargs.{name}");
                ApiError::unsupported(param, "the template gets it from the request's own field")
            }
            // Its author's words for whoever wrote the messages.
            ChatError::Refused { message } => ApiError::invalid("messages", sentence(message.trim_end_matches('.'))),
            ChatError::TooLong => ApiError::invalid("messages", sentence(&error.to_string())),
            // The others name files.
            error => {
                tracing::debug!(?error, "a chat template failed");
                ApiError::invalid("messages", "The chat template cannot render these messages.")
            }
        })?;
        state.encode("messages", &text, self.add_special_tokens)
    }
}

/// A message of which the template will see every field. A content of parts is left as it is: Gemma's templates read them.
fn message(place: &str, value: Value) -> Result<Value, ApiError> {
    let Value::Object(message) = value else { return Err(wrong(place, "an object")) };
    let role = match message.get("role") {
        Some(Value::String(role)) => role.clone(),
        _ => return Err(wrong(&format!("{place}.role"), "a string")),
    };
    match role.as_str() {
        "system" | "developer" | "user" | "assistant" => {}
        "tool" | "function" => {
            return Err(ApiError::unsupported(format!("{place}.role"), "tools are not served yet"));
        }
        _ => return Err(wrong(&format!("{place}.role"), "`system`, `developer`, `user` or `assistant`")),
    }
    let mut kept = Map::new();
    for (name, value) in message {
        let param = format!("{place}.{name}");
        match name.as_str() {
            "content" => content(&param, &value)?,
            "role" => {}
            "name" if value.is_null() || value.is_string() => {}
            "name" => return Err(wrong(&param, "a string")),
            "tool_calls" | "function_call" | "tool_call_id" | "refusal" | "audio" if value.is_null() => continue,
            "tool_calls" if value.as_array().is_some_and(Vec::is_empty) => continue,
            "tool_calls" | "function_call" | "tool_call_id" => {
                return Err(ApiError::unsupported(param, "tools are not served yet"));
            }
            "refusal" => return Err(ApiError::unsupported(param, "the chat template has no refusals")),
            "audio" => return Err(ApiError::unsupported(param, "only text goes in and comes out")),
            _ => return Err(ApiError::unknown_field(param)),
        }
        kept.insert(name, value);
    }
    match kept.get("content") {
        Some(value) if !value.is_null() => Ok(Value::Object(kept)),
        _ => Err(ApiError::missing(&format!("{place}.content"))),
    }
}

fn content(place: &str, value: &Value) -> Result<(), ApiError> {
    let parts = match value {
        Value::String(_) | Value::Null => return Ok(()),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => return Err(wrong(place, "a string or a list of parts")),
    };
    for (index, part) in parts.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let kind = part.get("type").and_then(Value::as_str);
        match kind {
            Some("text") => {}
            Some("image_url" | "input_audio" | "audio_url" | "video_url" | "file") => {
                return Err(ApiError::unsupported(format!("{place}.type"), "only text goes in and comes out"));
            }
            _ => return Err(wrong(&format!("{place}.type"), "`text`")),
        }
        if !part.get("text").is_some_and(Value::is_string) {
            return Err(wrong(&format!("{place}.text"), "a string"));
        }
        let known = |name: &&String| name.as_str() != "type" && name.as_str() != "text";
        if let Some(name) = part.as_object().and_then(|part| part.keys().find(known)) {
            return Err(ApiError::unknown_field(format!("{place}.{name}")));
        }
    }
    Ok(())
}
