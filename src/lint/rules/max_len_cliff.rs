//! A limit just above the length where KV blocks become small.

use super::prelude::*;
use crate::budget::vllm_tpu::block_size;

rule!("max-len-cliff", Info, "a sequence limit just above the one where KV blocks become small");

/// Above this length tpu-inference chooses blocks of 16 tokens.
const CLIFF: u64 = 8192;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let length = resolved.limits.max_model_len;
    if !context.on_tpu() || resolved.memory.block_size.is_some() || length <= CLIFF || length > CLIFF + 1024 {
        return;
    }
    let (at_cliff, here) = (block_size(CLIFF, resolved.limits.max_num_seqs).0, block_size(length, resolved.limits.max_num_seqs).0);
    if here >= at_cliff {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("scheduler.max_model_len"),
            format!("{} tokens are just above 8,192, where the KV block falls from {at_cliff} to {here} tokens: {} small blocks a sequence", commas(length), commas(length.div_ceil(here))),
        )
        .help("8192 keeps large blocks, or set `memory.block_size` to 128 or 256"),
    );
}
