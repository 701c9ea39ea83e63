//! Launches in a container of this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use gemma4_plan::Plan;
use serde_json::Value;

use super::http::{self, Answer};
use super::secrets::Values;
use super::state::{Launch, Status, Store};
use super::{Container, Decision, LaunchError, state};
use crate::emit::Service;
use crate::profile::redact;

/// The label that says which plan a container runs, and that it is ours. `emit` writes it too.
const LABEL: &str = "gemma4ctl.digest";

/// The variable from which vLLM takes the key that requests have to show.
const API_KEY: &str = "VLLM_API_KEY";

/// How long an answer to /health may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

fn docker<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null());
    command
}

fn not_started(error: &std::io::Error) -> LaunchError {
    if error.kind() == std::io::ErrorKind::NotFound {
        return LaunchError::MissingTool {
            tool: "docker",
            help: "https://docs.docker.com/engine/install/ tells how to get it",
        };
    }
    LaunchError::Tool { command: "docker".to_owned(), message: error.to_string() }
}

/// Runs `command`, which `what` is short for, and wants it to succeed.
fn done(mut command: Command, what: &str) -> Result<Output, LaunchError> {
    let output = command.output().map_err(|error| not_started(&error))?;
    if output.status.success() { Ok(output) } else { Err(failed(what, &output)) }
}

fn failed(what: &str, output: &Output) -> LaunchError {
    let message = String::from_utf8_lossy(&output.stderr);
    let message = match redact(message.trim()) {
        text if text.is_empty() => output.status.to_string(),
        text => text.into_owned(),
    };
    LaunchError::Tool { command: what.to_owned(), message }
}

/// The container `name`, if there is one.
///
/// # Errors
/// If Docker is missing or does not answer: that is not the same as no container.
pub fn inspect(name: &str) -> Result<Option<Container>, LaunchError> {
    let what = format!("docker container inspect {name}");
    let output = docker(["container", "inspect", name]).output().map_err(|error| not_started(&error))?;
    if !output.status.success() {
        let absent = String::from_utf8_lossy(&output.stderr).to_lowercase().contains("no such container");
        return if absent { Ok(None) } else { Err(failed(&what, &output)) };
    }
    let unclear = |message: String| LaunchError::Tool { command: what.clone(), message };
    let all: Value = serde_json::from_slice(&output.stdout).map_err(|error| unclear(error.to_string()))?;
    let Some(container) = all.get(0) else { return Ok(None) };
    let state = &container["State"];
    let (Some(id), Some(running)) = (container["Id"].as_str(), state["Running"].as_bool()) else {
        return Err(unclear("it says neither `Id` nor `State.Running`".to_owned()));
    };
    Ok(Some(Container {
        id: id.to_owned(),
        // Docker counts a container as running while it waits to start it once more.
        running: running && state["Restarting"] != true,
        restarts: container["RestartCount"].as_u64().unwrap_or(0),
        exit_code: state["ExitCode"].as_i64().unwrap_or(0),
        digest: container["Config"]["Labels"][LABEL].as_str().map(str::to_owned),
    }))
}

/// Whether the server at `base_url` says that it is alive.
pub fn answers(base_url: &str) -> bool {
    http::health(&format!("{base_url}/health"), HEALTH_TIMEOUT) == Answer::Fine
}

/// Prints what the container wrote, to where this program's own output goes.
///
/// # Errors
/// If Docker cannot be started.
pub fn logs(name: &str, follow: bool) -> Result<ExitStatus, LaunchError> {
    let mut command = docker(["container", "logs"]);
    if follow {
        command.arg("--follow");
    }
    command.arg(name).status().map_err(|error| not_started(&error))
}

/// Removes a container of ours.
///
/// # Errors
/// If Docker refuses.
pub fn remove(container: &Container) -> Result<(), LaunchError> {
    // By id: a container that took the name in the meantime is not meant.
    done(docker(["rm", "--force", &container.id]), "docker rm").map(drop)
}

/// Does what was decided, and waits until the service answers.
///
/// # Errors
/// If it did not come to be; the record says so then.
pub fn carry_out(
    decision: Decision,
    container: Option<&Container>,
    plan: &Plan,
    service: &Service,
    store: &Store,
    limit: u64,
    say: &mut dyn FnMut(&str),
) -> Result<(), LaunchError> {
    if !state::is_name(&service.name) {
        return Err(LaunchError::Name(service.name.clone()));
    }
    let mut launch = Launch::new(&service.name, "docker", plan, &service.base_url);
    let mut json = plan.clone();
    let json = gemma4_plan::to_json(&mut json)
        .map_err(|error| LaunchError::Tool { command: "gemma4ctl plan".to_owned(), message: error.to_string() })?;
    let (values, restarts) = match (decision, container) {
        (Decision::Nothing, _) => return Ok(()),
        (Decision::Await, Some(container)) => {
            let key = service.secrets.iter().filter(|secret| secret.variable == API_KEY);
            let values = Values::fetch(key)?;
            launch.container = Some(container.id.clone());
            store.write(&launch, Some(&json))?;
            (values, container.restarts)
        }
        _ => {
            // Whatever can fail beforehand fails before the old container goes.
            let values = Values::fetch(service.secrets.iter())?;
            make_folders(service)?;
            if !container.is_some_and(|container| container.running) {
                port_is_free(service.port)?;
            }
            store.write(&launch, Some(&json))?;
            let started = (|| {
                if let Some(container) = container {
                    say(&format!("removing the container {}", service.name));
                    remove(container)?;
                    port_is_free(service.port)?;
                }
                say(&format!("starting the container {}", service.name));
                start(service, &values)
            })();
            match started {
                Ok(id) => launch.container = Some(id),
                Err(error) => return Err(fail(store, launch, error)),
            }
            store.write(&launch, None)?;
            (values, 0)
        }
    };
    match wait(service, &values, restarts, limit, say) {
        Ok(()) => {
            launch.status = Status::Running;
            store.write(&launch, None)?;
            Ok(())
        }
        Err(error) => Err(fail(store, launch, error)),
    }
}

