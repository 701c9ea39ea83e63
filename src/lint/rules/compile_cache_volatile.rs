//! Compiled programs kept where a reboot or a new machine loses them.

use super::prelude::*;

rule!("compile-cache-volatile", Warning, "a compile cache that is gone with the machine");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(path) = context.resolved.serving.compile_cache.as_deref() else { return };
    let place = ["/dev/shm", "/tmp", "/run", "/var/tmp"].into_iter().find(|place| path == *place || path.starts_with(&format!("{place}/")));
    let Some(place) = place else { return };
    findings.push(
        RULE.finding(context.at("cache.compile"), format!("compiled programs in {place} survive a restart of the container, not of the machine"))
            .help("keep them on a disk that outlives the machine, such as an attached disk; a cold compile takes minutes to hours"),
    );
}
