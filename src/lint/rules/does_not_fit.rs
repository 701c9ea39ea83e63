//! Weights, KV cache or known programs exceed a device.

use super::prelude::*;
use super::quantized_weights_unmeasured::quantized_name;

rule!("does-not-fit", Error, "the model does not fit on this hardware as configured");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(budget) = context.budget else { return };
    if budget.memory.fits {
        return;
    }
    let key = budget.decisive.unwrap_or("hardware.accelerator");
    let unmeasured = context.resolved.memory.weights_measured.is_none() && budget.memory.terms.iter().all(|term| term.name != "weights, measured");
    let help = match key {
        "parallelism.tensor" | "memory.hbm_utilization" if unmeasured && quantized_name(&context.resolved.model_id.to_lowercase()).is_some() => {
            "the checkpoint looks quantized, and its weights are charged at 16 bits: say `memory.weights_measured`, in GiB on all devices"
        }
        "parallelism.tensor" => "split the model over more devices: a larger slice with a larger `parallelism.tensor`, or a smaller model",
        "scheduler.max_model_len" => "lower `scheduler.max_model_len`, use an 8-bit KV cache where it helps, or more devices",
        "memory.num_blocks" => "leave `memory.num_blocks` out, and the pool takes what fits",
        _ if budget.memory.per_device.weights > budget.memory.per_device.limit => "raise `memory.hbm_utilization`, or split the model over more devices",
        _ => "lower `scheduler.max_num_seqs` first (it sizes the programs), then `memory.hbm_utilization`",
    };
    // The key that decides may be a default; then the place is the next thing that somebody wrote.
    let place = [key, "hardware.memory", "hardware.accelerator", "model.id"].into_iter().find(|key| context.is_set(key));
    findings.push(RULE.finding(context.at(place.unwrap_or(key)), format!("does not fit: {}", budget.memory.reasons.join("; "))).help(help));
}
