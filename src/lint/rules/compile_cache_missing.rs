//! Compiled programs kept nowhere.

use super::prelude::*;

rule!("compile-cache-missing", Warning, "no compile cache: every new container compiles from nothing");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    // The variable is what `cache.compile` sets; a profile may set it by itself.
    if !context.on_tpu() || resolved.serving.compile_cache.is_some() || resolved.env.contains_key("VLLM_XLA_CACHE_PATH") {
        return;
    }
    if crate::budget::buckets::skips_compilation(resolved) {
        return;
    }
    let programs = context
        .budget
        .and_then(|budget| budget.buckets.graphs)
        .map_or_else(|| "everything".to_owned(), |programs| format!("{} programs", commas(programs)));
    let time = context
        .budget
        .and_then(|budget| budget.buckets.compile_seconds)
        .map_or_else(String::new, |seconds| format!(", about {} minutes", seconds.div_ceil(60)));
    findings.push(
        RULE.finding(
            context.at("cache.compile"),
            format!("without `cache.compile` every new container compiles {programs} before it serves{time}"),
        )
        .help("set `cache.compile` to a folder on a disk that outlives the container"),
    );
}
