//! The story of a value: where it came from, in words.

use gemma4_plan::{Provenance, Source};

use crate::budget::{Budget, vllm_gpu, vllm_tpu};
use crate::profile::EngineKind;
use crate::profile::messages::nearest;
use crate::resolve::Resolved;

/// Records the block size that the engine's rule gives, where nobody chose one.
pub fn record_block_size(resolved: &mut Resolved, budget: &Budget) {
    if resolved.memory.block_size.is_some() {
        return;
    }
    let why = match resolved.kind {
        EngineKind::VllmTpu => {
            format!(
                "tpu-inference's rule: {}",
                vllm_tpu::block_size(resolved.limits.max_model_len, resolved.limits.max_num_seqs).1
            )
        }
        EngineKind::VllmGpu => vllm_gpu::default_block_size(resolved).1.to_owned(),
        EngineKind::Bundled => "gemma4ctl's default".to_owned(),
    };
    let entry = Provenance { value: budget.kv.block_size.into(), source: Source::Derived, file: None, line: None, why };
    resolved.provenance.insert("memory.block_size".to_owned(), entry);
}

/// The key that `asked` names: itself, or the one key with the same last part.
///
/// # Errors
/// Words for the user if no key or several keys match.
pub fn find_key<'a>(resolved: &'a Resolved, asked: &str) -> Result<&'a str, String> {
    if let Some((key, _)) = resolved.provenance.get_key_value(asked) {
        return Ok(key);
    }
    let last = asked.rsplit('.').next().unwrap_or(asked);
    let same: Vec<&str> =
        resolved.provenance.keys().map(String::as_str).filter(|key| key.rsplit('.').next() == Some(last)).collect();
    match same.as_slice() {
        [key] => Ok(key),
        [] => {
            let keys: Vec<&str> = resolved.provenance.keys().map(String::as_str).collect();
            Err(match nearest(asked, &keys) {
                Some(near) => format!("a plan has no value `{asked}`; did you mean `{near}`?"),
                None => format!("a plan has no value `{asked}`; `gemma4ctl explain PROFILE` lists them"),
            })
        }
        several => Err(format!("`{asked}` could be {}; name one", several.join(" or "))),
    }
}

/// Where a value came from, as one line.
pub fn origin(entry: &Provenance) -> String {
    match (entry.source, &entry.file, entry.line) {
        (Source::Profile | Source::Extends, Some(file), Some(line)) => format!("{file}:{line}"),
        (Source::Set, _, _) => "--set".to_owned(),
        (Source::Derived, _, _) => "derived".to_owned(),
        _ => "default".to_owned(),
    }
}

/// A value as it is shown to people.
pub fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "not set".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What the engine's own rule would give in place of a chosen block size.
pub fn block_size_without(resolved: &Resolved) -> String {
    match resolved.kind {
        EngineKind::VllmTpu => {
            let (block, why) = vllm_tpu::block_size(resolved.limits.max_model_len, resolved.limits.max_num_seqs);
            format!("Without it the engine would take {block} ({why}).")
        }
        EngineKind::VllmGpu => {
            let (block, why) = vllm_gpu::default_block_size(resolved);
            format!("Without it the engine would take {block} ({why}).")
        }
        EngineKind::Bundled => format!("Without it the engine would take {}.", crate::budget::bundled::DEFAULT_BLOCK),
    }
}
