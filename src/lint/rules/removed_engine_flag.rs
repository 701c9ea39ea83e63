//! A flag that newer engines no longer have.

use super::prelude::*;

rule!("removed-engine-flag", Warning, "a flag that this version no longer has");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    if !context.on_vllm() {
        return;
    }
    let resolved = context.resolved;
    for (flag, place) in context.extra_flags() {
        let Some(gone) = resolved.engine.flags.iter().find(|gone| gone.name == flag && gone.until <= resolved.version)
        else {
            continue;
        };
        findings.push(
            RULE.finding(
                place,
                format!("vLLM {} no longer has `{flag}`: it is left out of the command line", resolved.version),
            )
            .help(gone.help.clone()),
        );
    }
}
