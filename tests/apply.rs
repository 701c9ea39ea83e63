//! Launches from outside: with a recording `docker` and an engine inside the test, then with the real Docker Engine.

#![cfg(unix)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Outcome, skipped};

const NAME: &str = "test-launch";

/// Nothing that `redact` would know by its shape.
const SECRET: &str = "planted secret value";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/apply").join(name)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// A machine with a recording `docker` and a `gcloud`. Its engine listens while the container runs, as a real one does.
struct Machine {
    folder: tempfile::TempDir,
    port: u16,
    end: Arc<AtomicBool>,
    engine: Option<JoinHandle<()>>,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (fake, bin) = (folder.path().join("fake"), folder.path().join("bin"));
        [&fake, &bin].into_iter().for_each(|path| std::fs::create_dir(path).expect("a folder"));
        std::fs::copy(fixture("docker"), bin.join("docker")).expect("a script");
        script(
            &bin.join("gcloud"),
            &format!(
                "printf '%s\\037' gcloud \"$@\" >> \"$FAKE/calls\"; printf '\\n' >> \"$FAKE/calls\"; echo '{SECRET}'"
            ),
        );
        let port = free_port();
        let end = Arc::new(AtomicBool::new(false));
        let (ended, engine) = (Arc::clone(&end), fake);
        let engine = std::thread::spawn(move || serve(&engine, port, &ended));
        Machine { folder, port, end, engine: Some(engine) }
    }

    fn fake(&self, name: &str) -> PathBuf {
        self.folder.path().join("fake").join(name)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join("state/launches").join(NAME).join(name)
    }

    fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.state("launch.json")).expect("a record")).expect("JSON")
    }

    /// Changes the record as a crash might have left it.
    fn set_status(&self, status: &str) {
        let mut record = self.record();
        record["status"] = status.into();
        std::fs::write(self.state("launch.json"), record.to_string()).expect("the record");
    }

    fn command(&self, path: &str, arguments: &[&str]) -> Command {
        let mut command = common::command(self.folder.path(), arguments);
        command
            .env("PATH", path)
            .env("FAKE", self.folder.path().join("fake"))
            .env("GEMMA4CTL_STATE_DIR", self.folder.path().join("state"))
            .env("GEMMA4CTL_READY_SECONDS", if self.fake("mute").exists() { "2" } else { "20" })
            // A proxy is never asked about this machine.
            .env("http_proxy", "http://127.0.0.1:1");
        command
    }

    fn run_with(&self, path: &str, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(path, arguments))
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(&self.path(), arguments)
    }

    fn path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.folder.path().join("bin").display())
    }

    /// `apply` of a profile that fits, on this machine's port.
    fn apply_arguments(&self, more: &[&str]) -> Vec<String> {
        settings(self.folder.path(), self.port, NAME, "gemma4ctl-test")
            .into_iter()
            .chain(more.iter().map(|&word| word.to_owned()))
            .collect()
    }

    fn apply(&self, more: &[&str]) -> Outcome {
        let arguments = self.apply_arguments(more);
        self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn calls(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.fake("calls")).unwrap_or_default();
        text.lines().map(|line| line.trim_end_matches('\u{1f}').split('\u{1f}').map(str::to_owned).collect()).collect()
    }

    /// The calls that change something, by their first word; forgets all calls.
    fn changes(&self) -> Vec<String> {
        let calls = self.calls();
        let _ = std::fs::remove_file(self.fake("calls"));
        let docker = calls.into_iter().filter(|call| call[0] == "docker");
        docker.map(|call| call[1].clone()).filter(|word| word != "container").collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.engine.take().into_iter().for_each(|engine| drop(engine.join()));
    }
}

fn settings(folder: &Path, port: u16, name: &str, image: &str) -> Vec<String> {
    let mut words: Vec<String> = ["apply", "e2b-v6e-1", "--target", "docker"].map(str::to_owned).to_vec();
    for setting in [
        format!("engine.image=\"{image}\""),
        "engine.pip=[]".to_owned(),
        format!("server.port={port}"),
        "server.host=\"127.0.0.1\"".to_owned(),
        format!("cache.compile=\"{}\"", folder.join("compile").display()),
        format!("cache.weights=\"{}\"", folder.join("weights").display()),
        "secrets.hf_token={gcp_secret=\"hf-token\"}".to_owned(),
        format!("deploy.docker.name=\"{name}\""),
    ] {
        words.extend(["--set".to_owned(), setting]);
    }
    words
}

fn script(path: &Path, body: &str) {
    common::write_program(path, &format!("#!/usr/bin/env bash\n{body}\n"));
}

