//! What the two endpoints for text answer.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::client::{post, read_stream};
use crate::model::{END, expected};
use crate::setup::{LONGEST, MODEL, Server, Setup, TOKENIZER, run, template};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn decode(tokens: &[u32]) -> String {
    TOKENIZER.decode(tokens, true).expect("text")
}

fn with(mut body: Value, more: &Value) -> Value {
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn every_form_of_a_prompt_is_continued() {
    let server = Server::new();
    run(async {
        let ids = [600_u32, 601, 602];
        let text = "the answer";
        let encoded = TOKENIZER.encode(text, true).expect("tokens");
        for (prompt, prompts) in [
            (json!(ids), vec![ids.to_vec()]),
            (json!([ids, [700]]), vec![ids.to_vec(), vec![700]]),
            (json!(text), vec![encoded.clone()]),
            (json!([text, "so"]), vec![encoded.clone(), TOKENIZER.encode("so", true).expect("tokens")]),
        ] {
            let body = json!({"prompt": prompt, "max_tokens": 12, "return_token_ids": true, "n": 2});
            let answer = post(server.address, COMPLETIONS, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!(MODEL)));
            assert!(answer["id"].as_str().expect("an id").starts_with("cmpl-"));
            let choices = answer["choices"].as_array().expect("choices");
            assert_eq!(choices.len(), prompts.len() * 2);
            for (index, choice) in choices.iter().enumerate() {
                let prompt = &prompts[index / 2];
                let tokens = expected(prompt, 12);
                assert_eq!(choice["index"], index);
                assert_eq!(choice["token_ids"], json!(tokens));
                assert_eq!(choice["prompt_token_ids"], json!(prompt));
                assert_eq!(choice["text"], decode(&tokens));
                assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("length"), &Value::Null));
            }
            let sum: usize = prompts.iter().map(Vec::len).sum();
            assert_eq!(answer["usage"]["prompt_tokens"], sum);
            assert_eq!(answer["usage"]["completion_tokens"], prompts.len() * 24);
            assert_eq!(answer["usage"]["total_tokens"], sum + prompts.len() * 24);
        }
    });
}

#[test]
fn a_chat_goes_through_the_template() {
    let server = Server::new();
    run(async {
        let messages = json!([
            {"role": "system", "content": "be short"},
            {"role": "user", "content": [{"type": "text", "text": "the answer"}]},
        ]);
        let body = json!({"model": MODEL, "messages": messages, "max_completion_tokens": 9, "return_token_ids": true});
        let answer = post(server.address, CHAT, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let input = gemma4_model::chat::ChatInput {
            messages: messages.as_array().expect("a list").clone(),
            tools: None,
            add_generation_prompt: true,
            kwargs: serde_json::Map::new(),
            now: std::time::SystemTime::now(),
        };
        let prompt = TOKENIZER.encode(&template().render(&input).expect("a prompt"), false).expect("tokens");
        let tokens = expected(&prompt, 9);
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["prompt_token_ids"], json!(prompt));
        let choice = &answer["choices"][0];
        let wanted = json!({"role": "assistant", "content": decode(&tokens), "refusal": null});
        assert_eq!((&choice["message"], &choice["token_ids"]), (&wanted, &json!(tokens)));

        let tokenized = post(server.address, "/tokenize", &json!({"messages": messages})).await.json();
        assert_eq!(tokenized["tokens"], json!(prompt));
        let kwargs = json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": true}});
        let thinking = post(server.address, "/tokenize", &kwargs).await.json();
        assert_ne!(thinking["tokens"], json!(prompt));
        let open = json!({"messages": messages, "add_generation_prompt": false});
        assert!(post(server.address, "/tokenize", &open).await.json()["count"].as_u64() < tokenized["count"].as_u64());
    });
}

