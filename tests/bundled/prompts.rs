//! Logprobs of prompts over HTTP, against the logits that transformers computed.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use gemma4_engine::runner::Booted;
use gemma4_model::generation::GenerationConfig;
use gemma4_model::tokenizer::Tokenizer;
use gemma4_serve::{ServeOptions, Service, serve};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{DRAFTS, Golden, fixture, goldens, plan, plugin, start};

/// How far logprobs may be from those of transformers, in float32.
const TOLERANCE: f64 = 1e-3;
/// Alternatives that are asked for.
const ALTERNATIVES: usize = 20;

/// The logits of a prompt's tokens, by their places; of a long prompt, some.
type Rows = Vec<(usize, Vec<f32>)>;

/// The logits of all prompts of a fixture, in their order.
fn golden_rows(name: &str) -> Vec<Rows> {
    let bytes = std::fs::read(fixture(name).join("golden/text.safetensors")).expect("a file");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("small"));
    let header: Value = serde_json::from_slice(header).expect("JSON");
    let tensor = |key: &str| -> Option<(Vec<u64>, &[[u8; 4]])> {
        let entry = header.get(key)?;
        let number = |value: &Value| value.as_u64().expect("a number");
        let offset = |at: usize| usize::try_from(number(&entry["data_offsets"][at])).expect("small");
        let shape = entry["shape"].as_array().expect("a shape").iter().map(number).collect();
        Some((shape, data[offset(0)..offset(1)].as_chunks::<4>().0))
    };
    let prompt = |index: usize| {
        let (shape, values) = tensor(&format!("prompt.{index}.logits"))?;
        let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let rows = values.chunks(usize::try_from(shape[1]).expect("small")).map(<[f32]>::to_vec);
        let places: Vec<usize> = match tensor(&format!("prompt.{index}.logits_rows")) {
            None => (0..rows.len()).collect(),
            Some((_, places)) => {
                let place = |bytes: &[u8; 4]| usize::try_from(i32::from_le_bytes(*bytes)).expect("a place");
                places.iter().map(place).collect()
            }
        };
        Some(places.into_iter().zip(rows).collect())
    };
    (0..).map_while(prompt).collect()
}

/// Logprobs of a row, in the arithmetic of the reference.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    row.iter().map(|logit| f64::from(logit - largest) - sum.ln()).collect()
}

/// Holds an answer with both kinds of prompt logprobs against the golden logits. Returns how many rows it could look at.
fn check(choice: &Value, prompt: &[u32], rows: &Rows) -> usize {
    let (lists, ranked) = (&choice["logprobs"], choice["prompt_logprobs"].as_array().expect("a list"));
    assert_eq!((ranked.len(), &ranked[0]), (prompt.len(), &Value::Null));
    assert_eq!(lists["token_logprobs"][0], Value::Null);
    let rows: Vec<_> = rows.iter().filter(|(place, _)| place + 1 < prompt.len()).collect();
    for (place, row) in &rows {
        let (token, golden) = (prompt[place + 1], log_softmax(row));
        let close = |value: &Value, token: usize| {
            let found = value.as_f64().unwrap_or_else(|| panic!("a number: {value}"));
            let wanted = golden[token];
            assert!((found - wanted).abs() < TOLERANCE, "token {token} behind {place}: {found}, not {wanted}");
        };
        let own = usize::try_from(token).expect("small");
        close(&lists["token_logprobs"][place + 1], own);
        let entries = ranked[place + 1].as_object().expect("a map");
        assert!((ALTERNATIVES..=ALTERNATIVES + 1).contains(&entries.len()), "{entries:?}");
        let mut alternatives = Vec::new();
        for (id, entry) in entries {
            let id: usize = id.parse().expect("a token id");
            close(&entry["logprob"], id);
            // Tokens that are as close as the tolerance may change places.
            let better = |by: f64| golden.iter().filter(|other| **other > golden[id] + by).count() as u64;
            let rank = entry["rank"].as_u64().expect("a rank");
            assert!((better(TOLERANCE) + 1..=better(-TOLERANCE) + 1).contains(&rank), "{id} has rank {rank}");
            if rank <= ALTERNATIVES as u64 {
                alternatives.push(rank);
            }
        }
        alternatives.sort_unstable();
        assert_eq!(alternatives, (1..=ALTERNATIVES as u64).collect::<Vec<_>>(), "behind {place}");
        assert!(entries.contains_key(&token.to_string()));
    }
    rows.len()
}

