//! Artifacts from outside: what the scripts and files mean to the programs that read them.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{command, on_path, skipped, text, tool};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the binary")
}

/// Emits `target` of `profile` into a fresh folder.
fn emit(profile: &str, target: &str, set: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut arguments = vec!["emit", profile, "--target", target, "--out-dir", "."];
    for argument in set {
        arguments.extend(["--set", argument]);
    }
    let output = run(folder.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output));
    folder
}

fn argv(profile: &str, set: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut arguments = vec!["plan", profile, "--format", "json"];
    for argument in set {
        arguments.extend(["--set", argument]);
    }
    let plan: serde_json::Value = serde_json::from_slice(&run(folder.path(), &arguments).stdout).expect("a plan");
    serde_json::from_value(plan["engine"]["argv"].clone()).expect("argv")
}

/// A program named `name` that writes its arguments and some of its environment into `folder`, then runs `body`.
fn fake(folder: &Path, name: &str, body: &str) {
    let path = folder.join(name);
    let script = format!(
        "#!/usr/bin/env bash\nline=$(printf '%s\\037' {name} \"$@\"); printf '%s\\n' \"$line\" >> \"$RECORD\"\nprintf '%s=%s\\n' HF_TOKEN \"${{HF_TOKEN-}}\" >> \"$RECORD.env\"\n{body}\n"
    );
    common::write_program(&path, &script);
}

/// The recorded calls, each a list of arguments.
fn calls(record: &Path) -> Vec<Vec<String>> {
    std::fs::read_to_string(record)
        .unwrap_or_default()
        .lines()
        .map(|line| line.trim_end_matches('\u{1f}').split('\u{1f}').map(str::to_owned).collect())
        .collect()
}

/// A value that would end its quotes if anything were quoted wrongly.
const NASTY: &str = r#"engine.extra_args=["--served-model-name", "it's \"$HOME\" `id` $(id) 100% \\ ;&|<>"]"#;

struct Run {
    output: Output,
    calls: Vec<Vec<String>>,
    environment: String,
}

/// Runs docker-run.sh with recording programs on PATH.
fn run_docker_script(folder: &Path, docker: &str) -> Run {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    fake(&bin, "docker", docker);
    fake(&bin, "gcloud", "echo planted-secret-value");
    fake(&bin, "curl", "exit 0");
    fake(&bin, "mkdir", "exit 0");
    let record = folder.join("record");
    let output = Command::new("bash")
        .arg(folder.join("docker-run.sh"))
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("RECORD", &record)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let environment = std::fs::read_to_string(folder.join("record.env")).unwrap_or_default();
    Run { output, calls: calls(&record), environment }
}

/// `docker container inspect` finds nothing, everything else works.
const FRESH: &str = "if [ \"$1 $2\" = 'container inspect' ]; then exit 1; fi; exit 0";

#[test]
fn the_docker_script_passes_every_argument_on() {
    for set in [&[][..], &[NASTY], &["engine.pip=[]"]] {
        let folder = emit("turbo-stable", "docker", set);
        let run = run_docker_script(folder.path(), FRESH);
        assert!(run.output.status.success(), "{}", text(&run.output));
        let call = run.calls.iter().find(|call| call.get(1).is_some_and(|word| word == "run")).expect("docker run");
        let argv = argv("turbo-stable", set);
        let at = call.iter().position(|word| word == "--entrypoint").expect("an entrypoint");
        let engine = if call[at + 1] == argv[0] { &argv[1..] } else { &argv[..] };
        assert_eq!(call[call.len() - engine.len()..], engine[..], "the engine's arguments arrive as they are");
        for pair in [
            ["--network", "host"],
            ["--name", "vllm-gemma4"],
            ["--shm-size", "10gb"],
            ["--volume", "/dev/shm:/dev/shm"],
            ["--env", "VLLM_TPU_BUCKET_PADDING_GAP=512"],
            ["--env", "HF_TOKEN"],
        ] {
            assert!(call.windows(2).any(|window| window == pair), "{pair:?} is not in {call:?}");
        }
        // The secret is in the environment of docker, and nowhere else.
        assert!(run.environment.contains("HF_TOKEN=planted-secret-value"));
        assert!(!text(&run.output).contains("planted-secret-value"));
        assert!(!run.calls.iter().flatten().any(|word| word.contains("planted-secret-value")));
    }
}

