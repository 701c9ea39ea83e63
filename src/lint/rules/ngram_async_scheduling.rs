//! Two ways to be fast that exclude one another.

use super::prelude::*;

rule!("ngram-async-scheduling", Error, "n-gram speculation together with asynchronous scheduling");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let ngram = resolved.speculative.as_ref().is_some_and(|speculative| speculative.method == "ngram");
    if !context.on_vllm() || !ngram || resolved.limits.async_scheduling != Some(true) {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("scheduler.async_scheduling"),
            "n-gram drafts are made from tokens that an asynchronous step does not have yet: vLLM refuses to start with both",
        )
        .related(context.at("speculative.method"), "n-gram speculation is chosen here")
        .help("take `async_scheduling` out: with n-grams the engine switches it off by itself"),
    );
}
