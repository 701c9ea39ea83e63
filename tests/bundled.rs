//! The bundled engine from a plan to tokens, on XLA's CPU plugin, against the continuations that transformers computed.

#[path = "bundled/prompts.rs"]
mod prompts;
#[path = "bundled/quantized.rs"]
mod quantized;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};

use gemma4_engine::constraint::{AnswerGrammar, Grammars};
use gemma4_engine::engine::{EndReason, Engine, Event, Generation, GenerationRequest};
use gemma4_engine::runner::{Booted, Logits, Places, RunError, Runner, boot};
use gemma4_engine::sampling::{Logprobs, SamplingParams};
use gemma4_engine::scheduler::{Batch, Scheduler, SchedulerOptions};
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

/// XLA's CPU plugin lets devices of equal numbers meet, also those of two clients: one engine of several devices at a time.
static SEVERAL_DEVICES: Mutex<()> = Mutex::new(());

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
            Event::Started(_) | Event::Prompt(_) => {}
            Event::Token(token) => tokens.push(token.id),
            Event::End(end) => {
                assert_eq!(end.reason, EndReason::Length);
                return (tokens, end.cached_tokens);
            }
        }
    }
}

/// Tokens between two places where a prefix can be hit: the ends of blocks of both kinds of layers.
fn hit_step(plan: &Plan) -> usize {
    let mut blocks: Vec<usize> =
        plan.kv_cache.layers.iter().map(|layer| usize::try_from(layer.block_shape[0]).expect("small")).collect();
    blocks.dedup();
    let common = |left: usize, right: usize| (1..=right).map(|times| left * times).find(|many| many % right == 0);
    blocks.into_iter().fold(1, |left, right| common(left, right).expect("left * right"))
}

/// All prompts at once, several times over, then each alone, twice.
fn all_goldens(booted: &Booted, plan: &Plan, name: &str) {
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
        // The first time, others may have taken its pages since.
        for again in [false, true] {
            let (tokens, cached) = collect(engine.submit(greedy(golden)).expect("taken"));
            assert_eq!(tokens, golden.greedy, "{name}, a prompt of {} tokens alone", golden.prompt.len());
            let hits = (golden.prompt.len() - 1) / hit_step(plan);
            let found = !again || hits == 0 || cached > 0;
            assert!(found, "{name}, a prefix of {} tokens was computed just before", golden.prompt.len());
        }
    }
    let statistics = engine.statistics();
    assert_eq!(statistics.compiles_while_serving, 0);
    assert_eq!(statistics.masked_steps, 0, "no request has a grammar");
    assert_eq!(statistics.load.pages.used, 0);
    assert_eq!(statistics.fast_prefill_skipped_tokens > 0, plan.scheduler.kv_sharing_fast_prefill, "{name}");
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
            let _one = SEVERAL_DEVICES.lock();
            let booted = start(&plan, name, &plugin, cache.path());
            all_goldens(&booted, &plan, name);
            booted.engine.end();
        }
    }
}

/// Sets speculation that finds something to draft in nearly every text.
const DRAFTS: [&str; 4] = [
    "speculative.method=ngram",
    "speculative.num_tokens=3",
    "speculative.prompt_lookup_min=1",
    "speculative.prompt_lookup_max=3",
];

/// The golden prompts are of all lengths up to several steps, come at once and one by one, and again with prefix hits.
#[test]
fn drafts_change_no_continuation_on_one_and_two_devices() {
    let Some(plugin) = plugin() else { return };
    let mut accepted = 0;
    for name in FIXTURES {
        let meshes: &[u32] = if ["tiny-e2b", "tiny-moe"].contains(&name) { &[1, 2] } else { &[1] };
        for devices in meshes {
            let cache = tempfile::tempdir().expect("a folder");
            let tensor = format!("parallelism.tensor={devices}");
            let plan = plan(name, &[DRAFTS.as_slice(), &[&tensor]].concat());
            let _one = SEVERAL_DEVICES.lock();
            let booted = start(&plan, name, &plugin, cache.path());
            assert_eq!(booted.settings.differences(&gemma4_engine::settings::Settings::of_plan(&plan)), []);
            assert_eq!(
                booted.compiled + booted.cached,
                usize::try_from(plan.buckets.graphs.expect("known")).expect("few")
            );
            all_goldens(&booted, &plan, name);
            accepted += booted.engine.statistics().speculation.expect("drafts").accepted_tokens;
            booted.engine.end();
        }
    }
    assert!(accepted > 0, "no draft was ever right");
}