/// What the container's shell makes of its arguments when packages are installed first.
#[test]
fn installing_packages_keeps_the_engines_arguments() {
    let folder = emit("turbo-stable", "docker", &[NASTY]);
    let run = run_docker_script(folder.path(), FRESH);
    let call = run.calls.iter().find(|call| call.get(1).is_some_and(|word| word == "run")).expect("docker run");
    let at = call.iter().position(|word| word == "--entrypoint").expect("an entrypoint");
    assert_eq!(call[at + 1], "/bin/bash");
    let bin = folder.path().join("bin");
    fake(&bin, "python3", "exit 0");
    fake(&bin, "vllm", "exit 0");
    let record = folder.path().join("inner");
    let status = Command::new("/bin/bash")
        .args(&call[at + 3..])
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("RECORD", &record)
        .status()
        .expect("bash");
    assert!(status.success());
    let inner = calls(&record);
    assert_eq!(
        inner[0],
        ["python3", "-m", "pip", "install", "--", "git+https://github.com/huggingface/transformers.git"]
    );
    assert_eq!(inner[1], argv("turbo-stable", &[NASTY]));
}

#[test]
fn the_docker_script_says_what_is_wrong() {
    let folder = emit("turbo-stable", "docker", &[]);
    let there = run_docker_script(folder.path(), "exit 0");
    assert!(
        !there.output.status.success() && text(&there.output).contains("is there already"),
        "{}",
        text(&there.output)
    );
    assert!(there.calls.iter().all(|call| call[0] != "gcloud"), "no secret is fetched for nothing");
}

#[test]
fn the_compose_file_means_the_plan_to_compose_itself() {
    let Some(compose) = on_path("docker-compose") else {
        skipped("docker-compose is not installed");
        return;
    };
    for (profile, set) in [
        ("turbo-stable", &[NASTY][..]),
        ("31b-v6e-8", &[]),
        ("e4b-b200", &[]),
        ("e2b-v6e-1", &["secrets.hf_token={ env = \"MY_TOKEN\" }"]),
    ] {
        let folder = emit(profile, "compose", set);
        let output = Command::new(&compose)
            .args(["-f", "compose.yaml", "config"])
            .current_dir(folder.path())
            .env("MY_TOKEN", "from-the-environment")
            .output()
            .expect("docker-compose");
        assert!(output.status.success(), "{profile}: {}", text(&output));
        // What Compose prints has `$` doubled again.
        let parsed: serde_json::Value = serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).expect("YAML");
        let service = &parsed["services"]["gemma4"];
        let command: Vec<String> = service["command"]
            .as_array()
            .expect("a command")
            .iter()
            .map(|word| word.as_str().expect("text").replace("$$", "$"))
            .collect();
        let argv = argv(profile, set);
        let engine = if service["entrypoint"][0] == "/bin/bash" { &argv[..] } else { &argv[1..] };
        assert_eq!(command[command.len() - engine.len()..], engine[..], "{profile}");
        assert_eq!(service["network_mode"], "host");
        if !set.is_empty() && profile == "e2b-v6e-1" {
            assert_eq!(service["environment"]["HF_TOKEN"], "from-the-environment");
        }
    }
}

#[test]
fn scripts_pass_shellcheck() {
    let Some(checker) = tool("shellcheck") else { return };
    for (profile, set) in [
        ("turbo-stable", &[NASTY][..]),
        ("e4b-b200", &[]),
        ("e2b-v6e-1", &["secrets.hf_token={ env = \"MY_TOKEN\" }"]),
        ("e2b-v6e-1", &["secrets.api_key={ file = \"/run/my key\" }"]),
    ] {
        let folder = emit(profile, "docker", set);
        let output =
            Command::new(&checker).arg("docker-run.sh").current_dir(folder.path()).output().expect("shellcheck");
        assert!(output.status.success(), "{profile}: {}", text(&output));
        assert!(
            Command::new("bash")
                .args(["-n", "docker-run.sh"])
                .current_dir(folder.path())
                .status()
                .expect("bash")
                .success()
        );
    }
}

/// Reads a command line as systemd does: C-like double quotes, `%%` and `$$`.
fn systemd_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut characters = line.chars().peekable();
    while let Some(&next) = characters.peek() {
        if next.is_whitespace() {
            characters.next();
            continue;
        }
        let mut word = String::new();
        let mut quoted = false;
        while let Some(&next) = characters.peek() {
            match next {
                '"' => {
                    quoted = !quoted;
                    characters.next();
                }
                '\\' => {
                    characters.next();
                    match characters.next() {
                        Some('n') => word.push('\n'),
                        Some(other) => word.push(other),
                        None => {}
                    }
                }
                c if c.is_whitespace() && !quoted => break,
                c => {
                    word.push(c);
                    characters.next();
                }
            }
        }
        words.push(word.replace("%%", "%").replace("$$", "$"));
    }
    words
}

