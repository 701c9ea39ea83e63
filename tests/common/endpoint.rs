//! An endpoint that speaks as much of OpenAI's API as a load generator needs, and delays and fails as a test says.

#![allow(unreachable_pub)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::{Value, json};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// Status 429 with `Retry-After: 7`.
    RateLimited,
    /// Status 500.
    Broken,
    /// The connection ends after two pieces.
    CutOff,
    /// The stream tells of an error after one piece.
    ErrorInStream,
    /// It ends a token too early.
    Short,
    /// There are no counts.
    NoUsage,
    /// No answer.
    Silent,
}

/// What the endpoint is like.
#[derive(Clone)]
pub struct Manner {
    /// Time to the first token.
    pub first: Duration,
    /// Time between tokens.
    pub gap: Duration,
    /// What becomes of the request with this number.
    pub fate: fn(usize) -> Fate,
    /// What `/server_info` says.
    pub info: Option<Value>,
    /// What `/metrics` says.
    pub metrics: String,
    /// Whether there is `/tokenize`.
    pub tokenizes: bool,
    /// The key that requests have to show.
    pub key: Option<&'static str>,
}

impl Default for Manner {
    fn default() -> Self {
        Manner {
            first: Duration::ZERO,
            gap: Duration::ZERO,
            fate: |_| Fate::Answered,
            info: None,
            metrics: String::new(),
            tokenizes: true,
            key: None,
        }
    }
}

/// The endpoint. It ends with this.
pub struct Endpoint {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Value>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    manner: Manner,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Endpoint {
    pub fn new(manner: Manner) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::new(Shared { manner: manner.clone(), asked: Arc::clone(&asked) });
        let models = json!({ "data": [{ "id": "fake", "max_model_len": 4096 }, { "id": "other" }] });
        let has_key = move |headers: &HeaderMap| {
            manner
                .key
                .is_none_or(|key| headers.get("authorization").is_some_and(|value| *value == *format!("Bearer {key}")))
        };
        let mut router = Router::new()
            .route(
                "/v1/models",
                get(async move |headers: HeaderMap| match has_key(&headers) {
                    true => Json(models).into_response(),
                    false => (StatusCode::UNAUTHORIZED, "no key").into_response(),
                }),
            )
            .route("/metrics", get(async move || manner.metrics.clone()))
            .route("/v1/completions", post(async move |Json(body): Json<Value>| complete(&shared, body).await));
        if manner.tokenizes {
            let tokens: Vec<u32> = (100..150).collect();
            router = router.route("/tokenize", post(async move || Json(json!({ "tokens": tokens }))));
        }
        if let Some(info) = manner.info {
            router = router.route("/server_info", get(async move || Json(info)));
        }
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move { axum::serve(listener, router).await });
        Endpoint { address, asked, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bodies of all requests up to now.
    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().expect("a list").clone()
    }

    /// Waits until so many requests have come.
    pub fn wait_for(&self, count: usize) {
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        while self.asked().len() < count {
            assert!(std::time::Instant::now() < limit, "{count} requests do not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes every connection and the port.
    pub fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.end();
    }
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": { "message": message } }))).into_response()
}

async fn complete(shared: &Shared, body: Value) -> Response {
    let number = {
        let mut asked = shared.asked.lock().expect("a list");
        asked.push(body.clone());
        asked.len() - 1
    };
    let fate = (shared.manner.fate)(number);
    match fate {
        Fate::RateLimited => {
            let mut response = error(StatusCode::TOO_MANY_REQUESTS, "the queue is full.");
            response.headers_mut().insert("retry-after", "7".parse().expect("a header"));
            return response;
        }
        Fate::Broken => return error(StatusCode::INTERNAL_SERVER_ERROR, "out of memory"),
        Fate::Silent => return std::future::pending().await,
        _ => {}
    }
    let prompt = body["prompt"].as_array().map_or(0, Vec::len);
    let wanted = body["max_tokens"].as_u64().unwrap_or(16) as usize;
    let tokens = if fate == Fate::Short { wanted - 1 } else { wanted };
    let event = |value: &Value| Ok::<_, std::io::Error>(format!("data: {value}\n\n"));
    let mut events: Vec<(Duration, std::io::Result<String>)> = (0..tokens)
        .map(|at| {
            let wait = if at == 0 { shared.manner.first } else { shared.manner.gap };
            (wait, event(&json!({ "choices": [{ "index": 0, "text": "word", "finish_reason": null }] })))
        })
        .collect();
    let usage = json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "prompt_tokens_details": { "cached_tokens": 1 } });
    match fate {
        Fate::CutOff => {
            events.truncate(2);
            events.push((Duration::from_millis(20), Err(std::io::Error::other("cut"))));
        }
        Fate::ErrorInStream => {
            events.truncate(1);
            events.push((Duration::ZERO, event(&json!({ "error": { "message": "the step failed" } }))));
        }
        Fate::NoUsage => {}
        _ => events.push((Duration::ZERO, event(&json!({ "choices": [], "usage": usage })))),
    }
    events.push((Duration::ZERO, Ok("data: [DONE]\n\n".to_owned())));
    let stream = stream::iter(events).then(|(wait, event)| async move {
        tokio::time::sleep(wait).await;
        event
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a header"));
    response
}
