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
    let mut kept = match serde_json::to_value(plan) {
        Ok(Value::Object(sections)) => sections,
        _ => Map::new(),
    };
    kept.retain(|section, _| SECTIONS.contains(&section.as_str()));
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
    sha256(&canonical(&Value::Object(kept)))
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
fn canonical(value: &Value) -> Vec<u8> {
    let mut text = Vec::with_capacity(1 << 15);
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push(b'{');
            for (index, (key, item)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_plain(key, out);
                out.push(b':');
                write_canonical(item, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        other => write_plain(other, out),
    }
}

/// Something that holds nothing else.
fn write_plain(value: &impl serde::Serialize, out: &mut Vec<u8>) {
    // Neither a text nor a number of a [`Value`] lacks a form, and writing to memory does not fail.
    let _ = serde_json::to_writer(out, value);
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
