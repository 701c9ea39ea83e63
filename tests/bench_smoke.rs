//! The diagonal of the sweep on the profile `smoke` as it is, with the bundled engine on XLA's CPU plugin: equal work at
//! every point, from one user with a long context to many with short ones. The whole sweep is a bench (docs/bench.md).
#![cfg(target_os = "linux")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Outcome, skipped};
use gemma4_pjrt::install::{Target, find};
use serde_json::Value;

/// A launch of `smoke` that ends with this.
struct Launch {
    folder: tempfile::TempDir,
}

impl Launch {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"));
        command.args(arguments).stdin(Stdio::null()).current_dir(self.folder.path());
        command.env("GEMMA4CTL_STATE_DIR", self.folder.path().join("state"));
        command.env("GEMMA4CTL_CONFIG_DIR", self.folder.path().join("config"));
        command.env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments))
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let _ = self.command(&["destroy", "smoke", "--yes"]).output();
    }
}

#[test]
fn every_point_of_the_diagonal_passes_and_none_is_slow_for_its_shape() {
    if find(Target::Cpu).expect("the place of plugins").is_none() {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        skipped("no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        return;
    }
    let launch = Launch { folder: tempfile::tempdir().expect("a folder") };
    let port = TcpListener::bind(("127.0.0.1", 0)).expect("a port").local_addr().expect("an address").port();
    // Compiled once, for the next run of this test too.
    let programs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-smoke");
    let port = format!("server.port={port}");
    let cache = format!("cache.compile={}", programs.display());
    let apply = ["apply", "smoke", "--target", "local", "--detach", "--yes", "--set", &port, "--set", &cache];
    launch.run(&apply).is(0, "gemma4-smoke.local is ready");

    // 2,048 tokens at each of nine points; the last three of the full diagonal take minutes without optimisation.
    let users = "1,2,4,8,16,32,64,128,256";
    let contexts = "8,16,32,64,128,256,512,1024,2048";
    let sweep = ["bench", "smoke", "--diagonal", "--users", users, "--contexts", contexts];
    let outcome = launch.run(&sweep).is(0, "9 points: 9 passed");
    let run: Value =
        serde_json::from_slice(&std::fs::read(launch.folder.path().join("bench.json")).expect("a run")).expect("JSON");
    assert_eq!(run["endpoint"]["kv_pool"]["tokens"], 262_144);
    assert_eq!(run["endpoint"]["plan"]["profile"], "smoke");
    let mut requests = 0;
    for point in run["points"].as_array().expect("points") {
        let (figures, users) = (&point["figures"], point["load"]["users"].as_u64().expect("users"));
        requests += users;
        assert_eq!(figures["succeeded"], users);
        assert_eq!(figures["cached_prompt_tokens"], 0, "no two prompts share a beginning: {point}");
        let tokens = |name: &str| figures[name].as_u64().expect("a count");
        assert_eq!(tokens("prompt_tokens") + tokens("output_tokens"), 2048, "context is both together");
    }
    assert_eq!(requests, 511);
    // Nine points with a request of warm-up each, and one to see that it is ready.
    let url = run["endpoint"]["url"].as_str().expect("an address");
    let mut metrics = ureq::get(format!("{url}/metrics")).call().expect("metrics");
    let metrics = metrics.body_mut().read_to_string().expect("text");
    let counted: u64 = metrics
        .lines()
        .filter(|line| line.starts_with("vllm:request_success_total{"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum();
    assert_eq!(counted, 511 + 9 + 1, "the engine counts the same requests");

    let report = launch.run(&["bench", "report", "bench.json", "--format", "json"]).is(0, "").json();
    assert_eq!(report["spikes"], serde_json::json!([[]]), "{}", outcome.all());
}
