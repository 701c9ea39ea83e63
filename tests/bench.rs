//! `bench` from outside, against an endpoint whose delays and failures the test knows.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/endpoint.rs"]
mod endpoint;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::Outcome;
use endpoint::{Endpoint, Fate, Manner};
use gemma4ctl::bench::point::{CONTEXTS, Grid, Load, USERS};
use serde_json::{Value, json};

/// A folder for runs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().expect("a folder"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = common::command(self.0.path(), arguments);
        command.env("GEMMA4CTL_STATE_DIR", self.0.path().join("state"));
        command
    }

    fn bench(&self, endpoint: &Endpoint, arguments: &[&str]) -> Command {
        let url = endpoint.url();
        self.command(&[&["bench", url.as_str(), "--seed", "5"], arguments].concat())
    }

    fn run(&self, endpoint: &Endpoint, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.bench(endpoint, arguments))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Value {
        let text = std::fs::read(self.path(name)).expect("a run");
        serde_json::from_slice(&text).expect("JSON at any moment")
    }
}

fn statuses(run: &Value) -> Vec<&str> {
    run["points"].as_array().expect("points").iter().map(|point| point["status"].as_str().expect("a status")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn every_figure_is_what_the_endpoint_did() {
    let milliseconds = Duration::from_millis;
    let endpoint = Endpoint::new(Manner { first: milliseconds(300), gap: milliseconds(40), ..Manner::default() });
    let place = Place::new();
    let outcome = place.run(
        &endpoint,
        &["--users", "4", "--contexts", "12", "--output-tokens", "5", "--requests-per-user", "2", "--warm-up", "3"],
    );
    let outcome = outcome.is(0, "1 point: 1 passed");
    assert!(outcome.stdout.contains("tokens/s"), "{}", outcome.all());
    let run = place.read("bench.json");
    let point = &run["points"][0];
    assert_eq!((&point["prompt_tokens"], &point["output_tokens"]), (&json!(7), &json!(5)));
    let figures = &point["figures"];
    for (name, wanted) in [
        ("requests", 8),
        ("succeeded", 8),
        ("prompt_tokens", 8 * 7),
        ("cached_prompt_tokens", 8),
        ("output_tokens", 8 * 5),
        ("chunks", 8 * 5),
    ] {
        assert_eq!(figures[name], wanted, "{name}: {figures}");
    }
    // Each user waits twice for 300 ms and four gaps of 40 ms; what comes later is this machine's doing.
    let at_least = |pointer: &str, seconds: f64| {
        let found = number(figures.pointer(pointer).expect(pointer));
        assert!(found >= seconds - 0.003 && found < seconds * 1.5 + 0.5, "{pointer} is {found}, not {seconds}");
    };
    at_least("/ttft/p50", 0.3);
    at_least("/inter_token/p50", 0.04);
    at_least("/end_to_end/min", 0.46);
    at_least("/seconds", 0.92);
    assert_eq!(figures["chunk_gap"]["count"], 8 * 4);
    let seconds = number(&figures["seconds"]);
    assert!((number(&figures["output_tokens_per_second"]) - 40.0 / seconds).abs() < 1e-9);
    assert!((number(&figures["prompt_tokens_per_second"]) - 48.0 / seconds).abs() < 1e-9);
    assert!((number(&figures["requests_per_second"]) - 8.0 / seconds).abs() < 1e-9);

    let asked = endpoint.asked();
    assert_eq!(asked.len(), 3 + 8, "warm-up is sent and not counted");
    let prompts: Vec<Vec<u64>> =
        asked.iter().map(|body| serde_json::from_value(body["prompt"].clone()).expect("ids")).collect();
    assert!(prompts.iter().all(|prompt| prompt.len() == 7 && prompt.iter().all(|id| (100..150).contains(id))));
    let beginnings: HashSet<u64> = prompts.iter().map(|prompt| prompt[0]).collect();
    assert_eq!(beginnings.len(), 11, "no prompt begins as another does");
    assert!(asked.iter().all(|body| body["ignore_eos"] == true && body["max_tokens"] == 5 && body["stream"] == true));
}

#[test]
fn failures_are_counted_by_their_reason_and_are_in_no_percentile() {
    let fate = |number: usize| match number {
        0 => Fate::RateLimited,
        1 => Fate::Broken,
        2 => Fate::CutOff,
        3 => Fate::ErrorInStream,
        4 => Fate::Short,
        5 => Fate::NoUsage,
        6 => Fate::Silent,
        7 => Fate::RateLimited,
        _ => Fate::Answered,
    };
    let endpoint = Endpoint::new(Manner { fate, ..Manner::default() });
    let place = Place::new();
    let outcome = place
        .run(&endpoint, &["--users", "12", "--contexts", "8", "--warm-up", "0", "--timeout", "2", "--format", "json"]);
    let outcome = outcome.is(1, "1 point: 0 passed, 1 failed");
    let run = outcome.json();
    assert_eq!(run, place.read("bench.json"));
    let figures = &run["points"][0]["figures"];
    assert_eq!((&figures["requests"], &figures["succeeded"]), (&json!(12), &json!(4)));
    assert_eq!((&figures["output_tokens"], &figures["prompt_tokens"]), (&json!(16), &json!(16)));
    assert_eq!(figures["end_to_end"]["count"], 4);
    let failures = figures["failures"].as_array().expect("failures");
    let found = |reason: &str| -> (u64, &str) {
        let failure = failures.iter().find(|failure| failure["reason"] == reason);
        let failure = failure.unwrap_or_else(|| panic!("{reason}: {failures:?}"));
        (failure["count"].as_u64().expect("a count"), failure["example"].as_str().expect("an example"))
    };
    assert_eq!(found("rate-limited"), (2, "status 429, come back after 7 s: the queue is full."));
    assert_eq!(found("server-error"), (1, "status 500: out of memory"));
    assert!(found("cut-off").1.starts_with("the stream broke after 2 pieces"), "{failures:?}");
    assert_eq!(found("error-in-stream"), (1, "the step failed"));
    assert_eq!(found("wrong-count"), (1, "4 output tokens were asked for, and the endpoint counts 3"));
    assert!(found("not-understood").1.contains("no `usage`"));
    assert_eq!(found("timed-out"), (1, "no end after 2 s"));
    assert_eq!(failures.len(), 7);
}

#[test]
fn an_open_loop_does_not_wait_for_answers() {
    let endpoint = Endpoint::new(Manner { first: Duration::from_millis(800), ..Manner::default() });
    let place = Place::new();
    place.run(&endpoint, &["--rates", "40", "--seconds", "1", "--contexts", "8"]).is(0, "1 point: 1 passed");
    let figures = &place.read("bench.json")["points"][0]["figures"];
    assert_eq!(figures["requests"], 40);
    // One after another they would take 32 seconds.
    let seconds = number(&figures["seconds"]);
    assert!((0.8..8.0).contains(&seconds), "{seconds}");
}

#[test]
fn ctrl_c_keeps_what_was_measured_and_resume_goes_on() {
    let endpoint = Endpoint::new(Manner { first: Duration::from_millis(200), ..Manner::default() });
    let place = Place::new();
    let arguments = ["--users", "1,2", "--contexts", "8,16", "--warm-up", "0", "--requests-per-user", "3"];
    let start = |more: &[&str]| {
        let mut command = place.bench(&endpoint, &[&arguments[..], more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let first = start(&[]);
    // The second point is under way.
    endpoint.wait_for(4);
    let busy = place.run(&endpoint, &[&arguments[..], &["--resume"]].concat());
    busy.is(2, "another `gemma4ctl bench` writes bench.json");
    let signal = |pid: u32, name: &str| {
        assert!(Command::new("kill").args([name, &pid.to_string()]).status().expect("kill").success());
    };
    signal(first.id(), "-INT");
    let outcome: Outcome = first.wait_with_output().expect("an end").into();
    outcome.is(1, "interrupted").is(1, "the same command with `--resume` goes on");
    let kept = place.read("bench.json");
    assert_eq!(statuses(&kept), ["passed", "waiting", "waiting", "waiting"]);

    // Killed without a word, the file is whole too.
    let before = endpoint.asked().len();
    let mut second = start(&["--resume"]);
    endpoint.wait_for(before + 4);
    signal(second.id(), "-KILL");
    second.wait().expect("an end");
    let killed = place.read("bench.json");
    assert_eq!(statuses(&killed), ["passed", "passed", "waiting", "waiting"]);
    assert_eq!(killed["points"][0], kept["points"][0], "nothing is measured twice");

    place.run(&endpoint, &arguments).is(2, "`--resume` goes on with the run in it");
    place.run(&endpoint, &["--resume", "--users", "1"]).is(2, "bench.json is another run: what is asked for was");
    let before = endpoint.asked().len();
    place.run(&endpoint, &[&arguments[..], &["--resume"]].concat()).is(0, "4 points: 4 passed");
    assert_eq!(endpoint.asked().len() - before, 12, "two points with two users");
    let run = place.read("bench.json");
    assert_eq!(statuses(&run), ["passed"; 4]);
    assert!(run["ended"].is_string());
}

#[test]
fn points_that_do_not_fit_are_skipped_by_name() {
    let metrics = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"4\"} 1.0\n";
    let endpoint = Endpoint::new(Manner { metrics: metrics.to_owned(), ..Manner::default() });
    let place = Place::new();
    let grid = ["--users", "1,4", "--contexts", "8,32,8192"];
    place.run(&endpoint, &grid).is(0, "6 points: 3 passed, 3 skipped");
    let run = place.read("bench.json");
    assert_eq!(statuses(&run), ["passed", "passed", "skipped", "passed", "skipped", "skipped"]);
    assert_eq!(run["points"][2]["reason"], "a sequence has at most 4,096 tokens");
    assert_eq!(run["points"][4]["reason"], "128 tokens do not fit the KV pool of 64");
    assert_eq!(run["endpoint"]["kv_pool"], json!({ "tokens": 64, "from": "/metrics" }));

    let more = [&grid[..], &["--kv-tokens", "128", "--out", "more.json"]].concat();
    place.run(&endpoint, &more).is(0, "6 points: 4 passed, 2 skipped");
    let info = json!({ "profile": "p", "settings": { "digest": "sha256:00" }, "kv_tokens": 32 });
    let ours = Endpoint::new(Manner { info: Some(info), ..Manner::default() });
    place.run(&ours, &[&grid[..], &["--out", "ours.json"]].concat()).is(0, "6 points: 3 passed, 3 skipped");
    let run = place.read("ours.json");
    assert_eq!(run["endpoint"]["plan"], json!({ "profile": "p", "digest": "sha256:00" }));
    assert_eq!(run["name"], "p");

    // A plan that it does not run.
    let plan = place.command(&["plan", "smoke", "--out", "plan.json"]).output().expect("a plan");
    assert!(plan.status.success());
    let wrong = place.run(&ours, &["--plan", "plan.json", "--out", "wrong.json"]);
    wrong.is(2, "the endpoint runs the plan sha256:00 (p), not sha256:");
}

#[test]
fn an_endpoint_that_goes_away_ends_the_sweep_and_not_the_run() {
    let mut endpoint = Endpoint::new(Manner { first: Duration::from_millis(100), ..Manner::default() });
    let place = Place::new();
    let mut command = place.bench(&endpoint, &["--users", "1", "--contexts", "8,16,32", "--requests-per-user", "5"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    endpoint.wait_for(8);
    endpoint.end();
    let outcome: Outcome = child.wait_with_output().expect("an end").into();
    let outcome = outcome.is(1, "the endpoint is gone").is(1, "`--resume` goes on");
    let run = place.read("bench.json");
    assert_eq!(statuses(&run)[0], "passed", "{}", outcome.all());
    assert_eq!(statuses(&run)[2], "waiting", "what nobody answers is not measured");
}

#[test]
fn what_is_wrong_is_said_at_once() {
    let place = Place::new();
    let run = |arguments: &[&str]| Outcome::of(&mut place.command(&[&["bench"], arguments].concat()));
    run(&[]).is(2, "<ENDPOINT>");
    run(&["http://127.0.0.1:1"]).is(1, "http://127.0.0.1:1/v1/models does not answer: Connection refused");
    run(&["127.0.0.1:1"]).is(2, "neither an address that begins with http:// or https:// nor a launch");
    run(&["smoke"]).is(2, "`smoke` is not launched");
    run(&["ftp://host"]).is(2, "is not the address of an endpoint");
    run(&["http://host", "--users", "0"]).is(2, "0 is not in 1..=1000000");
    run(&["http://host", "--rates", "0"]).is(2, "it is no number above 0");
    run(&["http://host", "--rates", "1", "--users", "1"]).is(2, "cannot be used with");
    run(&["http://host", "--note", "x"]).is(2, "`--note x` is not KEY=VALUE");
    run(&["http://host", "--resume"]).is(2, "cannot read bench.json");
    run(&["http://host", "--api-key-env", "NOT_SET"]).is(2, "the variable NOT_SET is not set");
    run(&["report"]).is(2, "<RUN>");
    run(&["report", "none.json"]).is(2, "cannot read none.json");
    std::fs::write(place.path("other.json"), "{\"format\": \"x/1\"}").expect("a file");
    run(&["report", "other.json"]).is(2, "its format is \"x/1\", not \"gemma4ctl.bench/1\"");

    let endpoint = Endpoint::new(Manner { key: Some("sesame"), ..Manner::default() });
    let url = endpoint.url();
    run(&[&url]).is(1, "status 401: no key; `--api-key-env VARIABLE` names the variable with the key");
    let mut command = place.command(&["bench", &url, "--users", "1", "--contexts", "8", "--api-key-env", "SESAME"]);
    let outcome = Outcome::of(command.env("SESAME", "sesame")).is(0, "1 passed");
    assert!(!outcome.all().contains("sesame"), "{}", outcome.all());
    assert!(!std::fs::read_to_string(place.path("bench.json")).expect("a run").contains("sesame"));

    let bare = Endpoint::new(Manner { tokenizes: false, ..Manner::default() });
    place.run(&bare, &["--out", "b.json"]).is(1, "gives no token ids to make prompts of (status 404)");
    let ids = ["--out", "b.json", "--users", "1", "--contexts", "8", "--token-ids", "7-9", "--model", "other"];
    place.run(&bare, &ids).is(0, "1 passed");
    assert!(bare.asked().iter().all(|body| body["model"] == "other"));
    place.run(&bare, &["--out", "c.json", "--model", "none"]).is(1, "does not serve `none`; it serves `fake`, `other`");
}

#[test]
fn the_smoke_profile_has_room_for_116_of_the_144_points() {
    let analysis = gemma4ctl::plan::analyze("smoke", &[]).expect("a profile");
    let plan = analysis.plan().expect("a plan");
    assert_eq!((plan.scheduler.max_model_len, plan.kv_cache.tokens), (16384, 262_144));
    let grid = Grid { loads: USERS.map(Load::Users).to_vec(), contexts: CONTEXTS.to_vec(), diagonal: false };
    let fits = grid
        .points()
        .filter(|point| point.does_not_fit(Some(plan.scheduler.max_model_len), Some(plan.kv_cache.tokens)).is_none());
    assert_eq!((grid.points().count(), fits.count()), (144, 116));
}
