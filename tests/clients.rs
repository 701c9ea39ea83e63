//! The real binary with the profile `smoke`, as clients see it that others wrote: OpenAI's Python package, a reader of
//! streams that forgives nothing, schemathesis; and what thousands of them, or a kill in the middle of its start, do to it.
//!
//! The Python side is in tests/clients. `CLIENTS_SLOW=1` makes minutes of it, as .ci/slow does.
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{root, skipped, text};
use gemma4_pjrt::install::{self, Target};
use serde_json::{Value, json};

/// Two engines at a time would only slow each other down.
static ONE: Mutex<()> = Mutex::new(());

/// Limits that give three small programs.
const SMALL: [&str; 3] =
    ["scheduler.max_num_batched_tokens=64", "scheduler.max_num_seqs=8", "scheduler.max_model_len=512"];

/// What tells calls and thoughts from text.
const CHAT: [&str; 3] =
    ["chat.tool_call_parser=\"gemma4\"", "chat.auto_tool_choice=true", "chat.reasoning_parser=\"gemma4\""];

/// Limits that give two programs, one for each thread that compiles.
const SMALLEST: [&str; 3] =
    ["scheduler.max_num_batched_tokens=32", "scheduler.max_num_seqs=8", "scheduler.max_model_len=256"];

/// The key of a service that wants one.
const KEY: &str = "clients-0123456789abcdef";

fn slow() -> bool {
    std::env::var_os("CLIENTS_SLOW").is_some_and(|value| value == "1")
}

/// The CPU plugin, or a line that says why a test is skipped.
fn has_plugin() -> bool {
    static TOLD: Once = Once::new();
    let found = install::find(Target::Cpu).expect("the place of plugins").is_some();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        TOLD.call_once(|| skipped("no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`"));
    }
    found
}

/// Python with what the tests need, or a line that says why they are skipped.
fn python() -> Option<Command> {
    let local = root().join(".tools/venv/bin/python");
    let program = if local.is_file() { local } else { PathBuf::from("python3") };
    let found = Command::new(&program).args(["-c", "import openai, pytest, schemathesis"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(Command::new(program));
    }
    skipped("no Python with openai, pytest and schemathesis; `.ci/install-tools` installs them");
    None
}

/// A launch, and what is its own: its records, its port, and where compiled programs are.
struct Launch {
    folder: tempfile::TempDir,
    programs: PathBuf,
    limits: Vec<String>,
    port: u16,
    _one: MutexGuard<'static, ()>,
}

impl Launch {
    fn new(limits: &[&str]) -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = free.local_addr().expect("an address").port();
        Launch {
            folder: tempfile::tempdir().expect("a folder"),
            // Compiled once for all tests here.
            programs: Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients"),
            limits: limits.iter().map(|text| (*text).to_owned()).collect(),
            port,
            _one: one,
        }
    }

    /// With programs of its own.
    fn with_programs(mut self, programs: &Path) -> Self {
        programs.clone_into(&mut self.programs);
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"));
        command.args(arguments).stdin(Stdio::null()).env_remove("VLLM_API_KEY").env("CLIENTS_KEY", KEY);
        command.env("GEMMA4CTL_STATE_DIR", self.folder.path().join("state"));
        command.env("GEMMA4CTL_CONFIG_DIR", self.folder.path().join("config"));
        command.env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command
    }

    fn apply(&self) -> Command {
        let mut command = self.command(&["apply", "smoke", "--target", "local", "--detach", "--yes"]);
        let own = [format!("server.port={}", self.port), format!("cache.compile={}", self.programs.display())];
        command.args(self.limits.iter().chain(&own).flat_map(|set| ["--set", set]));
        command
    }

    fn start(self) -> Self {
        let output = self.apply().output().expect("it starts");
        assert!(output.status.success(), "{}", text(&output));
        self
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn launch_folder(&self) -> PathBuf {
        self.folder.path().join("state/launches/gemma4-smoke.local")
    }

    /// The process that serves, once it has said so.
    fn pid(&self) -> Option<u64> {
        let file = std::fs::read(self.launch_folder().join("process.json")).ok()?;
        serde_json::from_slice::<Value>(&file).ok()?["pid"].as_u64()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.launch_folder().join("log")).unwrap_or_default()
    }

    /// Runs one file of tests/clients against it.
    fn pytest(&self, mut python: Command, file: &str) {
        python.args(["-m", "pytest", "--quiet", "--tb=short", "-rP", "-p", "no:cacheprovider"]).arg(file);
        python.current_dir(root().join("tests/clients")).env("PYTHONDONTWRITEBYTECODE", "1");
        python.env("CLIENTS_URL", self.url()).env("CLIENTS_KEY", KEY);
        let pid = self.pid().expect("a process");
        let output = python.env("CLIENTS_PID", pid.to_string()).stdin(Stdio::null()).output().expect("Python");
        self.check(&output);
    }

    #[track_caller]
    fn check(&self, output: &Output) {
        assert!(output.status.success(), "{}\nthe service's log ends with\n{}", text(output), end_of(&self.log()));
    }

    /// Tokens of some greedy answers.
    fn tokens(&self) -> Vec<Value> {
        let prompts = ["a", "The quick brown fox", "one two three four five six seven eight nine ten"];
        let ask = |prompt| {
            let request = json!({"prompt": prompt, "max_tokens": 24, "temperature": 0, "return_token_ids": true});
            let answer = self.post("/v1/completions", &request);
            let tokens = answer["choices"][0]["token_ids"].clone();
            assert!(tokens.as_array().is_some_and(|tokens| !tokens.is_empty()), "{answer}");
            tokens
        };
        prompts.map(ask).to_vec()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        serde_json::from_str(answer.split_once("\r\n\r\n").expect("a body").1).unwrap_or_else(|_| panic!("{answer}"))
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let _ = self.command(&["destroy", "smoke", "--yes"]).output();
    }
}

fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[test]
fn openais_client_gets_what_it_asks_for() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    Launch::new(&SMALL).start().pytest(python, "test_openai.py");
}

#[test]
fn tools_and_reasoning_are_told_apart_where_the_profile_says_so() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    Launch::new(&[&SMALL[..], &CHAT].concat()).start().pytest(python, "test_tools.py");
}

/// Requests of all kinds: prompts longer than a step, tools, thoughts, grammars, and text that repeats itself.
fn of_all_kinds() -> Vec<Value> {
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(7);
    let tools = json!([{"type": "function", "function": {"name": "paint", "parameters": {"type": "object", "properties": {}}}}]);
    let user = json!({"role": "user", "content": long});
    let result = json!([user, {"role": "assistant", "content": null, "tool_calls":
        [{"id": "c", "type": "function", "function": {"name": "paint", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "done"}]);
    let kinds = [
        json!({}),
        json!({"tools": tools}),
        json!({"tools": tools, "tool_choice": "required"}),
        json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "paint"}}}),
        json!({"tools": tools, "messages": result, "reasoning_effort": "high"}),
        json!({"reasoning_effort": "high"}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"regex": "(red |green |blue ){20}"}}),
        json!({"logit_bias": {"400": 100}}),
    ];
    let whole = |kind: Value| {
        let mut request =
            json!({"messages": [user], "max_completion_tokens": 24, "temperature": 0, "return_token_ids": true});
        request.as_object_mut().expect("an object").extend(kind.as_object().expect("an object").clone());
        request
    };
    kinds.map(whole).to_vec()
}

/// Tokens and messages of all requests, sent at once and then one after the other, when much of their prompts is in the cache.
/// Some steps left layers out and some drafts came true, or none.
fn all_answers(set: &[&str], fast_prefill: bool, drafts: bool) -> Vec<Value> {
    let launch = Launch::new(&[&SMALL[..], set].concat()).start();
    let ask = |request: &Value| {
        let mut choice = launch.post("/v1/chat/completions", request)["choices"][0].clone();
        assert!(choice["token_ids"].as_array().is_some_and(|tokens| !tokens.is_empty()), "{request}: {choice}");
        for call in choice["message"]["tool_calls"].as_array_mut().into_iter().flatten() {
            // Drawn anew for each call.
            call["id"] = Value::Null;
        }
        choice
    };
    let requests = of_all_kinds();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = requests.iter().map(|request| scope.spawn(|| ask(request))).collect();
        asked.into_iter().map(|answer| answer.join().expect("an answer")).collect()
    });
    let alone: Vec<Value> = requests.iter().map(ask).collect();
    assert_eq!(together, alone, "{set:?}");
    let metrics = ureq::get(format!("{}/metrics", launch.url())).call().expect("metrics");
    let metrics = metrics.into_body().read_to_string().expect("text");
    let counted = |name: &str| {
        let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    assert_eq!(counted("gemma4ctl:fast_prefill_skipped_tokens_total") > 0.0, fast_prefill, "{set:?}");
    assert_eq!(counted("vllm:spec_decode_num_accepted_tokens_total") > 0.0, drafts, "{set:?}");
    assert!(counted("vllm:prefix_cache_hits_total") > 0.0 && counted("gemma4ctl:masked_steps_total") > 0.0);
    alone
}

#[test]
fn fast_prefill_changes_no_answer_with_tools_grammars_or_drafts() {
    if !has_plugin() {
        return;
    }
    let off = ["scheduler.kv_sharing_fast_prefill=false"];
    let drafts = ["speculative.method=\"ngram\"", "speculative.num_tokens=3"];
    let plain = all_answers(&CHAT, true, false);
    assert_eq!(plain, all_answers(&[&CHAT[..], &off].concat(), false, false));
    assert_eq!(plain, all_answers(&[&CHAT[..], &drafts].concat(), true, true));
    assert_eq!(plain, all_answers(&[&CHAT[..], &off, &drafts].concat(), false, true));
}

