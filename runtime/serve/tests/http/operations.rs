//! What operators look at: models, tokens, health, metrics, the OpenAPI document.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{call, get, post};
use crate::setup::{LONGEST, MODEL, Server, Setup, TOKENIZER, run};

#[test]
fn models_and_settings_are_listed() {
    let mut setup = Setup::default();
    setup.options.model_names.push("alias".to_owned());
    setup.options.info = json!({"digest": "abc", "max_model_len": LONGEST});
    setup.options.version = "1.2.3".to_owned();
    setup.options.system_fingerprint = Some("fp".to_owned());
    let server = setup.start();
    run(async {
        let models = get(server.address, "/v1/models").await.json();
        assert_eq!(models["object"], "list");
        let ids: Vec<&Value> = models["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
        assert_eq!(ids, [MODEL, "alias"]);
        assert_eq!((&models["data"][1]["root"], &models["data"][1]["max_model_len"]), (&json!(MODEL), &json!(LONGEST)));
        for path in ["/v1/models/google/gemma-test", "/v1/models/google%2Fgemma-test"] {
            assert_eq!(get(server.address, path).await.json(), models["data"][0], "{path}");
        }
        assert_eq!(get(server.address, "/v1/models/none").await.status, 404);
        assert_eq!(get(server.address, "/version").await.json(), json!({"version": "1.2.3"}));
        assert_eq!(
            get(server.address, "/server_info").await.json(),
            json!({"digest": "abc", "max_model_len": LONGEST})
        );
        assert_eq!(get(server.address, "/ready").await.json(), json!({"status": "ready"}));
        let health = get(server.address, "/health").await;
        assert_eq!((health.status, health.body.len()), (200, 0));
        assert_eq!(call(server.address, "HEAD", "/health", &[], "").await.status, 200);
        let body = json!({"model": "alias", "prompt": "a", "max_tokens": 1});
        let answer = post(server.address, "/v1/completions", &body).await.json();
        assert_eq!((&answer["model"], &answer["system_fingerprint"]), (&json!("alias"), &json!("fp")));
    });
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let server = Server::new();
    run(async {
        let text = "Grüße, the answer";
        for special in [true, false] {
            let body = json!({"prompt": text, "add_special_tokens": special, "return_token_strs": true});
            let answer = post(server.address, "/tokenize", &body).await.json();
            let tokens = TOKENIZER.encode(text, special).expect("tokens");
            let texts: Vec<_> = tokens.iter().map(|token| TOKENIZER.token_text(*token)).collect();
            let wanted =
                json!({"count": tokens.len(), "max_model_len": LONGEST, "tokens": tokens, "token_strs": texts});
            assert_eq!(answer, wanted);
            let answer = post(server.address, "/detokenize", &json!({"tokens": tokens})).await.json();
            assert_eq!(answer, json!({"prompt": TOKENIZER.decode(&tokens, false).expect("text")}));
        }
        assert_eq!(post(server.address, "/tokenize", &json!({"prompt": ""})).await.status, 200);
        for (path, body, param) in [
            ("/tokenize", json!({}), "prompt"),
            ("/tokenize", json!({"prompt": "a", "messages": []}), "messages"),
            ("/tokenize", json!({"prompt": 5}), "prompt"),
            ("/tokenize", json!({"prompt": "a", "tools": []}), "tools"),
            ("/detokenize", json!({}), "tokens"),
            ("/detokenize", json!({"tokens": [5000]}), "tokens"),
            ("/detokenize", json!({"tokens": [1], "more": 1}), "more"),
        ] {
            let answer = post(server.address, path, &body).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{path} {body}");
        }
    });
}

/// The value of a series, by its whole name.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("a number")
}

fn labels(name: &str) -> String {
    format!("{name}{{engine=\"0\",model_name=\"{MODEL}\"}}")
}

#[test]
fn metrics_count_what_happened() {
    let mut setup = Setup::default();
    setup.options.cache_config.push(("block_size".to_owned(), "8".to_owned()));
    let server = setup.start();
    run(async {
        let body = json!({"prompt": (600..640).collect::<Vec<u32>>(), "max_tokens": 5, "n": 2});
        assert_eq!(post(server.address, "/v1/completions", &body).await.status, 200);
        let chat =
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "stop": "é", "stream": true});
        assert_eq!(post(server.address, "/v1/chat/completions", &chat).await.status, 200);
        assert_eq!(post(server.address, "/v1/completions", &json!({})).await.status, 400);
        let answer = get(server.address, "/metrics").await;
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = answer.text();
        assert_eq!(value(text, "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}"), 1.0);
        assert_eq!(value(text, "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"4xx\"}"), 1.0);
        assert_eq!(
            value(text, "http_request_duration_seconds_count{handler=\"/v1/chat/completions\",method=\"POST\"}"),
            1.0
        );
        let tokens = value(text, &labels("vllm:generation_tokens_total"));
        assert!((11.0..=13.0).contains(&tokens), "{tokens}");
        assert_eq!(value(text, &labels("vllm:time_to_first_token_seconds_count")), 3.0);
        assert_eq!(value(text, &labels("vllm:e2e_request_latency_seconds_count")), 3.0);
        assert_eq!(value(text, &labels("vllm:inter_token_latency_seconds_count")), tokens - 3.0);
        assert_eq!(value(text, &labels("vllm:request_params_n_count")), 2.0);
        assert_eq!(value(text, &labels("vllm:request_params_n_sum")), 3.0);
        assert_eq!(value(text, &labels("vllm:num_requests_running")), 0.0);
        assert_eq!(value(text, &labels("vllm:kv_cache_usage_perc")), 0.0);
        assert_eq!(value(text, &labels("gemma4ctl:compiles_while_serving_total")), 0.0);
        let info = format!("vllm:cache_config_info{{block_size=\"8\",engine=\"0\",model_name=\"{MODEL}\"}}");
        assert_eq!(value(text, &info), 1.0);
        let statistics = server.engine.statistics();
        assert_eq!(value(text, &labels("vllm:iteration_tokens_total_sum")), statistics.computed_tokens as f64);
        assert_eq!(value(text, &labels("vllm:iteration_tokens_total_count")), statistics.load.totals.steps as f64);
        assert_eq!(value(text, &labels("gemma4ctl:padding_tokens_total")), statistics.load.totals.padding_rows as f64);
        assert!(value(text, &labels("gemma4ctl:busy_seconds_total")) > 0.0);
        assert_eq!(value(text, &labels("gemma4ctl:device_seconds_total")), 0.0, "this engine's steps run on none");
        // A second look counts nothing twice.
        let again = get(server.address, "/metrics").await;
        assert_eq!(value(again.text(), &labels("gemma4ctl:computed_tokens_total")), statistics.computed_tokens as f64);
    });
}

