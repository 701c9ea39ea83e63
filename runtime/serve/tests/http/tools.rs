//! Tools: what goes to the model of them, and what becomes of its calls. The model says what it is told to.

use std::path::Path;
use std::sync::LazyLock;

use gemma4_model::chat::ChatInput;
use gemma4_serve::Parsers;
use serde_json::{Value, json};

use crate::client::{StreamedChoice, post, read_stream};
use crate::model::{END, Script};
use crate::setup::{Server, Setup, TOKENIZER, run, template};

const CHAT: &str = "/v1/chat/completions";
/// Ends a turn that waits for the results of tools.
const RESULTS: u32 = 50;

/// What vLLM makes of outputs, and the tools of its requests.
static RECORDED: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gemma4/parser_cases.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
});

fn tokens(text: &str) -> Vec<u32> {
    TOKENIZER.encode(text, false).expect("tokens")
}

fn hi() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

/// A message that calls `noop`, and its result.
fn after_a_call() -> Value {
    json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "noop", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ])
}

/// The answer to a request in the words of the recorded cases, whole and streamed, which say the same.
#[track_caller]
fn same(answer: &Value, streamed: &StreamedChoice) -> Value {
    let choice = &answer["choices"][0];
    let message = choice["message"].as_object().expect("a message");
    assert_eq!(message.get("reasoning"), message.get("reasoning_content"));
    let calls = message.get("tool_calls").and_then(Value::as_array).cloned().unwrap_or_default();
    for call in &calls {
        let id = call["id"].as_str().expect("an id").strip_prefix("chatcmpl-tool-").expect("vLLM's form");
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_eq!(call["type"], "function");
    }
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let call = |call: &Value| json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
    let whole = json!({
        "reasoning": message.get("reasoning").cloned().unwrap_or_default(),
        "content": message["content"],
        "tool_calls": calls.iter().map(call).collect::<Vec<_>>(),
        "finish_reason": choice["finish_reason"],
    });
    let calls = streamed.calls.iter().map(|call| json!({"name": call.name, "arguments": call.arguments}));
    let streamed = json!({
        "reasoning": text(&streamed.reasoning),
        "content": text(&streamed.text),
        "tool_calls": calls.collect::<Vec<_>>(),
        "finish_reason": streamed.finish,
    });
    assert_eq!(whole, streamed);
    whole
}

/// Asks for a whole answer and for a stream.
async fn both(server: &Server, body: &Value) -> Value {
    let whole = post(server.address, CHAT, body).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let mut body = body.clone();
    body["stream"] = true.into();
    let streamed = read_stream(post(server.address, CHAT, &body).await.text(), true, false);
    same(&whole.json(), &streamed.choices[0])
}

#[test]
fn recorded_outputs_are_answered_as_by_vllm() {
    let script = Script::default();
    let server = Setup::scripted(&script).start();
    let cases = RECORDED["cases"].as_array().expect("cases");
    run(async {
        let mut passed_over = 0;
        for case in cases {
            let name = case["name"].as_str().expect("a name");
            let mut ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
            let cut = case["engine_finish_reason"] == "length";
            if !cut && !ids.last().is_some_and(|id| [END, RESULTS].contains(id)) {
                ids.push(END);
            }
            script.say(&ids);
            let in_thought = case["prompt"].as_str().expect("a prompt").ends_with("<|channel>thought\n");
            let mut body = json!({
                "messages": if in_thought { after_a_call() } else { hi() },
                "max_tokens": ids.len(),
                "chat_template_kwargs": {"enable_thinking": case["enable_thinking"]},
                "include_reasoning": case["include_reasoning"],
                "parallel_tool_calls": case["parallel_tool_calls"],
                "tool_choice": case["tool_choice"],
            });
            if !case["tools"].as_array().expect("a list").is_empty() {
                body["tools"] = RECORDED["tools"].clone();
            }
            if name == "tool choice required, plain text" {
                // Recorded from a parser alone; here no such output comes to it.
                passed_over += 1;
                continue;
            }
            let mut wanted = case["streamed"]["1"].clone();
            match name {
                // No marker is text, and no call swallows another: see the tests of the parser.
                "escape token in plain text" => wanted["content"] = "say hi now".into(),
                "close token missing between calls" => {
                    wanted["tool_calls"] = json!([
                        {"name": "noop", "arguments": "{}"},
                        {"name": "get_weather", "arguments": "{\"city\": \"B\"}"},
                    ]);
                }
                _ => {}
            }
            assert_eq!(both(&server, &body).await, wanted, "{name}");
        }
        assert_eq!((cases.len(), passed_over), (72, 1));
    });
}

