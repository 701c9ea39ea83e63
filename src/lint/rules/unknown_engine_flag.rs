//! A flag that the engine does not have.

use super::prelude::*;
use crate::catalog::{Engine, Version};
use crate::profile::EngineKind;
use crate::profile::messages::nearest;

rule!("unknown-engine-flag", Error, "a flag that the engine does not have");

/// Versions from here on have the options of the catalog's list; older ones may have others.
const LISTED: Version = Version::new(0, 30);

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if resolved.kind == EngineKind::Bundled {
        if !resolved.extra_args.is_empty() {
            let finding = RULE.finding(
                context.at("engine.extra_args"),
                "the bundled engine takes no flags: it reads every setting from the plan",
            );
            findings
                .push(finding.help("take `engine.extra_args` out; the profile's other sections have all its settings"));
        }
        return;
    }
    let Some(options) = resolved.engine.option_list() else { return };
    let names: Vec<&str> = options.iter().flat_map(|option| option.names.iter().copied()).collect();
    for (flag, place) in context.extra_flags() {
        if names.contains(&flag.as_str()) || is_gone(&resolved.engine, &flag) {
            continue;
        }
        // A flag is never taken for its opposite.
        let alike: Vec<&str> = names.iter().copied().filter(|name| name.starts_with("--") && sense(name) == sense(&flag)).collect();
        let near = nearest(&flag, &alike);
        let mut finding = RULE.finding(place, format!("vLLM has no option `{flag}`"));
        match near {
            Some(near) => {
                finding = finding.help(format!("did you mean `{near}`?"));
                // One letter is a slip; more may be another flag.
                let slip = strsim::damerau_levenshtein(&flag, near) == 1;
                if let Some(text) = replaced(context, place, near).filter(|_| slip) {
                    finding = finding.fix(place, text);
                }
            }
            None if resolved.version < LISTED => {
                // The list is that of a newer version: what is missing there may have existed.
                finding.severity = Severity::Warning;
                finding = finding
                    .help(format!("it is not among the options of vLLM 0.32; check that {} has it", resolved.version));
            }
            None => finding = finding.help("`vllm serve --help=all` lists the options"),
        }
        findings.push(finding);
    }
}

/// The words before the name that switch a flag on or off.
fn sense(flag: &str) -> Vec<&str> {
    let words = flag.trim_start_matches('-').split('-');
    words.take_while(|word| matches!(*word, "no" | "enable" | "disable")).collect()
}

/// Whether the catalog has the flag as one that is gone; removed-engine-flag reports it.
fn is_gone(engine: &Engine, flag: &str) -> bool {
    engine.flags.iter().any(|gone| gone.name == flag)
}

/// The argument as it is written, with another name.
fn replaced(context: &Context<'_>, place: crate::diagnostic::Location, name: &str) -> Option<String> {
    let written = context.loaded.sources.get(place.source).text.get(place.range())?;
    let start = written.find("--")?;
    let (quote, rest) = written.split_at(start);
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
    Some(format!("{quote}{name}{}", rest.get(end..)?))
}
