//! An image of another engine.

use super::prelude::*;
use crate::profile::EngineKind;

rule!("image-engine-mismatch", Warning, "the image holds another engine than the profile names");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    if !context.is_set("engine.image") {
        return;
    }
    let Some(image) = context.resolved.image.as_deref() else { return };
    let kind = context.resolved.kind;
    let name = image.split('@').next().unwrap_or(image).rsplit('/').next().unwrap_or(image);
    let name = name.split(':').next().unwrap_or(name);
    let (message, help) = match kind {
        EngineKind::Bundled => (
            format!("`bundled` is part of gemma4ctl and runs without a container, and `{image}` is not used"),
            "take `engine.image` out, or name the engine that the image holds",
        ),
        EngineKind::VllmGpu if name.contains("vllm-tpu") => {
            (format!("`{image}` is vLLM for TPUs, and the engine is `{kind}`"), "use an image of `vllm/vllm-openai`")
        }
        EngineKind::VllmTpu if name.contains("vllm-openai") || name.contains("vllm-gpu") => {
            (format!("`{image}` is vLLM for GPUs, and the engine is `{kind}`"), "use an image of `vllm/vllm-tpu`")
        }
        _ => return,
    };
    findings.push(RULE.finding(context.at("engine.image"), message).help(help));
}
