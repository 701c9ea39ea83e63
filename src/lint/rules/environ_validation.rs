//! A check of the environment that fails on a variable which works.

use super::prelude::*;
use crate::catalog::Version;

rule!("environ-validation", Error, "strict environment validation together with a padding gap");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !context.on_tpu() || resolved.limits.padding_gap == 0 || resolved.version < Version::new(0, 26) {
        return;
    }
    let Some((_, place)) = context.extra_flags().into_iter().find(|(flag, _)| flag == "--fail-on-environ-validation")
    else {
        return;
    };
    findings.push(
        RULE.finding(
            place,
            format!("vLLM {} does not list VLLM_TPU_BUCKET_PADDING_GAP, which a padding gap of {} needs: strict validation stops the start", resolved.version, resolved.limits.padding_gap),
        )
        .related(context.at("scheduler.bucket_padding_gap"), "sets the variable")
        .help("remove `--fail-on-environ-validation`: tpu-inference reads the variable, vLLM's warning about it is harmless"),
    );
}
