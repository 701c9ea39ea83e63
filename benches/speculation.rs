//! What n-gram speculation brings on text that repeats itself and costs on text that does not, and what a look-up takes.
//!
//! ```sh
//! cargo bench --bench speculation                                         # the tiny built-in model
//! python3 tests/fixtures/gemma4/make_fixtures.py --out DIR --size bench   # once: the bench-size checkpoints
//! SPECULATION_BENCH_CHECKPOINT=DIR/bench-e2b cargo bench --bench speculation
//! ```
//!
//! Every line is a run of requests that all come at once, of 384 prompt tokens and 128 generated ones, after a shorter one that
//! is not measured. `period` prompts repeat 24 tokens, `random` ones have no order. What is drawn at temperature 1 repeats nothing;
//! greedy output of the tiny model soon goes round in circles, that of the larger ones does not. So biases force what no model
//! with random weights writes: `same` is one token again and again, the most that drafts can bring, and `two` is drawn out of two.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gemma4_engine::engine::{Event, GenerationRequest};
use gemma4_engine::runner::{Booted, Places, boot};
use gemma4_engine::sampling::SamplingParams;
use gemma4_engine::speculation::NgramIndex;
use gemma4_pjrt::environment;
use gemma4_pjrt::install::{self, Target};

/// Tokens of a draft; 0 for no speculation.
const DRAFTS: [usize; 3] = [0, 3, 7];
const PROMPT: usize = 384;
const OUTPUT: usize = 128;
/// The same of the run that is not measured.
const FIRST_OUTPUT: usize = 32;
/// Prompt and output of each run.
const TEXTS: [(&str, &str); 4] = [("period", "greedy"), ("random", "drawn"), ("random", "two"), ("random", "same")];

fn main() {
    look_ups();
    // Before the first thread of the plugin.
    environment::prepare(&[environment::QUIET]).expect("quiet logs");
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = match std::env::var_os("SPECULATION_BENCH_CHECKPOINT") {
        Some(checkpoint) => PathBuf::from(checkpoint),
        None => {
            let path = folder.path().join("smoke");
            gemma4_model::seeded::write(&path, 0).expect("a checkpoint");
            path
        }
    };
    println!(
        "{:<8} {:<6} {:>8} {:>6} {:>9} {:>7} {:>9} {:>9} {:>9} {:>11}",
        "prompt", "output", "requests", "drafts", "tokens/s", "steps", "computed", "accepted", "declined", "per draft"
    );
    for drafts in DRAFTS {
        let booted = start(&checkpoint, folder.path(), drafts);
        for requests in [1, 8] {
            for text in TEXTS {
                measure(&booted, text, requests, drafts);
            }
        }
        booted.engine.end();
    }
}

fn start(checkpoint: &Path, cache: &Path, drafts: usize) -> Booted {
    let mut set = vec![
        format!("model.id={}", checkpoint.display()),
        "scheduler.max_model_len=1024".to_owned(),
        "scheduler.max_num_seqs=8".to_owned(),
        "scheduler.max_num_batched_tokens=512".to_owned(),
    ];
    if drafts > 0 {
        set.push("speculative.method=ngram".to_owned());
        set.push(format!("speculative.num_tokens={drafts}"));
        set.push("speculative.prompt_lookup_min=2".to_owned());
        set.push("speculative.prompt_lookup_max=5".to_owned());
    }
    let plan = gemma4ctl::plan::analyze("smoke", &set).expect("a profile").plan().expect("a plan");
    let plugin = install::find(Target::Cpu).expect("the place of plugins");
    let plugin = plugin.expect("the CPU plugin: cargo run -p gemma4-pjrt --example install-cpu").path;
    let (programs, weights) = (cache.join("programs"), cache.join("weights"));
    let places = Places { checkpoint: checkpoint.to_owned(), plugin, programs, weights };
    boot(&plan, &places, &|_| {}).expect("an engine")
}

fn measure(booted: &Booted, text: (&str, &str), requests: u32, drafts: usize) {
    run(booted, text, requests, FIRST_OUTPUT);
    let before = booted.engine.statistics();
    let start = Instant::now();
    run(booted, text, requests, OUTPUT);
    let seconds = start.elapsed().as_secs_f64();
    let after = booted.engine.statistics();
    let of = |total: fn(&gemma4_engine::speculation::SpeculationTotals) -> u64| {
        let totals = [&after, &before].map(|statistics| statistics.speculation.as_ref().map_or(0, total));
        totals[0] - totals[1]
    };
    let (computed, accepted) = (of(|totals| totals.draft_tokens), of(|totals| totals.accepted_tokens));
    let (prompt, output) = text;
    println!(
        "{prompt:<8} {output:<6} {requests:>8} {drafts:>6} {:>9.1} {:>7} {computed:>9} {accepted:>9} {:>9} {:>11.2}",
        OUTPUT as f64 * f64::from(requests) / seconds,
        after.load.totals.steps - before.load.totals.steps,
        of(|totals| totals.declined_tokens),
        accepted as f64 / of(|totals| totals.drafts).max(1) as f64,
    );
}

/// Runs requests, all at once, to their ends.
fn run(booted: &Booted, (prompt, output): (&str, &str), requests: u32, length: usize) {
    // Leaves out control tokens, which the smallest vocabulary has at its beginning.
    let vocabulary = u32::try_from(booted.config.text.vocab_size).expect("a vocabulary") - 300;
    let generations: Vec<_> = (0..requests)
        .map(|request| {
            let mut state = u64::from(request) << 16 | length as u64;
            let mut tokens: Vec<u32> = (0..PROMPT).map(|_| 300 + random(&mut state) % vocabulary).collect();
            if prompt == "period" {
                tokens = tokens[..24].iter().copied().cycle().take(PROMPT).collect();
            }
            let forced: &[u32] = match output {
                "two" => &[400, 401],
                "same" => &[400],
                _ => &[],
            };
            let sampling = SamplingParams {
                temperature: if output == "greedy" { 0.0 } else { 1.0 },
                seed: Some(request.into()),
                logit_bias: forced.iter().map(|token| (*token, 100.0)).collect(),
                ..SamplingParams::default()
            };
            let request =
                GenerationRequest { prompt: tokens, max_tokens: length, sampling, ..GenerationRequest::default() };
            booted.engine.submit(request).expect("taken")
        })
        .collect();
    for mut generation in generations {
        let mut tokens = 0;
        while let Some(event) = generation.blocking_next() {
            tokens += usize::from(matches!(event, Event::Token(_)));
        }
        assert_eq!(tokens, length);
    }
}

fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    u32::try_from(*state >> 33).expect("31 bits")
}

/// What a look-up costs, by the tokens that a sequence has: the first, which takes all of them in, and each one after.
fn look_ups() {
    println!("{:>9} {:>12} {:>12}", "tokens", "first, us", "next, ns");
    for length in [1_000, 16_000, 128_000] {
        let mut state = 7;
        let tokens: Vec<u32> = (0..length + 256).map(|_| random(&mut state) % 2_000).collect();
        let (mut index, mut draft) = (NgramIndex::new(2, 5), Vec::new());
        let start = Instant::now();
        index.propose(&tokens[..length], 3, &mut draft);
        let first = start.elapsed().as_secs_f64() * 1e6;
        let start = Instant::now();
        for length in length + 1..=tokens.len() {
            index.propose(black_box(&tokens[..length]), 3, &mut draft);
            black_box(&draft);
        }
        println!("{length:>9} {first:>12.0} {:>12.0}", start.elapsed().as_secs_f64() / 256.0 * 1e9);
    }
    println!();
}
