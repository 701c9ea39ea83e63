//! An environment variable for something that a profile key says.

use super::prelude::*;
use crate::profile::EngineKind;

rule!("env-shadows-key", Error, "an environment variable that sets what a profile key sets");

/// Variables, the keys they come from, and the engine that reads them (all of them if none).
const VARIABLES: [(&str, &str, Option<EngineKind>); 4] = [
    ("VLLM_TPU_BUCKET_PADDING_GAP", "scheduler.bucket_padding_gap", Some(EngineKind::VllmTpu)),
    ("VLLM_XLA_CACHE_PATH", "cache.compile", Some(EngineKind::VllmTpu)),
    ("VLLM_CACHE_ROOT", "cache.compile", Some(EngineKind::VllmGpu)),
    ("HF_HOME", "cache.weights", None),
];

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    for (name, key, engine) in VARIABLES {
        if !resolved.env.contains_key(name) || engine.is_some_and(|engine| engine != resolved.kind) {
            continue;
        }
        let place = context.at(&format!("engine.env.{name}"));
        let mut finding = RULE
            .finding(place, format!("{name} is what `{key}` says, and the plan is computed from the key"))
            .help(format!("write it as `{key}` and take the variable out"));
        if context.is_set(key) {
            finding = finding.related(context.at(key), "the key is here, and wins");
        }
        findings.push(finding);
    }
}
