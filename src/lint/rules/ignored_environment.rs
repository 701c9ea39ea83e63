//! An environment variable that nothing reads.

use super::prelude::*;

rule!("ignored-environment", Info, "an environment variable that this version does not read");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    for ignored in &resolved.engine.ignored_env {
        if resolved.env.contains_key(&ignored.name) && ignored.since.is_none_or(|since| since <= resolved.version) {
            let place = context.at(&format!("engine.env.{}", ignored.name));
            findings.push(
                RULE.finding(
                    place,
                    format!("nothing in {} {} reads {}", resolved.engine.title, resolved.version, ignored.name),
                )
                .help(ignored.help.clone()),
            );
        }
    }
}