/// What tokens a token of the made-up vocabulary may come after: those of the two halves take turns.
const fn is_first_half(token: usize) -> bool {
    token % 26 < 13
}

/// A letter and the token's number, for all but the last few tokens of the model, which no grammar allows.
fn words(vocabulary: usize) -> Vec<Vec<u8>> {
    let word = |token: usize| match token {
        1 => b"\xff<eos>".to_vec(),
        _ => format!("{}{token};", char::from(b'a' + u8::try_from(token % 26).expect("a letter"))).into_bytes(),
    };
    (0..vocabulary - 5).map(word).collect()
}

/// The model's own best token among those that a place allows, by logprobs of all tokens.
fn best_allowed(logprobs: &Logprobs, place: usize, vocabulary: usize) -> u32 {
    let allowed =
        |token: usize| token != 1 && token < vocabulary - 5 && is_first_half(token) == place.is_multiple_of(2);
    let best = logprobs.top.iter().find(|(token, _)| allowed(usize::try_from(*token).expect("small")));
    best.expect("an allowed token").0
}

/// Requests with and without a grammar in the same steps: the ones take the best token that is allowed, with logprobs of the
/// model itself, the others what they take alone; on one device and two, with drafts and without.
#[test]
fn grammars_hold_for_their_own_rows_alone_on_one_and_two_devices() {
    let Some(plugin) = plugin() else { return };
    let name = "tiny-e2b";
    let goldens = goldens(name);
    let mut answers: Vec<Vec<Vec<u32>>> = Vec::new();
    for (devices, drafts) in [(1, false), (1, true), (2, false), (2, true)] {
        let cache = tempfile::tempdir().expect("a folder");
        let tensor = format!("parallelism.tensor={devices}");
        let set = [if drafts { DRAFTS.as_slice() } else { &[] }, &[&tensor]].concat();
        let plan = plan(name, &set);
        let _one = SEVERAL_DEVICES.lock();
        let booted = start(&plan, name, &plugin, cache.path());
        all_goldens(&booted, &plan, name);
        let vocabulary = usize::try_from(booted.config.text.vocab_size).expect("small");
        let grammars = Grammars::of_words(words(vocabulary), &[1]).expect("a vocabulary");
        let grammar = AnswerGrammar::Regex("([a-m][0-9]+;[n-z][0-9]+;){40}".to_owned());
        let constraint = grammars.compile(None, Some(&grammar)).expect("a grammar");
        let constrained = |golden: &Golden, logprobs| GenerationRequest {
            constraint: Some(constraint.clone()),
            logprobs,
            ..greedy(golden)
        };
        let engine = &booted.engine;
        let mut generations = Vec::new();
        for (at, golden) in goldens.iter().enumerate() {
            // Some without logprobs, so that there are steps whose own logits nobody asks for.
            let logprobs = (at % 2 == 0).then_some(vocabulary);
            let constrained = engine.submit(constrained(golden, logprobs)).expect("taken");
            generations.push((constrained, engine.submit(greedy(golden)).expect("taken")));
        }
        let mut of_all = Vec::new();
        for ((mut constrained, free), golden) in generations.into_iter().zip(&goldens) {
            let mut tokens = Vec::new();
            while let Some(event) = constrained.blocking_next() {
                let Event::Token(token) = event else { continue };
                if let Some(logprobs) = &token.logprobs {
                    assert_eq!(token.id, best_allowed(logprobs, tokens.len(), vocabulary), "token {}", tokens.len());
                }
                tokens.push(token.id);
            }
            assert_eq!(tokens.len(), golden.greedy.len());
            let takes_turns = |(place, token): (usize, &u32)| is_first_half(*token as usize) == place.is_multiple_of(2);
            assert!(tokens.iter().enumerate().all(takes_turns), "{tokens:?}");
            assert_ne!(tokens, golden.greedy, "the grammar changes something");
            assert_eq!(collect(free).0, golden.greedy, "the grammar of others changes nothing");
            of_all.push(tokens);
        }
        answers.push(of_all);
        let statistics = engine.statistics();
        let masked = statistics.masked_steps;
        assert!(masked > 0 && masked < statistics.load.totals.steps, "{masked} masked steps");
        assert_eq!(statistics.compiles_while_serving, 0);
        assert_eq!(statistics.speculation.is_some_and(|totals| totals.accepted_tokens > 0), drafts);
        // Behind all of them, steps are without masks again.
        assert_eq!(collect(engine.submit(greedy(&goldens[0])).expect("taken")).0, goldens[0].greedy);
        assert_eq!(engine.statistics().masked_steps, masked);
        booted.engine.end();
        // Nothing is counted any more: the devices' time is a part of all of it.
        let statistics = booted.engine.statistics();
        assert!(!statistics.device.is_zero() && statistics.device < statistics.busy, "{statistics:?}");
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}

#[test]
fn drafts_in_a_pool_that_is_too_small_for_all_change_no_token() {
    let Some(plugin) = plugin() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let small = ["memory.num_blocks=32", "scheduler.prefix_caching=false"];
    let plan = plan("tiny-e2b", &[DRAFTS.as_slice(), &small].concat());
    let booted = start(&plan, "tiny-e2b", &plugin, cache.path());
    let goldens = goldens("tiny-e2b");
    let all: Vec<&Golden> = (0..4).flat_map(|_| &goldens).collect();
    let generations: Vec<Generation> =
        all.iter().map(|golden| booted.engine.submit(greedy(golden)).expect("taken")).collect();
    for (generation, golden) in generations.into_iter().zip(&all) {
        assert_eq!(collect(generation).0, golden.greedy);
    }
    let statistics = booted.engine.statistics();
    assert!(statistics.load.totals.preemptions > 0);
    assert!(statistics.speculation.expect("drafts").drafts > 0);
}

/// The programs that a plan lists under speculation are those that the engine runs.
#[test]
fn a_plan_with_drafts_lists_their_rows_and_counts_their_logits() {
    let plan = plan("tiny-e2b", &DRAFTS);
    assert_eq!(
        (plan.buckets.tokens.as_slice(), plan.buckets.requests.as_slice()),
        ([16, 32].as_slice(), [8].as_slice())
    );
    assert_eq!((plan.buckets.logits.as_slice(), plan.buckets.graphs), ([16, 32].as_slice(), Some(4)));
    let text = std::fs::read(fixture("tiny-e2b").join("bf16/config.json")).expect("a file");
    let config = gemma4_model::Config::from_json(&text).expect("a configuration");
    let names: Vec<String> =
        gemma4_engine::steps::steps(&plan, &config).expect("steps").into_iter().map(|step| step.name).collect();
    assert_eq!(names, ["step.t16.r8", "step.t16.r8.l16", "step.t32.r8", "step.t32.r8.l32"]);
    let term = plan.memory.terms.iter().find(|term| term.name == "logits of drafts, largest step").expect("a term");
    assert_eq!((term.bytes, term.basis.as_str()), ((32 - 8) * config.text.vocab_size * 4, "derived"));
}

/// It is on where a model has layers that share KV, so the other tests have held it against transformers.
#[test]
fn fast_prefill_switched_off_changes_no_continuation() {
    let Some(plugin) = plugin() else { return };
    let on = |name: &str| plan(name, &[]).scheduler.kv_sharing_fast_prefill;
    assert_eq!(FIXTURES.map(on), [true, false, false, true, false]);
    let cache = tempfile::tempdir().expect("a folder");
    let plan = plan("tiny-e2b", &["scheduler.kv_sharing_fast_prefill=false"]);
    let booted = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert!(!booted.settings.kv_sharing_fast_prefill);
    assert_eq!(booted.settings.differences(&gemma4_engine::settings::Settings::of_plan(&plan)), []);
    all_goldens(&booted, &plan, "tiny-e2b");
    booted.engine.end();
}

#[test]
fn the_per_layer_table_may_stay_on_the_host() {
    let Some(plugin) = plugin() else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let plan = plan("tiny-e2b", &["memory.per_layer_embeddings=host", "parallelism.tensor=2"]);
    let _one = SEVERAL_DEVICES.lock();
    let booted = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!(booted.settings.per_layer_embeddings, "host");
    all_goldens(&booted, &plan, "tiny-e2b");
    booted.engine.end();
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
    // Both steps have as many rows of logits, so there is one mask beside them.
    let all = |booted: &Booted| {
        let statistics = booted.engine.statistics();
        (statistics.warm_cache_misses, statistics.warm_cache_hits)
    };
    let cold = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!((cold.compiled, cold.cached, all(&cold)), (2, 0, (3, 0)));
    drop(cold);
    let warm = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!((warm.compiled, warm.cached, all(&warm)), (0, 2, (0, 3)));
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
    let is_step = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step."));
    let first = programs().into_iter().find(is_step).expect("a step");
    let whole = std::fs::read(&first).expect("a program");
    std::fs::write(&first, &whole[..whole.len() / 2]).expect("written");
    // What a crash in the middle of writing leaves behind.
    std::fs::write(cache.path().join("programs/.executable-torn"), b"half").expect("written");
    let mended = start(&plan, "tiny-e2b", &plugin, cache.path());
    assert_eq!((mended.compiled, mended.cached), (1, 1));
    all_goldens(&mended, &plan, "tiny-e2b");
    assert_eq!(std::fs::read(&first).expect("a program").len(), whole.len());
}

/// Answers every row with token 1, at once.
struct AtOnce(usize);

impl Runner for AtOnce {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        let row = (0..self.0).map(|token| if token == 1 { 1.0 } else { 0.0 });
        Ok(Logits::new((0..batch.logits()).flat_map(|_| row.clone()).collect(), self.0))
    }
}

