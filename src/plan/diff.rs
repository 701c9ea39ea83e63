//! The difference between two plans by meaning: what was changed, and what that does.

use gemma4_plan::Plan;
use serde::Serialize;
use serde_json::Value;

/// What separates two plans.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Whether both run the same thing.
    pub same: bool,
    /// Settings that differ.
    pub changes: Vec<Change>,
    /// What the difference does to memory, capacity and programs.
    pub consequences: Vec<Change>,
    /// In words, what an operator has to know.
    pub notes: Vec<String>,
}

/// One value on both sides.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// Key of the value.
    pub key: String,
    /// Before.
    pub before: Value,
    /// After.
    pub after: Value,
    /// The difference, where it is a number of bytes or tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<f64>,
}

/// Settings that are compared, as JSON pointers into the plan.
const SETTINGS: [&str; 38] = [
    "model.id",
    "model.size",
    "model.architecture",
    "model.revision",
    "model.dtype",
    "model.quantization",
    "model.trust_remote_code",
    "model.fingerprint",
    "hardware.accelerator",
    "hardware.topology",
    "hardware.devices",
    "hardware.usable_hbm_bytes",
    "engine.kind",
    "engine.version",
    "engine.image",
    "engine.pip",
    "sharding.mesh.data",
    "sharding.mesh.model",
    "memory.utilization",
    "kv_cache.dtype",
    "kv_cache.block_size",
    "scheduler.max_model_len",
    "scheduler.max_num_seqs",
    "scheduler.max_num_batched_tokens",
    "scheduler.bucket_padding_gap",
    "scheduler.prefix_caching",
    "scheduler.chunked_prefill",
    "scheduler.chunked_mm_input",
    "scheduler.kv_sharing_fast_prefill",
    "scheduler.async_scheduling",
    "speculative",
    "multimodal",
    "chat",
    "compile_cache.path",
    "server.host",
    "server.port",
    "secrets",
    "workload",
];

/// Figures that follow from the settings.
const FIGURES: [&str; 12] = [
    "memory.fits",
    "memory.per_device.limit",
    "memory.per_device.weights",
    "memory.per_device.kv",
    "memory.per_device.programs",
    "memory.per_device.free",
    "kv_cache.bytes_per_token",
    "kv_cache.blocks",
    "kv_cache.tokens",
    "kv_cache.max_concurrency",
    "buckets.graphs",
    "buckets.compile_seconds",
];

/// Compares `before` and `after`.
pub fn compare(before: &Plan, after: &Plan) -> Difference {
    let old = serde_json::to_value(before).unwrap_or(Value::Null);
    let new = serde_json::to_value(after).unwrap_or(Value::Null);
    let mut changes = collect(&old, &new, &SETTINGS);
    for side in [&before.engine.env, &after.engine.env] {
        for name in side.keys() {
            let key = format!("engine.env.{name}");
            // Variables that a setting above stands for are not said twice.
            let said =
                ["VLLM_TPU_BUCKET_PADDING_GAP", "VLLM_XLA_CACHE_PATH", "VLLM_CACHE_ROOT"].contains(&name.as_str());
            let (one, two) = (before.engine.env.get(name), after.engine.env.get(name));
            if one != two && !said && !changes.iter().any(|change| change.key == key) {
                changes.push(Change { key, before: value(one), after: value(two), by: None });
            }
        }
    }
    let (one, two) = (further_arguments(before), further_arguments(after));
    if one != two {
        changes.push(Change { key: "engine.extra_args".to_owned(), before: value(one), after: value(two), by: None });
    }
    let mut consequences = collect(&old, &new, &FIGURES);
    consequences.extend(list_change("buckets.tokens", &before.buckets.tokens, &after.buckets.tokens));
    consequences.extend(list_change("buckets.requests", &before.buckets.requests, &after.buckets.requests));
    let mut notes = Vec::new();
    if before.digest == after.digest {
        notes.push("same digest: both plans run the same thing".to_owned());
    } else {
        notes.push("a running service has to be restarted to take this over".to_owned());
        notes.push(if before.compile_cache.key == after.compile_cache.key {
            "compiled programs are the same, so a warm cache stays warm".to_owned()
        } else {
            "compiled programs differ, so the first start is a cold one".to_owned()
        });
    }
    Difference { same: before.digest == after.digest, changes, consequences, notes }
}

fn value<T: Serialize>(value: T) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn collect(old: &Value, new: &Value, keys: &[&str]) -> Vec<Change> {
    keys.iter()
        .filter_map(|key| {
            let pointer = format!("/{}", key.replace('.', "/"));
            let (before, after) = (
                old.pointer(&pointer).cloned().unwrap_or(Value::Null),
                new.pointer(&pointer).cloned().unwrap_or(Value::Null),
            );
            if before == after {
                return None;
            }
            let by = before.as_f64().zip(after.as_f64()).map(|(before, after)| after - before);
            Some(Change { key: (*key).to_owned(), before, after, by })
        })
        .collect()
}

/// A list of buckets: how many on each side, and the largest.
fn list_change(key: &str, before: &[u64], after: &[u64]) -> Option<Change> {
    (before != after).then(|| Change {
        key: key.to_owned(),
        before: value(before),
        after: value(after),
        by: Some(after.len() as f64 - before.len() as f64),
    })
}

/// Arguments that no setting stands for.
fn further_arguments(plan: &Plan) -> Option<Value> {
    plan.provenance.get("engine.extra_args").map(|entry| entry.value.clone()).filter(|value| !value.is_null())
}
