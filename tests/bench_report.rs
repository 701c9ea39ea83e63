//! `bench report`, of runs that are made up: as a table, as CSV, and as a page that a browser draws.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Outcome, on_path, root, skipped};
use gemma4ctl::bench::account::Figures;
use gemma4ctl::bench::endpoint::{Facts, PlanName, Pool};
use gemma4ctl::bench::point::{CONTEXTS, Grid, Load, USERS};
use gemma4ctl::bench::record::{Run, Settings, Status};
use gemma4ctl::bench::request::{Failure, Outcome as Answer, Sample};

/// A full sweep of a service that takes `pace` times as long as it might, with what is wrong at some points.
fn made_up(name: &str, pace: f64, stall: Option<(u64, u64)>, broken: Option<(u64, u64)>) -> Run {
    let grid = Grid { loads: USERS.map(Load::Users).to_vec(), contexts: CONTEXTS.to_vec(), diagonal: false };
    let settings =
        Settings { grid, output_tokens: 16, requests_per_user: 1, seconds: 30.0, warm_up: 1, timeout: 600.0, seed: 7 };
    let endpoint = Facts {
        url: "http://127.0.0.1:8000".to_owned(),
        model: "made/up".to_owned(),
        max_model_len: Some(16384),
        kv_pool: Some(Pool { tokens: 262_144, from: "/server_info".to_owned() }),
        plan: Some(PlanName { profile: name.to_owned(), digest: format!("sha256:{}", "5a".repeat(32)) }),
    };
    let notes = BTreeMap::from([("cold start".to_owned(), "24 min".to_owned())]);
    let mut run = Run::new(name.to_owned(), notes, endpoint, settings);
    run.began = "2026-05-13T08:00:00Z".to_owned();
    run.ended = Some("2026-05-13T09:00:00Z".to_owned());
    for measured in run.points.iter_mut().filter(|measured| measured.status == Status::Waiting) {
        let Load::Users(users) = measured.point.load else { panic!("users") };
        let here = Some((users, measured.point.context));
        let stalled = if here == stall { 132.0 } else { 0.0 };
        let prompt = measured.prompt_tokens as f64;
        let wait = |rank: f64| pace * (0.02 + users as f64 * prompt * 4e-6 * rank) + stalled;
        let gap = pace * (0.004 + users as f64 * 2e-5);
        let outcomes = (0..users).map(|user| {
            let first = wait((user + 1) as f64 / users as f64);
            let end = first + gap * (measured.output_tokens - 1) as f64;
            let sample = Sample {
                ttft: Duration::from_secs_f64(first),
                last: Duration::from_secs_f64(end),
                end_to_end: Duration::from_secs_f64(end),
                gaps: vec![gap; measured.output_tokens as usize - 1],
                chunks: measured.output_tokens,
                prompt_tokens: measured.prompt_tokens,
                cached_tokens: Some(0),
                output_tokens: measured.output_tokens,
            };
            let failure =
                Failure { reason: "server-error", message: "status 500: <script>alert(1)</script>".to_owned() };
            let fails = here == broken && user % 4 == 0;
            Answer { result: if fails { Err(failure) } else { Ok(sample) }, sent_late: Duration::ZERO }
        });
        let seconds = wait(1.0) + gap * measured.output_tokens as f64;
        let figures = Figures::of(outcomes.collect(), Duration::from_secs_f64(seconds));
        measured.status = if figures.passed() { Status::Passed } else { Status::Failed };
        measured.figures = Some(figures);
    }
    run
}

/// Three runs in a folder, as `bench --out` leaves them.
fn three_runs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (file, run) in [
        ("one.json", made_up("baseline", 1.0, None, None)),
        ("two.json", made_up("peak & spike", 0.8, Some((256, 512)), Some((64, 4096)))),
        ("three.json", made_up("turbo-stable", 0.9, None, None)),
    ] {
        std::fs::write(folder.path().join(file), run.to_json().expect("JSON")).expect("a file");
    }
    folder
}

fn report(folder: &Path, more: &[&str]) -> Outcome {
    let arguments = [&["bench", "report", "one.json", "two.json", "three.json"], more].concat();
    Outcome::of(&mut common::command(folder, &arguments))
}

#[test]
fn the_table_compares_runs_and_marks_the_spike() {
    let folder = three_runs();
    let outcome = report(folder.path(), &["--format", "text"]).is(0, "");
    insta::assert_snapshot!(outcome.stdout);
}

#[test]
fn without_a_terminal_lines_have_100_columns_at_most() {
    let folder = three_runs();
    let outcome = report(folder.path(), &["--format", "text"]).is(0, "");
    let widest = outcome.stdout.lines().filter(|line| !line.starts_with("slow")).map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 100), "{widest:?}");
}