/// A service over an engine.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(booted: &Booted, name: &str) -> Self {
        let service = Service {
            engine: booted.engine.clone(),
            tokenizer: Tokenizer::open(&fixture(name).join("bf16")).expect("a tokenizer"),
            chat_template: None,
            generation: GenerationConfig::default(),
            options: ServeOptions::new(name, 160),
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let thread = std::thread::spawn(move || {
            serve(listener, service, shutdown).expect("a service");
        });
        Server { address, stop: Some(stop), thread: Some(thread) }
    }

    /// The answer to a request with more fields for a prompt.
    fn ask(&self, prompt: &[u32], max_tokens: usize, more: &Value) -> Value {
        let mut body = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "return_token_ids": true,
            "ignore_eos": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let url = format!("http://{}/v1/completions", self.address);
        let request = ureq::post(&url).header("content-type", "application/json");
        let text = request.send(body.to_string()).expect("an answer").body_mut().read_to_string().expect("text");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let usage = &answer["usage"];
        assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(prompt.len()), &json!(max_tokens)));
        answer
    }

    fn scored(&self, prompt: &[u32], max_tokens: usize) -> Value {
        let more = json!({"echo": true, "logprobs": 3, "prompt_logprobs": ALTERNATIVES});
        let answer = self.ask(prompt, max_tokens, &more);
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "no prefix hides a prompt");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()), "the service panicked");
    }
}

/// One after another, and then all at once with others that want none, several times over.
fn all_prompts(server: &Server, name: &str) {
    let (goldens, rows) = (goldens(name), golden_rows(name));
    assert_eq!(goldens.len(), rows.len());
    let mut checked = 0;
    for (golden, rows) in goldens.iter().zip(&rows) {
        let Golden { prompt, greedy } = golden;
        // Whatever can be found of it is there.
        assert_eq!(server.ask(prompt, greedy.len(), &json!({}))["choices"][0]["token_ids"], json!(greedy));
        for max_tokens in [0, greedy.len()] {
            let choice = &server.scored(prompt, max_tokens)["choices"][0];
            checked += check(choice, prompt, rows);
            assert_eq!(choice["token_ids"], json!(greedy[..max_tokens]), "{name}");
        }
    }
    assert!(checked > 200, "{name}: {checked} rows");
    std::thread::scope(|scope| {
        for (golden, rows) in goldens.iter().zip(&rows).cycle().take(goldens.len() * 2) {
            let Golden { prompt, greedy } = golden;
            scope.spawn(move || {
                let choice = &server.scored(prompt, greedy.len())["choices"][0];
                check(choice, prompt, rows);
                assert_eq!(choice["token_ids"], json!(greedy), "{name}");
            });
            scope.spawn(move || {
                let choice = &server.ask(prompt, greedy.len(), &json!({}))["choices"][0];
                assert_eq!(choice["token_ids"], json!(greedy), "{name}");
            });
        }
    });
}

#[test]
fn logprobs_of_prompts_are_those_of_transformers() {
    let Some(plugin) = plugin() else { return };
    let cases: [(&str, &[&str]); 6] = [
        ("tiny-e2b", &[]),
        ("tiny-e2b", &["scheduler.kv_sharing_fast_prefill=false"]),
        ("tiny-e2b", &["scheduler.max_num_batched_tokens=16"]),
        ("tiny-e2b", &["memory.num_blocks=40"]),
        ("tiny-e2b", &DRAFTS),
        ("tiny-moe", &[]),
    ];
    for (name, set) in cases {
        let cache = tempfile::tempdir().expect("a folder");
        let plan = plan(name, set);
        let booted = start(&plan, name, &plugin, cache.path());
        let server = Server::new(&booted, name);
        all_prompts(&server, name);
        let statistics = booted.engine.statistics();
        assert_eq!((statistics.compiles_while_serving, statistics.load.pages.used), (0, 0));
        assert_eq!(statistics.load.totals.preemptions > 0, set == ["memory.num_blocks=40"], "{set:?}");
        // Where every token of a prompt has its logits, nothing can be skipped; and then it is again.
        let skipped = || booted.engine.statistics().fast_prefill_skipped_tokens;
        let (before, prompt) = (skipped(), &goldens(name)[6].prompt);
        server.scored(prompt, 0);
        assert_eq!(skipped(), before);
        server.ask(prompt, 1, &json!({"cache_salt": "new"}));
        assert_eq!(skipped() > before, plan.scheduler.kv_sharing_fast_prefill, "{name} {set:?}");
        drop(server);
        booted.engine.end();
    }
}
