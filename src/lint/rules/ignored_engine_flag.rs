//! A flag that is accepted and does nothing.

use super::prelude::*;

rule!("ignored-engine-flag", Info, "a flag that is accepted and does nothing");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !context.on_vllm() {
        return;
    }
    for (flag, place) in context.extra_flags() {
        if let Some(ignored) = resolved.engine.ignored_flags.iter().find(|ignored| ignored.name == flag) {
            findings.push(
                RULE.finding(place, format!("`{flag}` does nothing on {}", resolved.engine.title))
                    .help(ignored.help.clone()),
            );
        }
    }
    if resolved.trust_remote_code {
        findings.push(
            RULE.finding(
                context.at("model.trust_remote_code"),
                "Gemma 4 has no code in its checkpoints, so trusting it changes nothing today",
            )
            .help("take it out: it would let a replaced checkpoint run code on your machine"),
        );
    }
}