/// Records that `launch` failed. The error that made it fail is the one to tell.
fn fail(store: &Store, mut launch: Launch, error: LaunchError) -> LaunchError {
    launch.status = Status::Failed;
    match store.write(&launch, None) {
        Ok(()) => error,
        Err(worse) => LaunchError::Tool {
            command: format!("gemma4ctl apply {}", launch.profile),
            message: format!("{error}; moreover {worse}"),
        },
    }
}

fn make_folders(service: &Service) -> Result<(), LaunchError> {
    for volume in &service.volumes {
        std::fs::create_dir_all(&volume.host)
            .map_err(|error| LaunchError::Folder { path: volume.host.clone().into(), error })?;
    }
    Ok(())
}

/// The container shares the machine's network, so that another server on its port would answer in its place.
fn port_is_free(port: u16) -> Result<(), LaunchError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for _ in 0..20 {
        if TcpStream::connect_timeout(&address, HEALTH_TIMEOUT).is_err() {
            return Ok(());
        }
        // A container that was just removed may take a moment to let go.
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(LaunchError::PortTaken(port))
}

/// Starts the container and returns its id. What Docker says meanwhile (a pull takes minutes) goes to stderr.
fn start(service: &Service, values: &Values) -> Result<String, LaunchError> {
    let mut command = docker(["run", "--detach", "--name", &service.name]);
    command.args(service.docker_detached.iter().flatten()).stderr(Stdio::inherit());
    values.pass_to(&mut command);
    let output = done(command, "docker run")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits until /health and one completion answer, the container running all the while.
fn wait(
    service: &Service,
    values: &Values,
    restarts: u64,
    limit: u64,
    say: &mut dyn FnMut(&str),
) -> Result<(), LaunchError> {
    let name = &service.name;
    let begin = Instant::now();
    let deadline = begin + Duration::from_secs(limit);
    let mut spoken = begin;
    let mut last = "the server does not listen yet".to_owned();
    say(&format!("waiting for {} (up to {limit} s; a first start loads weights and compiles)", service.health_url));
    loop {
        still_runs(name, values, restarts, say)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LaunchError::NotReady { name: name.clone(), seconds: limit, last });
        }
        match http::health(&service.health_url, HEALTH_TIMEOUT.min(left)) {
            Answer::Fine => {
                say("the server is alive; asking for one token");
                match http::completion(&service.base_url, &service.model, values.get(API_KEY), left) {
                    Answer::Fine => {
                        // The one that answered is the one that was started.
                        still_runs(name, values, restarts, say)?;
                        return Ok(());
                    }
                    Answer::Status(status, message)
                        if (400..500).contains(&status) && status != 408 && status != 429 =>
                    {
                        return Err(LaunchError::Refused {
                            name: name.clone(),
                            status,
                            message: values.mask(&message),
                        });
                    }
                    Answer::Status(status, _) => last = format!("/v1/completions answers with status {status}"),
                    Answer::None(error) => last = format!("/v1/completions: {error}"),
                }
            }
            Answer::Status(status, _) => last = format!("/health answers with status {status}"),
            Answer::None(_) => {}
        }
        if spoken.elapsed() >= Duration::from_secs(30) {
            spoken = Instant::now();
            say(&format!("still waiting after {} s: {last}", begin.elapsed().as_secs()));
        }
        let pause = if begin.elapsed() < Duration::from_secs(10) { 250 } else { 2000 };
        std::thread::sleep(Duration::from_millis(pause).min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// Ends the wait for a container that ended, with its last lines. It is stopped, since Docker would start it
/// again and again.
fn still_runs(name: &str, values: &Values, restarts: u64, say: &mut dyn FnMut(&str)) -> Result<(), LaunchError> {
    let Some(container) = inspect(name)? else { return Err(LaunchError::Gone(name.to_owned())) };
    if container.running && container.restarts <= restarts {
        return Ok(());
    }
    let output = done(docker(["container", "logs", "--tail", "40", &container.id]), "docker container logs")?;
    for stream in [&output.stdout, &output.stderr] {
        let text = values.mask(&String::from_utf8_lossy(stream));
        text.lines().for_each(|line| say(&format!("  {line}")));
    }
    done(docker(["container", "stop", &container.id]), "docker container stop")?;
    Err(LaunchError::Stopped { name: name.to_owned(), code: container.exit_code })
}
