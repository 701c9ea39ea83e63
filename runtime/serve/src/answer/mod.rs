//! From pieces of answers to what clients read.
//!
//! Invariant: every chunk of a stream has id, object, created and model, and every choice in it an index; the first chunk of
//! a chat's choice has the role.
//!
//! A stream and a whole answer are the same parts, put together at the end by the client or here.

mod logprobs;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::FutureExt as _;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use gemma4_model::output::Delta;
use serde::Serialize;

use crate::error::ApiError;
use crate::fields::Endpoint;
use crate::generate::{Choice, Finish, OutputToken, Piece, pieces};
use crate::record::Details;
use crate::request::{Parsing, TextRequest};
use crate::service::{State, now};
use logprobs::{PromptLogprobs, Scored};
use wire::{ChatDelta, ChatMessage, Envelope, PromptDetails, ToolCall, ToolCallDelta, Usage, WireChoice};

/// Chunks that are written at once, if they are there already.
const CHUNKS_AT_ONCE: usize = 64;

/// Answers a request whose choices are being made.
pub(crate) async fn answer(
    state: &Arc<State>,
    endpoint: Endpoint,
    id: &str,
    request: TextRequest,
    choices: Vec<Choice>,
    details: Details,
) -> Result<Response, ApiError> {
    let stream = request.stream;
    let mut writer = Writer::new(state, endpoint, id, request, details);
    let mut pieces = pieces(choices);
    if stream.is_some() {
        return Ok(events(writer, pieces));
    }
    while let Some(piece) = pieces.next().await {
        if piece.finish == Some(Finish::Failed) {
            return Err(ApiError::internal());
        }
        writer.keep(piece);
    }
    if writer.scored.is_empty() {
        return Ok(writer.whole());
    }
    // That may be a long text: made away from the threads that move bytes.
    match tokio::task::spawn_blocking(move || writer.whole()).await {
        Ok(response) => Ok(response),
        Err(error) => {
            tracing::error!(%error, "writing an answer failed");
            Err(ApiError::internal())
        }
    }
}

/// Writes one request's answers.
struct Writer {
    state: Arc<State>,
    endpoint: Endpoint,
    id: String,
    created: u64,
    request: TextRequest,
    details: Details,
    /// What was made of each answer and not written yet.
    open: BTreeMap<usize, Open>,
    /// The prompts, in their order, if their tokens get logprobs.
    scored: Vec<Scored>,
    /// Tokens of all answers.
    output_tokens: usize,
}

/// An answer up to now.
#[derive(Default)]
struct Open {
    delta: Delta,
    tokens: Vec<OutputToken>,
    finish: Option<Finish>,
    /// Whether a tool was called.
    called: bool,
    /// Characters of the tokens that were written, for the offsets of the older format.
    offset: usize,
    /// Whether a chunk of it was written.
    begun: bool,
}

