//! Fast prefill where nothing can be skipped.

use super::prelude::*;

rule!("fast-prefill-no-effect", Warning, "fast prefill where it does nothing");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let key = "scheduler.kv_sharing_fast_prefill";
    if !context.is_set(key) || !resolved.limits.fast_prefill {
        return;
    }
    let shared = resolved.model.config.text.num_kv_shared();
    let (message, help) = if shared == 0 {
        (
            format!("{} has no layers that share KV, so fast prefill has nothing to skip", resolved.model.size),
            "take it out",
        )
    } else if context.on_tpu() {
        (
            format!(
                "vLLM on TPU has no fast prefill: the flag is accepted, and the {shared} layers that share KV still run over the whole prompt"
            ),
            "take it out: it only switches prompt logprobs off; vLLM on GPUs and the bundled engine have it",
        )
    } else {
        return;
    };
    findings.push(RULE.finding(context.at(key), message).help(help));
}
