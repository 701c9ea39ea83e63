//! The JSON Schema of a profile, and validation against it.
//!
//! Editors and CI jobs validate with the schema; gemma4ctl reads the typed profile. Both must say the same, so the
//! validator finds the places and [`messages`](super::messages) has the words: a place that only one of the two finds
//! is reported as what it is, a disagreement (and a test keeps there from being any).

use serde_json::{Map, Value as Json};

use super::tree::{Node, Table, Value};
use super::{Loaded, Profile};
use crate::diagnostic::{Diagnostic, Location};

/// The JSON Schema of a profile.
pub fn schema() -> Json {
    let settings = schemars::generate::SchemaSettings::draft07();
    let mut schema = settings.into_generator().into_root_schema_for::<Profile>().to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "gemma4ctl profile".into());
    }
    strip_null(&mut schema);
    schema
}

/// TOML has no null: what schemars writes for an optional value is only its type.
fn strip_null(schema: &mut Json) {
    match schema {
        Json::Object(object) => {
            if let Some(Json::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if types.len() == 1 {
                    let only = types[0].clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Json::Array(options)) = object.get_mut("anyOf") {
                options.retain(|option| option.get("type") != Some(&Json::from("null")));
                if options.len() == 1 {
                    let mut only = options[0].clone();
                    object.remove("anyOf");
                    // In draft 7 a `$ref` hides its neighbours, so the description moves beside it through `allOf`.
                    if only.get("$ref").is_some() && !object.is_empty() {
                        only = serde_json::json!({ "allOf": [only] });
                    }
                    if let Json::Object(only) = only {
                        for (key, value) in only {
                            object.entry(key).or_insert(value);
                        }
                    }
                }
            }
            if object.get("default") == Some(&Json::Null) {
                object.remove("default");
            }
            object.values_mut().for_each(strip_null);
        }
        Json::Array(items) => items.iter_mut().for_each(strip_null),
        _ => {}
    }
}

/// Validates the merged profile against the schema. The findings are worded as those of the typed profile.
///
/// # Errors
/// Only if the schema itself is not valid, which a test rules out.
pub fn validate(loaded: &Loaded) -> anyhow::Result<Vec<Diagnostic>> {
    let validator = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft7)
        .build(&schema())
        .map_err(|error| anyhow::anyhow!("the schema is not valid: {error}"))?;
    let json = to_json(&loaded.table);
    let mut findings: Vec<Diagnostic> = Vec::new();
    for error in validator.iter_errors(&json) {
        let mut paths: Vec<String> = Vec::new();
        let base = error.instance_path().to_string();
        if let jsonschema::error::ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
            paths.extend(unexpected.iter().map(|key| format!("{base}/{}", key.replace('~', "~0").replace('/', "~1"))));
        } else {
            paths.push(base);
        }
        for path in paths {
            let (value, key) = locate(&loaded.table, &path).unwrap_or((loaded.top(), loaded.top()));
            let typed: Vec<&Diagnostic> = loaded
                .diagnostics
                .iter()
                .filter(|finding| finding.code != "missing-key")
                .filter(|finding| {
                    finding.location == value || finding.location == key || within(finding.location, value)
                })
                .collect();
            if typed.is_empty() {
                findings.push(Diagnostic::error("invalid-value", value, format!("does not match the schema: {error}")));
            }
            for finding in typed {
                if !findings.contains(finding) {
                    findings.push(finding.clone());
                }
            }
        }
    }
    Ok(findings)
}

fn within(inner: Location, outer: Location) -> bool {
    inner.source == outer.source && inner.start >= outer.start && inner.end <= outer.end && outer.start < outer.end
}

/// The places of value and key at a JSON pointer.
fn locate(table: &Table, pointer: &str) -> Option<(Location, Location)> {
    let mut parts = pointer.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~"));
    let mut node: &Node = table.get(&parts.next()?)?;
    for part in parts {
        node = match &node.value {
            Value::Table(table) => table.get(&part)?,
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some((node.location, node.key_location))
}

/// The tree as JSON, for the validator.
pub fn to_json(table: &Table) -> Json {
    Json::Object(table.iter().map(|(key, node)| (key.to_owned(), node_json(node))).collect::<Map<_, _>>())
}

/// One value as JSON.
pub fn node_json(node: &Node) -> Json {
    match &node.value {
        Value::String(text) => Json::from(text.as_str()),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => {
            serde_json::Number::from_f64(*number).map_or_else(|| Json::from(number.to_string()), Json::Number)
        }
        Value::Boolean(value) => Json::from(*value),
        Value::Datetime => Json::Null,
        Value::Array(items) => Json::Array(items.iter().map(node_json).collect()),
        Value::Table(table) => to_json(table),
    }
}
