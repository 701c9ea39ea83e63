//! What is refused, and how.

use gemma4_serve::Parsers;
use gemma4_serve::fields::{Endpoint, Support, fields};
use serde_json::{Value, json};

use crate::client::{call, get, post};
use crate::setup::{MODEL, Server, Setup, run};

fn body(endpoint: Endpoint) -> (&'static str, Value) {
    match endpoint {
        Endpoint::Chat => {
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}))
        }
        Endpoint::Completions => ("/v1/completions", json!({"prompt": "a", "max_tokens": 1})),
    }
}

/// All fields of OpenAI's two endpoints, as of the Python client 3.52.
const CHAT: &str = "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens \
    max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key \
    prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop \
    store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options";
const COMPLETIONS: &str = "model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed \
    stop stream stream_options suffix temperature top_p user";

#[test]
fn every_field_of_openai_is_in_the_table() {
    for (endpoint, names) in [(Endpoint::Chat, CHAT), (Endpoint::Completions, COMPLETIONS)] {
        for name in names.split_whitespace() {
            assert!(fields(endpoint).any(|field| field.name == name), "{endpoint:?} {name}");
        }
    }
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let mut names: Vec<_> = fields(endpoint).map(|field| field.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a field is in the table twice");
    }
}

/// A value that is fine for each field that is served.
fn example(endpoint: Endpoint, name: &str) -> Value {
    match name {
        "model" => json!(MODEL),
        "messages" => json!([{"role": "user", "content": "b", "name": "Ada"}]),
        "prompt" => json!([1]),
        "chat_template_kwargs" => json!({"enable_thinking": true}),
        "cache_salt" | "user" | "safety_identifier" | "prompt_cache_key" => json!("x"),
        "stream_options" => json!({"include_usage": true}),
        "stop" => json!(["x", "yz"]),
        "stop_token_ids" => json!([5]),
        "tools" => json!([{"type": "function", "function": {"name": "f"}}]),
        "tool_choice" => json!("none"),
        "response_format" => json!({"type": "json_object"}),
        "structured_outputs" => json!({"choice": ["x", "y"]}),
        "reasoning_effort" => json!("low"),
        "logit_bias" => json!({"5": 1.5}),
        "metadata" => json!({"a": "b"}),
        "logprobs" if endpoint == Endpoint::Completions => json!(2),
        "top_logprobs" | "prompt_logprobs" => json!(0),
        "temperature" | "top_p" | "min_p" | "presence_penalty" | "frequency_penalty" | "repetition_penalty" => {
            json!(0.5)
        }
        "n" | "max_tokens" | "max_completion_tokens" | "min_tokens" | "top_k" | "seed" => json!(1),
        _ => json!(true),
    }
}

#[test]
fn every_field_is_served_or_refused_by_name() {
    let mut setup = Setup::default();
    setup.options.parsers = Parsers { tool_calls: true, auto_tool_choice: true, reasoning: true };
    let server = setup.start();
    run(async {
        for endpoint in [Endpoint::Chat, Endpoint::Completions] {
            let (path, body) = body(endpoint);
            let ask = async |name: &str, value: Value| {
                let mut body = body.clone();
                body[name] = value;
                if name == "stream_options" {
                    body["stream"] = json!(true);
                }
                post(server.address, path, &body).await
            };
            for field in fields(endpoint) {
                let name = field.name;
                match field.support {
                    Support::Served | Support::Accepted => {
                        let answer = ask(name, example(endpoint, name)).await;
                        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
                        // No field takes a list of lists of objects.
                        let answer = ask(name, json!([[{"a": {}}]])).await;
                        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
                        assert!(
                            answer.error()["param"].as_str().is_some_and(|param| param.starts_with(name)),
                            "{name}"
                        );
                    }
                    Support::Only(values) => {
                        for value in values {
                            let answer = ask(name, serde_json::from_str(value).expect("JSON")).await;
                            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
                        }
                        let answer = ask(name, json!([[7]])).await;
                        let error = answer.error();
                        assert_eq!(
                            (answer.status, &error["param"], &error["code"]),
                            (400, &json!(name), &json!("unsupported_parameter"))
                        );
                    }
                    Support::Refused => {
                        for value in [json!(true), json!([]), json!({}), json!(0), json!("")] {
                            let answer = ask(name, value).await;
                            let error = answer.error();
                            assert_eq!(
                                (answer.status, &error["param"], &error["code"]),
                                (400, &json!(name), &json!("unsupported_parameter"))
                            );
                            assert!(error["message"].as_str().is_some_and(|text| text.contains(name)));
                        }
                    }
                }
                if !matches!(name, "messages" | "prompt") {
                    assert_eq!(ask(name, Value::Null).await.status, 200, "{name}: null is not given");
                }
            }
            let error = ask("temprature", json!(1)).await.error();
            assert_eq!((&error["param"], &error["code"]), (&json!("temprature"), &json!("unknown_parameter")));
        }
    });
}

