//! What keeping to a grammar costs: reading a vocabulary of Gemma 4's size once, compiling a grammar for each request, making
//! each token's mask, and taking the masks of a step to the device and applying them there, with XLA's CPU plugin.
//!
//! `cargo bench -p gemma4-engine --bench constraint`

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a bench prints, and stops where it cannot go on")]

use std::time::{Duration, Instant};

use gemma4_engine::constraint::{AnswerGrammar, Grammars};
use gemma4_engine::masks::Masks;
use gemma4_engine::runner::Logits;
use gemma4_engine::sampling::{Sampler, SamplingParams, Scratch};
use gemma4_model::graph::{MaskOptions, mask};
use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::{Argument, Client, CompileOptions, Plugin};

const VOCABULARY: usize = 262_144;
const END: u32 = 1;
const TOKENS: usize = 400;

/// Numbers that anybody can repeat: splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Two control tokens, all bytes, and words of letters with or without a space in front, digits and punctuation.
fn vocabulary() -> Vec<Vec<u8>> {
    let mut words = vec![b"\xff<pad>".to_vec(), b"\xff<eos>".to_vec()];
    words.extend((0..=255_u8).map(|byte| vec![byte]));
    let mut state = 7;
    while words.len() < VOCABULARY {
        let (kind, length) = (next(&mut state) % 10, 2 + next(&mut state) % 7);
        let letters: &[u8] = match kind {
            0 => b"0123456789.",
            1 => b"{}[]\":, \n-_/\\",
            _ => b"etaoinshrdlucmfwypvbgkjqxz",
        };
        let mut word: Vec<u8> = if kind > 5 { vec![b' '] } else { Vec::new() };
        word.extend((0..length).map(|_| letters[next(&mut state) as usize % letters.len()]));
        words.push(word);
    }
    words
}

fn schema() -> serde_json::Value {
    serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 60 },
            "kind": { "enum": ["city", "river", "mountain"] },
            "height": { "type": "number" },
            "tags": { "type": "array", "items": { "type": "string" }, "minItems": 3 },
            "place": {
                "type": "object",
                "properties": { "latitude": { "type": "number" }, "longitude": { "type": "number" } },
                "required": ["latitude", "longitude"],
                "additionalProperties": false
            }
        },
        "required": ["name", "kind", "height", "tags", "place"],
        "additionalProperties": false
    })
}

/// Times of one thing, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// Microseconds that this share of all stays below.
    fn micros(&self, share: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(last as f64 * share) as usize].as_secs_f64() * 1e6
    }
}

