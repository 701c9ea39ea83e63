//! An 8-bit KV cache that takes as many bytes as a 16-bit one.

use super::prelude::*;
use crate::budget::vllm_tpu::fp8_halves;

rule!("fp8-kv-no-gain", Warning, "an 8-bit KV cache that saves no memory for this model at this parallelism");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !context.on_tpu() || resolved.memory.kv_dtype.bits() != 8 {
        return;
    }
    let tp = u64::from(resolved.tensor);
    let gains = resolved.model.config.text.owning_layers().any(|(_, layer)| fp8_halves(layer.kv_heads, tp));
    if !gains {
        findings.push(
            RULE.finding(
                context.at("memory.kv_cache_dtype"),
                format!("fp8 KV saves nothing for {} at tensor parallel size {tp}: with one KV head on a device half of each row is padding", resolved.model.size),
            )
            .help("use `bfloat16`: the same bytes and no loss of accuracy"),
        );
    }
}