#[test]
fn a_stream_says_the_same_as_a_whole_answer() {
    let server = Server::new();
    run(async {
        let chat =
            json!({"messages": [{"role": "user", "content": "the answer"}], "logprobs": true, "top_logprobs": 2});
        let completion = json!({"prompt": [[600, 601], [640]], "logprobs": 2});
        for (path, body, is_chat) in [(CHAT, chat, true), (COMPLETIONS, completion, false)] {
            let body = with(body, &json!({"max_tokens": 40, "n": 3, "return_token_ids": true}));
            let whole = post(server.address, path, &body).await.json();
            for include_usage in [false, true] {
                let more = json!({"stream": true, "stream_options": {"include_usage": include_usage}});
                let answer = post(server.address, path, &with(body.clone(), &more)).await;
                assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
                let streamed = read_stream(answer.text(), is_chat, include_usage);
                let choices = whole["choices"].as_array().expect("choices");
                assert_eq!(streamed.choices.len(), choices.len());
                for (streamed, whole) in streamed.choices.iter().zip(choices) {
                    let text = if is_chat { &whole["message"]["content"] } else { &whole["text"] };
                    assert_eq!(&json!(streamed.text), text);
                    assert_eq!(json!(streamed.tokens), whole["token_ids"]);
                    assert_eq!(json!(streamed.finish), whole["finish_reason"]);
                    let parts = if is_chat {
                        vec!["content"]
                    } else {
                        vec!["tokens", "token_logprobs", "text_offset", "top_logprobs"]
                    };
                    for part in parts {
                        let pieces = streamed.logprobs.iter().map(|piece| piece[part].as_array().expect("a list"));
                        assert_eq!(Value::from(pieces.flatten().cloned().collect::<Vec<_>>()), whole["logprobs"][part]);
                    }
                }
                if let Some(mut usage) = streamed.usage {
                    // The second request finds prompts in the cache.
                    usage["prompt_tokens_details"] = whole["usage"]["prompt_tokens_details"].clone();
                    assert_eq!(usage, whole["usage"]);
                }
            }
        }
    });
}

#[test]
fn logprobs_are_those_of_the_distribution() {
    let server = Server::new();
    run(async {
        let body = json!({"prompt": [600], "max_tokens": 6, "logprobs": 3, "return_token_ids": true});
        let choice = post(server.address, COMPLETIONS, &body).await.json()["choices"][0].clone();
        let tokens = expected(&[600], 6);
        // One logit of 9 among zeros.
        let (nine, others) = (9.0_f64.exp(), 1023.0);
        let best = (nine / (nine + others)).ln();
        let texts: Vec<String> = tokens.iter().map(|token| TOKENIZER.token_text(*token).expect("a token")).collect();
        assert_eq!(choice["logprobs"]["tokens"], json!(texts));
        let mut offset = 0;
        for (index, text) in texts.iter().enumerate() {
            let logprob = choice["logprobs"]["token_logprobs"][index].as_f64().expect("a number");
            assert!((logprob - best).abs() < 1e-3, "{logprob} {best}");
            assert_eq!(choice["logprobs"]["text_offset"][index], offset);
            offset += text.chars().count();
            let top = choice["logprobs"]["top_logprobs"][index].as_object().expect("a map");
            assert!(top.contains_key(text), "{top:?}");
        }
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "logprobs": true,
            "top_logprobs": 3, "return_token_ids": true});
        let choice = post(server.address, CHAT, &body).await.json()["choices"][0].clone();
        let content = choice["logprobs"]["content"].as_array().expect("a list").clone();
        assert_eq!(content.len(), 8);
        for (entry, id) in content.iter().zip(choice["token_ids"].as_array().expect("ids")) {
            let id = u32::try_from(id.as_u64().expect("an id")).expect("an id");
            assert_eq!(entry["bytes"], json!(TOKENIZER.token_bytes(id)));
            assert_eq!(entry["top_logprobs"].as_array().expect("a list").len(), 3);
            assert_eq!(entry["top_logprobs"][0]["token"], entry["token"]);
        }
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "logprobs": true});
        let choice = post(server.address, CHAT, &body).await.json()["choices"][0].clone();
        assert_eq!(choice["logprobs"]["content"][0]["top_logprobs"], json!([]));
    });
}

