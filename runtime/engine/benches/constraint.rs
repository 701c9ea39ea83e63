//! What keeping to a grammar costs: reading a vocabulary of Gemma 4's size once, compiling a grammar for each request, and
//! each token's mask.
//!
//! `cargo bench -p gemma4-engine --bench constraint`

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a bench prints, and stops where it cannot go on")]

use std::time::{Duration, Instant};

use gemma4_engine::constraint::{AnswerGrammar, Grammars};
use gemma4_engine::sampling::{Sampler, SamplingParams, Scratch};

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

fn main() {
    let start = Instant::now();
    let grammars = Grammars::of_words(vocabulary(), &[END]).expect("a vocabulary");
    println!("vocabulary of {VOCABULARY} tokens, read once: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    println!("grammar        compile    median     99 %   longest  token without: median");
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
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let timed = |sampler: &mut Sampler, logits: &[f32], scratch: &mut Scratch| -> (u32, Duration) {
            let start = Instant::now();
            let token = sampler.sample(logits, scratch).expect("a token").token;
            (token, start.elapsed())
        };
        while with.len() < TOKENS {
            let logits: Vec<f32> = (0..VOCABULARY).map(|_| (next(&mut state) >> 40) as f32 / 1e6).collect();
            let (token, time) = timed(&mut kept, &logits, &mut scratch);
            with.push(time);
            without.push(timed(&mut free, &logits, &mut scratch).1);
            if token == END {
                kept = fresh();
            }
        }
        with.sort();
        without.sort();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!(
            "{name:12}  {:6.2} ms  {:5.0} us  {:5.0} us  {:5.0} us  {:5.0} us",
            compiled.as_secs_f64() * 1e3,
            micros(with[TOKENS / 2]),
            micros(with[TOKENS * 99 / 100]),
            micros(with[TOKENS - 1]),
            micros(without[TOKENS / 2]),
        );
    }
}