#[test]
fn drafts_are_counted_and_change_no_answer() {
    let (plain, drafting) = (Server::new(), Setup { drafts: Some(3), ..Setup::default() }.start());
    run(async {
        for body in [
            json!({"prompt": (600..640).collect::<Vec<u32>>(), "max_tokens": 120, "logprobs": 2}),
            json!({"prompt": "a", "max_tokens": 60, "temperature": 0.8, "seed": 4, "n": 3}),
            json!({"prompt": "a", "max_tokens": 60, "stop": "éé"}),
        ] {
            let expected = post(plain.address, "/v1/completions", &body).await.json();
            let answer = post(drafting.address, "/v1/completions", &body).await.json();
            assert_eq!((&answer["choices"], &answer["usage"]), (&expected["choices"], &expected["usage"]));
        }
        let metrics = get(drafting.address, "/metrics").await;
        let text = metrics.text();
        let counted = |name: &str| value(text, &labels(name));
        let drafts = counted("vllm:spec_decode_num_drafts_total");
        let tokens = counted("vllm:spec_decode_num_draft_tokens_total");
        let accepted = counted("vllm:spec_decode_num_accepted_tokens_total");
        assert!(accepted > 0.0 && tokens > accepted && drafts * 3.0 >= tokens, "{drafts} {tokens} {accepted}");
        let at = |position: u32| {
            let labels = format!("{{engine=\"0\",model_name=\"{MODEL}\",position=\"{position}\"}}");
            value(text, &format!("vllm:spec_decode_num_accepted_tokens_per_pos_total{labels}"))
        };
        assert_eq!((0..3).map(at).sum::<f64>(), accepted);
        assert!(text.contains("# TYPE gemma4ctl:declined_draft_tokens_total counter"));
        // As with vLLM, an engine without drafts has no such series.
        assert!(!get(plain.address, "/metrics").await.text().contains("draft"));
    });
}

/// The names that the rules, the dashboard and the autoscaler of this repository read from an engine.
#[test]
fn everything_that_alerts_and_dashboards_read_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut names = BTreeSet::new();
    let folders = ["src/emit", "templates"].map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder"));
    for file in folders.into_iter().flatten() {
        let path = file.expect("a file").path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for prefix in ["vllm:", "gemma4ctl:"] {
            for (at, _) in text.match_indices(prefix) {
                let rest = &text[at + prefix.len()..];
                let end = rest.find(|character: char| !character.is_ascii_lowercase() && character != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                if name.contains('_') {
                    names.insert(format!("{prefix}{name}"));
                }
            }
        }
    }
    assert!(names.len() > 10, "{names:?}");
    let server = Setup { drafts: Some(3), ..Setup::default() }.start();
    run(async {
        assert_eq!(post(server.address, "/v1/completions", &json!({"prompt": "a"})).await.status, 200);
        let metrics = get(server.address, "/metrics").await;
        for name in names {
            let family = format!("# TYPE {} ", name.trim_end_matches("_bucket"));
            assert!(metrics.text().contains(&family), "{name} is missing");
        }
    });
}

#[test]
fn the_openapi_document_describes_what_is_there() {
    let server = Server::new();
    run(async {
        let document = get(server.address, "/openapi.json").await.json();
        assert_eq!(document["openapi"], "3.1.0");
        let paths = document["paths"].as_object().expect("paths");
        for (path, item) in paths {
            let path = path.replace("{model}", "none");
            for (method, wrong) in [("get", "POST"), ("post", "GET")] {
                if item.get(method).is_some() {
                    assert_eq!(call(server.address, wrong, &path, &[], "").await.status, 405, "{path}");
                }
            }
        }
        // Every reference leads somewhere.
        let text = document.to_string();
        for (at, _) in text.match_indices("#/components/") {
            let reference = text[at + 1..].split('"').next().expect("a reference");
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
        let schema = document.pointer("/components/schemas/ChatRequest").expect("a schema");
        assert_eq!(schema["additionalProperties"], false);
        assert!(
            schema["properties"]["function_call"]["enum"] == json!(["none", null])
                && schema["properties"].get("audio").is_none()
        );
    });
}

/// `cargo xtask generate` writes both.
#[test]
fn the_pages_for_users_are_up_to_date() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/api.md")).expect("docs/api.md");
    let section = format!("<!-- generated: fields -->\n{}<!-- end -->", gemma4_serve::request_fields());
    assert!(page.contains(&section), "docs/api.md is stale: run `cargo xtask generate`");
    let document = std::fs::read_to_string(root.join("schemas/openapi.json")).expect("schemas/openapi.json");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(document, gemma4_serve::openapi_example(), "schemas/openapi.json is stale: run `cargo xtask generate`");
}
