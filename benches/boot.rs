//! How long the bundled engine takes to start, cold and warm, and whether a request waits longer because of its shape.
//!
//! ```sh
//! python3 tests/fixtures/gemma4/make_fixtures.py --out DIR --size bench   # once: the bench-size checkpoints
//! BOOT_BENCH_CHECKPOINT=DIR/bench-e2b cargo bench --bench boot
//! ```
//!
//! Each start is a process of its own. The cold one has neither compiled programs nor aligned weights; both find the
//! checkpoint in the page cache. Then prompts of all lengths that pad to one bucket are timed one by one.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gemma4_engine::engine::{Event, GenerationRequest};
use gemma4_engine::runner::{Booted, Places, boot};
use gemma4_engine::sampling::SamplingParams;
use gemma4_pjrt::environment;
use gemma4_pjrt::install::{self, Target};

/// Names the folder of caches for the process that starts the engine.
const CHILD: &str = "BOOT_BENCH_CACHE";

/// The bucket whose lengths are swept, and the one below it.
const BUCKETS: [(usize, usize); 2] = [(256, 512), (64, 128)];

fn main() {
    let Some(checkpoint) = std::env::var_os("BOOT_BENCH_CHECKPOINT").map(PathBuf::from) else {
        println!("skipped: BOOT_BENCH_CHECKPOINT names no checkpoint; see the head of benches/boot.rs");
        return;
    };
    if let Some(cache) = std::env::var_os(CHILD) {
        // Before the first thread.
        environment::prepare(&[environment::QUIET]).expect("quiet logs");
        return child(&checkpoint, Path::new(&cache));
    }
    let cache = tempfile::tempdir().expect("a folder");
    println!(
        "{:<6} {:>9} {:>9} {:>9} {:>9} {:>9}  programs",
        "start", "devices", "weights", "programs", "warm-up", "total"
    );
    for name in ["cold", "warm"] {
        print!("{name:<6} ");
        std::io::Write::flush(&mut std::io::stdout()).expect("stdout");
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.env(CHILD, cache.path()).env("BOOT_BENCH_SWEEP", if name == "warm" { "1" } else { "" });
        assert!(command.status().expect("it starts").success());
    }
}

fn child(checkpoint: &Path, cache: &Path) {
    let set = [
        format!("model.id={}", checkpoint.display()),
        "model.dtype=bfloat16".to_owned(),
        "memory.kv_cache_dtype=bfloat16".to_owned(),
        "scheduler.max_model_len=4096".to_owned(),
        "scheduler.max_num_seqs=32".to_owned(),
        "scheduler.max_num_batched_tokens=2048".to_owned(),
    ];
    let plan = gemma4ctl::plan::analyze("smoke", &set).expect("a profile").plan().expect("a plan");
    let plugin = install::find(Target::Cpu).expect("the place of plugins");
    let plugin = plugin.expect("the CPU plugin: cargo run -p gemma4-pjrt --example install-cpu").path;
    let places = Places {
        checkpoint: checkpoint.to_owned(),
        plugin,
        programs: cache.join("programs"),
        weights: cache.join("weights"),
    };
    let start = Instant::now();
    let booted = boot(&plan, &places, &|_| {}).expect("an engine");
    let total = start.elapsed();
    let took = &booted.durations;
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    println!(
        "{:>9} {:>9} {:>9} {:>9} {:>9}  {} compiled, {} loaded",
        seconds(took.devices),
        seconds(took.weights),
        seconds(took.programs),
        seconds(took.warm_up),
        seconds(total),
        booted.compiled,
        booted.cached
    );
    if std::env::var("BOOT_BENCH_SWEEP").is_ok_and(|sweep| !sweep.is_empty()) {
        sweep(&booted);
    }
    booted.engine.end();
}

/// Times to the first token of every length that pads to a bucket, one request at a time.
fn sweep(booted: &Booted) {
    for (below, bucket) in BUCKETS {
        let mut slowest = (0.0_f64, 0);
        let mut fastest = (f64::INFINITY, 0);
        let mut last = 0.0;
        for length in (below + 1..=bucket).step_by((bucket - below) / 8).chain([bucket]) {
            let mut seconds = (0..3).map(|round| first_token(booted, length, round)).collect::<Vec<_>>();
            seconds.sort_by(f64::total_cmp);
            last = seconds[1];
            if last > slowest.0 {
                slowest = (last, length);
            }
            if last < fastest.0 {
                fastest = (last, length);
            }
        }
        println!(
            "first token of {} to {bucket} tokens: {:.0} ms ({} tokens) to {:.0} ms ({} tokens), ratio {:.2}; slowest over the full bucket {:.2}",
            below + 1,
            fastest.0 * 1e3,
            fastest.1,
            slowest.0 * 1e3,
            slowest.1,
            slowest.0 / fastest.0,
            slowest.0 / last
        );
    }
    println!("programs compiled while serving: {}", booted.engine.statistics().compiles_while_serving);
}

fn first_token(booted: &Booted, length: usize, round: u32) -> f64 {
    let start = Instant::now();
    let prompt = (0..length).map(|at| 100 + u32::try_from(at).expect("short")).collect();
    let request = GenerationRequest {
        prompt,
        max_tokens: 1,
        sampling: SamplingParams::greedy(),
        // Nothing is found in the cache.
        salt: [length.to_le_bytes().as_slice(), round.to_le_bytes().as_slice()].concat(),
        ..GenerationRequest::default()
    };
    let mut generation = booted.engine.submit(request).expect("taken");
    while !matches!(generation.blocking_next(), Some(Event::Token(_)) | None) {}
    start.elapsed().as_secs_f64()
}