/// The pool holds what the plan says it holds: so many sequences run to their last token side by side, and one more waits.
#[test]
fn the_tokens_that_the_plan_counts_fit_and_one_more_sequence_waits() {
    let length = 1024;
    // Prompts that fit one step, so that the sequences grow side by side; more places than the pool has room for.
    let set = ["scheduler.max_num_seqs=64", "memory.num_blocks=300", "scheduler.prefix_caching=false"];
    let mut set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
    set.push("scheduler.max_num_batched_tokens=64".to_owned());
    set.push(format!("scheduler.max_model_len={length}"));
    let analysis = gemma4ctl::plan::analyze("smoke", &set).expect("a profile");
    let plan = analysis.plan().expect("a plan");
    let counted =
        plan.kv_cache.capacity.iter().find(|row| row.sequence_tokens == length).expect("a row of that length");
    let sequences = usize::try_from(counted.sequences).expect("few");
    assert!((2..64).contains(&sequences), "{sequences} sequences of {length} tokens");
    assert_eq!(counted.tokens, counted.sequences * length);

    let config = gemma4_model::Config::from_json(gemma4_model::seeded::CONFIG.as_bytes()).expect("a configuration");
    let steps = gemma4_engine::steps::steps(&plan, &config).expect("steps");
    let options = steps.iter().map(|step| &step.options);
    let (vocabulary, window) = (config.text.vocab_size, config.text.sliding_window);
    let options = SchedulerOptions::new(&plan.scheduler, None, options, vocabulary, window).expect("options");
    let scheduler = Scheduler::new(options).expect("a scheduler");
    let door = Arc::new(Mutex::new(()));
    let runner = Gate(Arc::clone(&door), AtOnce(usize::try_from(vocabulary).expect("small")));
    let closed = door.lock().expect("a lock");
    let engine = Engine::start(scheduler, Box::new(runner)).expect("a thread");
    let long = GenerationRequest {
        prompt: vec![5],
        max_tokens: usize::try_from(length).expect("small") - 1,
        sampling: SamplingParams::greedy(),
        ..GenerationRequest::default()
    };
    let generations: Vec<Generation> = (0..=sequences).map(|_| engine.submit(long.clone()).expect("taken")).collect();
    drop(closed);
    let mut preempted = 0;
    for mut generation in generations {
        let mut tokens = 0;
        loop {
            match generation.blocking_next().expect("an end") {
                Event::Started(_) | Event::Prompt(_) => {}
                Event::Token(_) => tokens += 1,
                Event::End(end) => {
                    assert_eq!(end.reason, EndReason::Length);
                    preempted += u64::from(end.preemptions > 0);
                    break;
                }
            }
        }
        assert_eq!(tokens, length - 1, "nothing fails");
    }
    // The last to come had to wait for pages, once it had begun; nobody before it ever did.
    assert_eq!(preempted, 1, "only the one too many waited");
}

/// Holds steps up while the door is closed.
struct Gate(Arc<Mutex<()>>, AtOnce);

impl Runner for Gate {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        drop(self.0.lock());
        self.1.run(batch)
    }
}
