//! Finds secrets that were written into a profile, and takes them out before anything else sees them.
//!
//! The value is masked in the text that findings show and replaced in the tree, so that no plan, artifact, log or
//! message can hold it.

use super::tree::{Node, Table, Value};
use crate::diagnostic::{Diagnostic, Location, Sources};

/// Beginnings of well-known tokens, and whose they are.
const PREFIXES: [(&str, &str); 12] = [
    ("hf_", "a Hugging Face token"),
    ("api_org_", "a Hugging Face organization token"),
    ("sk-", "an API key"),
    ("ghp_", "a GitHub token"),
    ("gho_", "a GitHub token"),
    ("github_pat_", "a GitHub token"),
    ("glpat-", "a GitLab token"),
    ("AIza", "a Google API key"),
    ("ya29.", "a Google access token"),
    ("xoxb-", "a Slack token"),
    ("AKIA", "an AWS access key"),
    ("eyJhbGciOi", "a signed web token"),
];

/// Names under which a literal value is a secret whatever it looks like.
const NAMES: [&str; 8] = [
    "hf_token",
    "huggingface_hub_token",
    "hugging_face_hub_token",
    "vllm_api_key",
    "api_key",
    "openai_api_key",
    "password",
    "secret",
];

/// What stands in place of a secret.
const TAKEN: &str = "<removed>";

/// Takes secrets out of `table`. Each becomes a finding.
pub(super) fn take_out(table: &mut Table, sources: &mut Sources, diagnostics: &mut Vec<Diagnostic>) {
    for (section, node) in table.iter_mut() {
        walk(node, section, section == "secrets", sources, diagnostics);
    }
}

fn walk(node: &mut Node, key: &str, in_secrets: bool, sources: &mut Sources, diagnostics: &mut Vec<Diagnostic>) {
    match &mut node.value {
        Value::String(text) => {
            // `--api-key=VALUE` and `NAME=VALUE` hide one behind a name.
            let (name, value) = match text.split_once('=') {
                Some((name, value)) if !value.is_empty() => (name.trim_start_matches('-'), value),
                _ => (key, text.as_str()),
            };
            let by_shape = looks_like_token(text).or_else(|| looks_like_token(value));
            let reference = in_secrets && matches!(key, "gcp_secret" | "env" | "file");
            let by_name = (is_secret_name(name) && !reference).then_some("a secret");
            let literal = in_secrets && !reference;
            let what = by_shape.or(if literal { Some("a secret") } else { by_name.filter(|_| !is_reference(value)) });
            if let Some(what) = what {
                report(node.location, key, what, sources, diagnostics);
                *text = TAKEN.to_owned();
                node.raw = None;
            }
        }
        Value::Array(items) => {
            let mut named = false;
            for item in items {
                // `["--api-key", "VALUE"]`
                let flag = matches!(&item.value, Value::String(text) if text.starts_with("--") && !text.contains('=') && is_secret_name(text.trim_start_matches('-')));
                if named && !flag {
                    walk(item, "api_key", false, sources, diagnostics);
                } else {
                    walk(item, if key == "extra_args" { "" } else { key }, in_secrets, sources, diagnostics);
                }
                named = flag;
            }
        }
        Value::Table(table) => {
            for (name, child) in table.iter_mut() {
                walk(child, name, in_secrets, sources, diagnostics);
            }
        }
        _ => {}
    }
}

fn report(location: Location, key: &str, what: &str, sources: &mut Sources, diagnostics: &mut Vec<Diagnostic>) {
    sources.mask(location);
    let place = if key.is_empty() { "the engine's arguments".to_owned() } else { format!("`{key}`") };
    diagnostics.push(
        Diagnostic::error("secret-in-profile", location, format!("{what} is written into {place}"))
            .help("revoke it, it has been in a file; then refer to the secret instead: `[secrets]` with `hf_token = { gcp_secret = \"NAME\" }`, `{ env = \"NAME\" }` or `{ file = \"PATH\" }`"),
    );
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    NAMES.iter().any(|secret| name == *secret || name.ends_with(&format!("_{secret}")))
}

/// `$NAME` and `${NAME}` name a value without holding it.
fn is_reference(value: &str) -> bool {
    value.is_empty() || (value.starts_with('$') && !value.contains(":-"))
}

/// Whose token stands in `text`, at its start or after a character that no token holds.
fn looks_like_token(text: &str) -> Option<&'static str> {
    let part_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    PREFIXES.iter().find_map(|(prefix, what)| {
        text.match_indices(prefix).find_map(|(at, _)| {
            let before = text.as_bytes().get(at.wrapping_sub(1)).copied();
            let rest = text.get(at + prefix.len()..)?;
            let length = rest.bytes().take_while(|&byte| part_of_token(byte)).count();
            let token = rest.get(..length)?;
            let random = token.bytes().any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
            (!before.is_some_and(part_of_token) && length >= 12 && random).then_some(*what)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_from_names() {
        assert!(looks_like_token("hf_abcdefghijKLMNOP1234567890").is_some());
        assert!(looks_like_token("Bearer hf_abcdefghijKLMNOP1234567890").is_some());
        assert!(looks_like_token("https://me:hf_abcdefghijKLMNOP1234567890@example.com/").is_some());
        assert!(looks_like_token("hf_token").is_none());
        assert!(looks_like_token("hf_home_of_the_model").is_none());
        assert!(looks_like_token("google/gemma-4-E2B-it").is_none());
        assert!(is_secret_name("HF_TOKEN"));
        assert!(is_secret_name("api-key"));
        assert!(!is_secret_name("HF_HOME"));
    }
}
