//! A client that believes nothing: HTTP by hyper, and a reader of streams that refuses what a strict client would.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Nothing here takes this long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// An error's body has exactly OpenAI's form; returns its fields.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {body}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')), "{body}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{body}");
        body["error"].clone()
    }
}

/// Sends a request and returns as soon as the answer begins.
pub(crate) async fn begin(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).expect("a request");
    tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("in time").expect("an answer")
}

pub(crate) async fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let (parts, body) = begin(address, method, path, headers, body).await.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("in time").expect("a body").to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    call(address, "GET", path, &[], "").await
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    call(address, "POST", path, &[("content-type", "application/json")], body.to_string()).await
}

pub(crate) async fn begin_post(address: SocketAddr, path: &str, body: &Value) -> Response<Incoming> {
    begin(address, "POST", path, &[("content-type", "application/json")], body.to_string()).await
}

/// What a stream said, put together.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    pub(crate) choices: Vec<StreamedChoice>,
    pub(crate) usage: Option<Value>,
    pub(crate) id: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct StreamedChoice {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<StreamedCall>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: Option<String>,
    pub(crate) logprobs: Vec<Value>,
    /// Text after each chunk.
    pub(crate) seen: Vec<String>,
    begun: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamedCall {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// Reads the events of a stream as strictly as the strictest client: each is one `data:` line and an empty one; each chunk has
/// id, object, created, model and choices, which do not change; a choice has an index and no chunk after its finish; a chat's
/// first delta has the role and no other has; `[DONE]` is the end.
#[track_caller]
pub(crate) fn read_stream(body: &str, chat: bool, include_usage: bool) -> Streamed {
    let mut streamed = Streamed::default();
    let mut head: Option<(String, u64, String)> = None;
    let mut events = body.strip_suffix("\n\n").expect("a whole last event").split("\n\n").peekable();
    while let Some(event) = events.next() {
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("not a data line: {event:?}"));
        assert!(!data.contains('\n'), "{event:?}");
        if data == "[DONE]" {
            assert!(events.peek().is_none(), "something follows the end");
            assert!(streamed.choices.iter().all(|choice| choice.finish.is_some()), "{streamed:?}");
            assert_eq!(streamed.usage.is_some(), include_usage);
            return streamed;
        }
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(chunk["object"], if chat { "chat.completion.chunk" } else { "text_completion" }, "{chunk}");
        let this = (
            chunk["id"].as_str().expect("an id").to_owned(),
            chunk["created"].as_u64().expect("a time"),
            chunk["model"].as_str().expect("a model").to_owned(),
        );
        assert_eq!(head.get_or_insert_with(|| this.clone()), &this, "the head of chunks changes");
        streamed.id = this.0;
        let choices = chunk["choices"].as_array().expect("choices");
        if choices.is_empty() {
            assert!(chunk["usage"].is_object() && streamed.usage.is_none(), "{chunk}");
            streamed.usage = Some(chunk["usage"].clone());
            continue;
        }
        assert_eq!(chunk.get("usage"), include_usage.then_some(&Value::Null), "{chunk}");
        for choice in choices {
            streamed.take(choice, chat);
        }
    }
    panic!("no [DONE]: {body}");
}

impl Streamed {
    #[track_caller]
    fn take(&mut self, choice: &Value, chat: bool) {
        let index = usize::try_from(choice["index"].as_u64().expect("an index")).expect("small");
        if self.choices.len() <= index {
            self.choices.resize(index + 1, StreamedChoice::default());
        }
        let into = &mut self.choices[index];
        assert!(into.finish.is_none(), "a chunk after the finish: {choice}");
        let text = if chat {
            let delta = choice["delta"].as_object().expect("a delta");
            let role = (!into.begun).then(|| Value::from("assistant"));
            assert_eq!(delta.get("role"), role.as_ref(), "{choice}");
            let known = ["role", "content", "reasoning", "reasoning_content", "tool_calls"];
            assert!(delta.keys().all(|key| known.contains(&key.as_str())), "{choice}");
            assert_eq!(delta.get("reasoning"), delta.get("reasoning_content"), "{choice}");
            into.reasoning += delta.get("reasoning").map_or("", |text| text.as_str().expect("text"));
            for call in delta.get("tool_calls").map_or(&[][..], |calls| calls.as_array().expect("calls")) {
                into.call(call);
            }
            delta.get("content").map_or("", |content| content.as_str().expect("text"))
        } else {
            choice["text"].as_str().expect("text")
        };
        into.begun = true;
        into.text += text;
        into.seen.push(into.text.clone());
        if let Some(tokens) = choice.get("token_ids") {
            into.tokens.extend(serde_json::from_value::<Vec<u32>>(tokens.clone()).expect("token ids"));
        }
        assert!(choice.as_object().expect("an object").contains_key("finish_reason"), "{choice}");
        into.finish = choice["finish_reason"].as_str().map(str::to_owned);
        if !choice["logprobs"].is_null() {
            into.logprobs.push(choice["logprobs"].clone());
        }
    }
}

impl StreamedChoice {
    /// A call's first delta has everything that strict clients ask for, and no later one has what clients would add up.
    #[track_caller]
    fn call(&mut self, call: &Value) {
        let index = usize::try_from(call["index"].as_u64().expect("an index")).expect("small");
        let arguments = call["function"]["arguments"].as_str().expect("arguments");
        if index == self.calls.len() {
            assert_eq!(call["type"], "function", "{call}");
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            let (id, name) = (text(&call["id"]), text(&call["function"]["name"]));
            assert!(self.calls.iter().all(|other| other.id != id) && !name.is_empty(), "{call}");
            self.calls.push(StreamedCall { id, name, arguments: arguments.to_owned() });
        } else {
            assert_eq!(index + 1, self.calls.len(), "a call goes on after the next began: {call}");
            assert_eq!(call.as_object().expect("an object").keys().collect::<Vec<_>>(), ["index", "function"]);
            assert_eq!(call["function"].as_object().expect("an object").len(), 1, "{call}");
            self.calls[index].arguments += arguments;
        }
    }
}
