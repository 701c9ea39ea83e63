//! Answers that keep to a grammar, whatever the model would say. Most models here draw from nearly nothing but noise.

// Unlike values, it takes numbers that no machine holds.
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::client::{Answer, post, read_stream};
use crate::model::Script;
use crate::setup::{LONG, Server, Setup, TOKENIZER, run, wait_for};
use gemma4_serve::ServeOptions;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
/// Tokens that are enough for what is asked for here.
const LENGTH: usize = 180;

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "colour": {"enum": ["red", "green", "blue"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "age", "colour", "tags"],
        "additionalProperties": false,
    })
}

fn schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}

/// A request for text with noise.
fn noisy(more: Value) -> Value {
    let mut body = json!({"prompt": "ab", "max_tokens": LENGTH, "temperature": 2, "seed": 3});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

async fn ask(server: &Server, body: &Value) -> Answer {
    let path = if body.get("messages").is_some() { CHAT } else { TEXT };
    let answer = post(server.address, path, body).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    answer
}

/// The first answer's text and why it ended.
async fn told(server: &Server, body: &Value) -> (String, String) {
    let answer = ask(server, body).await.json();
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap_or_default();
    (text.to_owned(), choice["finish_reason"].as_str().expect("a reason").to_owned())
}

#[test]
fn json_keeps_to_its_schema() {
    let server = Server::new();
    let validator = jsonschema::validator_for(&person()).expect("a schema");
    run(async {
        let mut different = std::collections::BTreeSet::new();
        for seed in 0..12 {
            let body = noisy(json!({"seed": seed, "response_format": schema(&person())}));
            let (text, finish) = told(&server, &body).await;
            assert_eq!(finish, "stop", "{text}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(validator.is_valid(&value), "{text}");
            // The same in vLLM's words, and from the text of the schema.
            let body = noisy(json!({"seed": seed, "structured_outputs": {"json": person().to_string()}}));
            assert_eq!(told(&server, &body).await.0, text);
            different.insert(text);
        }
        assert!(different.len() > 6, "{different:?}");
    });
}

#[test]
fn an_object_of_json_is_one_or_is_cut_off() {
    let server = Server::new();
    run(async {
        let mut whole = 0;
        for seed in 0..12 {
            let body = noisy(json!({"seed": seed, "response_format": {"type": "json_object"}}));
            let (text, finish) = told(&server, &body).await;
            if finish == "stop" {
                whole += 1;
                assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok() && text.ends_with('}'), "{text}");
            } else {
                let error = serde_json::from_str::<IgnoredAny>(&text).expect_err("cut off");
                assert!(finish == "length" && error.is_eof() && text.trim_start().starts_with('{'), "{error}: {text}");
            }
        }
        assert!(whole > 0);
    });
}

#[test]
fn choices_expressions_and_grammars_hold() {
    let server = Server::new();
    run(async {
        let choices = ["yes", "no", "it \"depends\" / \\ é", "yes please"];
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..16 {
            let body = noisy(json!({"seed": seed, "structured_outputs": {"choice": choices}}));
            let (text, finish) = told(&server, &body).await;
            assert!(choices.contains(&text.as_str()) && finish == "stop", "{text:?}");
            seen.insert(text);
            let body = noisy(json!({"seed": seed, "structured_outputs": {"regex": r"([0-9]{3}-){2}[x-z/]+é?"}}));
            let (text, finish) = told(&server, &body).await;
            let (digits, rest) = text.split_at_checked(8).expect("eight and more");
            assert!(digits.split('-').take(2).all(|part| part.len() == 3 && part.parse::<u32>().is_ok()), "{text:?}");
            let rest = rest.strip_suffix('é').unwrap_or(rest);
            assert!(
                rest.chars().all(|letter| "xyz/".contains(letter)) && finish == "stop" && !rest.is_empty(),
                "{text:?}"
            );
            let grammar = "start: \"<\" inner \">\"\ninner: start | /[ab]{2}/";
            let body = noisy(json!({"seed": seed, "structured_outputs": {"grammar": grammar}}));
            let (text, finish) = told(&server, &body).await;
            let depth = text.chars().take_while(|letter| *letter == '<').count();
            assert!(
                finish == "length" || text.len() == 2 * depth + 2 && text.ends_with(&">".repeat(depth)),
                "{text:?}"
            );
        }
        assert!(seen.len() > 2, "{seen:?}");
    });
}

#[test]
fn answers_are_the_same_streamed_drafted_cached_and_after_preemption() {
    let setup = || {
        let setup = Setup::default();
        Setup { options: ServeOptions { max_model_len: LONG, ..setup.options }, ..setup }
    };
    let reference = setup().start();
    let drafting = Setup { drafts: Some(4), ..setup() }.start();
    // Room for little more than one of them.
    let narrow = Setup { pages: 170, ..setup() }.start();
    run(async {
        // Much of it is certain, so drafts are right at times.
        let rows =
            json!({"type": "array", "items": {"const": {"key": "value", "other": 1}}, "minItems": 6, "maxItems": 6});
        for grammar in [person(), rows] {
            let body = noisy(json!({"n": 3, "max_tokens": 700, "response_format": schema(&grammar)}));
            let texts = |answer: &Value| -> Vec<(String, String)> {
                let choices = answer["choices"].as_array().expect("choices");
                let text = |value: &Value| value.as_str().expect("text").to_owned();
                choices.iter().map(|choice| (text(&choice["text"]), text(&choice["finish_reason"]))).collect()
            };
            let wanted = texts(&ask(&reference, &body).await.json());
            assert!(wanted.iter().all(|(_, finish)| finish == "stop"), "{wanted:?}");
            // Again, with the prompt in the cache, on all of them, and several at a time.
            for server in [&reference, &drafting, &narrow] {
                let answers = futures_util::future::join_all((0..3).map(|_| ask(server, &body))).await;
                for answer in answers {
                    assert_eq!(texts(&answer.json()), wanted);
                }
                let mut streamed = body.clone();
                streamed["stream"] = true.into();
                let streamed = read_stream(ask(server, &streamed).await.text(), false, false);
                let streamed: Vec<&str> = streamed.choices.iter().map(|choice| choice.text.as_str()).collect();
                assert_eq!(streamed, wanted.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>());
            }
        }
        let drafts = drafting.engine.statistics().speculation.expect("drafts");
        assert!(drafts.accepted_tokens > 0, "{drafts:?}");
        assert!(narrow.engine.statistics().load.totals.preemptions > 0);
        for server in [&reference, &drafting, &narrow] {
            wait_for("the end", || server.engine.is_idle()).await;
        }
    });
}

#[test]
fn a_grammar_decides_before_lengths_biases_and_stops() {
    let server = Server::new();
    run(async {
        let grammar = |more: Value| {
            let mut body = noisy(json!({"structured_outputs": {"choice": ["abc", "abcdef"]}}));
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            body
        };
        // The end is put off as long as the grammar has more to say.
        for seed in 0..8 {
            let (text, finish) = told(&server, &grammar(json!({"seed": seed, "min_tokens": 50}))).await;
            assert_eq!((text.as_str(), finish.as_str()), ("abcdef", "stop"));
        }
        // A bias moves only what is allowed.
        let x = TOKENIZER.encode("x", false).expect("tokens")[0];
        let (text, _) = told(&server, &grammar(json!({"logit_bias": {x.to_string(): 100}}))).await;
        assert!(text == "abc" || text == "abcdef", "{text}");
        let (text, finish) = told(&server, &grammar(json!({"logit_bias": {"1": 100}}))).await;
        assert_eq!((text.as_str(), finish.as_str()), ("abc", "stop"));
        let (text, finish) = told(&server, &grammar(json!({"stop": "bc"}))).await;
        assert_eq!((text.as_str(), finish.as_str()), ("a", "stop"));
        // Logprobs are the model's own: what it was most sure of may be forbidden.
        let answer = ask(&server, &grammar(json!({"logprobs": 1}))).await.json();
        let logprobs = &answer["choices"][0]["logprobs"];
        assert!(logprobs["token_logprobs"][0].as_f64().expect("a number") < -1.0, "{logprobs}");
        let answer = post(server.address, TEXT, &grammar(json!({"ignore_eos": true}))).await;
        assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("ignore_eos")));
    });
}

