//! The JSON of answers, as OpenAI and vLLM write it.

use serde::Serialize;
use serde_json::Value;

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
    pub(super) choices: Vec<WireChoice>,
    /// `Some(None)` is written as `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<&'a [u32]>,
}

/// One of the answers; which of `text`, `message` and `delta` it has depends on the endpoint.
#[derive(Debug, Default, Serialize)]
pub(super) struct WireChoice {
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<ChatMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<ChatDelta>,
    pub(super) logprobs: Option<Value>,
    pub(super) finish_reason: Option<&'static str>,
    /// vLLM's: which string or token of the client's ended the answer.
    pub(super) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatMessage {
    pub(super) role: &'static str,
    pub(super) content: String,
    /// OpenAI's schema has it always.
    pub(super) refusal: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
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

pub(super) fn stop_reason(finish: &Finish) -> Option<Value> {
    match finish {
        Finish::StopToken(token) => Some(Value::from(*token)),
        Finish::StopString(text) => Some(Value::from(text.as_str())),
        Finish::End | Finish::Length | Finish::Failed => None,
    }
}
