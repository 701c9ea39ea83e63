//! What is known of a request at its end: its line in the log and its share of the metrics.
//!
//! Invariant: every request that reached the service leaves one line, whatever became of it and of its client.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body::{Frame, SizeHint};

use crate::service::{InFlight, State};

/// Set by the handlers of a request as they learn it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details(Arc<Mutex<Facts>>);

/// What a request was about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Answers.
    pub(crate) choices: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) output_tokens: usize,
    pub(crate) cached_tokens: usize,
    /// Tokens of prompts that got logprobs: fast prefill skipped nothing for them.
    pub(crate) prompt_logprobs: usize,
    /// The longest of its answers' times.
    pub(crate) queue: Duration,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
    /// Why its answers ended, once each.
    pub(crate) finish: Vec<&'static str>,
}

impl Details {
    /// Changes what is known.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Prompt tokens that were in the cache.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cached_tokens
    }

    fn take(&self) -> Facts {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request from its headers to the last byte of its answer.
pub(crate) struct Record {
    state: Arc<State>,
    id: String,
    method: String,
    /// The route, so that paths of strangers do not become series.
    endpoint: String,
    started: Instant,
    details: Details,
    /// `None` until the answer began.
    status: Option<StatusCode>,
    complete: bool,
    _in_flight: Option<InFlight>,
}

impl Record {
    pub(crate) fn new(state: &Arc<State>, id: String, method: String, endpoint: String, details: Details) -> Self {
        let in_flight = counts(&endpoint).then(|| state.enter());
        Self {
            state: Arc::clone(state),
            id,
            method,
            endpoint,
            started: Instant::now(),
            details,
            status: None,
            complete: false,
            _in_flight: in_flight,
        }
    }

    /// The answer began; the record ends with its body.
    pub(crate) fn body(mut self, status: StatusCode, body: Body) -> Body {
        self.status = Some(status);
        // Nobody will ask such a body for anything.
        if http_body::Body::is_end_stream(&body) {
            self.complete = true;
            return body;
        }
        Body::new(Recorded { body, record: Some(self) })
    }
}

/// Whether an endpoint does work that a shutdown waits for and that monitoring looks at.
fn counts(endpoint: &str) -> bool {
    !matches!(endpoint, "/health" | "/ready" | "/metrics" | "/version" | "/server_info" | "/openapi.json")
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        // nginx' number for a client that went away before its answer.
        let status = self.status.map_or(499, |status| status.as_u16());
        let facts = self.details.take();
        if counts(&self.endpoint) {
            self.state.metrics.http(&self.endpoint, &self.method, status, took);
        }
        let Facts { choices, prompt_tokens, output_tokens, cached_tokens, .. } = facts;
        let Facts { prompt_logprobs, queue, prefill, decode, finish, .. } = facts;
        // Left out where nobody asked for them.
        let prompt_logprobs = Some(prompt_logprobs).filter(|count| *count > 0);
        let seconds = took.as_secs_f64();
        let (id, method, endpoint, complete) = (&*self.id, &*self.method, &*self.endpoint, self.complete);
        if choices == 0 {
            if counts(endpoint) {
                tracing::info!(id, method, endpoint, status, complete, seconds, "request");
            } else {
                tracing::debug!(id, method, endpoint, status, complete, seconds, "request");
            }
            return;
        }
        tracing::info!(
            id,
            method,
            endpoint,
            status,
            complete,
            seconds,
            choices,
            prompt_tokens,
            output_tokens,
            cached_tokens,
            prompt_logprobs,
            queue_seconds = queue.as_secs_f64(),
            prefill_seconds = prefill.as_secs_f64(),
            decode_seconds = decode.as_secs_f64(),
            finish = finish.join(","),
            "request"
        );
    }
}

/// A body that holds the request's record until its end.
struct Recorded {
    body: Body,
    record: Option<Record>,
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            // Before the last bytes go out, so that whoever has read them finds the request counted.
            if let Some(mut record) = self.record.take() {
                record.complete = true;
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
