//! Clients of others: OpenAI's Python package, and schemathesis on the OpenAPI document.
//!
//! Both are in `.ci/tools.txt`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::model::Script;
use crate::setup::{MODEL, Server, Setup, TOKENIZER};

/// Python, if it has a module; says loudly when it has not.
fn python(module: &str) -> Option<Command> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/venv/bin/python");
    let program = if local.is_file() { local } else { PathBuf::from("python3") };
    let found = Command::new(&program).args(["-c", &format!("import {module}")]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(Command::new(program));
    }
    // Past the harness's capture, where CI counts it.
    let _ = writeln!(std::io::stderr(), "\nskipped: no Python package {module}; `.ci/install-tools` installs it");
    None
}

#[track_caller]
fn check(output: &Output) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

/// Runs a script of this folder against a service.
#[track_caller]
fn drive(mut python: Command, script: &str, server: &Server) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http").join(script);
    let output = python.arg(script).arg(format!("http://{}/v1", server.address)).arg(MODEL).output().expect("Python");
    check(&output);
    assert!(output.stdout.ends_with(b"done\n"));
}

#[test]
fn the_openai_client_understands_every_answer() {
    let Some(python) = python("openai") else { return };
    drive(python, "openai_client.py", &Server::new());
}

#[test]
fn the_openai_client_calls_tools() {
    let Some(python) = python("openai") else { return };
    let script = Script::default();
    let says = "<|channel>thought\nIt asks for weather.\n<channel|>One moment.<|tool_call>call:get_weather{city:<|\"|>Paris, \
                \"FR\" {1}<|\"|>,days:3}<tool_call|><|tool_call>call:noop{}<tool_call|><|tool_response>";
    script.say(&TOKENIZER.encode(says, false).expect("tokens"));
    drive(python, "openai_tools.py", &Setup::scripted(&script).start());
}

#[test]
fn schemathesis_finds_nothing() {
    let Some(mut python) = python("schemathesis") else { return };
    // With all that can be switched on.
    let server = Setup::scripted(&Script::default()).start();
    let folder = tempfile::tempdir().expect("a folder");
    python.current_dir(folder.path()).args(["-m", "schemathesis.cli", "run", "--no-color", "--seed=1"]);
    python.args(["--max-examples=60", "--phases=examples,coverage,fuzzing"]);
    // What depends on other fields (`stream_options` needs `stream`) or on the text's tokens is not in the schemas, so that a
    // request that fits them may still be refused.
    python.arg("--exclude-checks=positive_data_acceptance");
    check(&python.arg(format!("http://{}/openapi.json", server.address)).output().expect("Python"));
}
