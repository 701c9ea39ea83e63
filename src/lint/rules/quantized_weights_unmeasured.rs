//! Quantized weights that the budget counts with 16 bits.

use super::prelude::*;
use crate::profile::EngineKind;

rule!("quantized-weights-unmeasured", Warning, "quantized weights that the budget counts in full");

/// Words in a checkpoint's name that say its weights are quantized.
const WORDS: [&str; 17] = [
    "fp8", "int4", "int8", "w4a16", "w4a8", "w8a8", "w8a16", "awq", "gptq", "nvfp4", "mxfp4", "qat", "gguf", "4bit",
    "8bit", "bnb", "w4a4",
];

/// The word of a lower-case name that says its weights are quantized.
pub(super) fn quantized_name(id: &str) -> Option<&str> {
    id.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| WORDS.contains(word))
}

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    // What the bundled engine makes of weights is known to the byte, and what it cannot make is an error already.
    if resolved.kind == EngineKind::Bundled && resolved.quantization.is_some() {
        return;
    }
    let id = resolved.model_id.to_lowercase();
    let (key, why) = if let Some(method) = &resolved.quantization {
        ("model.quantization", format!("`{method}`"))
    } else if let Some(method) = &resolved.model.config.quantization {
        ("model.id", format!("`{method}` in its configuration"))
    } else if let Some(word) = quantized_name(&id) {
        ("model.id", format!("`{word}` in its name"))
    } else {
        return;
    };
    // The catalog's measurements are used for vLLM on TPU alone.
    let tp = u64::from(resolved.tensor);
    let in_catalog = context.on_tpu()
        && resolved.engine.weights.iter().any(|entry| entry.id == resolved.model_id && entry.tensor == tp);
    if resolved.memory.weights_measured.is_some() || in_catalog {
        return;
    }
    let Some(budget) = context.budget else { return };
    let (weights, bits) = (budget.memory.per_device.weights, resolved.dtype.bits());
    findings.push(
        RULE.finding(context.at(key), format!("{} looks quantized ({why}), and the budget counts {} of {bits}-bit weights on each device", resolved.model_id, gib(weights)))
            .help("start it once and write what it uses after loading, all devices together, as `memory.weights_measured`; the true pool is larger than this plan says"),
    );
}
