//! A large table that older versions keep whole on every chip.

use super::prelude::*;
use crate::catalog::Version;

rule!("per-layer-table-replicated", Warning, "a version that keeps the per-layer-embedding table whole on every chip");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let text = &resolved.model.config.text;
    let tp = u64::from(resolved.tensor);
    // Before 0.22 such models do not load at all, which engine-too-old says.
    let replicates = resolved.version >= Version::new(0, 22) && resolved.version < Version::new(0, 25);
    if !context.on_tpu() || !text.has_ple() || tp <= 1 || !replicates {
        return;
    }
    let elements = text.ple_vocab_size.saturating_mul(text.ple_width).saturating_mul(text.layers.len() as u64);
    let Some(table) = resolved.dtype.bytes(elements) else { return };
    let wasted = table - table / tp;
    findings.push(
        RULE.finding(
            context.at("engine.version"),
            format!("vLLM {} on TPU keeps the {} per-layer-embedding table of {} whole on every chip: {} a chip that sharding it over {tp} would free", resolved.version, gib(table), resolved.model.size, gib(wasted)),
        )
        .help("use 0.25 or newer, which shards it"),
    );
}
