//! The part of docs/api.md that is made from the table of fields.

use crate::fields::{Endpoint, Support, fields};

/// The fields of both endpoints as Markdown: what is served, what is accepted, what is refused.
#[must_use]
pub fn request_fields() -> String {
    let mut text = String::new();
    for (endpoint, path) in [(Endpoint::Chat, "/v1/chat/completions"), (Endpoint::Completions, "/v1/completions")] {
        text += &format!("### `{path}`\n\n| Field | | |\n|---|---|---|\n");
        for field in fields(endpoint) {
            let support = match field.support {
                Support::Served => "served".to_owned(),
                Support::Accepted => "accepted, without effect".to_owned(),
                Support::Only(values) => format!("only `{}`", values.join("` or `")),
                Support::Refused => "refused".to_owned(),
            };
            let note = match field.support {
                Support::Served | Support::Accepted => field.note.to_owned(),
                Support::Only(_) | Support::Refused => capitalized(field.note),
            };
            text += &format!("| `{}` | {support} | {note} |\n", field.name);
        }
        text += "\n";
    }
    text
}

fn capitalized(note: &str) -> String {
    let mut characters = note.chars();
    characters.next().into_iter().flat_map(char::to_uppercase).chain(characters).collect()
}
