//! A KV pool that is too small for the load it is meant for.

use super::prelude::*;

rule!("pool-below-workload", Warning, "a KV pool that does not hold the workload");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    let Some(workload) = &resolved.serving.workload else { return };
    let length = workload.input_tokens.unwrap_or(0).saturating_add(workload.output_tokens.unwrap_or(0));
    if length == 0 {
        return;
    }
    if length > resolved.limits.max_model_len {
        let at = context.at("scheduler.max_model_len");
        let message = format!(
            "a request of the workload has {} tokens, and sequences end at {}",
            commas(length),
            commas(resolved.limits.max_model_len)
        );
        findings.push(RULE.finding(at, message).help("raise `scheduler.max_model_len`, or shorten the requests"));
        return;
    }
    let Some(users) = workload.concurrency else { return };
    // On TPUs a sequence takes whole blocks and nothing else; elsewhere the next length of the curve is a safe bound.
    let sequences = if context.on_tpu() {
        budget.kv.blocks / length.div_ceil(budget.kv.block_size.max(1)).max(1)
    } else {
        budget.kv.capacity.iter().find(|row| row.sequence_tokens >= length).map_or(0, |row| row.sequences)
    };
    let fit = sequences.saturating_mul(u64::from(resolved.data));
    if fit >= users {
        return;
    }
    let key = if context.is_set("workload.concurrency") { "workload.concurrency" } else { "workload" };
    findings.push(
        RULE.finding(
            context.at(key),
            format!("{users} users with {} tokens each want {} tokens of KV cache, and the pool holds {} such requests at once", commas(length), commas(users.saturating_mul(length)), commas(fit)),
        )
        .help("the others wait or are preempted; use more devices, an 8-bit cache where it helps, a higher `memory.hbm_utilization`, or plan for the queue"),
    );
}
