//! The log: one line a request, with nothing in it that is the client's own business.

// What is shared with the tests of the service is more than this needs.
#![allow(dead_code)]

#[path = "http/client.rs"]
mod client;
#[path = "http/model.rs"]
mod model;
#[path = "http/setup.rs"]
mod setup;

use std::process::Command;

use gemma4_serve::{ApiKeys, logging};
use serde_json::{Value, json};

use client::{begin, call, get};
use setup::{Setup, run, wait_for};

/// Set in the process whose log is read.
const CHILD: &str = "GEMMA4_SERVE_TEST_CHILD";

fn serve() {
    assert!(logging::init("loud", true).is_err());
    logging::init("info", true).expect("a log");
    assert!(logging::init("info", true).is_err(), "a process has one log");
    let mut setup = Setup::default();
    setup.options.api_keys = ApiKeys::new(["top-secret"]);
    let server = setup.start();
    run(async {
        let headers =
            |id| [("content-type", "application/json"), ("authorization", "Bearer top-secret"), ("x-request-id", id)];
        let body = json!({"prompt": "confidential words", "max_tokens": 5, "n": 2}).to_string();
        assert_eq!(call(server.address, "POST", "/v1/completions", &headers("whole"), body).await.status, 200);
        let body =
            json!({"prompt": "confidential words", "max_tokens": 0, "echo": true, "logprobs": 1, "n": 2}).to_string();
        assert_eq!(call(server.address, "POST", "/v1/completions", &headers("scored"), body).await.status, 200);
        let body = json!({"prompt": "confidential words", "surprise": "confidential"}).to_string();
        assert_eq!(call(server.address, "POST", "/v1/completions", &headers("refused"), body).await.status, 400);
        assert_eq!(get(server.address, "/health").await.status, 200);
        server.door.limit(Some(server.door.steps() + 2));
        let body = json!({"prompt": [600], "max_tokens": 100, "stream": true}).to_string();
        let stream = begin(server.address, "POST", "/v1/completions", &headers("gone"), body).await;
        drop(stream);
        wait_for("its end", || server.used_pages() == 0).await;
    });
    server.end();
}

#[test]
fn one_line_a_request() {
    if std::env::var_os(CHILD).is_some() {
        return serve();
    }
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["one_line_a_request", "--exact", "--nocapture"]).env(CHILD, "1");
    let output = command.output().expect("the child");
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("confidential") && !log.contains("top-secret"), "{log}");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<Value> = lines.filter(|line| line["message"] == "request").collect();
    let [whole, scored, refused, gone] = lines.as_slice() else { panic!("{log}") };
    assert_eq!(
        (&whole["id"], &whole["endpoint"], &whole["method"]),
        (&json!("whole"), &json!("/v1/completions"), &json!("POST"))
    );
    assert_eq!((&whole["status"], &whole["complete"], &whole["finish"]), (&json!(200), &json!(true), &json!("length")));
    assert_eq!((&whole["choices"], &whole["output_tokens"]), (&json!(2), &json!(10)));
    assert!(whole["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 1), "{whole}");
    assert!(whole.get("prompt_logprobs").is_none(), "{whole}");
    // Of all but the first token, once for both answers.
    let tokens = scored["prompt_tokens"].as_u64().expect("a number");
    assert_eq!((&scored["id"], &scored["output_tokens"]), (&json!("scored"), &json!(0)));
    assert_eq!(
        (scored["prompt_logprobs"].as_u64(), tokens),
        (Some(tokens - 1), whole["prompt_tokens"].as_u64().expect("a number"))
    );
    for time in ["seconds", "queue_seconds", "prefill_seconds", "decode_seconds"] {
        assert!(whole[time].as_f64().is_some_and(|seconds| seconds >= 0.0), "{time}: {whole}");
    }
    assert_eq!((&refused["id"], &refused["status"]), (&json!("refused"), &json!(400)));
    assert_eq!((&gone["id"], &gone["complete"], &gone["finish"]), (&json!("gone"), &json!(false), &json!("abort")));
}
