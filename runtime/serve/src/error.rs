//! Errors as clients see them.
//!
//! Invariant: every answer that is not a success has OpenAI's body, `{"error": {message, type, param, code}}`, and says nothing
//! of the machine.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gemma4_engine::engine::SubmitError;
use gemma4_engine::scheduler::Refusal;
use serde_json::{Value, json};

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// A word for programs.
    code: &'static str,
    /// The field of the request that is wrong.
    param: Option<String>,
    message: String,
    /// Seconds after which it is worth trying again.
    retry_after: Option<u64>,
}

/// Seconds that a client is asked to wait when the queue is full: about what a few requests take to leave it.
const QUEUE_RETRY: u64 = 1;
/// Seconds that a client is asked to wait when the service ends: about what its successor takes to start.
const DRAIN_RETRY: u64 = 10;

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after: None }
    }

    /// A field with a value that does not do.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        error.param = Some(param.into());
        error
    }

    /// A field that nothing is known of.
    pub(crate) fn unknown_field(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unknown field `{param}`: it would be ignored, so it is refused.");
        Self { code: "unknown_parameter", ..Self::invalid(param, message) }
    }

    /// A field that is known and not served.
    pub(crate) fn unsupported(param: impl Into<String>, why: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported: {why}.");
        Self { code: "unsupported_parameter", ..Self::invalid(param, message) }
    }

    /// A required field that is not there.
    pub(crate) fn missing(param: &str) -> Self {
        Self { code: "missing_required_parameter", ..Self::invalid(param, format!("`{param}` is required.")) }
    }

    /// A body that is no JSON object.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", message)
    }

    /// More tokens than a sequence can have.
    pub(crate) fn context_length(param: &str, message: String) -> Self {
        Self { code: "context_length_exceeded", ..Self::invalid(param, message) }
    }

    pub(crate) fn media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send JSON, with `Content-Type: application/json`.",
        )
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("The body may have {limit} bytes at most."))
    }

    pub(crate) fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time.")
    }

    pub(crate) fn no_such_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist; /v1/models lists those that do.");
        let mut error = Self::new(StatusCode::NOT_FOUND, "model_not_found", message);
        error.param = Some("model".to_owned());
        error
    }

    pub(crate) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "There is nothing at this path; /openapi.json lists what there is.",
        )
    }

    pub(crate) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The path has no such method.")
    }

    pub(crate) fn api_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "Send a key of this service as `Authorization: Bearer KEY`.",
        )
    }

    pub(crate) fn draining() -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "The service is shutting down.");
        error.retry_after = Some(DRAIN_RETRY);
        error
    }

    pub(crate) fn engine() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "engine_failed",
            "The engine has failed; the service must be restarted.",
        )
    }

    /// What went wrong inside is in the log.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "The request failed inside of the service.")
    }

    /// The body.
    pub(crate) fn to_json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What is left of a body that nobody reads must not be taken for the next request.
        if matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT)
            || self.code == "shutting_down"
        {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Refused(refusal) => refusal.into(),
            SubmitError::Sampling(error) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_value", sentence(&error.to_string()))
            }
            SubmitError::Closed => Self::draining(),
            SubmitError::Failed(_) => Self::engine(),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = sentence(&refusal.to_string());
        match refusal {
            Refusal::QueueFull { .. } => Self {
                retry_after: Some(QUEUE_RETRY),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
            },
            Refusal::PromptTooLong { .. } => Self::context_length("prompt", message),
            Refusal::PoolTooSmall { .. } => Self::context_length("max_tokens", message),
            Refusal::NothingToGenerate => Self::invalid("max_tokens", message),
            Refusal::EmptyPrompt | Refusal::Token { .. } => Self::invalid("prompt", message),
        }
    }
}

/// An error's text as a sentence.
pub(crate) fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(characters).chain(['.']).collect()
}
