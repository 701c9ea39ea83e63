//! A smallest bucket that the engine does not accept.

use super::prelude::*;
use crate::catalog::Version;

rule!("min-token-bucket", Error, "a smallest token bucket that is not a power of two");

const NAME: &str = "MIN_TOKEN_BUCKET";

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    // Older versions do not read it.
    if !context.on_tpu() || resolved.version < Version::new(0, 25) {
        return;
    }
    let Some(text) = resolved.env.get(NAME) else { return };
    if text.trim().parse::<u64>().is_ok_and(u64::is_power_of_two) {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("engine.env.MIN_TOKEN_BUCKET"),
            format!("{NAME} is `{text}`, and the engine stops unless it is a power of two"),
        )
        .help("use 16, 32 or 64, or leave it out for 16"),
    );
}
