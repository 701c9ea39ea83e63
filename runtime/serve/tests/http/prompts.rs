//! Logprobs of prompts: in the lists of `logprobs` with `echo`, and in vLLM's `prompt_logprobs`.

use serde_json::{Value, json};

use crate::client::{begin_post, get, post, read_stream};
use crate::model::{expected, next};
use crate::setup::{LONGEST, Server, Setup, TOKENIZER, run, wait_for};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// Tokens of the model.
const OTHERS: f64 = 1023.0;

/// A prompt whose every third token is not what the model would say: of several steps, since a step has 64 rows.
fn prompt(tokens: usize, first: u32) -> Vec<u32> {
    let mut prompt = vec![first];
    while prompt.len() < tokens {
        let position = u32::try_from(prompt.len() - 1).expect("small");
        let best = next(*prompt.last().expect("a token"), position);
        prompt.push(if position % 3 == 2 { 500 + (best + 1) % 200 } else { best });
    }
    prompt
}

/// What the model gives a token behind those before it, one logit of 9 among zeros: logprob and rank.
fn wanted(prompt: &[u32], place: usize) -> (f64, u64) {
    let best = next(prompt[place - 1], u32::try_from(place - 1).expect("small"));
    let sum = (9.0_f64.exp() + OTHERS).ln();
    if prompt[place] == best { (9.0 - sum, 1) } else { (-sum, 2) }
}

fn text(token: u32) -> String {
    TOKENIZER.token_text(token).expect("a token")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

/// Holds the older format's lists against a prompt and what follows it.
#[track_caller]
fn check_lists(lists: &Value, tokens: &[u32], prompt: usize, count: usize) {
    assert_eq!(lists["tokens"], json!(tokens.iter().map(|token| text(*token)).collect::<Vec<_>>()));
    for part in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[part].as_array().map(Vec::len), Some(tokens.len()), "{part}");
    }
    assert_eq!((&lists["token_logprobs"][0], &lists["top_logprobs"][0]), (&Value::Null, &Value::Null));
    let mut offset = 0;
    for (place, token) in tokens.iter().enumerate() {
        assert_eq!(lists["text_offset"][place], offset);
        offset += text(*token).chars().count();
        if place == 0 {
            continue;
        }
        let (logprob, _) = wanted(tokens, place);
        assert!((number(&lists["token_logprobs"][place]) - logprob).abs() < 1e-3, "{place} of {prompt}");
        let top = lists["top_logprobs"][place].as_object().expect("a map");
        assert!(top.len() <= count + 1 && (number(&top[&text(*token)]) - logprob).abs() < 1e-3, "{place}: {top:?}");
        let best = text(next(tokens[place - 1], u32::try_from(place - 1).expect("small")));
        assert!(count == 0 || top.contains_key(&best), "{place}: {top:?}");
    }
}

/// Holds vLLM's list against a prompt.
#[track_caller]
fn check_ranked(list: &Value, prompt: &[u32], count: usize) {
    let list = list.as_array().expect("a list");
    assert_eq!((list.len(), &list[0]), (prompt.len(), &Value::Null));
    for (place, entries) in list.iter().enumerate().skip(1) {
        let entries = entries.as_object().expect("a map");
        let (logprob, rank) = wanted(prompt, place);
        let (first, own) = entries.iter().next().expect("an entry");
        assert_eq!(first, &prompt[place].to_string(), "its own comes first");
        assert!((number(&own["logprob"]) - logprob).abs() < 1e-3, "{place}: {own}");
        assert_eq!((&own["rank"], &own["decoded_token"]), (&json!(rank), &json!(text(prompt[place]))));
        let others: Vec<u64> = entries.values().skip(1).map(|entry| entry["rank"].as_u64().expect("a rank")).collect();
        assert!(others.is_sorted() && others.iter().all(|rank| (1..=count as u64).contains(rank)), "{others:?}");
        assert!(entries.len() == count.max(1) || entries.len() == count + 1, "{place}: {entries:?}");
        if count > 0 {
            let best = next(prompt[place - 1], u32::try_from(place - 1).expect("small"));
            assert_eq!(entries[&best.to_string()]["rank"], 1);
        }
    }
}

