//! The bundled engine as a process of this machine.
//!
//! It outlives the program that starts it: it has a process group of its own, and its log goes to a file of the launch.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::http::{self, Answer, HEALTH_TIMEOUT, Readiness};
use super::interrupt;
use super::process::Process;
use super::secrets::{API_KEY, Values};
use super::state::{Fingerprint, Launch};
use super::{Decision, Found, LaunchError, Life, Place, Progress, Reason, Say, hash};
use crate::emit::Service;

/// Lines of the log that are shown of a process that ended.
const LAST_LINES: usize = 40;

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(200);

/// A process of this machine.
pub(super) struct Local {
    service: Service,
    /// Folder of the launch, with the plan, the log and what the process says of itself.
    folder: PathBuf,
    /// Folder of the weights.
    checkpoint: Option<PathBuf>,
    values: Values,
    child: Option<Child>,
    process: Option<Process>,
}

impl Local {
    /// The process of a launch whose files are in `folder`.
    pub(super) fn new(service: Service, folder: PathBuf, checkpoint: Option<PathBuf>) -> Self {
        let mut local = Local { service, folder, checkpoint, values: Values::default(), child: None, process: None };
        if let Some(process) = Process::read(&local.folder) {
            local.reach_at(&process);
        }
        local
    }

    /// One of which no more is known than the folder: enough to look at it and to end it.
    pub(super) fn found(name: &str, folder: PathBuf, base_url: &str, checkpoint: Option<PathBuf>) -> Self {
        let service = Service {
            name: name.to_owned(),
            health_url: format!("{base_url}/health"),
            base_url: base_url.to_owned(),
            stop_seconds: 120,
            ..Service::default()
        };
        Local::new(service, folder, checkpoint)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Takes over where a process answers, which a plan with port 0 leaves open.
    fn reach_at(&mut self, process: &Process) {
        self.service.base_url.clone_from(&process.base_url);
        self.service.health_url = format!("{}/health", process.base_url);
        self.process = Some(process.clone());
    }

    fn start(&mut self) -> Result<(), LaunchError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| LaunchError::Folder { path, error }
        };
        let path = self.log();
        let log = File::create(&path).map_err(failed(&path))?;
        let record = Process::file(&self.folder);
        match std::fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&record)(error)),
            _ => {}
        }
        let program = std::env::current_exe().map_err(failed(Path::new("a process of this program")))?;
        let mut command = Command::new(&program);
        command.args(["runtime", "serve"]).arg(self.folder.join("plan.json"));
        command.arg("--record").arg(&record);
        command.args(self.checkpoint.iter().flat_map(|folder| [Path::new("--checkpoint"), folder]));
        command.envs(&self.service.env);
        self.values.pass_to(&mut command);
        let errors = log.try_clone().map_err(failed(&path))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        self.child = Some(command.spawn().map_err(failed(&program))?);
        Ok(())
    }

    /// Ends the wait for a process that ended, with the last lines of its log.
    fn still_runs(&mut self, say: Say<'_>) -> Result<(), LaunchError> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait().ok().flatten().map(how),
            None => self.process.as_ref().filter(|process| !process.runs()).map(|_| "it is gone".to_owned()),
        };
        let Some(how) = ended else { return Ok(()) };
        let text = std::fs::read(self.log()).unwrap_or_default();
        let text = self.values.mask(&String::from_utf8_lossy(&text));
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(LAST_LINES)).for_each(|line| say(&format!("  {line}")));
        Err(LaunchError::Stopped { what: self.subject(), how })
    }

    /// Ends what this program started and nobody knows yet.
    fn end_child(&mut self) {
        if let Some(child) = &mut self.child {
            // It has no requests yet. It may have ended by itself, and then there is nothing to end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The last line of the log, which says how far the start is.
    fn last_line(&self) -> String {
        let text = tail(&self.log(), 4096).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.unwrap_or("it starts");
        // A line of the log begins with time and level.
        let words = last.split_once(" INFO ").map_or(last, |(_, words)| words);
        self.values.mask(words).trim().to_owned()
    }
}

impl Place for Local {
    fn service(&self) -> &Service {
        &self.service
    }

    fn subject(&self) -> String {
        match &self.process {
            Some(process) => format!("the process {}", process.pid),
            None => "a process of this machine".to_owned(),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let checkpoint = self.checkpoint.as_ref().map(|folder| folder.display().to_string()).unwrap_or_default();
        let words = self.service.env.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let service = hash(words.chain([checkpoint.as_str(), env!("CARGO_PKG_VERSION")]));
        Fingerprint { machine: String::new(), service }
    }

    fn look(&self) -> Result<Option<Found>, LaunchError> {
        Ok(Process::read(&self.folder).map(|process| {
            let runs = process.runs();
            Found {
                id: process.pid.to_string(),
                life: if runs { Life::Up } else { Life::Ended },
                state: if runs { "running" } else { "stopped" }.to_owned(),
                digest: Some(process.digest),
            }
        }))
    }

    fn answers(&self, found: &Found) -> bool {
        found.life == Life::Up && http::health(&self.service.health_url, HEALTH_TIMEOUT) == Answer::Fine
    }

    fn foreign(&self) -> LaunchError {
        let help = "end it, or give the profile another name".to_owned();
        LaunchError::Foreign { what: "a process", name: self.folder.display().to_string(), help }
    }

    fn change(&self, reason: Reason, _: &Found, _: Option<&Launch>) -> Result<Decision, LaunchError> {
        Ok(Decision::Replace(reason))
    }

    fn prepare(&mut self, decision: Decision, found: Option<&Found>) -> Result<(), LaunchError> {
        let secrets = self.service.secrets.iter();
        if decision == Decision::Await {
            self.values = Values::fetch(secrets.filter(|secret| secret.variable == API_KEY))?;
            return Ok(());
        }
        self.values = Values::fetch(secrets)?;
        if !found.is_some_and(|found| found.life == Life::Up) {
            port_is_free(self.service.port)?;
        }
        Ok(())
    }

    fn act(&mut self, _: Decision, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        if let Some(found) = found {
            self.delete(Some(found), say)?;
            port_is_free(self.service.port)?;
        }
        say("starting the engine");
        self.process = None;
        self.start()
    }

    fn ids(&self) -> BTreeMap<String, String> {
        let process = self.process.iter().map(|process| ("pid".to_owned(), process.pid.to_string()));
        let checkpoint = self.checkpoint.iter();
        process.chain(checkpoint.map(|folder| ("checkpoint".to_owned(), folder.display().to_string()))).collect()
    }

    fn progress(&mut self, left: Duration, say: Say<'_>) -> Result<Progress, LaunchError> {
        if interrupt::is_asked() {
            self.end_child();
            return Err(LaunchError::Interrupted);
        }
        self.still_runs(say)?;
        if self.process.is_none()
            && let Some(process) = Process::read(&self.folder)
        {
            self.reach_at(&process);
        }
        // Another server on the port would answer in its place.
        let asked = self.process.as_ref().map(|_| http::ready(&self.service, &self.values, left)).transpose()?;
        let text = match asked {
            Some(Readiness::Ready) => {
                self.still_runs(say)?;
                return Ok(Progress::Ready);
            }
            Some(Readiness::NotYet(text)) => text,
            Some(Readiness::Silent) | None => self.last_line(),
        };
        Ok(Progress::Waiting { phase: "the engine", limit: self.service.ready_seconds, text })
    }

    fn pause(&self, waited: Duration) -> Duration {
        Duration::from_millis(if waited < Duration::from_secs(10) { 100 } else { 500 })
    }

    fn logs(&self, follow: bool) -> Result<ExitStatus, LaunchError> {
        let path = self.log();
        let failed = |error| LaunchError::Folder { path: path.clone(), error };
        let mut file = File::open(&path).map_err(failed)?;
        let mut stdout = std::io::stdout().lock();
        loop {
            match std::io::copy(&mut file, &mut stdout).and_then(|_| stdout.flush()) {
                // Whoever reads has read enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                result => result.map_err(failed)?,
            }
            if !follow || !Process::read(&self.folder).is_some_and(|process| process.runs()) {
                break;
            }
            std::thread::sleep(FOLLOW);
        }
        Ok(ExitStatus::from_raw(0))
    }

    fn attend(&mut self, say: Say<'_>) -> Result<(), LaunchError> {
        let Some(mut process) = self.process.clone() else { return Ok(()) };
        let path = self.log();
        let failed = |error| LaunchError::Folder { path: path.clone(), error };
        let mut log = File::open(&path).map_err(failed)?;
        let mut stderr = std::io::stderr();
        let mut asked = false;
        loop {
            let ended = match &mut self.child {
                Some(child) => child.try_wait().map_err(failed)?,
                None if process.runs() => None,
                None => Some(ExitStatus::from_raw(0)),
            };
            // What it wrote last is there by now. Nobody may be there to read it.
            let _ = std::io::copy(&mut log, &mut stderr);
            match ended {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(LaunchError::Ended { what: self.subject(), how: how(status) }),
                None => {}
            }
            if interrupt::is_asked() && !asked {
                asked = true;
                say(&format!("ending {} once its requests are answered; once more ends this program", self.subject()));
                process.ask_to_end().map_err(failed)?;
            }
            process = Process::read(&self.folder).unwrap_or(process);
            std::thread::sleep(FOLLOW);
        }
    }

    fn deletions(&self, found: Option<&Found>) -> Result<Vec<String>, LaunchError> {
        let running = found.filter(|found| found.life == Life::Up);
        Ok(running.map(|found| format!("end the process {}", found.id)).into_iter().collect())
    }

    fn delete(&self, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        let Some(process) = Process::read(&self.folder).filter(Process::runs) else { return Ok(()) };
        if found.is_some() {
            let seconds = self.service.stop_seconds;
            say(&format!("ending the process {} (up to {seconds} s for running requests)", process.pid));
        }
        let what = format!("end process {}", process.pid);
        let failed = |error: std::io::Error| LaunchError::Tool { command: what, message: error.to_string() };
        process.end(Duration::from_secs(self.service.stop_seconds)).map_err(failed)
    }
}

/// Nothing else may have the port, or it would answer in the engine's place.
fn port_is_free(port: u16) -> Result<(), LaunchError> {
    match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
        Ok(_) => Ok(()),
        Err(_) => Err(LaunchError::PortTaken(port)),
    }
}

/// How a process ended.
fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The last bytes of a file as text.
fn tail(path: &Path, bytes: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