#[test]
fn values_out_of_range_are_named() {
    let server = Server::new();
    run(async {
        let cases = [
            ("temperature", json!(-0.1)),
            ("temperature", json!(2.1)),
            ("temperature", json!("1")),
            ("top_p", json!(0)),
            ("top_p", json!(1.01)),
            ("top_k", json!(-2)),
            ("top_k", json!(1.5)),
            ("min_p", json!(1.1)),
            ("n", json!(0)),
            ("n", json!(129)),
            ("n", json!(-1)),
            ("n", json!(1e300)),
            ("seed", json!(1.5)),
            ("seed", json!(1e30)),
            ("presence_penalty", json!(2.1)),
            ("frequency_penalty", json!(-2.1)),
            ("repetition_penalty", json!(0)),
            ("logit_bias", json!({"5": 101})),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1024": 1})),
            ("logit_bias", json!({"5": "1"})),
            ("stop", json!("")),
            ("stop", json!([""])),
            ("stop", json!(vec!["a"; 17])),
            ("stop", json!([1])),
            ("stop", json!("x".repeat(257))),
            ("stop_token_ids", json!([1024])),
            ("stop_token_ids", json!([-1])),
            ("stop_token_ids", json!(["a"])),
            ("cache_salt", json!("")),
            ("min_tokens", json!(2)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1.5)),
            ("stream", json!("yes")),
            ("metadata", json!({"a": 1})),
            ("user", json!(5)),
        ];
        for (name, value) in cases {
            for endpoint in [Endpoint::Chat, Endpoint::Completions] {
                if !fields(endpoint).any(|field| field.name == name) {
                    continue;
                }
                let (path, mut body) = body(endpoint);
                body[name] = value.clone();
                let answer = post(server.address, path, &body).await;
                assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(name)), "{name} {value}");
            }
        }
        let cases = [
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [[]]}), "prompt"),
            (json!({"prompt": ["a", 1]}), "prompt"),
            (json!({"prompt": [1, "a"]}), "prompt"),
            (json!({"prompt": [1024]}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"prompt": 5}), "prompt"),
            (json!({"prompt": null}), "prompt"),
            (json!({}), "prompt"),
            (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
            (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
            (json!({"prompt": vec!["a"; 9], "n": 128}), "n"),
            (json!({"prompt": "a", "stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"prompt": "a", "stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
            (
                json!({"prompt": "a", "stream": true, "stream_options": {"include_obfuscation": true}}),
                "stream_options.include_obfuscation",
            ),
        ];
        for (body, param) in cases {
            let answer = post(server.address, "/v1/completions", &body).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{body}");
        }
    });
}

#[test]
fn messages_are_held_against_what_the_template_reads() {
    let server = Server::new();
    run(async {
        let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]);
        let cases = [
            (json!([]), "messages"),
            (json!("a"), "messages"),
            (json!(["a"]), "messages[0]"),
            (json!([{"content": "a"}]), "messages[0].role"),
            (json!([{"role": "wizard", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "tool", "content": "a"}]), "messages[0].tool_call_id"),
            (json!([{"role": "tool", "content": "a", "tool_call_id": "x"}]), "messages[0].tool_call_id"),
            (json!([{"role": "function", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user", "content": "a", "tool_calls": []}]), "messages[0].tool_calls"),
            (json!([{"role": "user", "content": "a", "reasoning": "b"}]), "messages[0].reasoning"),
            (
                json!([{"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "c"}]),
                "messages[0].reasoning_content",
            ),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": null}]), "messages[0].content"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": []}]), "messages[0].content"),
            (json!([{"role": "user", "content": image}]), "messages[0].content[1].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (
                json!([{"role": "user", "content": [{"type": "text", "text": "a", "mood": 1}]}]),
                "messages[0].content[0].mood",
            ),
            (
                json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{}]}]),
                "messages[1].tool_calls[0].id",
            ),
            (json!([{"role": "user", "content": "a", "mood": "fine"}]), "messages[0].mood"),
            (json!([{"role": "user", "content": "a", "name": 5}]), "messages[0].name"),
        ];
        for (messages, param) in cases {
            for path in ["/v1/chat/completions", "/tokenize"] {
                let answer = post(server.address, path, &json!({"messages": messages})).await;
                assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{path} {messages}");
            }
        }
        let reserved =
            json!({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": []}});
        let error = post(server.address, "/v1/chat/completions", &reserved).await.error();
        assert_eq!(error["param"], "chat_template_kwargs.messages");
        let both = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 2});
        assert_eq!(post(server.address, "/v1/chat/completions", &both).await.error()["param"], "max_tokens");
        let top = json!({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 1});
        assert_eq!(post(server.address, "/v1/chat/completions", &top).await.error()["param"], "top_logprobs");
        // What clients send back of an answer of ours.
        let back = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "refusal": null, "tool_calls": null,
            "function_call": null, "audio": null}, {"role": "user", "content": "c"}]);
        assert_eq!(
            post(server.address, "/v1/chat/completions", &json!({"messages": back, "max_tokens": 1})).await.status,
            200
        );
    });
}

