//! The bundled engine from a plan to tokens, on XLA's CPU plugin, against the continuations that transformers computed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use gemma4_engine::engine::{EndReason, Event, Generation, GenerationRequest};
use gemma4_engine::runner::{Booted, Places, boot};
use gemma4_engine::sampling::SamplingParams;
use gemma4_pjrt::install::{self, Target};
use gemma4_plan::Plan;
use serde_json::Value;

const FIXTURES: [&str; 5] = ["tiny-e2b", "tiny-moe", "tiny-dense", "tiny-mm", "tiny-unified"];

/// The CPU plugin, or a line that says why a test is skipped.
fn plugin() -> Option<PathBuf> {
    static TOLD: Once = Once::new();
    let found = install::find(Target::Cpu).expect("the place of plugins");
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        let why = "no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`";
        // Written past the test harness, which keeps what passing tests print to itself.
        TOLD.call_once(|| writeln!(std::io::stderr(), "\nskipped: {why}").expect("stderr"));
    }
    Some(found?.path)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gemma4").join(name)
}

/// A plan for a fixture in float32 with two small programs.
fn plan(name: &str, set: &[&str]) -> Plan {
    let model = format!("model.id={}", fixture(name).join("bf16").display());
    let basic = [
        model.as_str(),
        "model.dtype=float32",
        "memory.kv_cache_dtype=float32",
        "memory.block_size=8",
        "scheduler.max_model_len=160",
        "scheduler.max_num_seqs=8",
        "scheduler.max_num_batched_tokens=32",
    ];
    let set: Vec<String> = basic.iter().chain(set).map(|text| (*text).to_owned()).collect();
    let analysis = gemma4ctl::plan::analyze("smoke", &set).expect("a profile");
    let errors: Vec<String> = analysis.loaded.diagnostics.iter().map(|found| found.message.clone()).collect();
    assert!(!analysis.has_errors(), "{errors:?}");
    analysis.plan().expect("a plan")
}

fn start(plan: &Plan, name: &str, plugin: &Path, cache: &Path) -> Booted {
    let places = Places {
        checkpoint: fixture(name).join("bf16"),
        plugin: plugin.to_owned(),
        programs: cache.join("programs"),
        weights: cache.join("weights"),
    };
    boot(plan, &places, &|_| {}).expect("an engine")
}

struct Golden {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn goldens(name: &str) -> Vec<Golden> {
    let text = std::fs::read_to_string(fixture(name).join("golden/golden.json")).expect("goldens");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let ids = |value: &Value| -> Vec<u32> {
        let ids = value.as_array().expect("ids").iter();
        ids.map(|id| u32::try_from(id.as_u64().expect("an id")).expect("an id")).collect()
    };
    let prompts = golden["prompts"].as_array().expect("prompts").iter();
    prompts.map(|prompt| Golden { prompt: ids(&prompt["input_ids"]), greedy: ids(&prompt["greedy_ids"]) }).collect()
}

fn greedy(golden: &Golden) -> GenerationRequest {
    GenerationRequest {
        prompt: golden.prompt.clone(),
        max_tokens: golden.greedy.len(),
        sampling: SamplingParams::greedy(),
        ..GenerationRequest::default()
    }
}

fn collect(mut generation: Generation) -> (Vec<u32>, usize) {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().expect("an end") {
            Event::Started(_) => {}
            Event::Token(token) => tokens.push(token.id),
            Event::End(end) => {
                assert_eq!(end.reason, EndReason::Length);
                return (tokens, end.cached_tokens);
            }
        }
    }
}

/// All prompts at once, several times over, then each alone.
fn all_goldens(booted: &Booted, name: &str) {
    let goldens = goldens(name);
    let order: Vec<&Golden> = goldens.iter().chain(goldens.iter().rev()).chain(&goldens).collect();
    let engine = &booted.engine;
    let generations: Vec<Generation> =
        order.iter().map(|golden| engine.submit(greedy(golden)).expect("taken")).collect();
    for (at, (generation, golden)) in generations.into_iter().zip(&order).enumerate() {
        let (tokens, _) = collect(generation);
        assert_eq!(tokens, golden.greedy, "{name}, request {at}");
    }
    for golden in &goldens {
        let (tokens, cached) = collect(engine.submit(greedy(golden)).expect("taken"));
        assert_eq!(tokens, golden.greedy, "{name}, a prompt of {} tokens alone", golden.prompt.len());
        assert!(golden.prompt.len() <= 64 || cached > 0, "its prefix was computed before");
    }
    let statistics = engine.statistics();
    assert_eq!(statistics.compiles_while_serving, 0);
    assert_eq!(statistics.load.pages.used, 0);
}

#[test]
fn continuations_are_those_of_transformers_on_one_two_and_four_devices() {
    let Some(plugin) = plugin() else { return };
    for name in FIXTURES {
        // The steps themselves are held against transformers for every model and mesh in the model's own tests.
        let meshes: &[u32] = if ["tiny-e2b", "tiny-moe"].contains(&name) { &[1, 2, 4] } else { &[1] };
        for devices in meshes {
            let cache = tempfile::tempdir().expect("a folder");
            let plan = plan(name, &[&format!("parallelism.tensor={devices}")]);
            all_goldens(&start(&plan, name, &plugin, cache.path()), name);
        }
    }
}

#[test]
fn the_per_layer_table_may_stay_on_the_host() {
    let Some(plugin) = plugin() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let plan = plan("tiny-e2b", &["memory.per_layer_embeddings=host", "parallelism.tensor=2"]);
    let booted = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!(booted.settings.per_layer_embeddings, "host");
    all_goldens(&booted, "tiny-e2b");
}

#[test]
fn a_pool_that_is_too_small_for_all_preempts_and_changes_no_token() {
    let Some(plugin) = plugin() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let plan = plan("tiny-e2b", &["memory.num_blocks=32", "scheduler.prefix_caching=false"]);
    let booted = start(&plan, "tiny-e2b", &plugin, cache.path());
    let goldens = goldens("tiny-e2b");
    let engine = &booted.engine;
    let generations: Vec<Generation> =
        goldens.iter().chain(&goldens).map(|golden| engine.submit(greedy(golden)).expect("taken")).collect();
    for (generation, golden) in generations.into_iter().zip(goldens.iter().chain(&goldens)) {
        assert_eq!(collect(generation).0, golden.greedy);
    }
    assert!(engine.statistics().load.totals.preemptions > 0);
}

#[test]
fn the_second_start_compiles_nothing_and_a_damaged_program_is_made_again() {
    let Some(plugin) = plugin() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let plan = plan("tiny-e2b", &[]);
    let cold = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!((cold.compiled, cold.cached), (2, 0));
    drop(cold);
    let warm = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!((warm.compiled, warm.cached), (0, 2));
    drop(warm);
    let programs = || -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = cache
            .path()
            .join("programs")
            .read_dir()
            .expect("a folder")
            .map(|entry| entry.expect("a file").path())
            .collect();
        files.sort();
        files
    };
    let first = programs().remove(0);
    let whole = std::fs::read(&first).expect("a program");
    std::fs::write(&first, &whole[..whole.len() / 2]).expect("written");
    // What a crash in the middle of writing leaves behind.
    std::fs::write(cache.path().join("programs/.executable-torn"), b"half").expect("written");
    let mended = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!((mended.compiled, mended.cached), (1, 1));
    all_goldens(&mended, "tiny-e2b");
    assert_eq!(std::fs::read(&first).expect("a program").len(), whole.len());
}
