//! N-gram speculation whose warm-up needs more memory than there is.

use super::prelude::*;
use crate::budget::buckets::skips_compilation;

rule!("ngram-startup-memory", Warning, "n-gram speculation that may run out of memory while it compiles");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let (resolved, Some(budget)) = (context.resolved, context.budget) else { return };
    let memory = &budget.memory;
    // The term is there for vLLM on TPU from 0.23 on.
    let Some(dummies) = memory.terms.iter().find(|term| term.name == "n-gram speculation, dummies") else { return };
    let free = u64::try_from(memory.per_device.free).unwrap_or(0);
    if !memory.fits || dummies.bytes <= free || skips_compilation(resolved) {
        return;
    }
    let key = ["scheduler.max_num_seqs", "speculative.method"]
        .into_iter()
        .find(|key| context.is_set(key))
        .unwrap_or("speculative");
    findings.push(
        RULE.finding(
            context.at(key),
            format!(
                "with {} sequences the warm-up of n-gram speculation holds {} of dummy logits on each chip, and {} are free; computed from the source of tpu-inference {}, not seen on hardware",
                commas(resolved.limits.max_num_seqs), gib(dummies.bytes), gib(free), resolved.version
            ),
        )
        .help("lower `scheduler.max_num_seqs` to 16 or less, or set SKIP_JAX_PRECOMPILE = \"1\" in `[engine.env]` and accept compiling while requests wait"),
    );
}
