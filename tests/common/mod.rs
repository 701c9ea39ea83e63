//! What tests of the binary share.

// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod gcloud;
pub mod gke;
pub mod rig;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The profiles in `folder` of the repository, in order.
pub fn profiles_in(folder: &str) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(root().join(folder)).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// The shipped profiles and those that they extend.
pub fn profiles() -> Vec<PathBuf> {
    [profiles_in("profiles"), profiles_in("profiles/base")].concat()
}

/// Says that a part of a test is left out: on stderr past the harness's capture, where CI counts it.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "\nskipped: {why}");
}

/// Puts a program at `path`. Another process writes it: a child that a test beside this one starts meanwhile would inherit a descriptor
/// that is open for writing, and as long as it holds it the kernel does not run the file.
pub fn write_program(path: &Path, script: &str) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut child = shell.spawn().expect("a shell");
    child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("a script");
    assert!(child.wait().expect("the shell").success());
}

/// The program `name` on PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A tool of `.ci/tools.txt`, from `.tools` or PATH; says loudly when it is absent.
pub fn tool(name: &str) -> Option<PathBuf> {
    let local = root().join(".tools/venv/bin").join(name);
    let found = if local.is_file() { Some(local) } else { on_path(name) };
    if found.is_none() {
        skipped(&format!("{name} is not installed; `.ci/install-tools` installs it"));
    }
    found
}

/// The binary in `folder`, with nothing of the user's configuration.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("GEMMA4CTL_CONFIG_DIR", folder.join("config"))
        .stdin(Stdio::null());
    command
}

/// Both streams of a program.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a program came to.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Self {
        command.output().expect("the program starts").into()
    }

    /// Everything, to show.
    pub fn all(&self) -> String {
        format!("exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}", self.code, self.stdout, self.stderr)
    }

    /// The result as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.all()))
    }

    /// Holds it against an exit code and a part of stderr.
    #[track_caller]
    pub fn is(self, code: i32, stderr: &str) -> Self {
        assert!(self.code == code && self.stderr.contains(stderr), "wanted {code} and `{stderr}`: {}", self.all());
        self
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Outcome {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}
