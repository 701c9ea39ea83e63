//! A step with fewer tokens than sequences.

use super::prelude::*;

rule!("batched-tokens-below-seqs", Error, "fewer tokens in a step than sequences");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (tokens, seqs) = (context.resolved.limits.max_num_batched_tokens, context.resolved.limits.max_num_seqs);
    if tokens >= seqs {
        return;
    }
    let key = ["scheduler.max_num_batched_tokens", "scheduler.max_num_seqs"]
        .into_iter()
        .find(|key| context.is_set(key))
        .unwrap_or("scheduler");
    findings.push(
        RULE.finding(
            context.at(key),
            format!(
                "a step of {} tokens cannot hold {} sequences: each needs at least one token",
                commas(tokens),
                commas(seqs)
            ),
        )
        .help(format!(
            "raise `scheduler.max_num_batched_tokens` to {} or more, or lower `scheduler.max_num_seqs`",
            commas(seqs)
        )),
    );
}
