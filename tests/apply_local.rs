//! `apply --target local` and the verbs after it, with the bundled engine on XLA's CPU plugin.
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Programs are compiled once for all tests here, and two engines at a time would only slow each other down.
static ONE: Mutex<()> = Mutex::new(());

/// Limits that give four small programs.
const SMALL: [&str; 3] =
    ["scheduler.max_num_batched_tokens=32", "scheduler.max_num_seqs=8", "scheduler.max_model_len=512"];

struct Bench {
    folder: tempfile::TempDir,
    port: u16,
    _one: MutexGuard<'static, ()>,
}

impl Bench {
    /// `None`, with a line that says why, without the CPU plugin.
    fn new() -> Option<Self> {
        static TOLD: Once = Once::new();
        if gemma4_pjrt::install::find(gemma4_pjrt::install::Target::Cpu).expect("the place of plugins").is_none() {
            assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
            let why = "no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`";
            // Written past the test harness, which keeps what passing tests print to itself.
            TOLD.call_once(|| writeln!(std::io::stderr(), "\nskipped: {why}").expect("stderr"));
            return None;
        }
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = free.local_addr().expect("an address").port();
        Some(Bench { folder: tempfile::tempdir().expect("a folder"), port, _one: one })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"));
        // Compiled programs are shared between tests, launches are not.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apply-local");
        command.args(arguments).env("GEMMA4CTL_STATE_DIR", self.folder.path());
        command.env("XDG_CACHE_HOME", &cache).env_remove("VLLM_API_KEY");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("it starts")
    }

    fn sets(&self, more: &[&str]) -> Vec<String> {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apply-local/programs");
        let own = [format!("server.port={}", self.port), format!("cache.compile={}", cache.display())];
        let all = SMALL.iter().chain(more).map(|text| (*text).to_owned()).chain(own);
        all.flat_map(|text| ["--set".to_owned(), text]).collect()
    }

    fn apply(&self, more: &[&str], flags: &[&str]) -> Command {
        let mut command = self.command(&["apply", "smoke", "--target", "local", "--yes"]);
        command.args(flags).args(self.sets(more)).stdin(Stdio::null());
        command
    }

