//! Routes, and what every request passes on its way.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::answer::answer;
use crate::error::ApiError;
use crate::fields::Endpoint;
use crate::generate::submit;
use crate::openapi;
use crate::record::{Details, Record};
use crate::request::{self, TextRequest};
use crate::service::State;

/// Names a request in logs of both sides.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a client's request id at most.
const MAX_REQUEST_ID: usize = 128;
/// Times the limit of a body that are read of one that is too large.
const DISCARDED: usize = 4;
/// The text format of Prometheus.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A request's name, for handlers.
#[derive(Clone, Debug)]
struct RequestId(String);

type Api = Result<Response, ApiError>;

/// All routes.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/server_info", get(server_info))
        .route("/openapi.json", get(document))
        .fallback(|| async { ApiError::not_found() })
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .layer(middleware::from_fn_with_state(Arc::clone(&state), admit))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), observe))
        .with_state(state)
}

/// Names the request and keeps its record until the last byte of the answer.
async fn observe(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_request_id(id));
    let id = given.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    let endpoint = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let details = Details::default();
    let record = Record::new(&state, id.clone(), request.method().to_string(), endpoint, details.clone());
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(details);
    let (mut parts, body) = next.run(request).await.into_parts();
    if let Ok(id) = HeaderValue::from_str(&id) {
        parts.headers.insert(REQUEST_ID, id);
    }
    let body = record.body(parts.status, body);
    Response::from_parts(parts, body)
}

/// A name that is safe in headers, logs and JSON.
fn is_request_id(id: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(safe)
}

/// Lets in who may come in. What watches the service needs no key, as in vLLM.
async fn admit(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if matches!(path, "/health" | "/ready" | "/version" | "/metrics" | "/openapi.json") {
        return next.run(request).await;
    }
    let keys = &state.options.api_keys;
    if !keys.is_empty() {
        let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
        if !given.is_some_and(|key| keys.contains(key)) {
            return ApiError::api_key().into_response();
        }
    }
    if state.is_draining() {
        return ApiError::draining().into_response();
    }
    next.run(request).await
}

/// The key of `Authorization: Bearer KEY`; the word's case does not matter.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// The whole body, within its limits of size and time.
async fn read(state: &State, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::media_type());
    }
    let limit = state.options.max_body_bytes;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|length| length.parse::<usize>().ok()).unwrap_or_default();
    let mut total = 0;
    match tokio::time::timeout(state.options.body_timeout, collect(body, length, limit, &mut total)).await {
        _ if length.max(total) > limit => Err(ApiError::too_large(limit)),
        Ok(collected) => collected,
        Err(_) => Err(ApiError::body_timeout()),
    }
}

/// Reads a body whose header says `length` (0 if it does not), and counts its bytes. Those of one that is too large are read
/// too, up to a bound, and forgotten: many clients look for the answer only when they have sent everything.
async fn collect(mut body: Body, length: usize, limit: usize, total: &mut usize) -> Result<Bytes, ApiError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(ApiError::body("The body could not be read.")) };
        let Ok(data) = frame.into_data() else { continue };
        *total = total.saturating_add(data.len());
        if *total > limit.saturating_mul(DISCARDED) {
            break;
        }
        if length.max(*total) <= limit {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.into())
}

/// Work that takes a while, away from the threads that move bytes.
async fn work<T: Send + 'static>(
    state: &Arc<State>,
    work: impl FnOnce(&State) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let state = Arc::clone(state);
    match tokio::task::spawn_blocking(move || work(&state)).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "reading a request failed");
            Err(ApiError::internal())
        }
    }
}

type Reader = fn(&State, serde_json::Map<String, Value>) -> Result<TextRequest, ApiError>;

/// A request for text.
async fn text(
    state: Arc<State>,
    endpoint: Endpoint,
    reader: Reader,
    RequestId(id): RequestId,
    details: Details,
    body: Bytes,
) -> Api {
    let request = work(&state, move |state| reader(state, request::object(&body)?)).await?;
    let choices = submit(&state, &request, &details)?;
    answer(&state, endpoint, &id, request, choices, details).await
}

async fn chat(
    Shared(state): Shared<Arc<State>>,
    Extension(id): Extension<RequestId>,
    Extension(details): Extension<Details>,
    headers: HeaderMap,
    body: Body,
) -> Api {
    let body = read(&state, &headers, body).await?;
    text(state, Endpoint::Chat, request::chat, id, details, body).await
}

async fn completions(
    Shared(state): Shared<Arc<State>>,
    Extension(id): Extension<RequestId>,
    Extension(details): Extension<Details>,
    headers: HeaderMap,
    body: Body,
) -> Api {
    let body = read(&state, &headers, body).await?;
    text(state, Endpoint::Completions, request::completion, id, details, body).await
}

async fn tokenize(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Api {
    let body = read(&state, &headers, body).await?;
    let (tokens, texts) = work(&state, move |state| request::tokenize(state, request::object(&body)?)).await?;
    let texts = texts.then(|| {
        tokens.iter().map(|token| state.tokenizer.token_text(*token).unwrap_or_default()).collect::<Vec<String>>()
    });
    let longest = state.options.max_model_len;
    Ok(Json(json!({"count": tokens.len(), "max_model_len": longest, "tokens": tokens, "token_strs": texts}))
        .into_response())
}

async fn detokenize(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Api {
    let body = read(&state, &headers, body).await?;
    let read = move |state: &State| {
        let tokens = request::detokenize(state, request::object(&body)?)?;
        state.decode("tokens", &tokens, false)
    };
    let text = work(&state, read).await?;
    Ok(Json(json!({"prompt": text})).into_response())
}

fn model_card(state: &State, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "gemma4ctl",
        "root": state.options.model_names.first(),
        "parent": null,
        "max_model_len": state.options.max_model_len,
    })
}

async fn models(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let cards: Vec<Value> = state.options.model_names.iter().map(|name| model_card(&state, name)).collect();
    Json(json!({"object": "list", "data": cards}))
}

async fn model(Shared(state): Shared<Arc<State>>, Path(name): Path<String>) -> Api {
    let name = state.model(Some(name))?;
    Ok(Json(model_card(&state, &name)).into_response())
}

/// Liveness: the process should be replaced if it fails.
async fn health(Shared(state): Shared<Arc<State>>) -> Api {
    match state.engine.failure() {
        None => Ok(StatusCode::OK.into_response()),
        Some(_) => Err(ApiError::engine()),
    }
}

/// Readiness: requests should go elsewhere if it fails.
async fn ready(Shared(state): Shared<Arc<State>>) -> Api {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    match state.engine.failure() {
        None => Ok(Json(json!({"status": "ready"})).into_response()),
        Some(_) => Err(ApiError::engine()),
    }
}

async fn version(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    Json(json!({"version": state.options.version}))
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Api {
    match state.metrics.text(&state.engine.statistics()) {
        Ok(text) => Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            Err(ApiError::internal())
        }
    }
}

async fn server_info(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    Json(state.options.info.clone())
}

async fn document(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    Json(openapi::document(&state.options, state.tokenizer.vocab_size()))
}
