//! An 8-bit KV cache on chips where it was seen to save nothing.

use super::prelude::*;
use crate::budget::vllm_tpu::fp8_halves;

rule!("fp8-kv-v5e", Warning, "an 8-bit KV cache on v5e, where its saving is in doubt");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !context.on_tpu() || resolved.accelerator.family != "v5e" || resolved.memory.kv_dtype.bits() != 8 {
        return;
    }
    // Where no layer would gain on any chip, fp8-kv-no-gain says so.
    let tp = u64::from(resolved.tensor);
    if !resolved.model.config.text.owning_layers().any(|(_, layer)| fp8_halves(layer.kv_heads, tp)) {
        return;
    }
    let tokens = context.budget.map(|budget| format!(" of {} tokens", commas(budget.kv.tokens))).unwrap_or_default();
    findings.push(
        RULE.finding(
            context.at("memory.kv_cache_dtype"),
            format!(
                "the pool{tokens} counts on fp8, and on v5e a pool of the same size was reported with and without it"
            ),
        )
        .help("use `bfloat16`, or compare `KV cache size` in the start-up log with this plan before you rely on it"),
    );
}