impl Writer {
    fn new(state: &Arc<State>, endpoint: Endpoint, id: &str, request: TextRequest, details: Details) -> Self {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completions => "cmpl",
        };
        let mut open: BTreeMap<usize, Open> = (0..request.choices()).map(|index| (index, Open::default())).collect();
        if request.echo {
            for (index, open) in &mut open {
                open.delta.text =
                    request.prompts.get(index / request.n).map(|prompt| prompt.text.clone()).unwrap_or_default();
            }
        }
        let scored =
            request.scored().map(|_| request.prompts.iter().map(|prompt| Scored::new(&prompt.tokens)).collect());
        Self {
            state: Arc::clone(state),
            endpoint,
            id: format!("{prefix}-{id}"),
            created: now(),
            scored: scored.unwrap_or_default(),
            request,
            details,
            open,
            output_tokens: 0,
        }
    }

    /// Takes a piece; returns the indices of answers that have something to show: its own, or all answers to a prompt whose
    /// logprobs they waited for.
    fn keep(&mut self, piece: Piece) -> Vec<usize> {
        let Piece { index, prompt, mut delta, tokens, finish } = piece;
        self.output_tokens += tokens.len();
        if self.request.parsing.as_ref().is_some_and(|parsing| !parsing.include_reasoning) {
            delta.thought.clear();
        }
        let open = self.open.entry(index).or_default();
        open.called |= !delta.calls.is_empty();
        open.delta.append(delta);
        open.tokens.extend(tokens);
        open.finish = finish;
        let n = self.request.n.max(1);
        let (of_prompt, brought) = (index / n, !prompt.is_empty());
        if let Some(scored) = self.scored.get_mut(of_prompt) {
            scored.extend(prompt);
            if !scored.is_complete() {
                return Vec::new();
            }
        }
        let shows =
            |index: &usize| self.open.get(index).is_some_and(|open| !open.delta.is_empty() || open.finish.is_some());
        let ready = if brought { of_prompt * n..(of_prompt + 1) * n } else { index..index + 1 };
        ready.filter(shows).collect()
    }

    /// What was kept of an answer, as it is written: a chunk's or a whole one.
    fn choice(&mut self, index: usize, chunk: bool) -> WireChoice<'static> {
        let open = self.open.entry(index).or_default();
        let Delta { thought, text, calls } = std::mem::take(&mut open.delta);
        let tokens = std::mem::take(&mut open.tokens);
        let first = !std::mem::replace(&mut open.begun, true);
        let chat = self.endpoint == Endpoint::Chat;
        let echoed = self.request.echoed_logprobs().filter(|_| first);
        let echoed = echoed.and_then(|_| self.scored.get(index / self.request.n.max(1)));
        let tokenizer = &self.state.tokenizer;
        let logprobs = self.request.logprobs.map(|count| match self.endpoint {
            Endpoint::Chat => logprobs::chat(tokenizer, &tokens),
            Endpoint::Completions => logprobs::completion(tokenizer, echoed, &tokens, count, &mut open.offset),
        });
        let ids = self.request.return_token_ids;
        let prompt = self.request.prompts.get(index / self.request.n.max(1));
        let mut choice = WireChoice {
            index,
            logprobs,
            finish_reason: open
                .finish
                .as_ref()
                .map(|finish| wire::finish_reason(finish, open.called && !self.request.named_call)),
            stop_reason: open.finish.as_ref().and_then(wire::stop_reason),
            token_ids: ids.then(|| tokens.iter().map(|token| token.id).collect()),
            prompt_token_ids: prompt.filter(|_| ids && first && !chat).map(|prompt| prompt.tokens.clone()),
            ..WireChoice::default()
        };
        let parsing = self.request.parsing.as_ref();
        match (chat, chunk) {
            (false, _) => choice.text = Some(text),
            (true, false) => {
                // As in vLLM: `null` only where there might be something else.
                let content = (parsing.is_none() || !text.is_empty()).then_some(text);
                let reasons = parsing.is_some_and(Parsing::tells_reasoning);
                let reasoning = reasons.then(|| Some(thought).filter(|thought| !thought.is_empty()));
                choice.message = Some(ChatMessage {
                    role: "assistant",
                    content,
                    refusal: None,
                    reasoning: reasoning.clone(),
                    reasoning_content: reasoning,
                    tool_calls: calls.into_iter().map(ToolCall::from).collect(),
                });
            }
            (true, true) => {
                let content = (!text.is_empty() || (first && parsing.is_none())).then_some(text);
                let reasoning = Some(thought).filter(|thought| !thought.is_empty());
                choice.delta = Some(ChatDelta {
                    role: first.then_some("assistant"),
                    content,
                    reasoning: reasoning.clone(),
                    reasoning_content: reasoning,
                    tool_calls: calls.into_iter().map(ToolCallDelta::from).collect(),
                });
            }
        }
        choice
    }

    fn usage(&self) -> Usage {
        let prompt_tokens = self.request.prompts.iter().map(|prompt| prompt.tokens.len()).sum::<usize>();
        Usage {
            prompt_tokens,
            completion_tokens: self.output_tokens,
            total_tokens: prompt_tokens + self.output_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: self.details.cached_tokens() },
        }
    }

    /// Chats have one prompt; its tokens stand beside the choices.
    fn chat_prompt(&self, first: bool) -> Option<&[u32]> {
        let wanted = self.request.return_token_ids && first && self.endpoint == Endpoint::Chat;
        self.request.prompts.first().filter(|_| wanted).map(|prompt| prompt.tokens.as_slice())
    }

    /// What vLLM's field of this name says of the prompt with this number.
    fn prompt_logprobs(&self, prompt: usize) -> Option<PromptLogprobs<'_>> {
        let (scored, count) = (self.scored.get(prompt)?, self.request.prompt_logprobs?);
        Some(PromptLogprobs { tokenizer: &self.state.tokenizer, scored, count })
    }

    fn envelope<'a>(&'a self, object: &'static str, choices: Vec<WireChoice<'a>>, first: bool) -> Envelope<'a> {
        Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.request.model,
            system_fingerprint: self.state.options.system_fingerprint.as_deref(),
            choices,
            usage: None,
            prompt_token_ids: self.chat_prompt(first),
            // There are none in a stream.
            prompt_logprobs: self.prompt_logprobs(0).filter(|_| self.endpoint == Endpoint::Chat),
        }
    }

    /// The whole answer.
    fn whole(&mut self) -> Response {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completions => "text_completion",
        };
        let indices: Vec<usize> = self.open.keys().copied().collect();
        let mut choices: Vec<WireChoice<'_>> = indices.into_iter().map(|index| self.choice(index, false)).collect();
        if self.endpoint == Endpoint::Completions {
            for choice in &mut choices {
                choice.prompt_logprobs = self.prompt_logprobs(choice.index / self.request.n.max(1));
            }
        }
        let mut envelope = self.envelope(object, choices, true);
        envelope.usage = Some(Some(self.usage()));
        axum::Json(envelope).into_response()
    }

    /// A chunk of a stream.
    fn chunk(&mut self, index: usize, out: &mut Vec<u8>) {
        let first = self.open.values().all(|open| !open.begun);
        let choice = self.choice(index, true);
        let mut envelope = self.envelope(self.chunk_object(), vec![choice], first);
        envelope.usage = self.include_usage().then_some(None);
        event(&envelope, out);
    }

    /// What follows the last chunk.
    fn last(&self, out: &mut Vec<u8>) {
        if self.include_usage() {
            let mut envelope = self.envelope(self.chunk_object(), Vec::new(), false);
            envelope.usage = Some(Some(self.usage()));
            event(&envelope, out);
        }
        done(out);
    }

    const fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        }
    }

    fn include_usage(&self) -> bool {
        self.request.stream.is_some_and(|stream| stream.include_usage)
    }
}

