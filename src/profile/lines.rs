//! Strings that are empty, have white space at their ends, or would not stay on their line.
//!
//! Names, ids and paths end up in comments, units and logs. A line break in one could begin a line of its own there, so
//! no string of a profile has one, except arguments and variables of the engine, which are quoted wherever they go.

use super::tree::{Node, Table, Value};
use crate::diagnostic::Diagnostic;

/// Reports strings with control characters or with what YAML takes for a line break.
pub(super) fn check(table: &Table, diagnostics: &mut Vec<Diagnostic>) {
    for (key, node) in table.iter() {
        walk(node, key, diagnostics);
    }
}

fn walk(node: &Node, path: &str, diagnostics: &mut Vec<Diagnostic>) {
    match &node.value {
        Value::String(text) if text.trim() != text || text.is_empty() => {
            let what = if text.trim().is_empty() { "is empty" } else { "begins or ends with white space" };
            let finding = Diagnostic::error("invalid-value", node.location, format!("`{path}` {what}"));
            diagnostics.push(finding.help("write the value alone, or leave the key out"));
        }
        Value::String(text) if text.chars().any(breaks) => {
            let message = format!("`{path}` has a line break or another control character");
            diagnostics.push(Diagnostic::error("invalid-value", node.location, message).help("write it on one line"));
        }
        Value::Array(items) if path != "engine.extra_args" => {
            items.iter().for_each(|item| walk(item, path, diagnostics))
        }
        Value::Table(table) if path != "engine.env" => {
            table.iter().for_each(|(key, child)| walk(child, &format!("{path}.{key}"), diagnostics));
        }
        _ => {}
    }
}

fn breaks(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}