#[test]
fn tools_go_through_the_template() {
    let server = Setup::scripted(&Script::default()).start();
    run(async {
        let mut messages = after_a_call();
        messages[1]["tool_calls"][0]["function"]["arguments"] = "{\"city\": \"Paris\", \"days\": 3}".into();
        messages[1]["reasoning_content"] = "hm".into();
        let tools = RECORDED["tools"].as_array().expect("a list").clone();
        let body = json!({"messages": messages, "tools": tools, "return_token_ids": true, "max_tokens": 1});
        let answer = post(server.address, CHAT, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let read = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "reasoning": "hm", "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function",
                 "function": {"name": "noop", "arguments": {"city": "Paris", "days": 3}}}
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
        ]);
        let input = |tools: Option<Vec<Value>>| ChatInput {
            messages: serde_json::from_value(read.clone()).expect("a list"),
            tools,
            add_generation_prompt: true,
            kwargs: serde_json::Map::new(),
            now: std::time::SystemTime::now(),
        };
        let prompt = template().render(&input(Some(tools.clone()))).expect("a prompt");
        assert!(
            prompt.contains("<|tool>declaration:get_weather{") && prompt.contains("city:<|\"|>Paris<|\"|>,days:3}")
        );
        assert!(prompt.contains("<|channel>thought\nhm\n<channel|>"));
        assert_eq!(answer.json()["prompt_token_ids"], json!(tokens(&prompt)));
        // The same tokens by themselves.
        let body = json!({"messages": messages, "tools": tools});
        assert_eq!(post(server.address, "/tokenize", &body).await.json()["tokens"], json!(tokens(&prompt)));
        // Tools that must not be called are not shown.
        let mut body = json!({"messages": messages, "tools": tools, "return_token_ids": true, "max_tokens": 1});
        body["tool_choice"] = "none".into();
        let prompt = template().render(&input(None)).expect("a prompt");
        assert_eq!(post(server.address, CHAT, &body).await.json()["prompt_token_ids"], json!(tokens(&prompt)));
    });
}

