//! Launches on a TPU machine in Google Cloud, by Compute Engine or as a queued resource.
//!
//! Capacity is what is hard to get, so a machine that is up keeps its capacity: another plan is handed to it as a new
//! startup script. What `emit --target gcloud` writes into its scripts is done here with the same words and flags.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;

use super::completion::{self, Completion};
use super::state::{Fingerprint, Launch};
use super::tools::{Call, GCLOUD, failed, parse};
use super::{Decision, Found, LaunchError, Life, Place, Progress, Reason, Say, hash};
use crate::emit::{MACHINE_LABEL, Machine, MachineLaunch, Service, shell_word};
use crate::profile::redact;

/// How often gcloud may fail in a row while waiting.
const MISSES: u32 = 5;

/// Stops every container of ours, with the time that each one has for its requests, and runs the startup script again.
const RESTART: &str = "containers=$(sudo docker ps --quiet --filter label=gemma4ctl.digest); \
    [ -z \"$containers\" ] || sudo docker stop $containers; \
    sudo rm -f /run/gemma4ctl/failed; sudo systemctl restart --no-block google-startup-scripts.service";

/// A machine, or the wish for one.
pub(super) struct Gcloud {
    machine: Machine,
    service: Service,
    startup: String,
    project: String,
    zone: String,
    misses: u32,
}

impl Gcloud {
    /// Where the plan or else gcloud's own settings say.
    pub(super) fn new(launch: MachineLaunch) -> Result<Self, LaunchError> {
        let setting = |value: &Option<String>, key: &str, what: &'static str, help: &'static str| match value {
            Some(value) => Ok(value.clone()),
            None => {
                // Where it is not set, some versions fail and others print nothing.
                let output = GCLOUD.command(["config", "get-value", key]).output()?;
                let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                if value.is_empty() || value == "(unset)" { Err(LaunchError::Unset { what, help }) } else { Ok(value) }
            }
        };
        let project = setting(
            &launch.machine.project,
            "project",
            "the project",
            "add `deploy.gcloud.project`, or `gcloud config set project NAME`",
        )?;
        let zone = setting(
            &launch.machine.zone,
            "compute/zone",
            "the zone",
            "add `deploy.gcloud.zone`; the script of `emit --target gcloud` lists zones with `zones`",
        )?;
        Ok(Self::with(launch, project, zone))
    }

    /// Where a record says.
    pub(super) fn at(launch: MachineLaunch, ids: &BTreeMap<String, String>) -> Result<Self, LaunchError> {
        match (ids.get("project"), ids.get("zone")) {
            (Some(project), Some(zone)) => {
                let (project, zone) = (project.clone(), zone.clone());
                Ok(Self::with(launch, project, zone))
            }
            _ => Self::new(launch),
        }
    }

    fn with(launch: MachineLaunch, project: String, zone: String) -> Self {
        let MachineLaunch { machine, service, startup } = launch;
        Gcloud { machine, service, startup, project, zone, misses: 0 }
    }

    /// A call of gcloud: `words` are separated by spaces.
    fn gcloud(&self, words: &str, name: &str) -> Call {
        let mut call = GCLOUD.command(words.split(' '));
        call.command.args([name, &format!("--project={}", self.project), &format!("--zone={}", self.zone)]);
        call
    }

    fn api(&self, verb: &str) -> Call {
        self.gcloud(&format!("{} {verb}", self.machine.api), &self.machine.name)
    }

    fn ssh(&self, command: &str) -> Call {
        let mut call = self.gcloud(self.machine.ssh, &self.machine.target);
        call.command
            .arg("--quiet")
            .args(&self.machine.ssh_flags)
            .arg("--ssh-flag=-oConnectTimeout=10")
            .arg(format!("--command={command}"));
        call
    }

    fn describe(&self) -> Result<Option<Value>, LaunchError> {
        let what = format!("gcloud {} describe {}", self.machine.api, self.machine.name);
        described(&what, self.api("describe"))
    }

    /// The label of a queued resource is that of its request; its machine may have been handed another plan since.
    fn digest(&self, description: &Value, life: Life) -> Result<Option<String>, LaunchError> {
        let label = |value: &Value| value["labels"][MACHINE_LABEL].as_str().map(str::to_owned);
        if !self.machine.queued {
            return Ok(label(description));
        }
        if life == Life::Up {
            let what = format!("gcloud compute tpus tpu-vm describe {}", self.machine.target);
            if let Some(node) = described(&what, self.gcloud("compute tpus tpu-vm describe", &self.machine.target))? {
                return Ok(label(&node));
            }
        }
        Ok(label(&description["tpu"]["nodeSpec"][0]["node"]))
    }

