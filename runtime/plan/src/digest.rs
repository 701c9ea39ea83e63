//! The digest of a plan: SHA-256 over what determines the running service, and over nothing else.
//!
//! Memory figures, proofs, diagnostics, provenance, deployment settings and the profile's name are left out: they
//! describe or place the launch, and a better budget must not make a running service look changed. A model that is a
//! local folder enters by the fingerprint of its contents, so that the same checkpoint in another folder is the same
//! plan.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::Plan;

/// The sections that enter the digest, in the order of the plan file.
const SECTIONS: [&str; 13] = [
    "model",
    "engine",
    "hardware",
    "scheduler",
    "speculative",
    "multimodal",
    "chat",
    "sharding",
    "buckets",
    "kv_cache",
    "compile_cache",
    "server",
    "secrets",
];

/// Computes the digest of `plan`, as `sha256:` and 64 hexadecimal digits.
pub fn compute(plan: &Plan) -> String {
    let value = serde_json::to_value(plan).unwrap_or(Value::Null);
    let mut kept = Map::new();
    for section in SECTIONS {
        if let Some(part) = value.get(section) {
            kept.insert(section.to_owned(), part.clone());
        }
    }
    // Estimates and words say how long, how much or why, not what runs.
    for (section, keys) in [
        ("buckets", &["graphs", "compile_seconds"][..]),
        ("engine", &["notes"]),
        ("kv_cache", &["bytes_per_token", "tokens", "max_concurrency", "capacity"]),
    ] {
        if let Some(Value::Object(section)) = kept.get_mut(section) {
            keys.iter().for_each(|key| drop(section.remove(*key)));
        }
    }
    if let Some(Value::Array(rows)) = kept.get_mut("sharding").and_then(|sharding| sharding.get_mut("tensors")) {
        for row in rows.iter_mut().filter_map(Value::as_object_mut) {
            row.remove("note");
            row.remove("device_bytes");
        }
    }
    if plan.model.fingerprint.is_some() {
        erase_path(&mut kept, &plan.model.id);
    }
    sha256(canonical(&Value::Object(kept)).as_bytes())
}

/// Puts a fixed word in place of the local folder wherever the plan names it (`model.id` and the engine's arguments).
fn erase_path(sections: &mut Map<String, Value>, path: &str) {
    fn walk(value: &mut Value, path: &str) {
        match value {
            Value::String(text) if text == path => *text = "local".to_owned(),
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, path)),
            Value::Object(map) => map.values_mut().for_each(|item| walk(item, path)),
            _ => {}
        }
    }
    for name in ["model", "engine"] {
        if let Some(section) = sections.get_mut(name) {
            walk(section, path);
        }
    }
}

/// JSON with sorted keys and no white space, so that equal values have equal bytes.
fn canonical(value: &Value) -> String {
    let mut text = String::with_capacity(8192);
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_canonical(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// SHA-256 of `bytes`, written as `sha256:` and 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