#[test]
fn echo_with_logprobs_covers_the_prompt_and_then_the_output() {
    let server = Server::new();
    run(async {
        let prompt = prompt(150, 600);
        let tokens = [prompt.clone(), expected(&prompt, 6)].concat();
        for count in [0, 3] {
            let body = json!({"prompt": prompt, "max_tokens": 6, "echo": true, "logprobs": count});
            // The second time, all of the prompt could come from the cache.
            for _ in 0..2 {
                let answer = post(server.address, COMPLETIONS, &body).await.json();
                let choice = &answer["choices"][0];
                check_lists(&choice["logprobs"], &tokens, prompt.len(), count);
                assert_eq!(choice["text"], TOKENIZER.decode(&tokens, true).expect("text"));
                assert!(choice.get("prompt_logprobs").is_none(), "nobody asked for it");
                let usage = &answer["usage"];
                assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(150), &json!(6)));
                assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
            }
        }
        // What it computed is there for others.
        let body = json!({"prompt": prompt, "max_tokens": 1, "logprobs": 1});
        let answer = post(server.address, COMPLETIONS, &body).await.json();
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 144);
        assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len), Some(1));
    });
}

#[test]
fn without_output_the_prompt_is_all() {
    let server = Server::new();
    run(async {
        // As long as a sequence can be: nothing is generated.
        for tokens in [2, 65, LONGEST] {
            let prompt = prompt(tokens, 610);
            let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 2, "prompt_logprobs": 1});
            let answer = post(server.address, COMPLETIONS, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            let choice = &answer["choices"][0];
            check_lists(&choice["logprobs"], &prompt, tokens, 2);
            check_ranked(&choice["prompt_logprobs"], &prompt, 1);
            assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("length"), &Value::Null));
            let usage = &answer["usage"];
            assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(tokens), &json!(0)));
        }
        // Nothing comes before the only token, so there is nothing to say.
        let body = json!({"prompt": [610], "max_tokens": 0, "echo": true, "logprobs": 2, "prompt_logprobs": 2});
        let choice = post(server.address, COMPLETIONS, &body).await.json()["choices"][0].clone();
        assert_eq!(
            (&choice["logprobs"]["token_logprobs"], &choice["prompt_logprobs"]),
            (&json!([null]), &json!([null]))
        );
        assert_eq!(server.used_pages(), 0);
        let text = get(server.address, "/metrics").await;
        let line = text.text().lines().find(|line| line.starts_with("vllm:prompt_tokens_total{")).expect("a series");
        assert!(line.ends_with(&format!(" {}", 2 + 65 + LONGEST)), "{line}");
    });
}

#[test]
fn answers_to_one_prompt_share_its_logprobs() {
    let server = Server::new();
    run(async {
        let prompts = [prompt(100, 600), vec![640], prompt(70, 620)];
        for max_tokens in [0, 5] {
            let body = json!({"prompt": prompts, "max_tokens": max_tokens, "n": 3, "echo": true, "logprobs": 2,
                "prompt_logprobs": 4});
            let whole = post(server.address, COMPLETIONS, &body).await.json();
            let choices = whole["choices"].as_array().expect("choices");
            assert_eq!(choices.len(), 9);
            for (index, choice) in choices.iter().enumerate() {
                let prompt = &prompts[index / 3];
                let tokens = [prompt.clone(), expected(prompt, max_tokens)].concat();
                check_lists(&choice["logprobs"], &tokens, prompt.len(), 2);
                check_ranked(&choice["prompt_logprobs"], prompt, 4);
            }
            assert_eq!(whole["usage"]["prompt_tokens"], 171);
            assert_eq!(whole["usage"]["completion_tokens"], 9 * max_tokens);
            // A stream says the same of what it can have.
            let mut body = body;
            body["prompt_logprobs"] = Value::Null;
            body["stream"] = json!(true);
            let answer = post(server.address, COMPLETIONS, &body).await;
            let streamed = read_stream(answer.text(), false, false);
            for (streamed, whole) in streamed.choices.iter().zip(choices) {
                assert_eq!(json!(streamed.text), whole["text"]);
                for part in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
                    let pieces = streamed.logprobs.iter().map(|piece| piece[part].as_array().expect("a list"));
                    assert_eq!(Value::from(pieces.flatten().cloned().collect::<Vec<_>>()), whole["logprobs"][part]);
                }
            }
        }
    });
}

#[test]
fn chats_have_them_beside_the_choices() {
    let server = Server::new();
    run(async {
        let messages = json!([{"role": "user", "content": "the answer to everything"}]);
        for (count, n) in [(0, 1), (5, 2)] {
            let body = json!({"messages": messages, "max_tokens": 3, "n": n, "prompt_logprobs": count, "logprobs": true,
                "return_token_ids": true});
            let answer = post(server.address, CHAT, &body).await.json();
            let prompt: Vec<u32> = serde_json::from_value(answer["prompt_token_ids"].clone()).expect("token ids");
            check_ranked(&answer["prompt_logprobs"], &prompt, count);
            for choice in answer["choices"].as_array().expect("choices") {
                assert_eq!(
                    choice["logprobs"]["content"].as_array().map(Vec::len),
                    Some(3),
                    "those of the answer alone"
                );
            }
        }
        let plain = post(server.address, CHAT, &json!({"messages": messages, "max_tokens": 3})).await.json();
        assert!(plain.get("prompt_logprobs").is_none());
    });
}