#[test]
fn the_end_token_ends_and_is_not_shown() {
    let server = Setup { end_at: Some(12), ..Setup::default() }.start();
    run(async {
        let prompt = [600_u32, 601];
        let words = expected(&prompt, 10);
        let mut tokens = words.clone();
        tokens.push(END);
        let body = json!({"prompt": prompt, "max_tokens": 100, "return_token_ids": true});
        let answer = post(server.address, COMPLETIONS, &body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["token_ids"]), (&json!(decode(&words)), &json!(tokens)));
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &Value::Null));
        assert_eq!(answer["usage"]["completion_tokens"], 11);

        let shown = with(body.clone(), &json!({"include_stop_str_in_output": true, "skip_special_tokens": false}));
        let choice = post(server.address, COMPLETIONS, &shown).await.json()["choices"][0].clone();
        assert_eq!(choice["text"], TOKENIZER.decode(&tokens, false).expect("text"));
        let on = with(body.clone(), &json!({"ignore_eos": true, "max_tokens": 20}));
        let choice = post(server.address, COMPLETIONS, &on).await.json()["choices"][0].clone();
        assert_eq!(
            (choice["token_ids"].as_array().map(Vec::len), &choice["finish_reason"]),
            (Some(20), &json!("length"))
        );
        let later = with(body.clone(), &json!({"min_tokens": 15, "max_tokens": 30}));
        let choice = post(server.address, COMPLETIONS, &later).await.json()["choices"][0].clone();
        assert!(choice["token_ids"].as_array().is_some_and(|ids| ids.len() >= 15 && !ids[..14].contains(&json!(END))));

        let token = words[5];
        let own = with(body, &json!({"stop_token_ids": [token]}));
        let choice = post(server.address, COMPLETIONS, &own).await.json()["choices"][0].clone();
        let at = words.iter().position(|word| *word == token).expect("a place");
        assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(decode(&words[..at])), &json!(token)));
        assert_eq!(choice["token_ids"], json!(words[..=at]));
    });
}

#[test]
fn echo_begins_with_the_prompt() {
    let server = Server::new();
    run(async {
        let text = "the answer";
        let prompt = TOKENIZER.encode(text, true).expect("tokens");
        let tokens = expected(&prompt, 8);
        let body = json!({"prompt": text, "max_tokens": 8, "echo": true});
        let wanted = text.to_owned() + &decode(&tokens);
        assert_eq!(post(server.address, COMPLETIONS, &body).await.json()["choices"][0]["text"], wanted);
        let answer = post(server.address, COMPLETIONS, &with(body, &json!({"stream": true}))).await;
        assert_eq!(read_stream(answer.text(), false, false).choices[0].text, wanted);
        let ids = json!({"prompt": prompt, "max_tokens": 0, "echo": true});
        let answer = post(server.address, COMPLETIONS, &ids).await.json();
        assert_eq!(
            (&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]),
            (&json!(text), &json!("length"))
        );
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    });
}

