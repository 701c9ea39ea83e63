//! `/v1/chat/completions`.

use std::time::SystemTime;

use gemma4_model::chat::{ChatError, ChatInput};
use serde_json::{Map, Value};

use super::message::messages;
use super::parsing::{before, effort, include_reasoning};
use super::take::wrong;
use super::tools::ToolChoice;
use super::{Parsing, Prompt, Take as _, TextRequest, sampling, tools};
use crate::error::{ApiError, sentence};
use crate::fields::{self, Endpoint};
use crate::service::State;

/// Reads a request.
pub(crate) fn chat(state: &State, body: Map<String, Value>) -> Result<TextRequest, ApiError> {
    let mut body = fields::check(Endpoint::Chat, body)?;
    let take = &mut body;
    let mut conversation = Conversation::take(take, false)?;
    let declared = tools::take(state, take)?;
    conversation.input.tools = declared.as_ref().map(|declared| declared.values.clone());
    effort(state, take, &mut conversation.input.kwargs)?;
    let include_reasoning = include_reasoning(state, take)?;
    let max_tokens = match (take.size("max_completion_tokens", 1)?, take.size("max_tokens", 1)?) {
        (Some(new), Some(old)) if new != old => {
            let message = "`max_tokens` is the older name of `max_completion_tokens`; give one of the two.";
            return Err(ApiError::invalid("max_tokens", message));
        }
        (new, old) => new.or(old),
    };
    let logprobs = take.flag("logprobs")?.unwrap_or(false);
    let top_logprobs = sampling::logprobs(state, take, "top_logprobs")?;
    if top_logprobs.is_some_and(|count| count > 0) && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`."));
    }
    let mut request = TextRequest::common(state, body)?;
    request.max_tokens = max_tokens;
    request.logprobs = logprobs.then(|| top_logprobs.unwrap_or(0));
    let tokens = conversation.tokens(state)?;
    request.parsing = Parsing::new(state, declared.as_ref(), &tokens, include_reasoning);
    let before = before(state, request.parsing.as_ref(), &conversation.input.kwargs);
    let has_answer = request.answer.is_some();
    request.named_call = declared.as_ref().is_some_and(|declared| matches!(declared.choice, ToolChoice::Named(_)));
    request.constrain(state, before, declared.and_then(|declared| declared.calls(has_answer)))?;
    request.with_prompts(state, "messages", vec![Prompt { tokens, text: String::new() }], usize::MAX)
}

/// Messages, and how they become a prompt.
pub(super) struct Conversation {
    pub(super) input: ChatInput,
    add_special_tokens: bool,
}

impl Conversation {
    /// Takes what belongs to it.
    pub(super) fn take(take: &mut Map<String, Value>, add_special_tokens: bool) -> Result<Self, ApiError> {
        let messages = take.list("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            return Err(wrong("messages", "a list of one message or more"));
        }
        let messages = self::messages(messages)?;
        let kwargs = take.object("chat_template_kwargs")?.unwrap_or_default();
        Ok(Self {
            input: ChatInput {
                messages,
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