#[test]
fn an_answer_goes_back_as_it_came() {
    let script = Script::default();
    let server = Setup::scripted(&script).start();
    let output = "<|channel>thought\nhm\n<channel|><|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>}<tool_call|>";
    run(async {
        script.say(&[tokens(output), vec![RESULTS]].concat());
        let body = json!({"messages": hi(), "tools": RECORDED["tools"], "reasoning_effort": "high"});
        let answer = post(server.address, CHAT, &body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("tool_calls"), &Value::Null));
        let message = choice["message"].clone();
        let result = json!({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"});
        let messages = json!([hi()[0], message, result]);
        script.say(&tokens("so it is<channel|>Sunny."));
        let body = json!({
            "messages": messages, "tools": RECORDED["tools"], "reasoning_effort": "high", "return_token_ids": true,
        });
        let answer = post(server.address, CHAT, &body).await.json();
        let prompt: Vec<u32> = serde_json::from_value(answer["prompt_token_ids"].clone()).expect("ids");
        let prompt = TOKENIZER.decode(&prompt, false).expect("text");
        assert!(prompt.contains(output.trim_end_matches("<tool_call|>")), "{prompt}");
        assert!(prompt.ends_with("{value:<|\"|>sunny<|\"|>}<tool_response|><|channel>thought\n"), "{prompt}");
        let message = &answer["choices"][0]["message"];
        assert_eq!((&message["reasoning"], &message["content"]), (&json!("so it is"), &json!("Sunny.")));
    });
}

#[test]
fn calls_need_what_the_profile_has() {
    let script = Script::default();
    let say = "a<|tool_call>call:noop{}<tool_call|>";
    script.say(&tokens(say));
    let ask = async |parsers: Parsers, more: Value| {
        let mut setup = Setup::scripted(&script);
        setup.options.parsers = parsers;
        let server = setup.start();
        let mut body = json!({"messages": hi(), "tools": RECORDED["tools"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        post(server.address, CHAT, &body).await
    };
    let all = Parsers { tool_calls: true, auto_tool_choice: true, reasoning: true };
    run(async {
        for parsers in
            [Parsers::default(), Parsers { auto_tool_choice: false, ..all }, Parsers { tool_calls: false, ..all }]
        {
            for (more, param) in [(json!({}), "tools"), (json!({"tool_choice": "auto"}), "tool_choice")] {
                let answer = ask(parsers, more).await;
                let error = answer.error();
                assert_eq!((answer.status, &error["param"]), (400, &json!(param)));
                let message = error["message"].as_str().expect("text");
                assert!(message.contains("`auto_tool_choice = true`"), "{message}");
            }
            // Without a parser of calls, a call is text.
            let answer = ask(parsers, json!({"tool_choice": "none"})).await.json();
            let text = if parsers.tool_calls { "a" } else { "acall:noop{}" };
            assert_eq!(answer["choices"][0]["message"]["content"], text);
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        }
        let answer = ask(all, json!({})).await.json();
        assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "noop");
    });
}

#[test]
fn calls_can_be_forced() {
    let mut setup = Setup::scripted(&Script::default());
    // Nothing but noise.
    setup.script = None;
    let server = setup.start();
    let id = |text: &str| tokens(text)[0].to_string();
    // Ends arguments, calls and answers as soon as the grammar does.
    let short = json!({id("}"): 100, id("<turn|>"): 50});
    let names = ["files.read-all_2", "get_weather", "noop"];
    run(async {
        let (mut thoughts, mut several) = (0, 0);
        for seed in 0..6 {
            let body = |more: Value| {
                let mut body = json!({
                    "messages": hi(), "tools": RECORDED["tools"], "temperature": 2, "seed": seed, "max_tokens": 80,
                    "logit_bias": short,
                });
                body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
                body
            };
            let answer = both(&server, &body(json!({"tool_choice": "required"}))).await;
            let calls = answer["tool_calls"].as_array().expect("calls");
            assert!(calls.len() == 1 && names.contains(&calls[0]["name"].as_str().expect("a name")), "{answer}");
            assert_eq!((&calls[0]["arguments"], &answer["finish_reason"]), (&json!("{}"), &json!("tool_calls")));
            // More than one, for as long as they come; but not if only one may.
            let more = json!({id("<|tool_call>"): 100, id("}"): 100});
            let answer = both(&server, &body(json!({"tool_choice": "required", "logit_bias": more}))).await;
            several += usize::from(answer["tool_calls"].as_array().expect("calls").len() > 2);
            let one = json!({"tool_choice": "required", "logit_bias": more, "parallel_tool_calls": false});
            let answer = both(&server, &body(one)).await;
            assert_eq!(
                (answer["tool_calls"].as_array().map(Vec::len), &answer["finish_reason"]),
                (Some(1), &json!("tool_calls"))
            );
            // As in vLLM, a call that the client named is no reason.
            let named = json!({"type": "function", "function": {"name": "get_weather"}});
            let answer = both(&server, &body(json!({"tool_choice": named, "logit_bias": more}))).await;
            assert_eq!(answer["tool_calls"], json!([{"name": "get_weather", "arguments": "{}"}]));
            assert_eq!(answer["finish_reason"], "stop");
            // Arguments that are noise are an object all the same, and a thought may come before them.
            for (thinking, biases) in [(false, json!({})), (true, json!({id("<channel|>"): 7, id("<|channel>"): 100}))]
            {
                let noise = json!({
                    "tool_choice": "required", "chat_template_kwargs": {"enable_thinking": thinking}, "logit_bias": biases,
                });
                let answer = both(&server, &body(noise)).await;
                assert_eq!(answer["content"], Value::Null, "{answer}");
                assert!(thinking || answer["reasoning"].is_null(), "{answer}");
                thoughts += usize::from(answer["reasoning"].is_string());
                for call in answer["tool_calls"].as_array().expect("calls") {
                    let arguments = call["arguments"].as_str().expect("text");
                    assert!(serde_json::from_str::<Value>(arguments).is_ok_and(|value| value.is_object()), "{answer}");
                }
            }
            // Behind the result of a call, the prompt has begun a thought.
            let after = json!({
                "messages": after_a_call(), "tool_choice": "required", "reasoning_effort": "high",
                "logit_bias": {id("<channel|>"): 100, id("}"): 80, id("<turn|>"): 50},
            });
            let answer = both(&server, &body(after)).await;
            assert_eq!(answer["tool_calls"][0]["arguments"], "{}", "{answer}");
        }
        assert!(thoughts > 2 && several > 2, "{thoughts} {several}");
    });
}

#[test]
fn calls_come_instead_of_an_answer_with_a_form() {
    let script = Script::default();
    let server = Setup::scripted(&script).start();
    run(async {
        let body = json!({
            "messages": hi(), "tools": RECORDED["tools"], "structured_outputs": {"choice": ["yes", "no"]},
        });
        script.say(&tokens("no"));
        let answer = both(&server, &body).await;
        assert_eq!((&answer["content"], &answer["finish_reason"]), (&json!("no"), &json!("stop")));
        script
            .say(&[tokens("<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>}<tool_call|>"), vec![RESULTS]].concat());
        let answer = both(&server, &body).await;
        assert_eq!((&answer["content"], &answer["finish_reason"]), (&Value::Null, &json!("tool_calls")));
        assert_eq!(answer["tool_calls"][0]["arguments"], "{\"city\": \"Paris\"}");
    });
}

#[test]
fn tools_are_held_against_their_form() {
    let server = Setup::scripted(&Script::default()).start();
    let function = |more: Value| {
        let mut function = json!({"name": "f"});
        function.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"tools": [{"type": "function", "function": function}]})
    };
    let call = |function: Value| {
        let call = json!({"id": "x", "type": "function", "function": function});
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]})
    };
    let result = |id: &str| {
        let mut messages = after_a_call();
        messages[2]["tool_call_id"] = id.into();
        json!({ "messages": messages })
    };
    run(async {
        for (more, param) in [
            (json!({"tools": {}}), "tools"),
            (json!({"tools": ["f"]}), "tools[0]"),
            (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [{"type": "function", "function": {}, "mood": 1}]}), "tools[0].mood"),
            (function(json!({"name": 5})), "tools[0].function.name"),
            (function(json!({"name": ""})), "tools[0].function.name"),
            (function(json!({"name": "a{b"})), "tools[0].function.name"),
            (function(json!({"name": "a".repeat(65)})), "tools[0].function.name"),
            (function(json!({"description": 5})), "tools[0].function.description"),
            (function(json!({"parameters": "x"})), "tools[0].function.parameters"),
            (function(json!({"strict": true})), "tools[0].function.strict"),
            (function(json!({"strict": "no"})), "tools[0].function.strict"),
            (function(json!({"mood": 1})), "tools[0].function.mood"),
            (
                json!({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]}),
                "tools[1].function.name",
            ),
            (json!({"tool_choice": "auto"}), "tool_choice"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (
                json!({"tool_choice": {"type": "function", "function": {"name": "no"}}, "tools": RECORDED["tools"]}),
                "tool_choice",
            ),
            (json!({"tool_choice": "any", "tools": RECORDED["tools"]}), "tool_choice"),
            (json!({"tool_choice": {"type": "function"}, "tools": RECORDED["tools"]}), "tool_choice"),
            (json!({"tool_choice": {"type": "allowed_tools"}, "tools": RECORDED["tools"]}), "tool_choice"),
            (call(json!({"name": "f", "arguments": "[]"})), "messages[1].tool_calls[0].function.arguments"),
            (call(json!({"name": "f", "arguments": {}})), "messages[1].tool_calls[0].function.arguments"),
            (call(json!({"name": "f", "arguments": "{"})), "messages[1].tool_calls[0].function.arguments"),
            (call(json!({"name": "f"})), "messages[1].tool_calls[0].function.arguments"),
            (call(json!({"arguments": "{}"})), "messages[1].tool_calls[0].function.name"),
            (call(json!({"name": "f", "arguments": "{}", "mood": 1})), "messages[1].tool_calls[0].function.mood"),
            (result("c2"), "messages[2].tool_call_id"),
        ] {
            let mut body = json!({"messages": hi(), "max_tokens": 1});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let answer = post(server.address, CHAT, &body).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{more}");
        }
        for more in [
            json!({"tools": []}),
            function(json!({"description": null, "parameters": null, "strict": false})),
            function(json!({"name": "mcp.server/tool:a-b_2"})),
            call(json!({"name": "f", "arguments": ""})),
            result("c1"),
        ] {
            let mut body = json!({"messages": hi(), "max_tokens": 1});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let answer = post(server.address, CHAT, &body).await;
            assert_eq!(answer.status, 200, "{more}: {}", answer.text());
        }
    });
}

#[test]
fn several_answers_have_calls_of_their_own() {
    let script = Script::default();
    script.say(&tokens("<|tool_call>call:noop{}<tool_call|><|tool_call>call:get_weather{days:3}<tool_call|>"));
    let server = Setup::scripted(&script).start();
    run(async {
        let body = json!({"messages": hi(), "tools": RECORDED["tools"], "n": 3});
        let answer = post(server.address, CHAT, &body).await.json();
        let mut ids: Vec<String> = Vec::new();
        for choice in answer["choices"].as_array().expect("choices") {
            let calls = choice["message"]["tool_calls"].as_array().expect("calls");
            assert_eq!(calls.len(), 2);
            assert_eq!(calls[1]["function"], json!({"name": "get_weather", "arguments": "{\"days\": 3}"}));
            ids.extend(calls.iter().map(|call| call["id"].as_str().expect("an id").to_owned()));
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 6);
    });
}