#[test]
fn a_thought_comes_before_the_grammar() {
    let script = Script::default();
    let server = Setup::scripted(&script).start();
    run(async {
        let say = |text: &str| script.say(&TOKENIZER.encode(text, false).expect("tokens"));
        let message = async |thinking: bool, path: Value| {
            let body = json!({
                "messages": path, "max_tokens": 600, "response_format": schema(&json!({"const": {"a": 1}})),
                "chat_template_kwargs": {"enable_thinking": thinking},
            });
            let answer = ask(&server, &body).await.json();
            let message = &answer["choices"][0]["message"];
            let mut streamed = body.clone();
            streamed["stream"] = true.into();
            let streamed = read_stream(ask(&server, &streamed).await.text(), true, false);
            assert_eq!(streamed.choices[0].text, message["content"].as_str().expect("content"));
            assert_eq!(streamed.choices[0].reasoning, message["reasoning"].as_str().unwrap_or_default());
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
            (message["reasoning"].clone(), message["content"].clone())
        };
        let hi = json!([{"role": "user", "content": "Hi"}]);
        let value = |content: &Value| serde_json::from_str::<Value>(content.as_str().expect("text")).expect("JSON");
        say("<|channel>thought\nno {json} here\n<channel|>{\"a\":1}");
        let (reasoning, content) = message(true, hi.clone()).await;
        assert_eq!((reasoning, value(&content)), (json!("no {json} here"), json!({"a": 1})));
        // No thought is as good.
        say("{\"a\": 1}");
        let (reasoning, content) = message(true, hi.clone()).await;
        assert_eq!((reasoning, content), (Value::Null, json!("{\"a\": 1}")));
        // Where thinking is off, there is none.
        say("<|channel>thought\n");
        let (reasoning, content) = message(false, hi.clone()).await;
        assert_eq!((reasoning, value(&content)), (Value::Null, json!({"a": 1})));
    });
}

