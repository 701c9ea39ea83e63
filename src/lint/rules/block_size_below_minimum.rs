//! A KV block for which block tables become too large, or which no kernel was tuned for.

use super::prelude::*;
use crate::budget::vllm_tpu::min_block_size;

rule!("block-size-below-minimum", Warning, "a KV block size that the attention kernel may not manage");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let Some(block) = resolved.memory.block_size.filter(|_| context.on_tpu()) else { return };
    let (length, seqs) = (resolved.limits.max_model_len, resolved.limits.max_num_seqs);
    let least = min_block_size(length, seqs);
    let at = context.at("memory.block_size");
    if block < least {
        let table = length.div_ceil(block.max(1)).saturating_mul(seqs).saturating_mul(4);
        findings.push(
            RULE.finding(
                at,
                format!("blocks of {block} tokens make block tables of {} KiB for {} sequences of {} tokens, and half of the scalar memory is 512 KiB", commas(table / 1024), commas(seqs), commas(length)),
            )
            .help(format!("use {least} or more, or leave it out: the engine's own choice keeps the tables small enough, a written size is not checked")),
        );
    } else if !block.is_power_of_two() || block < 16 {
        findings.push(
            RULE.finding(
                at,
                format!(
                    "the attention kernel is tuned for powers of two from 16 to 256, not for blocks of {block} tokens"
                ),
            )
            .help(format!("use {}", block.next_power_of_two().max(16))),
        );
    }
}