/// What compiling takes, then each token's mask on the host, and sampling with and without one.
fn grammars() {
    let start = Instant::now();
    let grammars = Grammars::of_words(vocabulary(), &[END]).expect("a vocabulary");
    println!("vocabulary of {VOCABULARY} tokens, read once: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    println!("grammar        compile  mask: median     99 %   longest  sampling: median  without a grammar");
    let cases = [
        ("json_object", AnswerGrammar::json_object()),
        ("json_schema", AnswerGrammar::Json(schema())),
        ("regex", AnswerGrammar::Regex(r"([a-z]+ ){20,}[0-9]{4}-[0-9]{2}-[0-9]{2}".to_owned())),
        ("choice", AnswerGrammar::Choice((0..100).map(|number| format!("the {number}th choice of all")).collect())),
    ];
    for (name, grammar) in cases {
        let start = Instant::now();
        let constraint = grammars.compile(None, Some(&grammar)).expect("a grammar");
        let compiled = start.elapsed();
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let fresh = || Sampler::new(params.clone(), 1, &[]).with_constraint(Some(constraint.clone()));
        let (mut kept, mut free) = (fresh(), Sampler::new(params.clone(), 1, &[]));
        let (mut scratch, mut state) = (Scratch::default(), 3);
        let (mut making, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
        let timed = |sampler: &mut Sampler, logits: &[f32], scratch: &mut Scratch| -> (u32, Duration) {
            let start = Instant::now();
            let token = sampler.sample(logits, scratch).expect("a token").token;
            (token, start.elapsed())
        };
        while with.len() < TOKENS {
            let logits: Vec<f32> = (0..VOCABULARY).map(|_| (next(&mut state) >> 40) as f32 / 1e6).collect();
            without.push(timed(&mut free, &logits, &mut scratch).1);
            let start = Instant::now();
            let mut masks = Masks::new(1, VOCABULARY);
            kept.mask(0..1, &[], &mut masks);
            making.push(start.elapsed());
            let masked = Logits::new(logits, VOCABULARY).masked(&masks);
            let (token, time) = timed(&mut kept, masked.row(0), &mut scratch);
            with.push(time);
            if token == END {
                kept = fresh();
            }
        }
        let (making, with, without) = (Times::of(making), Times::of(with), Times::of(without));
        println!(
            "{name:12}  {:6.2} ms  {:9.0} us  {:5.0} us  {:5.0} us  {:13.0} us  {:14.0} us",
            compiled.as_secs_f64() * 1e3,
            making.micros(0.5),
            making.micros(0.99),
            making.micros(1.0),
            with.micros(0.5),
            without.micros(0.5),
        );
    }
}

/// What a step with these rows of logits takes longer, once its masks are made.
fn applying(client: &Client, rows: usize) {
    let options = MaskOptions { devices: 1, rows: rows as u64, vocab_size: VOCABULARY as u64 };
    let program = mask(&options).expect("a program").text();
    let start = Instant::now();
    let program = client.compile(program.as_bytes(), &CompileOptions::default()).expect("it compiles");
    let compiled = start.elapsed();
    let mut state = 5;
    let values: Vec<f32> = (0..rows * VOCABULARY).map(|_| (next(&mut state) >> 40) as f32 / 1e6).collect();
    let size = |count: usize| i64::try_from(count).expect("small");
    let dims = [size(rows), size(VOCABULARY)];
    let (mut uploading, mut masking, mut on_host) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TOKENS {
        let logits = client.buffer_of(&values, &dims, 0).expect("logits");
        logits.ready().and_then(|ready| ready.wait()).expect("logits");
        let mut masks = Masks::new(rows, VOCABULARY);
        for row in 0..rows {
            let words: Vec<u32> = (0..VOCABULARY / 32)
                .map(|_| match next(&mut state) % 8 {
                    0..4 => 0,
                    4..7 => u32::MAX,
                    _ => next(&mut state) as u32,
                })
                .collect();
            masks.allow(row, &words);
        }
        let start = Instant::now();
        let words = client.buffer_of(masks.words(), &[dims[0], size(VOCABULARY / 32)], 0).expect("a mask");
        words.ready().and_then(|ready| ready.wait()).expect("a mask");
        uploading.push(start.elapsed());
        let start = Instant::now();
        program.execute(vec![vec![Argument::Donate(logits), Argument::Donate(words)]]).expect("it runs");
        masking.push(start.elapsed());
        let logits = Logits::new(values.clone(), VOCABULARY);
        let start = Instant::now();
        drop(logits.masked(&masks));
        on_host.push(start.elapsed());
    }
    let (uploading, masking, on_host) = (Times::of(uploading), Times::of(masking), Times::of(on_host));
    println!(
        "{rows:4}  {:6.1} ms  {:13.0} us  {:5.0} us  {:12.0} us  {:5.0} us  {:11.0} us",
        compiled.as_secs_f64() * 1e3,
        uploading.micros(0.5),
        uploading.micros(0.99),
        masking.micros(0.5),
        masking.micros(0.99),
        on_host.micros(0.5),
    );
}

fn main() {
    grammars();
    let Some(found) = install::find(Target::Cpu).expect("the place of plugins") else {
        println!("no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        return;
    };
    let client = Plugin::load(&found.path).and_then(|plugin| plugin.client(&[])).expect("a device");
    println!("rows   compile  upload: median     99 %  apply: median     99 %  on the host");
    for rows in [1, 8, 16, 64] {
        applying(&client, rows);
    }
}