fn serve(fake: &Path, port: u16, end: &AtomicBool) {
    let mut listener = None;
    while !end.load(Ordering::Relaxed) {
        if !fake.join("running").exists() {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(("127.0.0.1", port)).ok();
            listener.iter().for_each(|listener| listener.set_nonblocking(true).expect("a listener"));
        }
        match listener.as_ref().map(TcpListener::accept) {
            Some(Ok((stream, _))) => drop(answer(&stream, fake)),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(stream: &TcpStream, fake: &Path) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let status = if first.starts_with("GET /health ") {
        if fake.join("mute").exists() { "503 Service Unavailable" } else { "200 OK" }
    } else {
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let right = first.starts_with("POST /v1/completions ")
            && body["model"] == "google/gemma-4-E2B-it"
            && body["prompt"] == "Hello"
            && body["max_tokens"] == 1;
        if right && !fake.join("refuses").exists() { "200 OK" } else { "400 Bad Request" }
    };
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}")
}

#[test]
fn a_launch_from_beginning_to_end() {
    let machine = Machine::new();
    let outcome = machine.apply(&["--yes"]).is(0, "create  test-launch");
    assert_eq!(outcome.stdout.lines().last(), Some(machine.url().as_str()), "{}", outcome.all());
    assert_eq!(machine.record()["status"], "running");
    assert_eq!(machine.record()["ids"]["container"], "fake-id");
    assert!(machine.folder.path().join("weights").is_dir(), "the folders of the volumes are made");
    assert_eq!(machine.changes(), ["run"]);

    let outcome = machine.apply(&[]).is(0, "nothing to do");
    assert_eq!(outcome.stdout, format!("{}\n", machine.url()));
    assert!(machine.changes().is_empty());

    assert!(machine.run(&["status"]).is(0, "").stdout.contains("running and healthy"));
    let status = machine.run(&["status", NAME, "--format", "json"]).is(0, "");
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["launches"][0]["digest"], status["launches"][0]["running_digest"]);
    machine.run(&["logs", NAME]).is(0, "the last line");

    let outcome = machine.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(0, "replace test-launch");
    assert!(outcome.stderr.contains("scheduler.max_num_seqs"), "the difference is shown: {}", outcome.all());
    assert_eq!(machine.changes(), ["stop", "rm", "run"]);

    // The plan's digest leaves out [deploy], and a change there is taken over all the same.
    let other = ["--yes", "--set", "scheduler.max_num_seqs=128", "--set", "deploy.docker.shm_size=\"3gb\""];
    machine.apply(&other).is(0, "other settings of `[deploy]`");
    assert_eq!(machine.changes(), ["stop", "rm", "run"]);
    machine.apply(&other).is(0, "nothing to do");

    machine.run(&["destroy", NAME]).is(2, "--yes");
    assert!(machine.fake("container").exists());
    machine.run(&["destroy", NAME, "--yes"]).is(0, "delete the container test-launch");
    assert!(!machine.fake("container").exists() && !machine.state("").exists());
    machine.run(&["destroy", NAME, "--yes"]).is(2, "there is no launch");
    machine.run(&["status", NAME]).is(2, "there is no launch");
    machine.run(&["logs", NAME]).is(2, "there is no launch");
    machine.run(&["status"]).is(0, "nothing is launched");
}

#[test]
fn a_container_of_somebody_else_stays() {
    let machine = Machine::new();
    let foreign = r#"[{"Id":"theirs","State":{"Running":true},"Config":{"Labels":null}}]"#;
    std::fs::write(machine.fake("container"), foreign).expect("a container");
    machine.apply(&["--yes"]).is(1, "gemma4ctl did not start");
    assert!(machine.changes().is_empty() && !machine.state("launch.json").exists());
}

#[test]
fn a_crash_is_understood() {
    let machine = Machine::new();
    machine.apply(&["--yes"]).is(0, "");
    // After docker run, before the record said so: the container is taken over, without a question.
    machine.set_status("creating");
    machine.changes();
    assert!(machine.run(&["status", NAME]).is(0, "").stdout.contains("cut off"));
    machine.apply(&[]).is(0, "was cut off; the container test-launch is there");
    assert!(machine.changes().is_empty());
    assert_eq!(machine.record()["status"], "running");
    // Of another plan: replaced.
    machine.set_status("creating");
    machine.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(0, "replace");
    assert_eq!(machine.changes(), ["stop", "rm", "run"]);
    // Before docker run.
    machine.set_status("creating");
    for name in ["container", "running"] {
        std::fs::remove_file(machine.fake(name)).expect("a file");
    }
    assert!(machine.run(&["status"]).is(0, "").stdout.contains("gone"));
    machine.apply(&["--yes"]).is(0, "the container test-launch is not there");
    assert_eq!(machine.changes(), ["run"]);
    // Between the plan and the record: the plan is not the record's, and is not compared with.
    std::fs::write(machine.state("plan.json"), "{").expect("a plan");
    machine.apply(&["--yes", "--set", "scheduler.max_num_seqs=64"]).is(0, "replace");
}

