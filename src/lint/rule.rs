//! What a rule is, and what it can look at.

use crate::budget::Budget;
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::profile::tree::{Node, Value};
use crate::profile::{Docker, EngineKind, Gcloud, Loaded};
use crate::resolve::Resolved;

/// A rule.
#[derive(Debug)]
pub struct Rule {
    /// Its code, also the name of its files.
    pub code: &'static str,
    /// Severity of its findings.
    pub severity: Severity,
    /// One line for lists.
    pub summary: &'static str,
    /// Its page in docs/rules/.
    pub page: &'static str,
    /// Looks at a profile.
    pub check: fn(&Context<'_>, &mut Vec<Diagnostic>),
}

impl Rule {
    /// A finding of this rule.
    pub fn finding(&self, location: Location, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(self.code, self.severity, location, message)
    }
}

/// What a rule can look at.
pub struct Context<'a> {
    /// The profile's text and tree.
    pub loaded: &'a Loaded,
    /// Its values.
    pub resolved: &'a Resolved,
    /// The budget, unless the mesh cannot hold the model.
    pub budget: Option<&'a Budget>,
}

impl Context<'_> {
    /// The place of a key, or the nearest place above it.
    pub fn at(&self, key: &str) -> Location {
        self.loaded.locate(key)
    }

    /// Whether somebody wrote the key down (in the profile, a parent or `--set`).
    pub fn is_set(&self, key: &str) -> bool {
        self.loaded.node(key).is_some()
    }

    /// Whether the engine is vLLM on TPU.
    pub fn on_tpu(&self) -> bool {
        self.resolved.kind == EngineKind::VllmTpu
    }

    /// Whether the engine is a vLLM.
    pub fn on_vllm(&self) -> bool {
        self.resolved.kind != EngineKind::Bundled
    }

    /// The section `deploy.gcloud`, if the profile has one.
    pub fn gcloud(&self) -> Option<&Gcloud> {
        self.loaded.profile.deploy.get()?.gcloud.get()
    }

    /// The section `deploy.docker`, if the profile has one.
    pub fn docker(&self) -> Option<&Docker> {
        self.loaded.profile.deploy.get()?.docker.get()
    }

    /// The strings in the list at `key`, each with its place.
    pub fn strings(&self, key: &str) -> Vec<(&str, Location)> {
        let Some(Node { value: Value::Array(items), .. }) = self.loaded.node(key) else { return Vec::new() };
        items
            .iter()
            .filter_map(|item| match &item.value {
                Value::String(text) => Some((text.as_str(), item.location)),
                _ => None,
            })
            .collect()
    }

    /// Whether the engine downloads the checkpoint from the Hugging Face Hub, unless it is in a cache already.
    pub fn from_hub(&self) -> bool {
        let id = &self.resolved.model_id;
        !id.starts_with(['.', '/']) && !id.starts_with("builtin/")
    }

    /// The engine's further flags, each with the place of the argument it stands in. `--name=value` gives `--name`.
    pub fn extra_flags(&self) -> Vec<(String, Location)> {
        let Some(crate::profile::tree::Node { value: crate::profile::tree::Value::Array(items), .. }) =
            self.loaded.node("engine.extra_args")
        else {
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| match &item.value {
                crate::profile::tree::Value::String(text) if text.starts_with('-') && text.parse::<f64>().is_err() => {
                    let name = text.split('=').next().unwrap_or(text);
                    // vLLM reads underscores as dashes, and `--a.b` as a key of the option `--a`.
                    let name = name.split('.').next().unwrap_or(name).replace('_', "-");
                    Some((name, item.location))
                }
                _ => None,
            })
            .collect()
    }

    /// Whether a further flag of this name is given.
    pub fn has_flag(&self, name: &str) -> bool {
        self.extra_flags().iter().any(|(flag, _)| flag == name)
    }
}
