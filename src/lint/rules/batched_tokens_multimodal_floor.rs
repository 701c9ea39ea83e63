//! A step that the largest media item does not fit into.

use super::prelude::*;
use crate::resolve::largest_media_item;
use crate::profile::EngineKind;

rule!("batched-tokens-multimodal-floor", Error, "a step smaller than the largest media item that may not be split");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let config = &resolved.model.config;
    // On CUDA, vLLM itself forbids to split where images see themselves in both directions.
    let forced = resolved.kind == EngineKind::VllmGpu && config.bidirectional_vision && !resolved.text_only();
    if !context.on_vllm()
        || !resolved.is_multimodal()
        || config.vision.is_none()
        || (resolved.limits.chunked_mm_input && !forced)
    {
        return;
    }
    let largest = largest_media_item(&resolved.multimodal);
    let (what, limit) =
        if resolved.multimodal.video != Some(0) { ("a video", "multimodal.video") } else { ("an image", "multimodal.image") };
    let tokens = resolved.limits.max_num_batched_tokens;
    if tokens >= largest {
        return;
    }
    let key = "scheduler.max_num_batched_tokens";
    let place = if context.is_set(key) { key } else { "scheduler.chunked_mm_input" };
    let at = context.at(place);
    let mut finding = RULE
        .finding(
            at,
            format!(
                "{what} of {} tokens may not be split and does not fit into a step of {}: the engine refuses to start",
                commas(largest),
                commas(tokens)
            ),
        )
        .help(format!("raise `{key}` to {} or more (4096 is a bucket), or set `{limit}` to 0", commas(largest)));
    if resolved.limits.chunked_mm_input {
        finding = finding.related(context.at("model.id"), "vLLM on GPUs never splits the media of this model");
    }
    if place == key && at.source == context.loaded.main {
        finding = finding.fix(at, "4096");
    }
    findings.push(finding);
}