/// A grammar is of the answer alone, also in the step that has rows of both.
#[test]
fn grammars_leave_the_prompt_alone() {
    let server = Server::new();
    run(async {
        let prompt = prompt(130, 600);
        for logprobs in [Value::Null, json!(1)] {
            let body = json!({"prompt": prompt, "max_tokens": 5, "prompt_logprobs": 3, "logprobs": logprobs,
                "structured_outputs": {"choice": ["yes", "no"]}});
            let choice = post(server.address, COMPLETIONS, &body).await.json()["choices"][0].clone();
            assert!(choice["text"] == "yes" || choice["text"] == "no", "{choice}");
            check_ranked(&choice["prompt_logprobs"], &prompt, 3);
        }
    });
}

/// Beside others, in a pool that is too small for all, and with drafts: everybody gets what it gets alone.
#[test]
fn others_in_the_same_steps_change_nothing() {
    for (pages, drafts) in [(1024, None), (1024, Some(3)), (110, None)] {
        let server = Setup { pages, drafts, ..Setup::default() }.start();
        run(async {
            let asks = (0..24_u32).map(|at| {
                let prompt = prompt(40 + usize::try_from(at).expect("small") * 5, 600 + at);
                let scored = at % 3 != 1;
                let mut body = json!({"prompt": prompt, "max_tokens": 20, "return_token_ids": true});
                if scored {
                    body["prompt_logprobs"] = json!(2);
                }
                let address = server.address;
                tokio::spawn(async move { (post(address, COMPLETIONS, &body).await, prompt, scored) })
            });
            for ask in asks.collect::<Vec<_>>() {
                let (answer, prompt, scored) = ask.await.expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
                let choice = &answer.json()["choices"][0];
                assert_eq!(choice["token_ids"], json!(expected(&prompt, 20)));
                assert_eq!(choice.get("prompt_logprobs").is_some(), scored);
                if scored {
                    check_ranked(&choice["prompt_logprobs"], &prompt, 2);
                }
            }
        });
        let statistics = server.engine.statistics();
        assert_eq!(statistics.load.totals.preemptions > 0, pages < 1024, "{:?}", statistics.load);
        assert_eq!(server.used_pages(), 0);
    }
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_its_prompt_frees_it() {
    let server = Server::new();
    run(async {
        server.door.limit(Some(2));
        let body = json!({"prompt": prompt(200, 600), "max_tokens": 0, "echo": true, "logprobs": 2, "stream": true});
        let stream = begin_post(server.address, COMPLETIONS, &body).await;
        wait_for("the second step", || server.door.steps() == 2).await;
        assert!(server.used_pages() > 0);
        drop(stream);
        server.door.limit(None);
        wait_for("its end", || server.used_pages() == 0 && server.engine.is_idle()).await;
        assert!(server.door.steps() <= 3, "four steps would have been all of it");
    });
}

#[test]
fn what_would_fill_memory_or_a_stream_is_refused() {
    let mut setup = Setup::default();
    setup.options.max_prompt_logprobs = 300;
    let server = setup.start();
    run(async {
        let chat = json!([{"role": "user", "content": "a"}]);
        let prompt = prompt(50, 600);
        let fits = json!({"prompt": prompt, "n": 2, "prompt_logprobs": 2, "max_tokens": 1});
        assert_eq!(post(server.address, COMPLETIONS, &fits).await.status, 200);
        for (path, body, param) in [
            (COMPLETIONS, json!({"prompt": prompt, "n": 2, "prompt_logprobs": 3}), "prompt_logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "n": 2, "echo": true, "logprobs": 3}), "logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "prompt_logprobs": 0, "stream": true}), "prompt_logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "prompt_logprobs": -1}), "prompt_logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "prompt_logprobs": 21}), "prompt_logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "prompt_logprobs": true}), "prompt_logprobs"),
            (COMPLETIONS, json!({"prompt": prompt, "prompt_logprobs": 1, "max_tokens": 0}), "max_tokens"),
            (CHAT, json!({"messages": chat, "prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
            (CHAT, json!({"messages": chat, "prompt_logprobs": 21}), "prompt_logprobs"),
        ] {
            let answer = post(server.address, path, &body).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{body}");
        }
    });
}
