//! A limit on tokens that is padded to more than itself.

use super::prelude::*;
use crate::catalog::Version;

rule!("batched-tokens-not-a-bucket", Warning, "a limit on batched tokens that is padded to a larger bucket");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    // Since 0.30 the limit itself is the last bucket.
    if !context.on_tpu() || resolved.version >= Version::new(0, 30) {
        return;
    }
    let limit = resolved.limits.max_num_batched_tokens;
    let Some(&padded) = budget.buckets.tokens.iter().find(|&&bucket| bucket >= limit) else { return };
    if padded == limit {
        return;
    }
    let below = budget.buckets.tokens.iter().rev().find(|&&bucket| bucket < limit);
    let choices = below.map_or_else(|| padded.to_string(), |below| format!("{below} or {padded}"));
    findings.push(
        RULE.finding(
            context.at("scheduler.max_num_batched_tokens"),
            format!(
                "{} is no bucket: a full step is padded to {}, and {} % of its work is thrown away",
                commas(limit),
                commas(padded),
                (padded - limit) * 100 / padded
            ),
        )
        .help(format!("use a bucket, {choices}; vLLM 0.30 and later make the limit itself a bucket")),
    );
}
