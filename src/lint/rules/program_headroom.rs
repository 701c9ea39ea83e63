//! Memory that fits, with too little beside it for the compiled programs.

use super::prelude::*;

rule!("program-headroom", Warning, "too little device memory outside weights and KV cache for compiled programs");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    let memory = &budget.memory;
    if !context.on_tpu() || !memory.fits {
        return;
    }
    let device = memory.per_device;
    // The start-up dummies of n-gram speculation are in the expectation too, and have a rule of their own.
    let start_up: u64 = memory
        .terms
        .iter()
        .filter(|term| term.part == "programs" && term.basis == "derived")
        .map(|term| term.bytes)
        .sum();
    let spare = memory.expected_programs.saturating_sub(start_up);
    // The rejection sampler turns the logits of every drafted token into float32 probabilities over the vocabulary.
    let rows = budget.buckets.logits.last().copied().unwrap_or(0);
    let sampler = rows.saturating_mul(resolved.model.config.text.vocab_size).saturating_mul(4);
    let need = device.programs.saturating_add(spare).saturating_add(sampler);
    let left = device.usable.saturating_sub(device.weights).saturating_sub(device.kv);
    if left >= need {
        return;
    }
    let mut parts = vec![format!("{} seen", gib(device.programs))];
    if sampler > 0 {
        parts.push(format!("{} to check {} drafted and bonus tokens a step", gib(sampler), commas(rows)));
    }
    parts.push(format!("{} to spare", gib(spare)));
    let message = format!(
        "utilization {} leaves {} of each chip outside weights and KV cache, and programs want {}: {}",
        resolved.memory.utilization,
        gib(left),
        gib(need),
        parts.join(", ")
    );
    let finding = RULE.finding(context.at("memory.hbm_utilization"), message);
    // Rounded down to what somebody would write.
    let highest = (device.usable.saturating_sub(need) as f64 / device.usable.max(1) as f64 * 100.0).floor() / 100.0;
    let proof = if sampler > 0 { "; with n-grams on v6e 0.90 ran stable where 0.95 did not" } else { "" };
    findings.push(finding.help(format!("lower `scheduler.max_num_seqs`, which sizes most of it, or `memory.hbm_utilization` to {highest} or less{proof}")));
}