#[test]
fn what_cannot_be_a_grammar_is_refused_by_its_field() {
    let server = Server::new();
    let deep = |times: usize| (0..times).fold(json!({"type": "string"}), |inner, _| json!({"items": inner}));
    let of = |name: &str, value: Value| json!({"structured_outputs": {name: value}});
    let cases = [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {}}), "response_format.type"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "structural_tag"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_object", "schema": {}}}), "response_format.schema"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
            "response_format.json_schema.name",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}),
            "response_format.json_schema.name",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "x": 1}}}),
            "response_format.json_schema.x",
        ),
        (json!({"response_format": schema(&json!({"type": "text"}))}), "response_format.json_schema.schema"),
        (json!({"response_format": schema(&json!({"x-guidance": {}}))}), "response_format.json_schema.schema"),
        (json!({"response_format": schema(&json!({"not": {}}))}), "response_format.json_schema.schema"),
        (
            json!({"response_format": schema(&json!({"$ref": "https://localhost/x"}))}),
            "response_format.json_schema.schema",
        ),
        (json!({"response_format": schema(&json!({"$ref": "#/$defs/no"}))}), "response_format.json_schema.schema"),
        (
            json!({"response_format": schema(&json!({"type": "string", "pattern": "("}))}),
            "response_format.json_schema.schema",
        ),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs"),
        (
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            "structured_outputs",
        ),
        (of("structural_tag", json!("{}")), "structured_outputs.structural_tag"),
        (of("disable_any_whitespace", json!(true)), "structured_outputs.disable_any_whitespace"),
        (of("json", json!("{")), "structured_outputs.json"),
        (of("json", json!(true)), "structured_outputs.json"),
        (of("json_object", json!("yes")), "structured_outputs.json_object"),
        (of("choice", json!([])), "structured_outputs.choice"),
        (of("choice", json!(["a", 1])), "structured_outputs.choice"),
        (of("choice", json!([""])), "structured_outputs.choice"),
        (of("choice", json!(["x".repeat(200_000)])), "structured_outputs.choice"),
        (of("regex", json!("[a")), "structured_outputs.regex"),
        (of("regex", json!("(?=a)b")), "structured_outputs.regex"),
        (of("regex", json!("x".repeat(200_000))), "structured_outputs.regex"),
        (of("regex", json!("(".repeat(60_000) + &")".repeat(60_000))), "structured_outputs.regex"),
        (of("grammar", json!("begin: \"a\"")), "structured_outputs.grammar"),
        (of("grammar", json!("start: other")), "structured_outputs.grammar"),
        (
            of("grammar", json!(format!("start: {}\"a\"{}", "(".repeat(60_000), ")".repeat(60_000)))),
            "structured_outputs.grammar",
        ),
        (of("grammar", json!("start: start \"a\"")), "structured_outputs.grammar"),
        (json!({"guided_json": {}}), "guided_json"),
    ];
    run(async {
        for (more, param) in cases {
            let start = std::time::Instant::now();
            let answer = post(server.address, TEXT, &noisy(more.clone())).await;
            let more: String = more.to_string().chars().take(200).collect();
            assert_eq!(answer.status, 400, "{more}: {}", answer.text());
            assert_eq!(answer.error()["param"], param, "{more}: {}", answer.text());
            let message = answer.error()["message"].as_str().expect("text").chars().count();
            assert!(start.elapsed().as_secs() < 30 && message < 600, "{more}: {}", answer.text());
        }
        // Deep, but no deeper than bodies can be.
        let (text, _) = told(&server, &noisy(json!({"structured_outputs": {"json": deep(40)}}))).await;
        assert!(!text.is_empty());
        assert!(server.engine.is_idle() && server.engine.statistics().load.totals.steps > 0);
    });
}