    fn launched(&self) -> String {
        let output = self.apply(&[], &["--detach"]).output().expect("it starts");
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}");
        let url = stdout.lines().last().expect("an address").to_owned();
        assert_eq!(url, format!("http://127.0.0.1:{}", self.port));
        url
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("launches/gemma4-smoke.local")
    }

    fn process(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.folder().join("process.json")).ok()?).ok()
    }

    fn pid(&self) -> u64 {
        self.process().expect("a process")["pid"].as_u64().expect("a number")
    }

    fn status(&self) -> Value {
        let output = self.run(&["status", "smoke", "--format", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", texts(&output).1))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        (status, serde_json::from_str(body).unwrap_or_default())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.run(&["destroy", "smoke", "--yes"]);
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn signal(pid: u64, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill");
    assert!(status.success());
}

fn wait_for(what: &str, seconds: u64, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_launch_serves_is_looked_at_and_ended() {
    let Some(bench) = Bench::new() else { return };
    bench.launched();
    let pid = bench.pid();
    let request = serde_json::json!({"model": "builtin/smoke", "prompt": "Hello", "max_tokens": 4, "temperature": 0,
        "return_token_ids": true});
    let (status, first) = bench.post("/v1/completions", &request);
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["choices"][0]["token_ids"].as_array().map(Vec::len), Some(4));

    let row = &bench.status()["launches"][0];
    assert_eq!((row["state"].as_str(), row["target"].as_str()), (Some("running and healthy"), Some("local")));
    assert_eq!(row["ids"]["pid"], pid.to_string());
    assert_eq!(row["differences"], serde_json::json!([]));
    let (log, _) = texts(&bench.run(&["logs", "smoke"]));
    assert!(log.contains("ready") && log.contains("/v1/completions"), "{log}");

    // The same again is nothing to do; another plan takes its place.
    bench.launched();
    assert_eq!(bench.pid(), pid);
    let output = bench.apply(&["scheduler.prefix_caching=false"], &["--detach"]).output().expect("it starts");
    assert!(output.status.success(), "{}", texts(&output).1);
    assert_ne!(bench.pid(), pid);
    assert_eq!(bench.post("/v1/completions", &request).1["choices"], first["choices"]);

    let output = bench.run(&["destroy", "smoke", "--yes"]);
    assert!(output.status.success(), "{}", texts(&output).1);
    assert!(TcpStream::connect(("127.0.0.1", bench.port)).is_err(), "nobody listens any more");
    assert!(!bench.folder().exists());
}

#[test]
fn a_service_that_differs_from_its_plan_is_told() {
    let Some(bench) = Bench::new() else { return };
    bench.launched();
    // The record is given another plan, as if the service had been started with other limits.
    let sets = bench.sets(&["scheduler.prefix_caching=false"]);
    let mut arguments = vec!["plan", "smoke", "--format", "json"];
    arguments.extend(sets.iter().map(String::as_str));
    let other = bench.run(&arguments);
    let plan: Value = serde_json::from_slice(&other.stdout).expect("a plan");
    std::fs::write(bench.folder().join("plan.json"), &other.stdout).expect("written");
    let record = bench.folder().join("launch.json");
    let mut launch: Value = serde_json::from_slice(&std::fs::read(&record).expect("a record")).expect("JSON");
    launch["digest"] = plan["digest"].clone();
    std::fs::write(&record, launch.to_string()).expect("written");
    let differences = bench.status()["launches"][0]["differences"].clone();
    let settings: Vec<&str> = differences
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|difference| difference["setting"].as_str())
        .collect();
    assert_eq!(settings, ["digest", "prefix_caching"]);
    let (text, _) = texts(&bench.run(&["status", "smoke"]));
    assert!(text.contains("prefix_caching: the plan says false, the service runs with true"), "{text}");
}

#[test]
fn in_the_foreground_an_interrupt_ends_it_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let mut child = bench.apply(&[], &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut first).expect("a line");
    assert_eq!(first.trim(), format!("http://127.0.0.1:{}", bench.port));
    assert_eq!(bench.status()["launches"][0]["state"], "running and healthy");
    signal(child.id().into(), "INT");
    wait_for("the end", 60, || !bench.folder().join("launch.json").exists());
    let status = child.wait().expect("a status");
    assert_eq!(status.code(), Some(0));
    assert!(TcpStream::connect(("127.0.0.1", bench.port)).is_err());
}

#[test]
fn an_apply_that_is_killed_leaves_a_launch_that_the_next_one_takes_over() {
    let Some(bench) = Bench::new() else { return };
    let mut child =
        bench.apply(&[], &["--detach"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for("the process", 60, || bench.process().is_some());
    child.kill().expect("killed");
    child.wait().expect("a status");
    let pid = bench.pid();
    bench.launched();
    assert_eq!(bench.pid(), pid, "the engine that was started goes on");
    // And one whose engine was killed begins anew.
    signal(pid, "KILL");
    wait_for("the end", 60, || TcpStream::connect(("127.0.0.1", bench.port)).is_err());
    assert_eq!(bench.status()["launches"][0]["state"], "stopped");
    bench.launched();
    assert_ne!(bench.pid(), pid);
}

#[test]
fn a_launch_whose_record_is_torn_is_still_found_and_ended() {
    let Some(bench) = Bench::new() else { return };
    bench.launched();
    // As a crash between the plan and the record of another apply leaves it.
    std::fs::write(bench.folder().join("plan.json"), "{}").expect("written");
    assert_eq!(bench.status()["launches"][0]["state"], "running and healthy");
    std::fs::write(bench.folder().join("launch.json"), "torn").expect("written");
    let output = bench.run(&["destroy", "gemma4-smoke.local", "--yes"]);
    assert!(output.status.success(), "{}", texts(&output).1);
    assert!(TcpStream::connect(("127.0.0.1", bench.port)).is_err(), "nobody listens any more");
    assert!(!bench.folder().exists());
}

#[test]
fn a_running_request_is_answered_before_the_end() {
    let Some(bench) = Bench::new() else { return };
    bench.launched();
    let request = serde_json::json!({"model": "smoke", "prompt": "Hello", "max_tokens": 400, "temperature": 0,
        "ignore_eos": true});
    let answer = std::thread::scope(|scope| {
        let answer = scope.spawn(|| bench.post("/v1/completions", &request));
        std::thread::sleep(Duration::from_millis(100));
        let output = bench.run(&["destroy", "smoke", "--yes"]);
        assert!(output.status.success(), "{}", texts(&output).1);
        answer.join().expect("an answer")
    });
    assert_eq!(answer.0, 200);
    assert_eq!(answer.1["usage"]["completion_tokens"], 400);
}

#[test]
fn what_stands_in_the_way_is_told_before_anything_starts() {
    let Some(bench) = Bench::new() else { return };
    let taken = TcpListener::bind(("127.0.0.1", bench.port)).expect("the port");
    let output = bench.apply(&[], &["--detach"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.contains(&format!("port {} of this machine is taken", bench.port)));
    drop(taken);

    let output = bench.run(&["apply", "turbo-stable", "--target", "local", "--yes"]);
    assert!(!output.status.success());
    assert!(texts(&output).1.contains("bundled"), "{}", texts(&output).1);

    // A plan that was changed by hand is not served.
    let sets = bench.sets(&[]);
    let mut arguments = vec!["plan", "smoke", "--format", "json"];
    arguments.extend(sets.iter().map(String::as_str));
    let plan = texts(&bench.run(&arguments)).0.replace("\"max_num_seqs\": 8", "\"max_num_seqs\": 9");
    let file = bench.folder.path().join("plan.json");
    std::fs::write(&file, plan).expect("written");
    let output = bench.run(&["runtime", "serve", file.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.contains("is not served"), "{}", texts(&output).1);
}

#[test]
fn a_key_is_asked_for_and_shown_nowhere() {
    let Some(bench) = Bench::new() else { return };
    let secret = "hf-planted-9f2c7a";
    let key = bench.folder.path().join("key");
    std::fs::write(&key, secret).expect("written");
    let set = format!("secrets.api_key={{ file = \"{}\" }}", key.display());
    let output = bench.apply(&[&set], &["--detach"]).output().expect("it starts");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let request = serde_json::json!({"model": "smoke", "prompt": "Hello", "max_tokens": 1});
    assert_eq!(bench.post("/v1/completions", &request).0, 401);
    assert_eq!(bench.status()["launches"][0]["differences"], serde_json::json!([]));
    let mut all = vec![stdout, stderr, texts(&bench.run(&["logs", "smoke"])).0, bench.status().to_string()];
    for entry in bench.folder().read_dir().expect("a folder") {
        all.push(String::from_utf8_lossy(&std::fs::read(entry.expect("a file").path()).expect("read")).into_owned());
    }
    all.push(std::fs::read_to_string(format!("/proc/{}/cmdline", bench.pid())).expect("a command line"));
    assert!(all.iter().all(|text| !text.contains(secret)));
}