#[test]
fn structured_output_keeps_to_what_openais_client_asks_for() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    Launch::new(&SMALL).start().pytest(python, "test_structured.py");
}

#[test]
fn a_service_with_a_key_lets_nobody_else_in() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    let limits = [&SMALL[..], &["secrets.api_key={ env = \"CLIENTS_KEY\" }"]].concat();
    Launch::new(&limits).start().pytest(python, "test_keys.py");
}

#[test]
fn a_reader_that_forgives_nothing_takes_every_stream() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    Launch::new(&SMALL).start().pytest(python, "test_streams.py");
}

#[test]
fn thousands_of_clients_lose_nothing_and_cost_no_memory() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    Launch::new(&SMALL).start().pytest(python, "test_load.py");
}

#[test]
fn prompts_of_every_length_are_served_without_compiling() {
    let (true, Some(python)) = (has_plugin(), python()) else { return };
    // The profile as it is, or a shorter context.
    let limits: &[&str] = if slow() { &[] } else { &SMALLEST };
    Launch::new(limits).start().pytest(python, "test_lengths.py");
}

#[test]
fn schemathesis_finds_nothing() {
    let (true, Some(mut python)) = (has_plugin(), python()) else { return };
    // Most of what it sends bounds no answer, which then fills the context.
    let short = ["scheduler.max_num_batched_tokens=32", "scheduler.max_num_seqs=8", "scheduler.max_model_len=64"];
    let launch = Launch::new(&short).start();
    let (seed, examples) = if slow() { ("--seed=5", "--max-examples=100") } else { ("--seed=4", "--max-examples=10") };
    python.args(["-m", "schemathesis.cli", "run", "--no-color", "--continue-on-failure", seed, examples]);
    // What depends on other fields (`top_logprobs` needs `logprobs`) or on the vocabulary is not in the schemas, so that a
    // request which fits them may still be refused.
    python.arg("--exclude-checks=positive_data_acceptance").arg(format!("{}/openapi.json", launch.url()));
    // What it keeps of a run goes there.
    launch.check(&python.current_dir(launch.folder.path()).output().expect("Python"));
    assert!(!launch.tokens().is_empty(), "it still serves");
}

/// Numbers that look random and are the same in every run: splitmix64, from <https://prng.di.unimi.it/splitmix64.c>.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// When a start is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the process said who it is.
    After(Duration),
    /// So long after a program began to be written, which takes a few milliseconds.
    Writing(Duration),
}

/// Programs that are on their way to their names.
fn half_written(programs: &Path) -> usize {
    let entries = std::fs::read_dir(programs).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".executable-")).count()
}

/// Starts an engine and kills it at that moment; returns whether it was not ready yet.
fn killed(launch: &Launch, moment: Moment) -> bool {
    let before = half_written(&launch.programs);
    let mut apply = launch.apply().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let ended = |apply: &mut Child| apply.try_wait().expect("a child").is_some();
    let limit = Instant::now() + Duration::from_secs(600);
    let pid = loop {
        if let Some(pid) = launch.pid() {
            break pid;
        }
        assert!(!ended(&mut apply) && Instant::now() < limit, "no process: {}", launch.log());
        sleep(Duration::from_millis(1));
    };
    match moment {
        Moment::After(wait) => sleep(wait),
        Moment::Writing(wait) => {
            while half_written(&launch.programs) == before && !ended(&mut apply) {
                assert!(Instant::now() < limit, "nothing is written: {}", launch.log());
                std::hint::spin_loop();
            }
            sleep(wait);
        }
    }
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill").success();
    let status = apply.wait().expect("a child");
    assert!(killed, "the process is there until it is killed");
    !status.success()
}

#[test]
fn a_start_that_is_killed_while_it_keeps_programs_leaves_nothing_that_harms() {
    if !has_plugin() {
        return;
    }
    let (whole, torn) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let wanted = Launch::new(&SMALLEST).with_programs(&whole.path().join("programs")).start().tokens();

    let programs = torn.path().join("programs");
    let mut numbers = Numbers(9);
    let rounds = if slow() { 12 } else { 3 };
    let mut cut_off = 0;
    for round in 0..rounds {
        let moment = match round % 2 {
            0 => Moment::Writing(Duration::from_micros(numbers.below(1000))),
            _ => Moment::After(Duration::from_millis(numbers.below(3000))),
        };
        let launch = Launch::new(&SMALLEST).with_programs(&programs);
        cut_off += usize::from(killed(&launch, moment));
    }
    assert!(cut_off > 0, "no start was cut off");
    let mended = Launch::new(&SMALLEST).with_programs(&programs).start();
    assert_eq!(mended.tokens(), wanted);
    drop(mended);
    let warm = Launch::new(&SMALLEST).with_programs(&programs).start();
    assert!(warm.log().contains("compiled=0 cached=2"), "{}", warm.log());
    assert_eq!(warm.tokens(), wanted);
}
