//! Sequences longer than the model was made for.

use super::prelude::*;

rule!("max-len-exceeds-model", Error, "sequences longer than the model's context");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let (length, longest) = (resolved.limits.max_model_len, resolved.model.config.text.max_position_embeddings);
    if length <= longest {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("scheduler.max_model_len"),
            format!(
                "{} tokens are more than the context of {}, {} tokens",
                commas(length),
                resolved.model.size,
                commas(longest)
            ),
        )
        .help(format!("lower it to {longest}, or leave it out")),
    );
}
