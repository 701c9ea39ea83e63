//! Templates: those in the binary, and a user's own that win over them.

use std::path::PathBuf;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::EmitError;

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// Every template, by name.
        pub(super) const BUILTIN: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../templates/", $name)))),*];
    };
}

builtin![
    "compose.yaml.j2",
    "dashboard.json.j2",
    "docker-run.sh.j2",
    "gcloud.sh.j2",
    "gemma4.service.j2",
    "gke-deployment.yaml.j2",
    "gke-hpa.yaml.j2",
    "gke-inferencepool.yaml.j2",
    "gke-kustomization.yaml.j2",
    "gke-leaderworkerset.yaml.j2",
    "gke-namespace.yaml.j2",
    "gke-networkpolicy.yaml.j2",
    "gke-node-pool.sh.j2",
    "gke-pdb.yaml.j2",
    "gke-pod.yaml.j2",
    "gke-podmonitoring.yaml.j2",
    "gke-pvc.yaml.j2",
    "gke-secret.sh.j2",
    "gke-service.yaml.j2",
    "rules.test.yaml.j2",
    "rules.yaml.j2",
    "runbook.md.j2",
    "startup.sh.j2",
];

/// Where templates come from.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// Folders that are looked through before the binary, the first one first.
    pub folders: Vec<PathBuf>,
}

impl Templates {
    /// The user's own folder, after `first` if there is one.
    pub fn with_user_folder(first: Option<PathBuf>) -> Self {
        let config = crate::profile::config_dir().map(|config| config.join("templates"));
        Templates { folders: first.into_iter().chain(config).collect() }
    }

    /// The text of a template and where it was found.
    fn find(&self, name: &str) -> Result<(String, String), EmitError> {
        for folder in &self.folders {
            let path = folder.join(name);
            if path.is_file() {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| EmitError::ReadTemplate { path: path.clone(), error })?;
                return Ok((path.display().to_string(), text));
            }
        }
        let builtin = BUILTIN.iter().find(|(builtin, _)| *builtin == name);
        builtin.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).ok_or_else(|| EmitError::Template {
            name: name.to_owned(),
            message: "there is no such template".to_owned(),
        })
    }

    /// Renders a template. A name that the context does not have is an error, never an empty string.
    ///
    /// # Errors
    /// If the template cannot be read or does not render.
    pub fn render(&self, name: &str, context: &impl Serialize) -> Result<String, EmitError> {
        let (found, text) = self.find(name)?;
        let wrong = |error: minijinja::Error| -> EmitError {
            let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
            EmitError::Template { name: found.clone(), message: format!("{}{detail}{line}", error.kind()) }
        };
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(wrong)?);
        environment.add_filter("sh", |value: String| shell(&value));
        environment.add_filter("json", |value: Value| json(&value));
        environment.add_filter("compose", |value: Value| json(&value).replace('$', "$$"));
        environment.add_filter("systemd", |value: String| systemd(&value));
        environment.render_named_str(&found, &text, Value::from(Serde(context))).map_err(wrong)
    }
}

/// A word of a shell, quoted where it has to be.
pub(super) fn shell(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A value as JSON, which is YAML too.
fn json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// An argument of a systemd command line: C-like quotes, `%` and `$` doubled.
fn systemd(text: &str) -> String {
    let escaped =
        text.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$").replace('\n', r"\n");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@+%$".contains(&byte);
    if !text.is_empty() && escaped.bytes().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell("--max-model-len"), "--max-model-len");
        assert_eq!(shell(r#"{"image":4}"#), r#"'{"image":4}'"#);
        assert_eq!(shell("it's"), r"'it'\''s'");
        assert_eq!(shell(""), "''");
        assert_eq!(systemd(r#"{"a":"100%"}"#), r#""{\"a\":\"100%%\"}""#);
        assert_eq!(systemd("$HOME"), "$$HOME");
    }

    #[test]
    fn names_that_are_not_there_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("compose.yaml.j2"), "{{ nothing.here }}").expect("a file");
        let templates = Templates { folders: vec![folder.path().to_owned()] };
        let error = templates.render("compose.yaml.j2", &serde_json::json!({})).expect_err("an error");
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
