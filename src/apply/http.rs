//! Asks an engine whether it serves. Always 127.0.0.1 and plain HTTP, whatever proxies the environment names.

use std::time::Duration;

use super::LaunchError;
use super::completion::final_status;
use super::secrets::{API_KEY, Values};
use crate::emit::Service;

/// How long an answer to /health may take.
pub(super) const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// What an engine says to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Status 200.
    Fine,
    /// Another status, with the beginning of what it says.
    Status(u16, String),
    /// None: not listening yet, or too slow.
    None(String),
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .build()
        .into()
}

/// Whether the server says that it is alive.
pub(super) fn health(url: &str, timeout: Duration) -> Answer {
    answer(agent(timeout).get(url).call())
}

/// How far a server is.
#[derive(Debug)]
pub(super) enum Readiness {
    /// It says that it is alive, and completes.
    Ready,
    /// It answers otherwise.
    NotYet(String),
    /// It does not answer.
    Silent,
}

/// Whether a service says that it is alive and completes one token.
///
/// # Errors
/// [`LaunchError::Refused`] if it refuses the completion, and would again.
pub(super) fn ready(service: &Service, values: &Values, left: Duration) -> Result<Readiness, LaunchError> {
    match health(&service.health_url, HEALTH_TIMEOUT.min(left)) {
        Answer::Fine => {}
        Answer::Status(status, _) => return Ok(Readiness::NotYet(format!("/health answers with status {status}"))),
        Answer::None(_) => return Ok(Readiness::Silent),
    }
    Ok(match completion(&service.base_url, &service.model, values.get(API_KEY), left) {
        Answer::Fine => Readiness::Ready,
        Answer::Status(status, message) if final_status(status) => {
            let message = values.mask(&message);
            return Err(LaunchError::Refused { name: service.name.clone(), status, message });
        }
        Answer::Status(status, _) => Readiness::NotYet(format!("/v1/completions answers with status {status}")),
        Answer::None(error) => Readiness::NotYet(format!("/v1/completions: {error}")),
    })
}

/// The text at `url`.
pub(super) fn get(url: &str, api_key: Option<&str>, timeout: Duration) -> Result<String, String> {
    let mut request = agent(timeout).get(url);
    if let Some(key) = api_key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let mut response = request.call().map_err(|error| error.to_string())?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status().as_u16()));
    }
    response.body_mut().with_config().limit(1 << 20).read_to_string().map_err(|error| error.to_string())
}

/// One real completion of one token.
fn completion(base_url: &str, model: &str, api_key: Option<&str>, timeout: Duration) -> Answer {
    let mut request = agent(timeout).post(format!("{base_url}/v1/completions")).content_type("application/json");
    if let Some(key) = api_key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let body = serde_json::json!({ "model": model, "prompt": "Hello", "max_tokens": 1 });
    answer(request.send(body.to_string()))
}

fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    match result {
        Ok(response) if response.status() == 200 => Answer::Fine,
        Ok(mut response) => {
            let text = response.body_mut().with_config().limit(1 << 16).lossy_utf8(true).read_to_string();
            Answer::Status(response.status().as_u16(), text.unwrap_or_default().trim().chars().take(300).collect())
        }
        Err(error) => Answer::None(error.to_string()),
    }
}