#[test]
fn the_systemd_unit_means_the_plan() {
    let folder = emit("turbo-stable", "systemd", &[NASTY]);
    let unit = std::fs::read_to_string(folder.path().join("vllm-gemma4.service")).expect("the unit");
    let joined = unit.replace("\\\n", " ");
    let line = joined.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
    let words = systemd_words(line);
    let argv = argv("turbo-stable", &[NASTY]);
    assert_eq!(words[words.len() - argv.len()..], argv[..]);
    let keys: BTreeMap<&str, &str> = joined.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(keys["EnvironmentFile"], "/etc/gemma4ctl/vllm-gemma4.env");
    // The bundled engine runs without a container.
    let folder = emit("smoke", "systemd", &[]);
    let unit = std::fs::read_to_string(folder.path().join("gemma4-smoke.service")).expect("the unit");
    assert!(unit.contains("ExecStart=/usr/local/bin/gemma4ctl runtime serve /etc/gemma4ctl/gemma4-smoke.plan.json"));
}

#[test]
fn the_serve_command_reads_back() {
    let folder = emit("turbo-stable", "vllm-args", &[NASTY]);
    let json: Vec<String> =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("vllm-args.json")).expect("JSON"))
            .expect("a list");
    assert_eq!(json, argv("turbo-stable", &[NASTY]));
    let bin = folder.path().join("bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    fake(&bin, "vllm", "env > \"$RECORD.all\"");
    let record = folder.path().join("record");
    let status = Command::new("bash")
        .arg(folder.path().join("vllm-args.sh"))
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("RECORD", &record)
        .status()
        .expect("bash");
    assert!(status.success());
    assert_eq!(calls(&record)[0], json);
    assert!(
        std::fs::read_to_string(folder.path().join("record.all"))
            .expect("the environment")
            .contains("VLLM_TPU_BUCKET_PADDING_GAP=512")
    );
}

#[test]
fn what_cannot_be_made_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let unfit = [
        "emit",
        "31b-v6e-8",
        "--set",
        "hardware.accelerator=v6e-1",
        "--set",
        "parallelism.tensor=1",
        "--target",
        "docker",
        "--out-dir",
        "out",
    ];
    let output = run(here, &unfit);
    assert!(output.status.code() == Some(1) && text(&output).contains("--allow-unfit"), "{}", text(&output));
    assert!(!here.join("out").exists());
    let mut allowed = unfit.to_vec();
    allowed.push("--allow-unfit");
    assert!(run(here, &allowed).status.success());
    for (arguments, code, words) in [
        (&["emit", "turbo-stable", "--target", "podman"][..], 2, "possible values"),
        (&["emit", "smoke", "--target", "vllm-args"], 2, "the bundled engine reads the plan file"),
        (&["emit", "smoke", "--target", "docker"], 2, "names no image"),
        (&["emit", "turbo-stable", "--target", "docker", "--out-dir", "/proc/nowhere"], 2, "cannot make the folder"),
        (&["emit", "turbo-stable", "--target", "docker", "--templates", "nowhere"], 2, "no folder of templates"),
    ] {
        let output = run(here, arguments);
        assert!(
            output.status.code() == Some(code) && text(&output).contains(words),
            "{arguments:?}: {}",
            text(&output)
        );
        assert!(output.stdout.is_empty());
    }
    // A plan file works as a profile does, and a changed one is refused.
    assert!(run(here, &["plan", "turbo-stable", "--out", "plan.json"]).status.success());
    let from_plan = run(here, &["emit", "plan.json", "--target", "docker"]);
    assert_eq!(from_plan.stdout, run(here, &["emit", "turbo-stable", "--target", "docker"]).stdout);
    let changed =
        std::fs::read_to_string(here.join("plan.json")).expect("the plan").replace("\"port\": 8000", "\"port\": 8001");
    std::fs::write(here.join("plan.json"), changed).expect("a file");
    let refused = run(here, &["emit", "plan.json", "--target", "docker"]);
    assert!(
        refused.status.code() == Some(2) && text(&refused).contains("changed after it was written"),
        "{}",
        text(&refused)
    );
}

#[test]
fn a_users_template_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("config/templates")).expect("a folder");
    std::fs::write(folder.path().join("config/templates/compose.yaml.j2"), "mine: {{ service.name }}\n")
        .expect("a file");
    let output = run(folder.path(), &["emit", "turbo-stable", "--target", "compose"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "mine: vllm-gemma4\n");
    std::fs::write(folder.path().join("config/templates/compose.yaml.j2"), "{{ service.nmae }}\n").expect("a file");
    let output = run(folder.path(), &["emit", "turbo-stable", "--target", "compose"]);
    assert!(output.status.code() == Some(2) && text(&output).contains("line 1"), "{}", text(&output));
}