#[test]
fn csv_has_a_line_a_point_with_as_many_fields_as_names() {
    let folder = three_runs();
    let outcome = report(folder.path(), &["--format", "csv"]).is(0, "");
    let mut lines = outcome.stdout.split("\r\n");
    let names: Vec<&str> = lines.next().expect("a header").split(',').collect();
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 3 * 144);
    let at = |name: &str| names.iter().position(|found| *found == name).expect("a column");
    let passed: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split(',').collect())
        .filter(|fields: &Vec<&str>| fields[at("status")] == "passed")
        .collect();
    assert_eq!(passed.len(), 3 * 116 - 1);
    assert!(passed.iter().all(|fields| fields.len() == names.len()));
    let spikes: Vec<_> = passed.iter().filter(|fields| fields[at("spike")] == "true").collect();
    assert_eq!(spikes.len(), 1);
    assert_eq!((spikes[0][at("users")], spikes[0][at("context")]), ("256", "512"));
    for fields in &passed {
        let value = |name: &str| fields[at(name)].parse::<f64>().expect("a number");
        assert!((value("output_tokens_per_second") - value("output_tokens") / value("seconds")).abs() < 1e-6);
        assert!(value("ttft_p50") <= value("ttft_p99") && value("ttft_p99") <= value("end_to_end_max"));
    }
}

#[test]
fn json_has_the_runs_as_they_are() {
    let folder = three_runs();
    let value = report(folder.path(), &["--format", "json"]).is(0, "").json();
    let two = std::fs::read(folder.path().join("two.json")).expect("a run");
    assert_eq!(value["runs"][1], serde_json::from_slice::<serde_json::Value>(&two).expect("JSON"));
    assert_eq!(value["spikes"][1][0]["point"]["context"], 512);
}

#[test]
fn the_page_stands_alone_and_trusts_nothing_that_it_shows() {
    let folder = three_runs();
    let page = report(folder.path(), &[]).is(0, "").stdout;
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "an endpoint's message is text");
    assert!(page.contains("peak &amp; spike"));
    for outside in ["src=", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains(&format!("sha256:{}", "5a".repeat(32))));
    assert_eq!(page.matches(" spike\"").count(), 4 + 12, "one cell of each map, and one in each legend");
    assert_eq!(page.matches("<td class=\"skipped\"").count(), 3 * 4 * 28);
}

/// A browser without a window, or a line that says why there is none.
fn browser() -> Option<PathBuf> {
    let own = root().join(".tools/chromium/chromium-headless-shell");
    let names = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
    let found = if own.is_file() { Some(own) } else { names.iter().find_map(|name| on_path(name)) };
    if found.is_none() {
        skipped("no Chromium; `.ci/install-tools` unpacks one");
    }
    found
}

/// The page as the browser draws it: its size, and its pixels as red, green and blue.
fn draw(browser: &Path, page: &Path, theme: &str) -> (u32, u32, Vec<[u8; 3]>) {
    let picture = page.with_extension(format!("{theme}.png"));
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1440,4800"]);
    command.arg(format!("--blink-settings=preferredColorScheme={}", if theme == "dark" { 0 } else { 1 }));
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--screenshot={}", picture.display())).arg(format!("file://{}", page.display()));
    let output = command.output().expect("the browser starts");
    assert!(output.status.success() && picture.is_file(), "{}", common::text(&output));
    let file = std::io::BufReader::new(std::fs::File::open(&picture).expect("a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut bytes).expect("pixels");
    let samples = info.color_type.samples();
    assert!(samples >= 3 && info.bit_depth == png::BitDepth::Eight);
    let pixels = bytes[..info.buffer_size()].chunks_exact(samples).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    (info.width, info.height, pixels.collect())
}

#[test]
fn a_browser_draws_the_maps_in_light_and_dark() {
    let folder = three_runs();
    let page = folder.path().join("report.html");
    report(folder.path(), &["--out", "report.html"]).is(0, "wrote report.html");
    let Some(browser) = browser() else { return };
    // To be looked at.
    let keep = std::env::var_os("BENCH_REPORT_KEEP");
    // The page, the ends of both scales, and the mark of a spike, as the style sheet has them.
    let light = [0xfbfbfa, 0xe9f1f7, 0x0b4f86, 0xfbf1e2, 0x9a3412, 0xc2185b];
    let dark = [0x141517, 0x1c2a36, 0x8ec8f5, 0x2e251a, 0xfdba74, 0xff6fa5];
    for (theme, colours) in [("light", light), ("dark", dark)] {
        let (width, height, pixels) = draw(&browser, &page, theme);
        if let Some(keep) = &keep {
            std::fs::copy(page.with_extension(format!("{theme}.png")), Path::new(keep).join(format!("{theme}.png")))
                .expect("a copy");
            std::fs::copy(&page, Path::new(keep).join("report.html")).expect("a copy");
        }
        assert_eq!((width, height), (1440, 4800));
        for colour in colours {
            let [_, red, green, blue] = u32::to_be_bytes(colour);
            let near = |one: u8, other: u8| one.abs_diff(other) <= 2;
            let alike = |pixel: &&[u8; 3]| near(pixel[0], red) && near(pixel[1], green) && near(pixel[2], blue);
            let count = pixels.iter().filter(alike).count();
            assert!(count > 20, "{theme}: #{colour:06x} is in {count} pixels");
        }
    }
}