#[test]
fn killed_while_it_waits() {
    let machine = Machine::new();
    std::fs::write(machine.fake("mute"), "").expect("a file");
    let arguments = machine.apply_arguments(&["--yes"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = machine.command(&machine.path(), &arguments);
    let mut child = command
        .env("GEMMA4CTL_READY_SECONDS", "600")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary");
    for _ in 0..1000 {
        if machine.state("launch.json").exists() && machine.record()["ids"]["container"] == "fake-id" {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Nobody else works on it meanwhile.
    machine.apply(&["--yes"]).is(1, "another gemma4ctl is at work");
    machine.run(&["destroy", NAME, "--yes"]).is(1, "another gemma4ctl is at work");
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(machine.record()["status"], "creating");
    machine.changes();
    std::fs::remove_file(machine.fake("mute")).expect("a file");
    machine.apply(&[]).is(0, "was cut off; the container test-launch is there");
    assert!(machine.changes().is_empty());
    assert_eq!(machine.record()["status"], "running");
}

#[test]
fn a_record_that_cannot_be_read_is_reported() {
    let machine = Machine::new();
    machine.apply(&["--yes"]).is(0, "");
    for text in ["", "{\"format\":", "[]", "{\"format\":\"gemma4ctl.launch/9\"}", "\u{0}\u{1}"] {
        std::fs::write(machine.state("launch.json"), text).expect("a record");
        machine.changes();
        machine.apply(&["--yes"]).is(1, "launch.json is not a record of a launch");
        assert!(machine.changes().is_empty());
        assert!(machine.run(&["status"]).is(0, "launch.json is not a record").stdout.contains(NAME));
    }
    machine.run(&["destroy", NAME, "--yes"]).is(0, "delete the container");
    assert!(!machine.state("launch.json").exists());
}

#[test]
fn a_launch_that_fails_says_why() {
    let machine = Machine::new();
    std::fs::write(machine.fake("stops"), "").expect("a file");
    let outcome = machine.apply(&["--yes"]).is(1, "the last line");
    assert!(outcome.stderr.contains("exit code 3") && outcome.stdout.is_empty(), "{}", outcome.all());
    assert!(!outcome.stderr.contains(SECRET), "{}", outcome.all());
    assert_eq!(machine.record()["status"], "failed");
    assert!(machine.run(&["status"]).is(0, "").stdout.contains("stopped"));

    std::fs::remove_file(machine.fake("stops")).expect("a file");
    std::fs::write(machine.fake("mute"), "").expect("a file");
    machine.changes();
    machine.apply(&["--yes"]).is(1, "not ready after 2 s: /health answers with status 503");
    assert_eq!(machine.record()["status"], "failed");
    assert_eq!(machine.changes(), ["rm", "run"]);
    assert!(machine.run(&["status"]).is(0, "").stdout.contains("running, not ready"));

    std::fs::remove_file(machine.fake("mute")).expect("a file");
    std::fs::write(machine.fake("refuses"), "").expect("a file");
    machine.apply(&[]).is(1, "refuses a completion (status 400)");
    std::fs::remove_file(machine.fake("refuses")).expect("a file");
    machine.apply(&[]).is(0, "is ready");
    assert!(machine.changes().is_empty());
}

#[test]
fn nothing_is_changed_without_a_yes() {
    let machine = Machine::new();
    machine.apply(&[]).is(2, "no terminal");
    let outcome = machine.apply(&["--dry-run"]).is(0, "");
    assert!(outcome.stdout.contains("create  test-launch"), "{}", outcome.all());
    assert!(machine.calls().iter().all(|call| call[1..3] == ["container", "inspect"]));
    assert!(!machine.state("").exists());
}

#[test]
fn what_is_missing_is_named() {
    let machine = Machine::new();
    let arguments = machine.apply_arguments(&["--yes"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let empty = machine.folder.path().join("empty");
    machine.run_with(&empty.display().to_string(), &arguments).is(1, "docs.docker.com");
    std::fs::remove_file(machine.folder.path().join("bin/gcloud")).expect("gcloud");
    if !["/usr/bin/gcloud", "/bin/gcloud"].iter().any(|path| Path::new(path).exists()) {
        machine.run(&arguments).is(1, "cloud.google.com/sdk");
    }
    machine.apply(&["--yes", "--set", "secrets.hf_token={env=\"NOT_SET\"}"]).is(1, "NOT_SET");
    assert!(machine.changes().is_empty() && !machine.state("launch.json").exists());
    machine.run(&["apply", "smoke", "--target", "docker"]).is(2, "bundled");
    machine.apply(&["--set", "deploy.docker.name=\"--privileged\""]).is(1, "deploy.docker.name");
}

#[test]
fn another_server_on_the_port_is_not_taken_for_the_engine() {
    let machine = Machine::new();
    let _other = TcpListener::bind(("127.0.0.1", machine.port)).expect("the port");
    machine.apply(&["--yes"]).is(1, "is taken");
    assert!(machine.changes().is_empty());
}

#[test]
fn a_secret_stands_nowhere() {
    let machine = Machine::new();
    let outcome = machine.apply(&["--yes"]).is(0, "");
    assert_eq!(std::fs::read_to_string(machine.fake("token")).expect("a token"), SECRET, "docker gets it");
    assert!(!outcome.all().contains(SECRET));
    let calls = std::fs::read_to_string(machine.fake("calls")).expect("calls");
    assert!(calls.contains("--secret=hf-token") && calls.contains("--env\u{1f}HF_TOKEN\u{1f}"), "{calls}");
    assert!(!calls.contains(SECRET));
    for name in ["launch.json", "plan.json"] {
        assert!(!std::fs::read_to_string(machine.state(name)).expect("a file").contains(SECRET));
    }
}

/// Removes the container and the image, also after a failure.
struct Cleanup(String);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for arguments in [["rm", "--force"], ["rmi", "--force"]] {
            let _ = Command::new("docker").args(arguments).arg(&self.0).output();
        }
    }
}

#[test]
fn the_real_docker_engine() {
    let info = Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]).output();
    if !info.as_ref().is_ok_and(|info| info.status.success() && info.stdout.len() > 1) {
        skipped("no Docker Engine answers; install and start docker");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let bin = folder.path().join("root/usr/bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition=2024", "-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-o"])
        .arg(bin.join("vllm"))
        .arg(fixture("server.rs"))
        .output()
        .expect("rustc");
    if !built.status.success() {
        skipped("no static program can be linked; install libc6-dev");
        return;
    }
    let name = format!("gemma4ctl-test-{}", std::process::id());
    let cleanup = Cleanup(name.clone());
    let tar = folder.path().join("root.tar");
    let packed = Command::new("tar").arg("-C").arg(folder.path().join("root")).arg("-cf").arg(&tar).arg("usr").status();
    assert!(packed.expect("tar").success());
    let imported = Command::new("docker").arg("import").arg(&tar).arg(&name).output().expect("docker");
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));

    // Where the engine itself runs without all privileges (a container, a small VM), it cannot hand them on.
    let mut path = std::env::var("PATH").expect("PATH");
    let probe = ["run", "--rm", "--privileged", "--entrypoint", "vllm", &name];
    if Command::new("docker").args(probe).output().expect("docker").status.code() == Some(125) {
        skipped("this Docker Engine refuses --privileged, so the real container runs without it");
        let real = std::env::split_paths(&path).map(|folder| folder.join("docker")).find(|path| path.is_file());
        let body = format!(
            "words=(); for word; do [ \"$word\" = --privileged ] || words+=(\"$word\"); done; exec {} \"${{words[@]}}\"",
            real.expect("docker").display()
        );
        let shim = folder.path().join("shim");
        std::fs::create_dir(&shim).expect("a folder");
        script(&shim.join("docker"), &body);
        path = format!("{}:{path}", shim.display());
    }

    let port = free_port();
    let gemma4ctl = |arguments: &[String]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"))
            .args(arguments)
            .current_dir(folder.path())
            .env("GEMMA4CTL_CONFIG_DIR", folder.path().join("config"))
            .env("GEMMA4CTL_STATE_DIR", folder.path().join("state"))
            .env("GEMMA4CTL_READY_SECONDS", "60")
            .env("PATH", &path)
            .env("GEMMA4CTL_TEST_TOKEN", SECRET)
            .stdin(Stdio::null())
            .output()
            .expect("the binary");
        Outcome::from(output)
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut apply = settings(folder.path(), port, &name, &name);
    apply.extend(words(&["--set", "secrets.hf_token={env=\"GEMMA4CTL_TEST_TOKEN\"}", "--yes"]));

    let outcome = gemma4ctl(&apply).is(0, "is ready");
    assert_eq!(outcome.stdout.lines().last(), Some(format!("http://127.0.0.1:{port}").as_str()));
    assert!(gemma4ctl(&words(&["status", &name])).is(0, "").stdout.contains("running and healthy"));
    assert!(gemma4ctl(&words(&["logs", &name])).is(0, "").stdout.contains("token true"));
    gemma4ctl(&apply).is(0, "nothing to do");
    apply.extend(words(&["--set", "scheduler.max_num_seqs=128"]));
    gemma4ctl(&apply).is(0, "replace");
    gemma4ctl(&words(&["destroy", &name, "--yes"])).is(0, "delete the container");
    let gone = Command::new("docker").args(["container", "inspect", &name]).output().expect("docker");
    assert!(!gone.status.success(), "the container is gone");

    // One that ends at once, which Docker would start again and again.
    apply.extend(words(&["--set", "engine.env.TEST_END=\"1\""]));
    gemma4ctl(&apply).is(1, "asked to end");
    assert!(gemma4ctl(&words(&["status", &name])).is(0, "").stdout.contains("stopped"));
    gemma4ctl(&words(&["destroy", &name, "--yes"])).is(0, "delete the container");
    drop(cleanup);
}

