//! Launches in a container of this machine.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use super::http::{self, Answer, HEALTH_TIMEOUT, Readiness};
use super::secrets::{API_KEY, Values};
use super::state::{Fingerprint, Launch};
use super::tools::{self, DOCKER, failed};
use super::{Decision, Found, LaunchError, Life, Place, Progress, Reason, Say, hash};
use crate::emit::Service;

/// The label that says which plan a container runs, and that it is ours. `emit` writes it too.
const LABEL: &str = "gemma4ctl.digest";

/// A container, or the wish for one.
pub(super) struct Docker {
    service: Service,
    values: Values,
    /// Its id, once it is known.
    id: Option<String>,
    /// How often Docker had started it again when the wait began.
    restarts: u64,
}

/// What Docker says of a container.
struct Container {
    id: String,
    running: bool,
    restarts: u64,
    exit_code: i64,
    digest: Option<String>,
}

impl Docker {
    pub(super) fn new(service: Service) -> Self {
        Docker { service, values: Values::default(), id: None, restarts: 0 }
    }

    /// One of which no more is known.
    pub(super) fn named(name: &str, base_url: &str) -> Self {
        let health_url = format!("{base_url}/health");
        Docker::new(Service {
            name: name.to_owned(),
            health_url,
            base_url: base_url.to_owned(),
            stop_seconds: 120,
            ..Service::default()
        })
    }

    fn name(&self) -> &str {
        &self.service.name
    }

