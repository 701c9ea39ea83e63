//! Programs for media that nobody may send.

use super::prelude::*;

rule!("multimodal-unused", Info, "programs for media, with no word on whether media are served");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    let limits = &resolved.multimodal;
    let unsaid = limits.image.is_none() && limits.audio.is_none() && limits.video.is_none();
    if !context.on_tpu() || !resolved.is_multimodal() || !unsaid {
        return;
    }
    let buckets = budget.buckets.tokens.len() as u64;
    findings.push(
        RULE.finding(
            context.at(if context.is_set("multimodal") { "multimodal" } else { "model.id" }),
            format!("no limits on media: {buckets} of the {} programs of the whole model, and {} smaller ones, are compiled for requests with images, audio or video", 2 * buckets, 2 * buckets),
        )
        .help("if you serve text only, write `image = 0`, `audio = 0` and `video = 0` into `[multimodal]`; otherwise say how many a request may hold"),
    );
}
