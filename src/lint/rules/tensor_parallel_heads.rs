//! Attention heads that cannot be split over the devices.

use super::prelude::*;
use crate::catalog::AcceleratorKind;

rule!("tensor-parallel-heads", Error, "attention heads that do not divide over the devices");

/// Tensor parallel sizes that are named in the help where the number of devices is free.
const CPU_SIZES: u64 = 8;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let tp = u64::from(resolved.tensor);
    let heads = resolved.model.config.text.query_heads;
    let kv_heads = kv_heads(context);
    let mut reasons = Vec::new();
    if !heads.is_multiple_of(tp.max(1)) {
        reasons.push(format!("{heads} query heads do not divide by {tp}"));
    }
    for &kv in kv_heads.iter().filter(|&&kv| !shares(kv, tp)) {
        reasons.push(format!("{kv} KV heads and {tp} devices: one has to be a multiple of the other"));
    }
    if reasons.is_empty() {
        return;
    }
    let most = if resolved.accelerator.kind == AcceleratorKind::Cpu {
        CPU_SIZES
    } else {
        u64::from(resolved.devices / resolved.data.max(1)).max(1)
    };
    let works = |size: &u64| heads.is_multiple_of(*size) && kv_heads.iter().all(|&kv| shares(kv, *size));
    let sizes: Vec<String> = (1..=most).filter(works).map(|size| size.to_string()).collect();
    findings.push(
        RULE.finding(
            context.at("parallelism.tensor"),
            format!("{} cannot be split over {tp} devices: {}", resolved.model.size, reasons.join("; ")),
        )
        .help(format!("sizes that work here: {}", sizes.join(", "))),
    );
}

/// The different numbers of KV heads in the model.
fn kv_heads(context: &Context<'_>) -> Vec<u64> {
    let mut heads: Vec<u64> = context.resolved.model.config.text.layers.iter().map(|layer| layer.kv_heads).collect();
    heads.sort_unstable();
    heads.dedup();
    heads
}

/// Whether KV heads divide over the devices, or are repeated evenly on them.
fn shares(heads: u64, devices: u64) -> bool {
    if heads >= devices { heads.is_multiple_of(devices.max(1)) } else { devices.is_multiple_of(heads.max(1)) }
}