#[test]
fn seeds_repeat_and_answers_differ() {
    let server = Server::new();
    run(async {
        let body = json!({"prompt": [600], "max_tokens": 60, "temperature": 2, "return_token_ids": true});
        let ask = async |more: Value| {
            let answer = post(server.address, COMPLETIONS, &with(body.clone(), &more)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let choices = answer.json()["choices"].as_array().expect("choices").clone();
            choices.into_iter().map(|choice| choice["token_ids"].clone()).collect::<Vec<_>>()
        };
        let four = ask(json!({"seed": 7, "n": 4})).await;
        assert_eq!(four, ask(json!({"seed": 7, "n": 4})).await);
        for (index, answer) in four.iter().enumerate() {
            assert_eq!(&ask(json!({"seed": 7 + index})).await[0], answer);
            assert!(four.iter().filter(|other| *other == answer).count() == 1, "{four:?}");
        }
        assert_ne!(ask(json!({})).await, ask(json!({})).await);
        assert_eq!(ask(json!({"seed": -1})).await, ask(json!({"seed": -1})).await);
        let greedy = json!(expected(&[600], 60));
        assert_eq!(ask(json!({"top_k": 1})).await[0], greedy);
        assert_eq!(ask(json!({"top_p": 0.000_01})).await[0], greedy);
        assert_eq!(ask(json!({"min_p": 1})).await[0], greedy);
        assert_eq!(ask(json!({"temperature": 0})).await[0], greedy);
        // The first token of the model cannot come, so another one does.
        let first = greedy[0].to_string();
        assert_ne!(ask(json!({"temperature": 0, "logit_bias": {first: -100}})).await[0], greedy);
        let bias = ask(json!({"temperature": 0, "logit_bias": {"555": 100}})).await;
        assert!(bias[0].as_array().is_some_and(|ids| ids.iter().all(|id| *id == 555)));
        let frequent =
            ask(json!({"temperature": 0, "logit_bias": {"555": 20}, "presence_penalty": 2, "frequency_penalty": 2}))
                .await;
        assert!(frequent[0].as_array().is_some_and(|ids| ids.iter().any(|id| *id != 555)));
    });
}

#[test]
fn what_the_client_leaves_open_comes_from_the_checkpoint() {
    let mut setup = Setup::default();
    setup.generation.temperature = Some(2.0);
    setup.generation.top_k = Some(1);
    setup.generation.max_new_tokens = Some(20);
    let server = setup.start();
    run(async {
        let body = json!({"prompt": [600], "max_tokens": 40, "return_token_ids": true});
        let ask = async |more: Value| {
            post(server.address, COMPLETIONS, &with(body.clone(), &more)).await.json()["choices"][0]["token_ids"]
                .clone()
        };
        let greedy = json!(expected(&[600], 20));
        assert_eq!(ask(json!({})).await, greedy);
        assert_ne!(ask(json!({"top_k": 0})).await, greedy);
        assert_eq!(ask(json!({"top_k": -1, "temperature": 0})).await, greedy);
    });
}

#[test]
fn tokens_are_bounded_by_the_context() {
    let server = Server::new();
    run(async {
        let prompt = vec![600_u32; LONGEST - 5];
        let answer = post(server.address, COMPLETIONS, &json!({"prompt": prompt})).await.json();
        assert_eq!(answer["usage"]["completion_tokens"], 5);
        let answer = post(server.address, COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 6})).await;
        assert_eq!((answer.status, answer.error()["code"].as_str()), (400, Some("context_length_exceeded")));
        let answer = post(server.address, COMPLETIONS, &json!({"prompt": vec![600_u32; LONGEST]})).await;
        assert_eq!((answer.status, answer.error()["code"].as_str()), (400, Some("context_length_exceeded")));
        // A chat without a bound goes on to the end of the context.
        let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
        let usage = post(server.address, CHAT, &chat).await.json()["usage"].clone();
        assert_eq!(usage["total_tokens"], LONGEST);
    });
}

#[test]
fn a_cached_prompt_is_counted_and_salts_keep_apart() {
    let server = Server::new();
    run(async {
        let prompt: Vec<u32> = (600..650).collect();
        let cached = async |salt: &str| {
            let body = json!({"prompt": prompt, "max_tokens": 2, "cache_salt": salt, "stop": "never"});
            let usage = post(server.address, COMPLETIONS, &body).await.json()["usage"].clone();
            usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
        };
        assert_eq!(cached("a").await, 0);
        assert!(cached("a").await >= 40);
        assert_eq!(cached("b").await, 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Stop strings cut out of what the model will say, at any place and over any border of tokens.
    #[test]
    fn stop_strings_end_the_text_before_them(
        first in 500_u32..700,
        places in prop::collection::vec((0_usize..120, 1_usize..9), 1..4),
        include: bool,
    ) {
        let server = &*SHARED;
        let text = decode(&expected(&[first], 60));
        let characters: Vec<char> = text.chars().collect();
        let stops: Vec<String> = places
            .into_iter()
            .map(|(start, length)| characters.iter().skip(start % characters.len()).take(length).collect())
            .collect();
        // The string that ends first, and of those the longest.
        let found = stops.iter().filter_map(|stop| Some((text.find(stop.as_str())? + stop.len(), stop)));
        let (end, stop) = found.min_by_key(|(end, stop)| (*end, std::cmp::Reverse(stop.len()))).expect("one of them");
        let wanted = &text[..if include { end } else { end - stop.len() }];
        let body = json!({"prompt": [first], "max_tokens": 60, "stop": stops, "include_stop_str_in_output": include});
        run(async {
            let answer = post(server.address, COMPLETIONS, &body).await.json();
            let choice = &answer["choices"][0];
            assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(wanted), &json!("stop")), "{stops:?}");
            assert_eq!(choice["stop_reason"], json!(stop));
            let answer = post(server.address, COMPLETIONS, &with(body, &json!({"stream": true}))).await;
            let streamed = read_stream(answer.text(), false, false);
            assert_eq!(streamed.choices[0].text, wanted);
            assert!(streamed.choices[0].seen.iter().all(|seen| wanted.starts_with(seen.as_str())));
        });
    }
}

static SHARED: std::sync::LazyLock<Server> = std::sync::LazyLock::new(Server::new);
