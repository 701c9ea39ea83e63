//! The words for a profile that has the wrong shape.
//!
//! There are two ways to find such a mistake: reading the typed profile, and validating against the JSON Schema. Both
//! take their words from here, so that an editor, a CI job and the terminal say the same.

use crate::diagnostic::{Diagnostic, Location};

/// What is wrong with a key or a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mistake {
    /// A key that the profile does not have.
    UnknownKey {
        /// Path of the table, empty for the top.
        table: String,
        /// The key.
        key: String,
        /// The keys that this table has.
        known: Vec<String>,
        /// The keys that are written beside it.
        present: Vec<String>,
    },
    /// A value of the wrong kind.
    WrongType {
        /// What belongs here, with its article.
        expected: String,
        /// What was written, with its article.
        found: String,
    },
    /// A word that is not among the choices.
    NotAChoice {
        /// What was written.
        found: String,
        /// The choices.
        choices: Vec<String>,
    },
    /// A value of the right kind that cannot be.
    Invalid {
        /// Why.
        reason: String,
    },
    /// A key that must be there and is not.
    Missing {
        /// The key.
        key: String,
    },
}

impl Mistake {
    /// The code of the finding.
    pub fn code(&self) -> &'static str {
        match self {
            Mistake::UnknownKey { .. } => "unknown-key",
            Mistake::WrongType { .. } => "wrong-type",
            Mistake::NotAChoice { .. } | Mistake::Invalid { .. } => "invalid-value",
            Mistake::Missing { .. } => "missing-key",
        }
    }

    /// The finding about the key or value at `path`.
    pub fn diagnostic(&self, path: &str, location: Location) -> Diagnostic {
        let code = self.code();
        match self {
            Mistake::UnknownKey { table, key, known, present } => {
                let place =
                    if table.is_empty() { "at the top of a profile".to_owned() } else { format!("in [{table}]") };
                let known_names: Vec<&str> = known.iter().map(String::as_str).collect();
                let diagnostic = Diagnostic::error(code, location, format!("unknown key `{key}` {place}"));
                match nearest(key, &known_names) {
                    Some(name) => {
                        let diagnostic = diagnostic.help(format!("did you mean `{name}`?"));
                        // Renaming is only safe while no other key, right or wrong, wants the same name.
                        let rivals = present.iter().filter(|other| {
                            *other == name
                                || (*other != key
                                    && !known.contains(other)
                                    && nearest(other, &known_names) == Some(name))
                        });
                        if rivals.count() == 0 { diagnostic.fix(location, name) } else { diagnostic }
                    }
                    None => match home_of(key) {
                        Some(home) => diagnostic.help(format!("`{key}` belongs to [{home}]")),
                        None => diagnostic.help(format!("known keys here: {}", known.join(", "))),
                    },
                }
            }
            Mistake::WrongType { expected, found } => {
                let message = format!("`{path}` wants {expected}, and this is {found}");
                let help = if expected == "an array" && found == "a string" {
                    format!("write a list of one: `{path} = [\"...\"]`")
                } else {
                    format!("`gemma4ctl schema profile` describes every key; see docs/profiles.md for `{path}`")
                };
                Diagnostic::error(code, location, message).help(help)
            }
            Mistake::NotAChoice { found, choices } => {
                let names: Vec<&str> = choices.iter().map(String::as_str).collect();
                let diagnostic = Diagnostic::error(code, location, format!("`{path}` does not know `{found}`"));
                let list = format!("choices: {}", choices.join(", "));
                match nearest(found, &names) {
                    Some(name) => diagnostic.help(format!("did you mean `{name}`? {list}")),
                    None => diagnostic.help(list),
                }
            }
            Mistake::Invalid { reason } => Diagnostic::error(code, location, format!("`{path}`: {reason}")),
            Mistake::Missing { key } => Diagnostic::error(code, location, format!("the profile does not say `{key}`"))
                .help(format!("add it, or extend a profile that has it; {}", example(key))),
        }
    }
}

/// An example line for a key that must be there.
fn example(key: &str) -> &'static str {
    match key {
        "model.id" => "for example `[model]` with `id = \"google/gemma-4-E2B-it\"`",
        "hardware.accelerator" => "for example `[hardware]` with `accelerator = \"v6e-4\"`",
        "engine.kind" => "for example `[engine]` with `kind = \"vllm-tpu\"`",
        _ => "`gemma4ctl init` writes a profile to start from",
    }
}

/// The section that has a key of this name, for keys written in the wrong one.
fn home_of(key: &str) -> Option<&'static str> {
    super::keys()
        .iter()
        .find(|known| known.rsplit('.').next() == Some(key))
        .and_then(|known| known.rsplit_once('.'))
        .map(|(section, _)| section)
}

/// The nearest of `choices`, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, choices: &[&'a str]) -> Option<&'a str> {
    // Nobody mistypes a word of this length; comparing it would only cost time.
    if word.len() > 80 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let limit = match word.chars().count() {
        0..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    choices
        .iter()
        .filter(|choice| choice.len().abs_diff(word.len()) <= limit)
        .map(|choice| (strsim::damerau_levenshtein(&word, &choice.to_lowercase().replace('-', "_")), *choice))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, choice)| choice)
        .or_else(|| longer(&word, choices))
}

/// The only one of `choices` that ends in `word`, as `hbm_utilization` does in `utilization`.
fn longer<'a>(word: &str, choices: &[&'a str]) -> Option<&'a str> {
    let ending = format!("_{word}");
    let mut matches = choices.iter().filter(|choice| word.len() >= 4 && choice.replace('-', "_").ends_with(&ending));
    matches.next().filter(|_| matches.next().is_none()).copied()
}
