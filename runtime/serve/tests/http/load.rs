//! Many clients at once.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{post, read_stream};
use crate::model::expected;
use crate::setup::{Setup, TOKENIZER, run, wait_for};

/// Requests at once.
const CLIENTS: u32 = 2048;

#[test]
fn nothing_is_lost_among_2048_requests() {
    let server = Setup { pages: 256, ..Setup::default() }.start();
    run(async {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let address = server.address;
            clients.spawn(async move {
                let prompt: Vec<u32> = (0..1 + client % 60).map(|at| 500 + (client * 7 + at) % 250).collect();
                let count = 1 + client % 24;
                let stream = client % 2 == 0;
                let body = json!({"prompt": prompt, "max_tokens": count, "stream": stream, "return_token_ids": true});
                let answer = post(address, "/v1/completions", &body).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                let tokens = expected(&prompt, count as usize);
                let (ids, text) = if stream {
                    let streamed = read_stream(answer.text(), false, false);
                    (json!(streamed.choices[0].tokens), Value::from(streamed.choices[0].text.as_str()))
                } else {
                    let choice = answer.json()["choices"][0].clone();
                    (choice["token_ids"].clone(), choice["text"].clone())
                };
                assert_eq!(ids, json!(tokens));
                assert_eq!(text, TOKENIZER.decode(&tokens, true).expect("text"));
            });
        }
        while let Some(client) = clients.join_next().await {
            client.expect("an answer");
        }
        wait_for("an idle engine", || server.engine.is_idle()).await;
        assert_eq!(server.used_pages(), 0);
    });
    assert!(server.end().is_clean());
}