    fn inspect(&self) -> Result<Option<Container>, LaunchError> {
        let name = self.name();
        let what = format!("docker container inspect {name}");
        let output = DOCKER.command(["container", "inspect", name]).output()?;
        if !output.status.success() {
            let absent = String::from_utf8_lossy(&output.stderr).to_lowercase().contains("no such container");
            return if absent { Ok(None) } else { Err(failed(&what, &output)) };
        }
        let all = tools::parse(&what, &output.stdout)?;
        let Some(container) = all.get(0) else { return Ok(None) };
        let state = &container["State"];
        let (Some(id), Some(running)) = (container["Id"].as_str(), state["Running"].as_bool()) else {
            let message = "it says neither `Id` nor `State.Running`".to_owned();
            return Err(LaunchError::Tool { command: what, message });
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

    /// Ends a container of ours: it may finish what it answers, as long as its own stop timeout says.
    fn remove(&self, found: &Found, say: Say<'_>) -> Result<(), LaunchError> {
        // By id: a container that took the name in the meantime is not meant.
        if found.life == Life::Up {
            say(&format!(
                "stopping the container {} (up to {} s for running requests)",
                self.name(),
                self.service.stop_seconds
            ));
            DOCKER.command(["stop", &found.id]).done("docker stop")?;
        }
        DOCKER.command(["rm", "--force", &found.id]).done("docker rm").map(drop)
    }

    /// Starts the container. What Docker says meanwhile (a pull takes minutes) goes to stderr.
    fn start(&mut self) -> Result<(), LaunchError> {
        let mut call = DOCKER.command(["run", "--detach", "--name", self.name()]);
        call.command.args(self.service.docker_detached.iter().flatten()).stderr(Stdio::inherit());
        self.values.pass_to(&mut call.command);
        let output = call.done("docker run")?;
        self.id = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(())
    }

    /// Ends the wait for a container that ended, with its last lines. It is stopped, since Docker would start it again
    /// and again.
    fn still_runs(&self, say: Say<'_>) -> Result<(), LaunchError> {
        let name = self.name();
        let Some(container) = self.inspect()? else { return Err(LaunchError::Gone(self.subject())) };
        if container.running && container.restarts <= self.restarts {
            return Ok(());
        }
        let lines = ["container", "logs", "--tail", "40", &container.id];
        let output = DOCKER.command(lines).done("docker container logs")?;
        for stream in [&output.stdout, &output.stderr] {
            let text = self.values.mask(&String::from_utf8_lossy(stream));
            text.lines().for_each(|line| say(&format!("  {line}")));
        }
        DOCKER.command(["container", "stop", &container.id]).done("docker container stop")?;
        Err(LaunchError::Stopped {
            what: format!("the container {name}"),
            how: format!("exit code {}", container.exit_code),
        })
    }
}

impl Place for Docker {
    fn service(&self) -> &Service {
        &self.service
    }

    fn subject(&self) -> String {
        format!("the container {}", self.name())
    }

    fn fingerprint(&self) -> Fingerprint {
        let words = self.service.docker_detached.iter().flatten().map(String::as_str);
        Fingerprint { machine: String::new(), service: hash(words) }
    }

    fn look(&self) -> Result<Option<Found>, LaunchError> {
        let found = self.inspect()?.map(|container| Found {
            life: if container.running { Life::Up } else { Life::Ended },
            state: if container.running { "running" } else { "stopped" }.to_owned(),
            digest: container.digest,
            id: container.id,
        });
        Ok(found)
    }

    fn answers(&self, found: &Found) -> bool {
        found.life == Life::Up && http::health(&self.service.health_url, HEALTH_TIMEOUT) == Answer::Fine
    }

    fn foreign(&self) -> LaunchError {
        let name = self.name().to_owned();
        let help = format!(
            "rename it, remove it with `docker rm {name}`, or give the launch another name with `deploy.docker.name`"
        );
        LaunchError::Foreign { what: "a container named", name, help }
    }

    fn change(&self, reason: Reason, _: &Found, _: Option<&Launch>) -> Result<Decision, LaunchError> {
        Ok(Decision::Replace(reason))
    }

    fn prepare(&mut self, decision: Decision, found: Option<&Found>) -> Result<(), LaunchError> {
        if decision == Decision::Await {
            let key = self.service.secrets.iter().filter(|secret| secret.variable == API_KEY);
            self.values = Values::fetch(key)?;
            self.id = found.map(|found| found.id.clone());
            self.restarts = self.inspect()?.map_or(0, |container| container.restarts);
            return Ok(());
        }
        self.values = Values::fetch(self.service.secrets.iter())?;
        for volume in self.service.volumes.iter().filter(|volume| !volume.file) {
            std::fs::create_dir_all(&volume.host)
                .map_err(|error| LaunchError::Folder { path: volume.host.clone().into(), error })?;
        }
        if !found.is_some_and(|found| found.life == Life::Up) {
            port_is_free(self.service.port)?;
        }
        Ok(())
    }

    fn act(&mut self, _: Decision, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        if let Some(found) = found {
            self.remove(found, say)?;
            port_is_free(self.service.port)?;
        }
        say(&format!("starting the container {}", self.name()));
        self.start()
    }

    fn ids(&self) -> BTreeMap<String, String> {
        self.id.iter().map(|id| ("container".to_owned(), id.clone())).collect()
    }

    fn progress(&mut self, left: Duration, say: Say<'_>) -> Result<Progress, LaunchError> {
        self.still_runs(say)?;
        let text = match http::ready(&self.service, &self.values, left)? {
            Readiness::Ready => {
                // The one that answered is the one that was started.
                self.still_runs(say)?;
                return Ok(Progress::Ready);
            }
            Readiness::NotYet(text) => text,
            Readiness::Silent => "the server does not listen yet: it loads weights and compiles".to_owned(),
        };
        Ok(Progress::Waiting { phase: "the server", limit: self.service.ready_seconds, text })
    }

    fn pause(&self, waited: Duration) -> Duration {
        Duration::from_millis(if waited < Duration::from_secs(10) { 250 } else { 2000 })
    }

    fn logs(&self, follow: bool) -> Result<ExitStatus, LaunchError> {
        let mut call = DOCKER.command(["container", "logs"]);
        if follow {
            call.command.arg("--follow");
        }
        call.command.arg(self.name());
        call.pass_through()
    }

    fn deletions(&self, found: Option<&Found>) -> Result<Vec<String>, LaunchError> {
        let name = self.name();
        Ok(match found {
            None => Vec::new(),
            Some(found) if found.digest.is_some() => vec![format!("delete the container {name}")],
            Some(_) => vec![format!("keep the container {name}: gemma4ctl did not start it")],
        })
    }

    fn delete(&self, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        match found {
            Some(found) if found.digest.is_some() => self.remove(found, say),
            _ => Ok(()),
        }
    }
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
