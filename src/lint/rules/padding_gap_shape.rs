//! A padding gap that makes awkward buckets.

use super::prelude::*;
use crate::budget::buckets::MAX_BUCKETS;
use crate::catalog::Version;
use crate::profile::EngineKind;

rule!("padding-gap-shape", Warning, "a padding gap that makes buckets which fit the chip badly");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let (gap, limit) = (resolved.limits.padding_gap, resolved.limits.max_num_batched_tokens);
    if gap == 0 || resolved.kind == EngineKind::VllmGpu {
        return;
    }
    let mut reasons = Vec::new();
    if !gap.is_multiple_of(16) {
        reasons.push(format!("{gap} is not a multiple of 16, so buckets miss the rows that the chip works in"));
    } else if !gap.is_power_of_two() {
        reasons.push(format!("{gap} is not a power of two, so buckets above it do not meet those below"));
    }
    if gap > limit && context.on_tpu() && resolved.version < Version::new(0, 30) {
        reasons.push(format!(
            "{} is more than the {} tokens of a step, and buckets up to it are compiled for nothing",
            commas(gap),
            commas(limit)
        ));
    }
    let mut severity = RULE.severity;
    if context.budget.is_some_and(|budget| budget.buckets.tokens.last().is_none_or(|last| *last < limit)) {
        reasons.push(format!("steps of {gap} up to {} tokens make more than {} buckets", commas(limit), commas(MAX_BUCKETS as u64)));
        severity = Severity::Error;
    }
    if reasons.is_empty() {
        return;
    }
    let mut finding = RULE.finding(context.at("scheduler.bucket_padding_gap"), reasons.join("; "));
    finding.severity = severity;
    findings.push(finding.help("use 128, 256 or 512, or 0 for powers of two"));
}
