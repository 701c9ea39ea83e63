//! From a plan to a running service, and back.
//!
//! A launch is a plan that was started somewhere under a name. What is to be done follows from three things: the record
//! of the launch ([`state`]), what really runs ([`Place::look`]), and the plan. Programs are started with argument
//! arrays, never through a shell; secrets are fetched when they are needed and go through the environment or the
//! standard input of the one program that passes them on.

mod completion;
mod docker;
mod error;
mod gcloud;
mod gke;
mod http;
pub mod interrupt;
mod local;
pub mod process;
mod run;
mod secrets;
mod settings;
pub mod state;
mod tools;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use gemma4_plan::Plan;
use sha2::Digest as _;

pub use error::LaunchError;
pub use run::{Attempt, carry_out};
pub use settings::{Difference, differences};

use crate::checkpoint;
use crate::emit::{self, Service, Templates};
use state::{Fingerprint, Launch, Status};

/// Where a plan is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The bundled engine as a process of this machine
    Local,
    /// A container on this machine
    Docker,
    /// A TPU machine in Google Cloud
    Gcloud,
    /// A node pool and pods in Google Kubernetes Engine
    Gke,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 4] = [Target::Local, Target::Docker, Target::Gcloud, Target::Gke];

    /// Its name on the command line and in records.
    pub const fn word(self) -> &'static str {
        match self {
            Target::Local => "local",
            Target::Docker => "docker",
            Target::Gcloud => "gcloud",
            Target::Gke => "gke",
        }
    }

    /// The target of that name.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.word() == word)
    }

    /// The name of a launch of `name` there. One profile can be launched at each target, so the names differ.
    pub fn launch_name(self, name: &str) -> String {
        match self {
            Target::Docker => name.to_owned(),
            Target::Local | Target::Gcloud | Target::Gke => format!("{name}.{}", self.word()),
        }
    }

    /// The target that a launch's name is for.
    pub fn of_launch(name: &str) -> Self {
        let suffix = |target: &Target| name.ends_with(&format!(".{}", target.word()));
        [Target::Local, Target::Gcloud, Target::Gke].into_iter().find(suffix).unwrap_or(Target::Docker)
    }
}

/// What a launch needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is there.
    Create,
    /// Something is there that has to go first.
    Replace(Reason),
    /// What is there stays, and runs the plan from now on.
    Update(Reason),
    /// The right thing runs already; it has to be seen to answer.
    Await,
    /// The right thing runs and answers.
    Nothing,
}

/// Why something is replaced or updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It runs another plan.
    OtherPlan,
    /// It runs the plan, with other settings of `[deploy]`.
    OtherSettings,
    /// It runs the plan, but stopped.
    Stopped,
}

/// How alive something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is still being made.
    Coming,
    /// It is there; whether it answers is another question.
    Up,
    /// It does not come back by itself.
    Ended,
}

/// What has the name of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id, or its name where that is the id.
    pub id: String,
    /// How alive it is.
    pub life: Life,
    /// The target's own word for that.
    pub state: String,
    /// Digest of the plan that it runs, or its first digits. Without one it is not ours.
    pub digest: Option<String>,
}

/// One look while waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It answers /health and completes.
    Ready,
    /// Not yet.
    Waiting {
        /// What is waited for. Another one starts the clock anew.
        phase: &'static str,
        /// Seconds that the phase may take.
        limit: u64,
        /// What there is to say.
        text: String,
    },
}

/// How something is told of what happens.
pub type Say<'a> = &'a mut dyn FnMut(&str);

/// A place where one launch lives.
pub trait Place {
    /// What the service is.
    fn service(&self) -> &Service;

    /// Takes over what a record of it knows beyond the plan.
    ///
    /// # Errors
    /// If the record is of another place than the one that the plan or the user's settings name now.
    fn recall(&mut self, _ids: &BTreeMap<String, String>) -> Result<(), LaunchError> {
        Ok(())
    }

    /// What it is called in messages, such as `the container x`.
    fn subject(&self) -> String;

    /// What a plan makes of it, to tell changes of `[deploy]` from none.
    fn fingerprint(&self) -> Fingerprint;

    /// What is there under its name.
    ///
    /// # Errors
    /// If that cannot be known, which is not the same as nothing.
    fn look(&self) -> Result<Option<Found>, LaunchError>;