    fn life(&self, state: &str) -> Life {
        match (self.machine.queued, state) {
            (true, "ACTIVE") | (false, "RUNNING") => Life::Up,
            (true, "FAILED" | "SUSPENDING" | "SUSPENDED" | "DELETING")
            | (false, "STOPPING" | "STOPPED" | "TERMINATED" | "SUSPENDING" | "SUSPENDED" | "DEPROVISIONING") => {
                Life::Ended
            }
            _ => Life::Coming,
        }
    }

    /// Runs `step` in a folder that holds the startup script.
    fn with_script(&self, step: impl FnOnce(&std::path::Path) -> Result<(), LaunchError>) -> Result<(), LaunchError> {
        let unwritable = |error| LaunchError::Folder { path: std::env::temp_dir(), error };
        let folder = tempfile::tempdir().map_err(unwritable)?;
        let path = folder.path().join("startup.sh");
        std::fs::write(&path, &self.startup).map_err(|error| LaunchError::Folder { path, error })?;
        step(folder.path())
    }

    fn firewall_name(&self) -> String {
        format!("{}-http", self.machine.name)
    }

    fn firewall(&self, verb: &str) -> Call {
        let mut call = GCLOUD.command(["compute", "firewall-rules", verb]);
        if verb != "list" {
            call.command.arg(self.firewall_name());
        }
        call.command.arg(format!("--project={}", self.project));
        call
    }

    fn port_is_open(&self) -> Result<bool, LaunchError> {
        let filter = format!("--filter=name={}", self.firewall_name());
        let mut call = self.firewall("list");
        call.command.args([filter.as_str(), "--format=value(name)"]);
        let output = call.done("gcloud compute firewall-rules list")?;
        Ok(!output.stdout.trim_ascii().is_empty())
    }

    fn close_port(&self) -> Result<(), LaunchError> {
        if self.machine.firewall.is_some() && self.port_is_open()? {
            let mut call = self.firewall("delete");
            call.command.arg("--quiet");
            call.done("gcloud compute firewall-rules delete")?;
        }
        Ok(())
    }

    fn open_port(&self) -> Result<(), LaunchError> {
        let Some(flags) = &self.machine.firewall else { return Ok(()) };
        self.close_port()?;
        let mut call = self.firewall("create");
        call.command.args(flags);
        call.done("gcloud compute firewall-rules create").map(drop)
    }

    fn create(&self, say: Say<'_>) -> Result<(), LaunchError> {
        say(&format!("asking for {}", self.subject()));
        self.open_port()?;
        let created = self.with_script(|folder| {
            let mut call = self.api("create");
            call.command.args(&self.machine.create).current_dir(folder);
            call.done(&format!("gcloud {} create", self.machine.api)).map(drop)
        });
        if created.is_err() && matches!(self.describe(), Ok(None)) {
            // A machine that was refused leaves no open port.
            self.close_port()?;
        }
        created.map_err(|error| match error {
            LaunchError::Tool { command, message } => LaunchError::Tool {
                command,
                message: format!(
                    "{message}; `gemma4ctl emit --target gcloud` writes a script whose `quota` and `zones` tell more than \"no capacity\" does"
                ),
            },
            other => other,
        })
    }

    fn delete_machine(&self, found: &Found, say: Say<'_>) -> Result<(), LaunchError> {
        if found.state == "DELETING" {
            return Err(LaunchError::Kept {
                what: format!("{} is being deleted already", self.subject()),
                help: "try again when it is gone".to_owned(),
            });
        }
        say(&format!("deleting {}", self.subject()));
        let mut call = self.api("delete");
        if self.machine.queued {
            // Without it a queued resource that has its machine is not deleted.
            call.command.arg("--force");
        }
        call.command.arg("--quiet");
        call.done(&format!("gcloud {} delete", self.machine.api)).map(drop)
    }

    /// Hands the machine another startup script. The label comes last: until then the next run does it all again.
    fn update(&self, say: Say<'_>) -> Result<(), LaunchError> {
        let label = format!("--update-labels={}", self.machine.label);
        say(&format!("handing {} the plan; its capacity stays", self.subject()));
        self.open_port()?;
        let (metadata, labels) = if self.machine.queued {
            ("compute tpus tpu-vm update", "compute tpus tpu-vm update")
        } else {
            ("compute instances add-metadata", "compute instances update")
        };
        self.with_script(|folder| {
            let mut call = self.gcloud(metadata, &self.machine.target);
            call.command.arg("--metadata-from-file=startup-script=startup.sh").current_dir(folder);
            call.done(&format!("gcloud {metadata}")).map(drop)
        })?;
        say(&format!("stopping the service (up to {} s for running requests)", self.service.stop_seconds));
        self.ssh(RESTART).done(&format!("gcloud {}", self.machine.ssh))?;
        let mut call = self.gcloud(labels, &self.machine.target);
        call.command.arg(label);
        call.done(&format!("gcloud {labels}")).map(drop)
    }

