//! Asks an engine whether it serves. Always 127.0.0.1 and plain HTTP, whatever proxies the environment names.

use std::time::Duration;

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
pub(super) fn completion(base_url: &str, model: &str, api_key: Option<&str>, timeout: Duration) -> Answer {
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