fn event(value: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    // Strings and numbers that are finite: there is nothing to fail.
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok(), "a chunk that is no JSON");
    out.extend_from_slice(b"\n\n");
}

fn done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// A stream of server-sent events.
fn events(writer: Writer, pieces: BoxStream<'static, Piece>) -> Response {
    let body = stream::unfold(Some((writer, pieces)), |open| async move {
        let (mut writer, mut pieces) = open?;
        let mut out = Vec::new();
        let mut chunks = 0;
        loop {
            let next = if out.is_empty() { Some(pieces.next().await) } else { pieces.next().now_or_never() };
            match next {
                // Nothing more is there yet.
                None => break,
                Some(None) => {
                    writer.last(&mut out);
                    return Some((Ok::<_, std::convert::Infallible>(Bytes::from(out)), None));
                }
                Some(Some(piece)) if piece.finish == Some(Finish::Failed) => {
                    event(&ApiError::internal().to_json(), &mut out);
                    done(&mut out);
                    return Some((Ok(Bytes::from(out)), None));
                }
                Some(Some(piece)) => {
                    for index in writer.keep(piece) {
                        writer.chunk(index, &mut out);
                        chunks += 1;
                    }
                    if chunks >= CHUNKS_AT_ONCE {
                        break;
                    }
                }
            }
        }
        Some((Ok(Bytes::from(out)), Some((writer, pieces))))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies such as nginx would hold chunks back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