#[test]
fn what_is_no_request_is_refused_with_the_same_body() {
    let server = Server::new();
    run(async {
        let json = [("content-type", "application/json; charset=utf-8")];
        let deep = "[".repeat(100_000);
        let bodies: [&[u8]; 7] = [
            b"",
            b"[]",
            b"{",
            b"nonsense",
            b"{\"prompt\": \"\xff\xfe\"}",
            b"{\"prompt\": \"\\ud800\"}",
            deep.as_bytes(),
        ];
        for body in bodies {
            for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
                let answer = call(server.address, "POST", path, &json, body.to_vec()).await;
                assert_eq!(
                    (answer.status, &answer.error()["code"]),
                    (400, &json!("invalid_body")),
                    "{path} {:?}",
                    &body[..body.len().min(20)]
                );
            }
        }
        for media in ["text/plain", "application/x-www-form-urlencoded", ""] {
            let answer = call(server.address, "POST", "/v1/completions", &[("content-type", media)], "{}").await;
            assert_eq!((answer.status, &answer.error()["code"]), (415, &json!("unsupported_media_type")));
        }
        let answer = get(server.address, "/v1/completions").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
        answer.error();
        let answer = get(server.address, "/v1/nothing").await;
        assert_eq!((answer.status, &answer.error()["code"]), (404, &json!("not_found")));
        let answer = post(server.address, "/v1/completions", &json!({"model": "gpt-4", "prompt": "a"})).await;
        assert_eq!((answer.status, &answer.error()["code"]), (404, &json!("model_not_found")));
    });
}
