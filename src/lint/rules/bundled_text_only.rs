//! Media for an engine that reads text.

use super::prelude::*;
use crate::profile::EngineKind;

rule!("bundled-text-only", Warning, "media allowed on an engine that serves text only");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    if context.resolved.kind != EngineKind::Bundled {
        return;
    }
    let limits = &context.resolved.multimodal;
    for (key, limit) in
        [("multimodal.image", limits.image), ("multimodal.audio", limits.audio), ("multimodal.video", limits.video)]
    {
        if let Some(limit) = limit.filter(|&limit| limit > 0) {
            let finding = RULE.finding(
                context.at(key),
                format!("`{key}` allows {limit}, and the bundled engine serves text only: such requests are refused"),
            );
            findings.push(finding.help("set it to 0 or take it out; vLLM serves media"));
        }
    }
}
