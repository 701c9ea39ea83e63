//! Device memory that nobody uses.

use super::prelude::*;
use crate::catalog::AcceleratorKind;

rule!("utilization-low", Info, "a share of the memory that leaves much of each device unused");

/// Below this share there is hardly a reason but a second tenant.
const LOW: f64 = 0.6;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    if resolved.accelerator.kind == AcceleratorKind::Cpu || resolved.memory.utilization >= LOW || resolved.memory.num_blocks.is_some()
    {
        return;
    }
    let usual =
        resolved.engine.default("memory.hbm_utilization", resolved.version).and_then(|entry| entry.value.as_float()).unwrap_or(0.92);
    let device = budget.memory.per_device;
    if device.kv == 0 {
        return;
    }
    // The pool grows by what the share adds; a token keeps its price.
    let added = resolved.usable as f64 * (usual - resolved.memory.utilization);
    let tokens = (budget.kv.tokens as f64 * (device.kv as f64 + added) / device.kv as f64) as u64;
    findings.push(
        RULE.finding(
            context.at("memory.hbm_utilization"),
            format!(
                "utilization {} leaves {} of each device unused: the pool has {} tokens, and at {usual} it would have about {}",
                resolved.memory.utilization, gib(device.usable.saturating_sub(device.limit)), commas(budget.kv.tokens), commas(tokens)
            ),
        )
        .help(format!("leave it out for {usual}, unless something else runs on these devices")),
    );
}