    /// What the machine says of its server. `None` if ssh does not get through.
    fn probe(&self) -> Result<Option<String>, LaunchError> {
        let output = self.ssh(&self.machine.probe).output()?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    fn complete(&self) -> Result<Completion, LaunchError> {
        let program = shell_word(&completion::program(&self.service));
        let container = shell_word(&self.service.name);
        let output = self.ssh(&format!("sudo docker exec {container} python3 -c {program}")).output()?;
        Ok(completion::read(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr)))
    }

    fn ended(&self, state: &str) -> LaunchError {
        LaunchError::Kept {
            what: format!("{} failed, was stopped or taken back ({state})", self.subject()),
            help: "`gemma4ctl apply` removes what is left and asks again".to_owned(),
        }
    }
}

/// What a describing call prints. `None` if there is no such thing.
fn described(what: &str, mut call: Call) -> Result<Option<Value>, LaunchError> {
    call.command.arg("--format=json");
    let output = call.output()?;
    if output.status.success() {
        return parse(what, &output.stdout).map(Some);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("not found") || said.contains("NOT_FOUND") { Ok(None) } else { Err(failed(what, &output)) }
}

impl Place for Gcloud {
    fn service(&self) -> &Service {
        &self.service
    }

    fn recall(&mut self, ids: &BTreeMap<String, String>) -> Result<(), LaunchError> {
        for (key, now) in [("project", &self.project), ("zone", &self.zone)] {
            if let Some(before) = ids.get(key).filter(|before| *before != now) {
                return Err(LaunchError::Kept {
                    what: format!("this launch is in the {key} {before}, and {now} is asked for"),
                    help: format!("`gemma4ctl destroy {}` it there first, or go back to {before}", self.machine.name),
                });
            }
        }
        Ok(())
    }

    fn subject(&self) -> String {
        let kind = if self.machine.queued { "queued resource" } else { "machine" };
        format!("the {kind} {} ({}, {})", self.machine.name, self.project, self.zone)
    }

    fn fingerprint(&self) -> Fingerprint {
        let flags = self.machine.create.iter().filter(|flag| !flag.starts_with("--labels="));
        let firewall = self.machine.firewall.iter().flatten();
        Fingerprint {
            machine: hash(flags.map(String::as_str)),
            service: hash(firewall.map(String::as_str).chain([self.startup.as_str()])),
        }
    }

    fn look(&self) -> Result<Option<Found>, LaunchError> {
        let Some(description) = self.describe()? else { return Ok(None) };
        let state = if self.machine.queued { &description["state"]["state"] } else { &description["status"] };
        let state = state.as_str().unwrap_or("UNKNOWN").to_owned();
        let life = self.life(&state);
        let digest = self.digest(&description, life)?;
        Ok(Some(Found { id: self.machine.name.clone(), life, state, digest }))
    }

    fn answers(&self, found: &Found) -> bool {
        found.life == Life::Up
            && self.probe().is_ok_and(|answer| answer.is_some_and(|text| text.contains("gemma4ctl-ready")))
    }

    fn foreign(&self) -> LaunchError {
        LaunchError::Foreign {
            what: if self.machine.queued { "a queued resource" } else { "a machine" },
            name: self.machine.name.clone(),
            help: format!("it lacks the label `{MACHINE_LABEL}`; give the profile another `name`"),
        }
    }

    fn change(&self, reason: Reason, found: &Found, recorded: Option<&Launch>) -> Result<Decision, LaunchError> {
        let before = recorded.and_then(|launch| launch.fingerprint.as_ref());
        let same_machine = before.is_some_and(|before| before.machine == self.fingerprint().machine);
        match found.life {
            Life::Up if same_machine => Ok(Decision::Update(reason)),
            // It holds no capacity any more.
            Life::Ended => Ok(Decision::Replace(reason)),
            _ if !self.machine.queued => Ok(Decision::Replace(reason)),
            life => Err(LaunchError::Kept {
                what: if life == Life::Up {
                    format!("{} would have to be made anew, and its capacity may not come back", self.subject())
                } else {
                    format!(
                        "{} still waits for capacity, and takes no other plan meanwhile ({})",
                        self.subject(),
                        found.state
                    )
                },
                help: format!("`gemma4ctl destroy {}` gives it up, by its own name", self.machine.name),
            }),
        }
    }

    fn prepare(&mut self, _: Decision, _: Option<&Found>) -> Result<(), LaunchError> {
        Ok(())
    }

    fn act(&mut self, decision: Decision, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        match (decision, found) {
            (Decision::Update(_), _) => self.update(say),
            (_, Some(found)) => {
                self.delete_machine(found, say)?;
                self.create(say)
            }
            (_, None) => self.create(say),
        }
    }

    fn ids(&self) -> BTreeMap<String, String> {
        let kind = if self.machine.queued { "queued-resource" } else { "instance" };
        let mut ids = BTreeMap::from([
            ("project".to_owned(), self.project.clone()),
            ("zone".to_owned(), self.zone.clone()),
            (kind.to_owned(), self.machine.name.clone()),
        ]);
        if self.machine.queued {
            ids.insert("node".to_owned(), self.machine.target.clone());
        }
        ids
    }

    fn progress(&mut self, _: Duration, say: Say<'_>) -> Result<Progress, LaunchError> {
        let starting = |text: &str| Progress::Waiting {
            phase: "the server: it loads weights and compiles",
            limit: self.service.ready_seconds,
            text: text.to_owned(),
        };
        let capacity =
            |text: String| Progress::Waiting { phase: "capacity", limit: self.machine.capacity_seconds, text };
        let found = match self.look() {
            Ok(found) => found,
            Err(error @ LaunchError::MissingTool { .. }) => return Err(error),
            Err(error) => {
                self.misses += 1;
                if self.misses >= MISSES {
                    return Err(error);
                }
                return Ok(starting(&format!("{error}; trying again")));
            }
        };
        self.misses = 0;
        let Some(Found { state, life, .. }) = found else { return Err(LaunchError::Gone(self.subject())) };
        match (life, state.as_str()) {
            (Life::Ended, _) => return Err(self.ended(&state)),
            (Life::Coming, "PENDING" | "CREATING" | "ACCEPTED" | "WAITING_FOR_RESOURCES") => {
                return Ok(capacity(format!("{state}; too little quota looks the same")));
            }
            (Life::Coming, "PROVISIONING" | "STAGING") => {
                return Ok(starting(&format!("{state}: capacity is granted, the machine starts")));
            }
            (Life::Coming, _) => return Ok(starting(&state)),
            (Life::Up, _) => {}
        }
        let Some(answer) = self.probe()? else {
            return Ok(starting("the machine is up, ssh does not get through yet"));
        };
        if let Some((_, reason)) = answer.split_once("gemma4ctl-failed:") {
            if let Ok(output) = self.ssh(&self.machine.logs).output() {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let lines: Vec<&str> = text.lines().collect();
                lines[lines.len().saturating_sub(40)..].iter().for_each(|line| say(&format!("  {}", redact(line))));
            }
            let (what, how) = (format!("the service on {}", self.subject()), redact(reason.trim()).into_owned());
            return Err(LaunchError::Stopped { what, how });
        }
        if !answer.contains("gemma4ctl-ready") {
            return Ok(starting("the machine is up, the server does not answer yet"));
        }
        match self.complete()? {
            Completion::Done => Ok(Progress::Ready),
            Completion::NotYet(text) => Ok(starting(&text)),
            Completion::Refused(status, message) => {
                let message = redact(&message).into_owned();
                Err(LaunchError::Refused { name: self.machine.name.clone(), status, message })
            }
        }
    }

    fn pause(&self, _: Duration) -> Duration {
        super::cloud_pause()
    }

    fn reach(&self) -> Option<String> {
        let port = self.service.port;
        let flags: String = self.machine.ssh_flags.iter().map(|flag| format!(" {flag}")).collect();
        Some(format!(
            "gcloud {} {} --project={} --zone={}{flags} -- -N -L 127.0.0.1:{port}:127.0.0.1:{port}",
            self.machine.ssh, self.machine.target, self.project, self.zone
        ))
    }

    fn logs(&self, follow: bool) -> Result<ExitStatus, LaunchError> {
        let command = if follow {
            format!("sudo docker logs --follow --tail 200 {}", shell_word(&self.service.name))
        } else {
            self.machine.logs.clone()
        };
        self.ssh(&command).pass_through()
    }

    fn guard(&self) -> Option<&str> {
        self.machine.queued.then_some(&self.machine.name)
    }

    fn deletions(&self, found: Option<&Found>) -> Result<Vec<String>, LaunchError> {
        let mut lines = Vec::new();
        match found {
            Some(found) if found.digest.is_some() => {
                lines.push(format!("delete {}, state {}, and all that is on it", self.subject(), found.state));
            }
            Some(_) => lines.push(format!("keep {}: gemma4ctl did not create it", self.subject())),
            None => {}
        }
        if self.machine.firewall.is_some() && self.port_is_open()? {
            lines.push(format!("delete the firewall rule {}", self.firewall_name()));
        }
        Ok(lines)
    }

    fn delete(&self, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        self.close_port()?;
        match found {
            Some(found) if found.digest.is_some() => self.delete_machine(found, say),
            _ => Ok(()),
        }
    }
}
