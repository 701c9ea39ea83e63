//! From a plan to files that run as they are.
//!
//! Everything here reads the plan and nothing else. A target is a file of this module, which decides what the
//! templates need, and one or more templates in templates/, which a user can replace with files of the same name in a
//! folder of their own. Values reach a shell only through the `sh` filter and YAML only through the `json` filter, so
//! that no value can end its own quotes.

mod alerts;
mod compose;
mod dashboard;
mod docker;
mod gcloud;
mod gke;
mod runbook;
mod service;
mod signals;
mod systemd;
mod templates;
mod vllm_args;

use std::path::PathBuf;

use gemma4_plan::{Plan, Severity};
use thiserror::Error;

pub use gcloud::{LABEL as MACHINE_LABEL, Machine, MachineLaunch, Quota};
pub use gke::{Gke, Mount, NodePool, Secret, Workload};
pub use service::{SecretUse, Service, Volume};
pub use templates::Templates;

/// What files are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The command line of `vllm serve`
    VllmArgs,
    /// A script with `docker run`
    Docker,
    /// A Compose file
    Compose,
    /// A systemd unit
    Systemd,
    /// Scripts that create and delete a TPU machine in Google Cloud
    Gcloud,
    /// A node pool and manifests for Google Kubernetes Engine
    Gke,
    /// Prometheus rules with their tests, and a Grafana dashboard
    Alerts,
    /// A runbook in Markdown
    Runbook,
}

/// A file that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Whether it is to be executed.
    pub executable: bool,
}

impl Artifact {
    /// A file that is read.
    pub fn file(name: impl Into<String>, text: String) -> Self {
        Artifact { name: name.into(), text, executable: false }
    }

    /// A file that is executed.
    pub fn script(name: impl Into<String>, text: String) -> Self {
        Artifact { name: name.into(), text, executable: true }
    }
}

/// Why no file can be made.
#[derive(Debug, Error)]
pub enum EmitError {
    /// The plan does not fit.
    #[error("the plan does not fit: {0}; `--allow-unfit` makes the files all the same")]
    Unfit(String),
    /// The plan has other errors.
    #[error("the plan has an error: {message} [{code}] {file}:{line}")]
    Errors {
        /// Code of the rule.
        code: String,
        /// What is wrong.
        message: String,
        /// Where.
        file: String,
        /// Line.
        line: u32,
    },
    /// The engine cannot be started this way.
    #[error("`{target}` is not for the engine `{engine}`: {help}")]
    WrongEngine {
        /// The target.
        target: &'static str,
        /// The engine.
        engine: String,
        /// What to use.
        help: &'static str,
    },
    /// The plan lacks something that the target needs.
    #[error("the plan does not say {what}; {help}")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// What to add.
        help: &'static str,
    },
    /// The target cannot do what the plan asks for.
    #[error("`{target}` cannot {what}; {help}")]
    Impossible {
        /// The target.
        target: &'static str,
        /// What it cannot do.
        what: String,
        /// What to do instead.
        help: &'static str,
    },
    /// The settings of the target do not have the shape of a profile.
    #[error("`deploy.{section}` of the plan cannot be read: {message}")]
    Settings {
        /// The section of `[deploy]`.
        section: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A value of the plan does not go with the target.
    #[error("`{key} = {value}` is not for `{target}`: {help}")]
    WrongValue {
        /// The target.
        target: &'static str,
        /// Key of the profile.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to use.
        help: &'static str,
    },
    /// A catalog file of the user cannot be used.
    #[error(transparent)]
    Catalog(#[from] crate::catalog::CatalogError),
    /// A template of the user cannot be read.
    #[error("cannot read the template {path}: {error}")]
    ReadTemplate {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// A template does not render.
    #[error("the template {name} does not render: {message}")]
    Template {
        /// Its name, or path for a user's own.
        name: String,
        /// What is wrong, with the line.
        message: String,
    },
}

/// Makes the files of `target`.
///
/// # Errors
/// See [`EmitError`]; nothing is written here.
pub fn emit(plan: &Plan, target: Target, templates: &Templates, allow_unfit: bool) -> Result<Vec<Artifact>, EmitError> {
    refuse(plan, allow_unfit)?;
    match target {
        Target::VllmArgs => vllm_args::emit(plan),
        Target::Docker => docker::emit(plan, templates),
        Target::Compose => compose::emit(plan, templates),
        Target::Systemd => systemd::emit(plan, templates),
        Target::Gcloud => gcloud::emit(plan, templates),
        Target::Gke => gke::emit(plan, templates),
        Target::Alerts => alerts::emit(plan, templates),
        Target::Runbook => runbook::emit(plan, templates),
    }
}

/// The service of a plan that runs in a container and fits.
///
/// # Errors
/// See [`EmitError`]: what `emit` refuses is refused here.
pub fn container(plan: &Plan, target: &'static str) -> Result<Service, EmitError> {
    refuse(plan, false)?;
    docker::containers_only(plan, target)
}

/// The process that a plan of the bundled engine is.
///
/// # Errors
/// See [`EmitError`]: what `emit` refuses is refused here, and plans of other engines.
pub fn process(plan: &Plan) -> Result<Service, EmitError> {
    refuse(plan, false)?;
    if plan.engine.kind != "bundled" {
        let help = "set `engine.kind = \"bundled\"`, or launch it with another target";
        return Err(EmitError::WrongEngine { target: "local", engine: plan.engine.kind.clone(), help });
    }
    Ok(Service::new(plan))
}

/// The machine of Google Cloud that a plan is launched on.
///
/// # Errors
/// See [`EmitError`]: what `emit` refuses is refused here.
pub fn machine(plan: &Plan, templates: &Templates) -> Result<MachineLaunch, EmitError> {
    refuse(plan, false)?;
    gcloud::launch(plan, templates)
}

/// What a plan is in a cluster of Google Kubernetes Engine.
///
/// # Errors
/// See [`EmitError`]: what `emit` refuses is refused here.
pub fn workload(plan: &Plan, templates: &Templates) -> Result<Workload, EmitError> {
    refuse(plan, false)?;
    gke::workload(plan, templates)
}

/// The names that launches of a plan have: the container's, the machine's, and that of the objects in a cluster.
pub fn names(plan: &Plan) -> [String; 3] {
    let service = Service::new(plan);
    let object = gke::object_name(&service.name);
    [service.name, service::machine_name(plan), object]
}

/// A word for a shell of another machine, in quotes where it needs them.
pub fn shell_word(text: &str) -> String {
    templates::shell(text)
}

/// Refuses plans that would not run.
fn refuse(plan: &Plan, allow_unfit: bool) -> Result<(), EmitError> {
    if allow_unfit {
        return Ok(());
    }
    if !plan.memory.fits {
        return Err(EmitError::Unfit(plan.memory.reasons.join("; ")));
    }
    match plan.diagnostics.iter().find(|finding| finding.severity == Severity::Error) {
        None => Ok(()),
        Some(finding) => Err(EmitError::Errors {
            code: finding.code.clone(),
            message: finding.message.clone(),
            file: finding.file.clone(),
            line: finding.line,
        }),
    }
}
