//! One request: what is sent, and how its stream of events is read and timed.
//!
//! Invariant: a request is a [`Sample`] only if its stream ended as it should, with the counts that were asked for;
//! anything else is a [`Failure`] with a reason.

use std::time::Duration;

use eventsource_stream::Eventsource as _;
use futures_util::StreamExt as _;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

/// No connection, or none that took the request.
pub const NO_CONNECTION: &str = "no-connection";
/// The endpoint asks to come back later: status 429.
pub const RATE_LIMITED: &str = "rate-limited";
/// A status of 400 to 499.
pub const REFUSED: &str = "refused";
/// A status of 500 or more.
pub const SERVER_ERROR: &str = "server-error";
/// The stream told of an error.
pub const ERROR_IN_STREAM: &str = "error-in-stream";
/// The stream ended before it was complete.
pub const CUT_OFF: &str = "cut-off";
/// No end within the time limit.
pub const TIMED_OUT: &str = "timed-out";
/// Something that is not OpenAI's API.
pub const NOT_UNDERSTOOD: &str = "not-understood";
/// The endpoint counts other tokens than were asked for.
pub const WRONG_COUNT: &str = "wrong-count";

/// Characters of an answer that go into a message.
const SHOWN: usize = 200;

/// What became of a request.
#[derive(Debug)]
pub struct Outcome {
    /// Its times and counts, or why it has none.
    pub result: Result<Sample, Failure>,
    /// How much later it was sent than planned.
    pub sent_late: Duration,
}

/// A request that was answered as it had to be. Times are since it was due.
#[derive(Debug)]
pub struct Sample {
    /// When the first piece came.
    pub ttft: Duration,
    /// When the last piece came.
    pub last: Duration,
    /// When the answer was complete.
    pub end_to_end: Duration,
    /// Seconds between pieces.
    pub gaps: Vec<f64>,
    /// Pieces.
    pub chunks: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Those of them that were not computed again, if the endpoint says.
    pub cached_tokens: Option<u64>,
    /// Tokens that were generated.
    pub output_tokens: u64,
}

impl Sample {
    /// Seconds between two tokens; `None` where all came at once.
    pub fn inter_token(&self) -> Option<f64> {
        let steps = self.output_tokens.checked_sub(1).filter(|steps| *steps > 0 && self.chunks > 1)?;
        Some(self.last.saturating_sub(self.ttft).as_secs_f64() / steps as f64)
    }
}

/// Why a request has no figures.
#[derive(Debug)]
pub struct Failure {
    /// One of the reasons of this module.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
}

impl Failure {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Where requests go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) client: Client,
    /// The address of `/v1/completions`.
    pub(crate) url: String,
    pub(crate) model: String,
    /// How long an answer may take.
    pub(crate) limit: Duration,
}

/// What is asked for: exactly so many tokens, whatever they are.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<u32>,
    pub(crate) output: u64,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Value>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

/// Sends a request that is due now, and reads its answer to the end.
pub(crate) async fn send(target: &Target, request: &Request, due: Instant) -> Outcome {
    let body = json!({
        "model": target.model,
        "prompt": request.prompt,
        "max_tokens": request.output,
        // Ends with the last token and no sooner.
        "ignore_eos": true,
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let sent_late = due.elapsed();
    let answer = async {
        let sent = target.client.post(&target.url).header("content-type", "application/json").body(body.to_string());
        let response = sent.send().await.map_err(|error| Failure::new(NO_CONNECTION, cause(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        read(response, request, due).await
    };
    let result = match tokio::time::timeout(target.limit, answer).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(TIMED_OUT, format!("no end after {} s", target.limit.as_secs_f64()))),
    };
    Outcome { result, sent_late }
}

/// Reads the events of an answer.
async fn read(response: Response, request: &Request, due: Instant) -> Result<Sample, Failure> {
    let mut events = response.bytes_stream().eventsource();
    let (mut usage, mut pieces) = (None, Vec::new());
    let end_to_end = loop {
        let event = match events.next().await {
            None => return Err(Failure::new(CUT_OFF, format!("the stream ended after {} pieces", pieces.len()))),
            Some(Err(error)) => {
                let message = format!("the stream broke after {} pieces: {}", pieces.len(), cause(&error));
                return Err(Failure::new(CUT_OFF, message));
            }
            Some(Ok(event)) => event,
        };
        let now = due.elapsed();
        if event.data == "[DONE]" {
            break now;
        }
        let chunk: Chunk = serde_json::from_str(&event.data)
            .map_err(|error| Failure::new(NOT_UNDERSTOOD, format!("{error} in {}", shown(&event.data))))?;
        if let Some(error) = chunk.error {
            return Err(Failure::new(ERROR_IN_STREAM, said(&error)));
        }
        if !chunk.choices.is_empty() {
            pieces.push(now);
        }
        usage = chunk.usage.or(usage);
    };
    let usage = usage.ok_or_else(|| {
        Failure::new(NOT_UNDERSTOOD, "the stream has no `usage`, though `stream_options.include_usage` asks for it")
    })?;
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return Err(Failure::new(NOT_UNDERSTOOD, "the stream has no piece of an answer"));
    };
    let wanted = request.prompt.len() as u64;
    for (what, wanted, found) in
        [("prompt", wanted, usage.prompt_tokens), ("output", request.output, usage.completion_tokens)]
    {
        if wanted != found {
            let message = format!("{wanted} {what} tokens were asked for, and the endpoint counts {found}");
            return Err(Failure::new(WRONG_COUNT, message));
        }
    }
    Ok(Sample {
        ttft: *first,
        last: *last,
        end_to_end,
        gaps: pieces.iter().zip(pieces.iter().skip(1)).map(|(from, to)| (*to - *from).as_secs_f64()).collect(),
        chunks: pieces.len() as u64,
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
        output_tokens: usage.completion_tokens,
    })
}

/// What an answer with another status than 200 comes to.
async fn refusal(response: Response) -> Failure {
    let status = response.status();
    let later = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let text = response.text().await.unwrap_or_default();
    let message = serde_json::from_str::<Value>(&text).map_or_else(|_| shown(&text), |body| said(&body["error"]));
    let (reason, later) = match status.as_u16() {
        429 => (RATE_LIMITED, later.map(|later| format!(", come back after {later} s")).unwrap_or_default()),
        500.. => (SERVER_ERROR, String::new()),
        _ => (REFUSED, String::new()),
    };
    Failure::new(reason, format!("status {}{later}: {message}", status.as_u16()))
}

/// The message of OpenAI's error object, or all of it.
fn said(error: &Value) -> String {
    shown(&error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned))
}

fn shown(text: &str) -> String {
    text.trim().chars().take(SHOWN).collect()
}

/// The innermost cause of an error: what an HTTP client wraps around it says that a request was sent.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    shown(&innermost.to_string())
}
