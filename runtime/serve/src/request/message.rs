//! Messages of a conversation.
//!
//! Invariant: the template sees every field of a message, in the form that templates read; a message that a template would
//! pass over is refused.

use serde_json::{Map, Value};

use super::take::wrong;
use crate::error::ApiError;

/// Reads messages.
pub(super) fn messages(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    // The ids of the calls that a result may belong to.
    let mut calls: Vec<String> = Vec::new();
    let mut read = Vec::with_capacity(messages.len());
    for (index, value) in messages.into_iter().enumerate() {
        let place = format!("messages[{index}]");
        let message = message(&place, value)?;
        match message.get("role").and_then(Value::as_str) {
            Some("tool") => {
                let id = message.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
                if !calls.iter().any(|call| call == id) {
                    let message = format!(
                        "`{place}.tool_call_id` names no call of the assistant's message before it; results of tools follow \
                         the message with their calls."
                    );
                    return Err(ApiError::invalid(format!("{place}.tool_call_id"), message));
                }
            }
            _ => {
                let list = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
                calls = list.filter_map(|call| call.get("id")?.as_str().map(str::to_owned)).collect();
            }
        }
        read.push(Value::Object(message));
    }
    Ok(read)
}

fn message(place: &str, value: Value) -> Result<Map<String, Value>, ApiError> {
    let Value::Object(message) = value else { return Err(wrong(place, "an object")) };
    let role = match message.get("role") {
        Some(Value::String(role)) => role.clone(),
        _ => return Err(wrong(&format!("{place}.role"), "a string")),
    };
    let assistant = role == "assistant";
    match role.as_str() {
        "system" | "developer" | "user" | "assistant" | "tool" => {}
        "function" => return Err(ApiError::unsupported(format!("{place}.role"), "it is the older form of `tool`")),
        _ => return Err(wrong(&format!("{place}.role"), "`system`, `developer`, `user`, `assistant` or `tool`")),
    }
    let mut kept = Map::new();
    for (name, value) in message {
        let param = format!("{place}.{name}");
        let value = match name.as_str() {
            "role" => value,
            _ if value.is_null() && KNOWN.contains(&name.as_str()) => continue,
            "content" => {
                content(&param, &value)?;
                value
            }
            "name" if value.is_string() => value,
            "name" => return Err(wrong(&param, "a string")),
            "tool_calls" if assistant => match tool_calls(&param, value)? {
                calls if calls.is_empty() => continue,
                calls => Value::Array(calls),
            },
            "reasoning" | "reasoning_content" if assistant && value.is_string() => value,
            "reasoning" | "reasoning_content" if assistant => return Err(wrong(&param, "a string")),
            "tool_call_id" if role == "tool" && value.is_string() => value,
            "tool_call_id" if role == "tool" => return Err(wrong(&param, "a string")),
            "tool_calls" | "tool_call_id" | "reasoning" | "reasoning_content" => {
                return Err(ApiError::invalid(&param, format!("`{param}` does not belong to the role `{role}`.")));
            }
            "function_call" => return Err(ApiError::unsupported(param, "it is the older form of `tool_calls`")),
            "refusal" => return Err(ApiError::unsupported(param, "the chat template has no refusals")),
            "annotations" => return Err(ApiError::unsupported(param, "the chat template has no annotations")),
            "audio" => return Err(ApiError::unsupported(param, "only text goes in and comes out")),
            _ => return Err(ApiError::unknown_field(param)),
        };
        kept.insert(name, value);
    }
    reasoning(place, &mut kept)?;
    if role == "tool" && !kept.contains_key("tool_call_id") {
        return Err(ApiError::missing(&format!("{place}.tool_call_id")));
    }
    if !kept.contains_key("content") {
        if !kept.contains_key("tool_calls") && !kept.contains_key("reasoning") {
            return Err(ApiError::missing(&format!("{place}.content")));
        }
        kept.insert("content".to_owned(), "".into());
    }
    Ok(kept)
}

/// Fields that may be `null`.
const KNOWN: [&str; 10] = [
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "refusal",
    "annotations",
    "audio",
    "reasoning",
    "reasoning_content",
];

/// Both names of reasoning mean the same, and templates read either.
fn reasoning(place: &str, message: &mut Map<String, Value>) -> Result<(), ApiError> {
    let (new, old) = (message.get("reasoning").cloned(), message.get("reasoning_content").cloned());
    if let (Some(new), Some(old)) = (&new, &old)
        && new != old
    {
        let param = format!("{place}.reasoning_content");
        let message = format!("`{param}` is another name of `{place}.reasoning`; give one of the two.");
        return Err(ApiError::invalid(param, message));
    }
    if let Some(text) = new.or(old) {
        message.insert("reasoning".to_owned(), text.clone());
        message.insert("reasoning_content".to_owned(), text);
    }
    Ok(())
}

/// Calls as templates read them: their arguments are an object, not its text.
fn tool_calls(place: &str, value: Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(calls) = value else { return Err(wrong(place, "a list")) };
    calls.into_iter().enumerate().map(|(index, call)| tool_call(&format!("{place}[{index}]"), call)).collect()
}

fn tool_call(place: &str, value: Value) -> Result<Value, ApiError> {
    let Value::Object(mut call) = value else { return Err(wrong(place, "an object")) };
    if let Some(name) = call.keys().find(|name| !matches!(name.as_str(), "id" | "type" | "function")) {
        return Err(ApiError::unknown_field(format!("{place}.{name}")));
    }
    if !call.get("id").is_some_and(Value::is_string) {
        return Err(wrong(&format!("{place}.id"), "a string"));
    }
    if call.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong(&format!("{place}.type"), "`function`"));
    }
    let place = format!("{place}.function");
    let Some(Value::Object(function)) = call.get_mut("function") else { return Err(wrong(&place, "an object")) };
    if let Some(name) = function.keys().find(|name| !matches!(name.as_str(), "name" | "arguments")) {
        return Err(ApiError::unknown_field(format!("{place}.{name}")));
    }
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(wrong(&format!("{place}.name"), "a string"));
    }
    let arguments = match function.get("arguments") {
        // What a client has of a call without arguments.
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    let wanted = || wrong(&format!("{place}.arguments"), "the text of a JSON object");
    function.insert("arguments".to_owned(), arguments.map(Value::Object).ok_or_else(wanted)?);
    Ok(Value::Object(call))
}

/// A content of parts is left as it is: Gemma's templates read them.
fn content(place: &str, value: &Value) -> Result<(), ApiError> {
    let parts = match value {
        Value::String(_) => return Ok(()),
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