    /// Whether the server says now that it is alive.
    fn answers(&self, found: &Found) -> bool;

    /// The error for something that is not ours.
    fn foreign(&self) -> LaunchError;

    /// How `found` comes to run the plan.
    ///
    /// # Errors
    /// If something would be lost that may not come back.
    fn change(&self, reason: Reason, found: &Found, recorded: Option<&Launch>) -> Result<Decision, LaunchError>;

    /// Whatever can fail before anything changes.
    ///
    /// # Errors
    /// See [`LaunchError`].
    fn prepare(&mut self, decision: Decision, found: Option<&Found>) -> Result<(), LaunchError>;

    /// Does what was decided. Not called for [`Decision::Nothing`] and [`Decision::Await`].
    ///
    /// # Errors
    /// See [`LaunchError`].
    fn act(&mut self, decision: Decision, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError>;

    /// Ids that find it again, as far as they are known.
    fn ids(&self) -> BTreeMap<String, String>;

    /// Looks whether it is ready; an answer may take `left`.
    ///
    /// # Errors
    /// If it will not become ready.
    fn progress(&mut self, left: Duration, say: Say<'_>) -> Result<Progress, LaunchError>;

    /// How long to rest between two looks.
    fn pause(&self, waited: Duration) -> Duration;

    /// How it is reached, where its address alone does not say.
    fn reach(&self) -> Option<String> {
        None
    }

    /// Prints what the service wrote.
    ///
    /// # Errors
    /// If the program that does it cannot be started.
    fn logs(&self, follow: bool) -> Result<ExitStatus, LaunchError>;

    /// The name that has to be told before it is deleted, if a profile's name is not enough.
    fn guard(&self) -> Option<&str> {
        None
    }

    /// Stays with something that runs in the foreground until it ends, and shows what it writes.
    ///
    /// # Errors
    /// If it ends badly.
    fn attend(&mut self, _say: Say<'_>) -> Result<(), LaunchError> {
        Ok(())
    }

    /// What deleting it deletes and keeps, a line each.
    ///
    /// # Errors
    /// If that cannot be known.
    fn deletions(&self, found: Option<&Found>) -> Result<Vec<String>, LaunchError>;

    /// Deletes it.
    ///
    /// # Errors
    /// See [`LaunchError`].
    fn delete(&self, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError>;
}

/// Name and place of a launch of `plan`.
///
/// # Errors
/// If the plan cannot be launched there, or the place is not known.
pub fn open(plan: &Plan, target: Target) -> Result<(String, Box<dyn Place>), LaunchError> {
    let templates = Templates::with_user_folder(None);
    let (name, place): (String, Box<dyn Place>) = match target {
        Target::Local => {
            let service = emit::process(plan)?;
            let checkpoint = checkpoint::folder(plan, None, None)?;
            let folder = state::Store::of_user()?.folder(&target.launch_name(&service.name));
            (service.name.clone(), Box::new(local::Local::new(service, folder, Some(checkpoint))))
        }
        Target::Docker => {
            let service = emit::container(plan, "docker")?;
            let file = state::Store::of_user()?.folder(&target.launch_name(&service.name)).join("plan.json");
            let service = service.with_plan_file(plan, &file);
            (service.name.clone(), Box::new(docker::Docker::new(service)))
        }
        Target::Gcloud => {
            let launch = emit::machine(plan, &templates)?;
            (launch.machine.name.clone(), Box::new(gcloud::Gcloud::new(launch)?))
        }
        Target::Gke => {
            let workload = emit::workload(plan, &templates)?;
            (workload.gke.name.clone(), Box::new(gke::Gke::new(workload, plan)?))
        }
    };
    if !state::is_name(&name) {
        return Err(LaunchError::Name(name));
    }
    Ok((target.launch_name(&name), place))
}

/// The place of the launch `name`, whatever of its record can still be read. `None` for one that is not on this machine
/// and of which nothing can be read.
///
/// # Errors
/// If its plan cannot be launched any more.
pub fn reopen(
    store: &state::Store,
    name: &str,
    launch: Option<&Launch>,
) -> Result<Option<Box<dyn Place>>, LaunchError> {
    let base_url = launch.map(|launch| launch.base_url.as_str()).unwrap_or_default();
    let target = launch.map_or_else(|| Some(Target::of_launch(name)), |launch| Target::of(&launch.target));
    let elsewhere = match target {
        // No more than the name is needed of what is on this machine.
        Some(Target::Local) => {
            let checkpoint = launch.and_then(|launch| launch.ids.get("checkpoint")).map(Into::into);
            return Ok(Some(Box::new(local::Local::found(name, store.folder(name), base_url, checkpoint))));
        }
        Some(Target::Docker) | None => return Ok(Some(Box::new(docker::Docker::named(name, base_url)))),
        Some(elsewhere) => elsewhere,
    };
    let Some((launch, plan)) = launch.and_then(|launch| Some((launch, store.plan(launch)?))) else { return Ok(None) };
    let templates = Templates::with_user_folder(None);
    Ok(Some(match elsewhere {
        Target::Gke => Box::new(gke::Gke::at(emit::workload(&plan, &templates)?, &plan, &launch.ids)?),
        _ => Box::new(gcloud::Gcloud::at(emit::machine(&plan, &templates)?, &launch.ids)?),
    }))
}

/// What `plan` needs, where `answers` says whether the server is alive now.
///
/// # Errors
/// If what is there is not ours (it is never touched), or would be lost.
pub fn decide(
    place: &dyn Place,
    plan: &Plan,
    recorded: Option<&Launch>,
    found: Option<&Found>,
) -> Result<Decision, LaunchError> {
    let Some(found) = found else { return Ok(Decision::Create) };
    let Some(digest) = &found.digest else { return Err(place.foreign()) };
    if !same_digest(digest, &plan.digest) {
        return place.change(Reason::OtherPlan, found, recorded);
    }
    let recorded = recorded.filter(|launch| launch.digest == plan.digest);
    if recorded.and_then(|launch| launch.fingerprint.as_ref()).is_some_and(|before| *before != place.fingerprint()) {
        return place.change(Reason::OtherSettings, found, recorded);
    }
    if found.life == Life::Ended {
        return Ok(Decision::Replace(Reason::Stopped));
    }
    // A record that is behind (a crash, a failed wait) is brought up to date by waiting, which is short if it serves.
    let known = recorded.is_some_and(|launch| launch.status == Status::Running);
    Ok(if known && found.life == Life::Up && place.answers(found) { Decision::Nothing } else { Decision::Await })
}

/// Whether a digest, or as many digits of it as a label holds, is that of the plan.
pub fn same_digest(found: &str, plan: &str) -> bool {
    let digits = |text: &str| text.strip_prefix("sha256:").unwrap_or(text).to_owned();
    let found = digits(found);
    found.len() >= 12 && digits(plan).starts_with(&found)
}

/// How long to rest before a cloud is asked again: `GEMMA4CTL_POLL_SECONDS`, else a quarter of a minute.
fn cloud_pause() -> Duration {
    let seconds = std::env::var("GEMMA4CTL_POLL_SECONDS").ok().and_then(|text| text.parse::<f64>().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(Duration::from_secs(15))
}

/// SHA-256 of some texts, in hexadecimal digits.
fn hash<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = sha2::Sha256::new();
    for text in texts {
        // The length keeps texts apart.
        hasher.update(text.len().to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of the secret `name` of a plan, if the plan has such a secret.
///
/// # Errors
/// If it cannot be had.
pub fn secret(plan: &Plan, name: &str) -> Result<Option<String>, LaunchError> {
    let service = Service::new(plan);
    let Some(wanted) = service.secrets.iter().find(|secret| secret.name == name) else { return Ok(None) };
    if let Ok(value) = std::env::var(&wanted.variable) {
        return Ok(Some(value));
    }
    let values = secrets::Values::fetch(std::iter::once(wanted))?;
    Ok(values.get(&wanted.variable).map(str::to_owned))
}

/// Whether a service says at `url` that it is alive.
///
/// # Errors
/// What it says instead.
pub fn alive(url: &str) -> Result<(), String> {
    match http::health(url, Duration::from_secs(5)) {
        http::Answer::Fine => Ok(()),
        http::Answer::Status(status, text) => Err(format!("{url} answers with status {status}: {text}")),
        http::Answer::None(error) => Err(format!("{url} does not answer: {error}")),
    }
}
