//! Values of secrets, as short as they are needed. They are never shown: the type has no `Debug` that would.

use std::process::{Command, Stdio};

use super::LaunchError;
use crate::emit::SecretUse;
use crate::profile::redact;

/// The variable that carries the key which requests have to show.
pub(super) const API_KEY: &str = "VLLM_API_KEY";

/// Values by the variable that the engine reads.
#[derive(Default)]
pub(super) struct Values(Vec<(String, String)>);

impl Values {
    /// Fetches `secrets`.
    pub(super) fn fetch<'a>(secrets: impl Iterator<Item = &'a SecretUse>) -> Result<Self, LaunchError> {
        secrets.map(|secret| Ok((secret.variable.clone(), value(secret)?))).collect::<Result<_, _>>().map(Values)
    }

    /// The value of `variable`.
    pub(super) fn get(&self, variable: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == variable).map(|(_, value)| value.as_str())
    }

    /// Puts all of them into the environment of `command`, where alone they may be.
    pub(super) fn pass_to(&self, command: &mut Command) {
        command.envs(self.0.iter().map(|(name, value)| (name, value)));
    }

    /// `text` without any of them, and without what looks like a token.
    pub(super) fn mask(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (_, value) in &self.0 {
            text = text.replace(value.as_str(), "<removed>");
        }
        redact(&text).into_owned()
    }
}

fn value(secret: &SecretUse) -> Result<String, LaunchError> {
    let missing = |message: String| LaunchError::Secret { name: secret.name.clone(), message };
    let reference = &secret.reference;
    let text = match secret.kind {
        "gcp_secret" => {
            let mut command = Command::new("gcloud");
            command.args(["secrets", "versions", "access", "latest"]).arg(format!("--secret={reference}"));
            command.args(secret.project.iter().map(|project| format!("--project={project}")));
            let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => LaunchError::MissingTool {
                    tool: "gcloud",
                    help: "it reads the secret from Secret Manager: https://cloud.google.com/sdk/docs/install, or name the secret with `{ env = \"NAME\" }` or `{ file = \"PATH\" }`",
                },
                _ => missing(format!("cannot start gcloud: {error}")),
            })?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(missing(format!("gcloud cannot read {reference}: {}", redact(said.trim()))));
            }
            // Not `FromUtf8Error`, which holds the bytes.
            String::from_utf8(output.stdout).map_err(|_| missing(format!("{reference} is not text")))?
        }
        "env" => std::env::var(reference).map_err(|_| missing(format!("set the environment variable {reference}")))?,
        _ => {
            std::fs::read_to_string(reference).map_err(|error| missing(format!("cannot read {reference}: {error}")))?
        }
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(missing(format!("{reference} is empty")));
    }
    if text.contains(['\0', '\n']) {
        return Err(missing(format!("{reference} holds more than one line, or a zero byte")));
    }
    Ok(text.to_owned())
}
