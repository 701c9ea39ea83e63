//! Several chips for a load that one serves as fast.

use super::prelude::*;
use crate::catalog::AcceleratorKind;

rule!("tensor-parallel-no-gain", Info, "several chips for a model and a load that one chip serves about as fast");

/// Users up to which four chips were hardly faster than one.
const FEW_USERS: u64 = 32;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    let Some(users) = resolved.serving.workload.as_ref().and_then(|workload| workload.concurrency) else { return };
    let tp = u64::from(resolved.tensor);
    if resolved.accelerator.kind != AcceleratorKind::Tpu || tp <= 1 || users > FEW_USERS {
        return;
    }
    // One device has to keep room for the pool beside all of the weights.
    let device = budget.memory.per_device;
    let (together, usable) = (device.weights.saturating_mul(tp), device.usable);
    if together > usable / 5 * 3 {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("parallelism.tensor"),
            format!(
                "{} takes about {} of the {} that one device has, and the workload has {users} users: from 8 to {FEW_USERS} four chips served no more than one, below 8 little more",
                resolved.model.size, gib(together), gib(usable)
            ),
        )
        .help("take one chip, or `parallelism.tensor = 1` with `parallelism.data` for the others; several chips pay from about 64 users on"),
    );
}
