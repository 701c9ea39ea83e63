//! An engine version that cannot load this model.

use super::prelude::*;
use crate::catalog::Version;

rule!("engine-too-old", Error, "an engine version that cannot load this model");

/// First tpu-inference with layers that share KV and with per-layer embeddings.
const SHARED_LAYERS: Version = Version::new(0, 22);

/// First tpu-inference whose JAX registry has the text-only class.
const TEXT_ONLY_CLASS: Version = Version::new(0, 24);

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let (version, first, size) = (resolved.version, resolved.engine.first, &resolved.model.size);
    let text = &resolved.model.config.text;
    let shared = text.num_kv_shared();
    let (message, needed) = if version < first {
        (format!("{} {version} does not know Gemma 4", resolved.engine.title), first)
    } else if context.on_tpu()
        && version < SHARED_LAYERS
        && !resolved.runs_through_torch()
        && (shared > 0 || text.has_ple())
    {
        (
            format!(
                "vLLM {version} on TPU stops while it loads {size}: its JAX model has no per-layer embeddings and expects no layers that share KV, and {size} has {shared}"
            ),
            SHARED_LAYERS,
        )
    } else if context.on_tpu() && version < TEXT_ONLY_CLASS && resolved.loads_text_only_class() {
        (
            format!(
                "vLLM {version} on TPU has no JAX model for Gemma4ForCausalLM and falls back to PyTorch, for which this plan is not made"
            ),
            TEXT_ONLY_CLASS,
        )
    } else {
        return;
    };
    findings.push(RULE.finding(context.at("engine.version"), message).help(format!("use {needed} or newer")));
}
