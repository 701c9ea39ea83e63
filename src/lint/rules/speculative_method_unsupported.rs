//! A way to make drafts that the engine does not have.

use super::prelude::*;
use crate::profile::EngineKind;

rule!("speculative-method-unsupported", Error, "a speculation method that this engine cannot run");

/// Methods that are wired in tpu-inference.
const ON_TPU: [&str; 5] = ["ngram", "eagle", "eagle3", "mtp", "dflash"];

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let Some(speculative) = &resolved.speculative else { return };
    let method = speculative.method.as_str();
    let at = context.at("speculative.method");
    if resolved.kind == EngineKind::Bundled {
        if method != "ngram" {
            findings.push(
                RULE.finding(at, format!("the bundled engine makes drafts from n-grams only, not with `{method}`"))
                    .help("use `ngram`, or leave `[speculative]` out"),
            );
        }
    } else if context.on_tpu() && !ON_TPU.contains(&method) {
        findings.push(
            RULE.finding(at, format!("vLLM on TPU has no `{method}` speculation"))
                .help(format!("it has {}", ON_TPU.join(", "))),
        );
    } else if method != "ngram" && speculative.model.is_none() {
        findings.push(
            RULE.finding(
                at,
                format!("`{method}` needs the checkpoint of a drafter, and the profile names none"),
            )
            .help("say `speculative.model`, or use `ngram`, which needs no drafter"),
        );
    }
}
