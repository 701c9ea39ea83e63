//! Whole processes: `plan turbo-stable`, and `lint` over a thousand generated profiles.
//!
//! Prints minimum, median and maximum of the wall clock. Not a test: figures depend on the machine.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs that are counted, after one that is not.
const RUNS: usize = 41;

fn main() {
    let folder = std::env::temp_dir().join(format!("gemma4ctl-bench-{}", std::process::id()));
    generate(&folder.join("profiles"), 1000);
    println!("{:<28} {:>9} {:>9} {:>9}", "", "minimum", "median", "maximum");
    measure("plan turbo-stable", &["plan", "turbo-stable"], &folder, RUNS);
    measure("plan turbo-stable, JSON", &["plan", "turbo-stable", "--format", "json"], &folder, RUNS);
    measure("plan smoke", &["plan", "smoke"], &folder, RUNS);
    measure("lint, 1,000 profiles", &["lint", "profiles", "--format", "concise"], &folder, 9);
    measure("lint, 1,000 profiles, SARIF", &["lint", "profiles", "--format", "sarif"], &folder, 9);
    // The folder is in the system's place for temporary files; nothing depends on its removal.
    let _ = std::fs::remove_dir_all(&folder);
}

fn measure(name: &str, arguments: &[&str], folder: &Path, runs: usize) {
    let mut times: Vec<Duration> = (0..=runs).map(|_| once(arguments, folder)).skip(1).collect();
    times.sort_unstable();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    println!(
        "{name:<28} {:>6.2} ms {:>6.2} ms {:>6.2} ms",
        milliseconds(times[0]),
        milliseconds(times[times.len() / 2]),
        milliseconds(times[times.len() - 1])
    );
}

fn once(arguments: &[&str], folder: &Path) -> Duration {
    let start = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the binary starts");
    assert!(status.code() == Some(0), "{arguments:?} ended with {status}");
    start.elapsed()
}

/// Profiles of all models and several accelerators, each with settings of its own.
fn generate(folder: &Path, count: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    let bases = ["turbo-stable", "e2b-v6e-1", "e2b-v6e-4", "e4b-v6e-4", "12b-v6e-4", "31b-v6e-8", "e4b-b200", "smoke"];
    for index in 0..count {
        let base = bases[index % bases.len()];
        let text = format!(
            "name = \"profile-{index}\"\nsummary = \"generated\"\nextends = [\"{base}\"]\n\n[scheduler]\nmax_num_seqs = {}\n\n[memory]\nhbm_utilization = 0.{}\n",
            16 + index % 48,
            80 + index % 10
        );
        std::fs::write(folder.join(format!("profile-{index}.toml")), text).expect("a profile");
    }
}