/// Copies the libraries that `program` loads to where it looks for them below `root`.
fn copy_libraries(program: &Path, root: &Path) {
    let listed = Command::new("ldd").arg(program).output().expect("ldd");
    for path in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::copy(path, to).expect("copied");
    }
}

#[test]
fn the_bundled_engine_in_a_container_of_the_real_docker_engine() {
    let info = Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]).output();
    if !info.as_ref().is_ok_and(|info| info.status.success() && info.stdout.len() > 1) {
        skipped("no Docker Engine answers; install and start docker");
        return;
    }
    let plugin = gemma4_pjrt::install::find(gemma4_pjrt::install::Target::Cpu).expect("the place of plugins");
    let Some(plugin) = plugin else {
        skipped("no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    for name in ["usr/bin", "opt", "tmp"] {
        std::fs::create_dir_all(root.join(name)).expect("a folder");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_gemma4ctl"));
    std::fs::copy(binary, root.join("usr/bin/gemma4ctl")).expect("copied");
    std::fs::copy(&plugin.path, root.join("opt/plugin.so")).expect("copied");
    copy_libraries(binary, &root);
    copy_libraries(&plugin.path, &root);
    let name = format!("gemma4ctl-bundled-{}", std::process::id());
    let cleanup = Cleanup(name.clone());
    let tar = folder.path().join("root.tar");
    assert!(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().expect("tar").success());
    let variable = "ENV GEMMA4CTL_PJRT_CPU=/opt/plugin.so";
    let imported = Command::new("docker").args(["import", "--change", variable]).arg(&tar).arg(&name).output();
    let imported = imported.expect("docker");
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));

    let port = free_port();
    let gemma4ctl = |arguments: &[&str]| {
        let output = Command::new(binary)
            .args(arguments)
            .env("GEMMA4CTL_CONFIG_DIR", folder.path().join("config"))
            .env("GEMMA4CTL_STATE_DIR", folder.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .expect("the binary");
        Outcome::from(output)
    };
    let sets = [
        format!("server.port={port}"),
        format!("engine.image=\"{name}\""),
        format!("deploy.docker.name=\"{name}\""),
        "scheduler.max_num_batched_tokens=16".to_owned(),
        "scheduler.max_num_seqs=8".to_owned(),
        "scheduler.max_model_len=512".to_owned(),
    ];
    let mut apply = vec!["apply", "smoke", "--target", "docker", "--yes"];
    apply.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    let outcome = gemma4ctl(&apply).is(0, "is ready");
    assert_eq!(outcome.stdout.lines().last(), Some(format!("http://127.0.0.1:{port}").as_str()));
    let status = gemma4ctl(&["status", &name]).is(0, "").stdout;
    assert!(status.contains("running and healthy") && !status.contains("differs"), "{status}");
    assert!(gemma4ctl(&["logs", &name]).is(0, "").stderr.contains("/v1/completions"));
    let alive = ["exec", &name, "gemma4ctl", "runtime", "health", &format!("http://127.0.0.1:{port}/health")];
    let alive = Command::new("docker").args(alive).output().expect("docker");
    assert!(alive.status.success(), "{}", String::from_utf8_lossy(&alive.stderr));
    gemma4ctl(&apply).is(0, "nothing to do");
    gemma4ctl(&["destroy", &name, "--yes"]).is(0, "delete the container");
    drop(cleanup);
}
