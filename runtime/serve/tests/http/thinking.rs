//! Reasoning: switched on and off, told apart from the answer, or left in it.

use gemma4_serve::Parsers;
use serde_json::{Value, json};

use crate::client::{post, read_stream};
use crate::model::Script;
use crate::setup::{Setup, TOKENIZER, run};

const CHAT: &str = "/v1/chat/completions";
const OUTPUT: &str = "<|channel>thought\nthe long way\n<channel|>the short answer";

fn tokens(text: &str) -> Vec<u32> {
    TOKENIZER.encode(text, false).expect("tokens")
}

fn body(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "return_token_ids": true});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn thinking_is_switched_by_either_name() {
    let server = Setup::scripted(&Script::default()).start();
    run(async {
        let prompt = async |more: Value| {
            let answer = post(server.address, CHAT, &body(&more)).await;
            assert_eq!(answer.status, 200, "{more}: {}", answer.text());
            let ids: Vec<u32> = serde_json::from_value(answer.json()["prompt_token_ids"].clone()).expect("ids");
            TOKENIZER.decode(&ids, false).expect("text")
        };
        let (on, off) = (
            prompt(json!({"chat_template_kwargs": {"enable_thinking": true}})).await,
            prompt(json!({"chat_template_kwargs": {"enable_thinking": false}})).await,
        );
        assert!(on.contains("<|think|>") && !off.contains("<|think|>"));
        assert_eq!(prompt(json!({})).await, off);
        assert_eq!(prompt(json!({"reasoning_effort": "none"})).await, off);
        for effort in ["minimal", "low", "medium", "high", "xhigh", "max"] {
            assert_eq!(prompt(json!({"reasoning_effort": effort})).await, on);
        }
        let twice = json!({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": true}});
        assert_eq!(prompt(twice).await, on);
        for wrong in [
            json!({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false}}),
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
            json!({"reasoning_effort": "fairly high"}),
            json!({"reasoning_effort": 3}),
        ] {
            let answer = post(server.address, CHAT, &body(&wrong)).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("reasoning_effort")), "{wrong}");
        }
    });
}

#[test]
fn reasoning_has_a_field_of_its_own() {
    let script = Script::default();
    script.say(&tokens(OUTPUT));
    let server = Setup::scripted(&script).start();
    run(async {
        let message = async |more: Value| {
            let answer = post(server.address, CHAT, &body(&more)).await.json();
            let choice = &answer["choices"][0];
            // Every token is there, whatever became of its text.
            let ids = choice["token_ids"].as_array().expect("ids").len();
            assert_eq!(answer["usage"]["completion_tokens"], ids);
            choice["message"].clone()
        };
        let told = message(json!({})).await;
        assert_eq!((&told["content"], &told["reasoning"]), (&json!("the short answer"), &json!("the long way")));
        assert_eq!(told["reasoning_content"], told["reasoning"]);
        let without = message(json!({"include_reasoning": false})).await;
        assert_eq!((&without["content"], &without["reasoning"]), (&json!("the short answer"), &Value::Null));
        // Control tokens are shown to who asks for them, but for markers.
        script.say(&tokens(&OUTPUT.replace("short", "<|think|>")));
        let shown = message(json!({"skip_special_tokens": false})).await;
        assert_eq!((&shown["content"], &shown["reasoning"]), (&json!("the <|think|> answer"), &json!("the long way")));
    });
}

#[test]
fn nobody_sees_a_stop_string_in_a_thought_or_across_its_end() {
    let script = Script::default();
    script.say(&tokens(OUTPUT));
    let server = Setup::scripted(&script).start();
    run(async {
        for (stop, reasoning, content, finish) in [
            ("long", json!("the"), Value::Null, json!("long")),
            ("short", json!("the long way"), json!("the "), json!("short")),
            // The marker between them is no text, and still they do not touch.
            ("way\nthe", json!("the long way"), json!("the short answer"), Value::Null),
        ] {
            let answer = post(server.address, CHAT, &body(&json!({"stop": stop}))).await.json();
            let choice = &answer["choices"][0];
            assert_eq!(
                (&choice["message"]["reasoning"], &choice["message"]["content"]),
                (&reasoning, &content),
                "{stop}"
            );
            assert_eq!((&choice["stop_reason"], &choice["finish_reason"]), (&finish, &json!("stop")), "{stop}");
            let streamed = post(server.address, CHAT, &body(&json!({"stop": stop, "stream": true}))).await;
            let streamed = read_stream(streamed.text(), true, false);
            assert_eq!(streamed.choices[0].reasoning, reasoning.as_str().unwrap_or_default());
            assert_eq!(streamed.choices[0].text, content.as_str().unwrap_or_default());
        }
    });
}

#[test]
fn without_a_parser_all_is_content() {
    let script = Script::default();
    script.say(&tokens(OUTPUT));
    for parsers in [Parsers::default(), Parsers { tool_calls: true, auto_tool_choice: true, reasoning: false }] {
        let mut setup = Setup::scripted(&script);
        setup.options.parsers = parsers;
        let server = setup.start();
        run(async {
            let answer = post(server.address, CHAT, &body(&json!({}))).await.json();
            let message = answer["choices"][0]["message"].as_object().expect("a message");
            assert_eq!(message["content"], "thought\nthe long way\nthe short answer");
            assert!(!message.contains_key("reasoning") && !message.contains_key("reasoning_content"));
            let shown = post(server.address, CHAT, &body(&json!({"skip_special_tokens": false}))).await.json();
            assert_eq!(shown["choices"][0]["message"]["content"], OUTPUT);
            let answer = post(server.address, CHAT, &body(&json!({"include_reasoning": false}))).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("include_reasoning")));
        });
    }
}
