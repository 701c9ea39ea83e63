//! A server that says nothing about itself.

use super::prelude::*;

rule!("stats-disabled", Warning, "engine metrics that are switched off");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    if !context.on_vllm() {
        return;
    }
    let Some((_, place)) = context.extra_flags().into_iter().find(|(flag, _)| flag == "--disable-log-stats") else {
        return;
    };
    findings.push(
        RULE.finding(place, "`--disable-log-stats` also removes the engine's series from /metrics: queue, KV use and latencies cannot be watched")
            .help("take it out; the periodic log line it saves is one line in ten seconds"),
    );
}
