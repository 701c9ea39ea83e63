//! So many programs that a cold start takes very long.

use super::prelude::*;

rule!("compile-time", Warning, "a cold start that compiles for more than half an hour");

const LIMIT: u64 = 30 * 60;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    let Some(seconds) = budget.buckets.compile_seconds.filter(|seconds| *seconds > LIMIT) else { return };
    let (gap, tokens) = (resolved.limits.padding_gap, budget.buckets.tokens.len());
    let key = if gap > 0 { "scheduler.bucket_padding_gap" } else { "scheduler.max_num_batched_tokens" };
    let mut help = vec!["lower `scheduler.max_num_seqs`".to_owned()];
    if gap > 0 && gap < 512 {
        help.insert(0, format!("a larger gap (512 makes far fewer buckets than {gap})"));
    }
    if resolved.is_multimodal() && !resolved.text_only() {
        help.push("set all limits in `[multimodal]` to 0 if you serve text only".to_owned());
    }
    findings.push(
        RULE.finding(
            context.at(key),
            format!("a cold start compiles for {tokens} token buckets, about {} minutes", commas(seconds / 60)),
        )
        .help(format!("{}; keep the compile cache on a lasting disk", help.join(", or "))),
    );
}
