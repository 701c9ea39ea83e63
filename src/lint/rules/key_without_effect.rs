//! A key that the chosen engine does not read.

use super::prelude::*;
use crate::profile::EngineKind;

rule!("key-without-effect", Warning, "a key that the chosen engine does not read");

/// Keys that only the bundled engine reads.
const BUNDLED_ONLY: [&str; 2] = ["memory.per_layer_embeddings", "parallelism.experts"];

/// Keys that the bundled engine does not read.
const VLLM_ONLY: [&str; 5] =
    ["engine.pip", "model.architecture", "model.max_loras", "model.revision", "model.trust_remote_code"];

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let kind = context.resolved.kind;
    let mut report = |key: &str, reader: &str| {
        if context.is_set(key) {
            let finding = RULE.finding(context.at(key), format!("`{key}` does nothing with {kind}: only {reader} reads it"));
            findings.push(finding.help("take it out, or choose another engine"));
        }
    };
    match kind {
        EngineKind::Bundled => VLLM_ONLY.iter().for_each(|key| report(key, "vLLM")),
        EngineKind::VllmTpu => BUNDLED_ONLY.iter().for_each(|key| report(key, "the bundled engine")),
        EngineKind::VllmGpu => {
            BUNDLED_ONLY.iter().for_each(|key| report(key, "the bundled engine"));
            if context.resolved.limits.padding_gap > 0 {
                report("scheduler.bucket_padding_gap", "an engine that pads to buckets");
            }
        }
    }
}
