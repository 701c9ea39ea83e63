//! Downloaded weights in a RAM disk.

use gemma4_model::DType;

use super::prelude::*;
use crate::profile::units::GIB;

rule!("weights-in-ram", Warning, "downloaded weights lie in the machine's RAM");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let Some(path) = resolved.serving.weights_cache.as_deref() else { return };
    let in_ram = path == "/dev/shm"
        || path.starts_with("/dev/shm/")
        || path.split('/').any(|part| matches!(part, "tmpfs" | "ramfs" | "ramdisk"));
    // A checkpoint in a folder is read where it is.
    if !in_ram || !context.from_hub() {
        return;
    }
    // A quantized checkpoint is smaller than its shapes say, and one of another name may be; then the number is left out.
    let as_published = resolved.quantization.is_none() || resolved.quantized_at_load().is_some();
    let bytes = (resolved.model.ids.contains(&resolved.model_id) && as_published).then(|| checkpoint_bytes(context));
    let size = bytes.map_or_else(|| "the checkpoint".to_owned(), |bytes| format!("the checkpoint of {}", gib(bytes)));
    let ram = resolved.slice.host_ram_gib;
    let of = ram.map_or_else(String::new, |ram| {
        format!(" of the {ram} GiB that a machine of {} has", resolved.accelerator_name)
    });
    let mut finding = RULE.finding(
        context.at("cache.weights"),
        format!("{path} is RAM: {size} takes its share{of}, and a reboot downloads it again"),
    );
    let too_large = bytes.zip(ram).is_some_and(|(bytes, ram)| bytes as f64 > 0.8 * (ram.saturating_mul(GIB)) as f64);
    if too_large {
        finding.severity = Severity::Error;
        finding =
            finding.help("keep the weights on a disk: more than 80 % of the RAM leaves too little for loading them");
    } else {
        finding = finding.help("keep the weights on a disk that outlives the machine; RAM pays where machines are short-lived and the network is fast");
    }
    findings.push(finding);
}

/// Bytes of the checkpoint as published: every tensor, read or not.
fn checkpoint_bytes(context: &Context<'_>) -> u64 {
    let model = &context.resolved.model;
    let elements = model.kinds.iter().map(|kind| kind.tensor.elements().saturating_mul(kind.count)).sum();
    model.config.dtype.unwrap_or(DType::Bf16).bytes(elements).unwrap_or(0)
}
