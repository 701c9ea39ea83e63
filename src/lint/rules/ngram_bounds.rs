//! Bounds of n-gram speculation that no engine takes.

use gemma4_engine::speculation::LONGEST_LOOKUP;

use super::prelude::*;
use crate::profile::EngineKind;

rule!("ngram-bounds", Error, "n-gram speculation with bounds that the engine refuses");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let Some(speculative) = resolved.speculative.as_ref().filter(|speculative| speculative.method == "ngram") else {
        return;
    };
    let (min, max) = (speculative.prompt_lookup_min, speculative.prompt_lookup_max);
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        findings.push(
            RULE.finding(
                context.at("speculative.prompt_lookup_min"),
                format!("the shortest n-gram has {min} tokens and the longest {max}: the engine refuses to start"),
            )
            .related(context.at("speculative.prompt_lookup_max"), "the longest is chosen here")
            .help("take one of them out, which makes both the same, or turn them round"),
        );
    }
    if resolved.kind != EngineKind::Bundled {
        return;
    }
    let most = u64::try_from(LONGEST_LOOKUP).unwrap_or(u64::MAX);
    if let Some((key, longest)) = [("speculative.prompt_lookup_max", max), ("speculative.prompt_lookup_min", min)]
        .into_iter()
        .find_map(|(key, bound)| Some((key, bound.filter(|bound| *bound > most)?)))
    {
        findings.push(
            RULE.finding(context.at(key), format!("the bundled engine looks up at most {most} tokens, not {longest}"))
                .help("a match of 5 tokens says nearly as much"),
        );
    }
    let (drafts, longest) = (speculative.num_tokens, resolved.limits.max_model_len);
    if drafts >= longest {
        findings.push(
            RULE.finding(
                context.at("speculative.num_tokens"),
                format!("drafts of {} tokens do not fit sequences of {}", commas(drafts), commas(longest)),
            )
            .help("3 to 8 tokens are usual"),
        );
    }
}
