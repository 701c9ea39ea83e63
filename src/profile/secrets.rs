//! Finds secrets that were written into a profile, and takes them out before anything else sees them.
//!
//! The value is masked in the text that findings show and replaced in the tree, so that no plan, artifact, log or
//! message can hold it.

use std::borrow::Cow;

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

/// Characters behind a prefix that make a token of it.
const LEAST: usize = 12;

/// What stands in place of a secret.
const TAKEN: &str = "<removed>";

/// Takes secrets out of `table`. Each becomes a finding.
pub(super) fn take_out(table: &mut Table, sources: &mut Sources, diagnostics: &mut Vec<Diagnostic>) {
    let location = Location::new(crate::diagnostic::SourceId(0), &(0..0));
    let mut whole = Node {
        value: Value::Table(std::mem::take(table)),
        location,
        key_location: location,
        raw: None,
        replaced: None,
    };
    walk(&mut whole, "", false, sources, diagnostics);
    if let Value::Table(inner) = whole.value {
        *table = inner;
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
            let by_shape = looks_like_token(text);
            let reference = in_secrets && matches!(key, "gcp_secret" | "env" | "file");
            let by_name = (is_secret_name(name) && !reference).then_some("a secret");
            let literal = in_secrets && !reference;
            let what = by_shape.or(if literal {
                Some("a secret")
            } else {
                by_name.filter(|_| !is_reference(value) && !is_plain(value))
            });
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
            let keys: Vec<String> = table
                .iter()
                .filter(|(key, _)| looks_like_token(key).is_some())
                .map(|(key, _)| key.to_owned())
                .collect();
            for key in keys {
                if let Some(child) = table.remove(&key) {
                    report(child.key_location, "a key", "a token", sources, diagnostics);
                    sources.mask(child.location);
                }
            }
            for (name, child) in table.iter_mut() {
                let inside = in_secrets || (key.is_empty() && name == "secrets");
                walk(child, name, inside, sources, diagnostics);
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

/// Whether a value under this name is a secret whatever it looks like: one of its words says so.
fn is_secret_name(name: &str) -> bool {
    let one_of = |word: &str, words: &[&str]| words.iter().any(|one| word.eq_ignore_ascii_case(one));
    let mut before = "";
    name.split(['_', '-']).any(|word| {
        let before = std::mem::replace(&mut before, word);
        one_of(word, &["token", "secret", "password", "passwd", "passphrase", "credential", "credentials"])
            // `API_KEY` and `SECRET_ACCESS_KEY`, not `KEY` alone nor `SORT_KEY`.
            || one_of(word, &["key"]) && one_of(before, &["api", "access", "private", "auth", "signing"])
    })
}

/// A number, a switch or a path is no secret, whatever its name: `MIN_TOKEN_BUCKET=16`, `TOKEN_FILE=/run/token`.
fn is_plain(value: &str) -> bool {
    value.parse::<f64>().is_ok() || matches!(value, "true" | "false") || value.starts_with('/')
}

/// `$NAME` and `${NAME}` name a value without holding it.
fn is_reference(value: &str) -> bool {
    value.is_empty() || (value.starts_with('$') && !value.contains(":-"))
}

/// Whose token stands in `text`.
fn looks_like_token(text: &str) -> Option<&'static str> {
    tokens(text).next().map(|(_, what)| what)
}

/// The tokens in `text`: their places, and whose they are.
fn tokens(text: &str) -> impl Iterator<Item = (std::ops::Range<usize>, &'static str)> + '_ {
    let part_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    // Most texts are too short to search.
    let prefixes = if text.len() > LEAST { &PREFIXES[..] } else { &[] };
    prefixes.iter().flat_map(move |(prefix, what)| {
        text.match_indices(prefix).filter_map(move |(at, _)| {
            let rest = text.get(at + prefix.len()..)?;
            let length = rest.bytes().take_while(|&byte| part_of_token(byte)).count();
            let token = rest.get(..length)?;
            let random = token.bytes().any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
            // A short prefix inside a word, as in `task-Force1`, is not one.
            let before = at.checked_sub(1).and_then(|before| text.as_bytes().get(before)).copied();
            let inside =
                before.is_some_and(part_of_token) && (prefix.len() < 4 && !prefix.ends_with('_') || length < 20);
            (length >= LEAST && random && !inside).then_some((at..at + prefix.len() + length, *what))
        })
    })
}

/// `text` with every token that has a known shape masked. The last line of defence, for whatever is printed.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut ranges: Vec<_> = tokens(text).map(|(range, _)| range).collect();
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    ranges.sort_by_key(|range| range.start);
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    for range in ranges {
        if range.start >= at {
            masked.push_str(&text[at..range.start]);
            masked.push_str(TAKEN);
            at = range.end;
        }
    }
    masked.push_str(&text[at..]);
    Cow::Owned(masked)
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
        assert!(is_secret_name("AWS_SECRET_ACCESS_KEY"));
        assert!(!is_secret_name("TOKENIZERS_PARALLELISM"));
        assert!(!is_secret_name("SORT_KEY"));
        assert!(is_plain("16") && is_plain("/run/secrets/token") && !is_plain("abcdefg"));
        assert!(is_secret_name("api-key"));
        // Behind a name, a token is still one.
        assert!(looks_like_token("--header=Authorization=hf_abcdefghijKLMNOP1234567890").is_some());
        assert!(!is_secret_name("HF_HOME"));
    }
}
