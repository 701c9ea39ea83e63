//! The JSON of answers, as OpenAI and vLLM write it.

use gemma4_model::output::CallDelta;
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{PromptLogprobs, WireLogprobs};
use crate::generate::Finish;

/// An answer or a chunk.
#[derive(Debug, Serialize)]
pub(super) struct Envelope<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) system_fingerprint: Option<&'a str>,
    pub(super) choices: Vec<WireChoice<'a>>,
    /// `Some(None)` is written as `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<&'a [u32]>,
    /// vLLM's, for chats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<PromptLogprobs<'a>>,
}

/// One of the answers; which of `text`, `message` and `delta` it has depends on the endpoint.
#[derive(Debug, Default, Serialize)]
pub(super) struct WireChoice<'a> {
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<ChatMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<ChatDelta>,
    pub(super) logprobs: Option<WireLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
    /// vLLM's: which string or token of the client's ended the answer.
    pub(super) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    /// vLLM's, for completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<PromptLogprobs<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatMessage {
    pub(super) role: &'static str,
    pub(super) content: Option<String>,
    /// OpenAI's schema has it always.
    pub(super) refusal: Option<String>,
    /// vLLM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning: Option<Option<String>>,
    /// The name that most clients know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<Option<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCallDelta>,
}

/// A call of a tool.
#[derive(Debug, Serialize)]
pub(super) struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

/// What follows of a call. Its first delta has id, type and name, on which strict clients insist; later ones have none of
/// them, since clients add strings up.
#[derive(Debug, Serialize)]
pub(super) struct ToolCallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl From<CallDelta> for ToolCall {
    fn from(call: CallDelta) -> Self {
        let function = Function { name: Some(call.name.unwrap_or_default()), arguments: call.arguments };
        Self { id: call_id(), r#type: "function", function }
    }
}

impl From<CallDelta> for ToolCallDelta {
    fn from(call: CallDelta) -> Self {
        let begins = call.name.is_some();
        Self {
            index: call.index,
            id: begins.then(call_id),
            r#type: begins.then_some("function"),
            function: Function { name: call.name, arguments: call.arguments },
        }
    }
}

/// A name for a call, as vLLM makes them.
fn call_id() -> String {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    format!("chatcmpl-tool-{high:016x}")
}

/// Counts of tokens.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: usize,
}

/// OpenAI's word for the end of a chat's answer or of a text. As in vLLM, calls that the client named do not change it.
pub(super) const fn finish_reason(finish: &Finish, called: bool) -> &'static str {
    match finish {
        Finish::End | Finish::StopToken(_) | Finish::StopString(_) if called => "tool_calls",
        _ => finish.reason(),
    }
}

pub(super) fn stop_reason(finish: &Finish) -> Option<Value> {
    match finish {
        Finish::StopToken(token) => Some(Value::from(*token)),
        Finish::StopString(text) => Some(Value::from(text.as_str())),
        Finish::End | Finish::Length | Finish::Failed => None,
    }
}
