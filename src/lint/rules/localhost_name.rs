//! A name where an address belongs.

use super::prelude::*;

rule!("localhost-name", Warning, "the server binds `localhost`, which is not the same address everywhere");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let message = match context.resolved.serving.host.as_str() {
        "localhost" => {
            "`localhost` is 127.0.0.1 on one machine and ::1 on another, and a client may take the one that the server did not bind"
        }
        "::1" => "`::1` is reachable over IPv6 alone, and is missing in containers without IPv6",
        _ => return,
    };
    let finding = RULE
        .finding(context.at("server.host"), message)
        .help("write `127.0.0.1`: also reachable from this machine alone, and the same everywhere");
    // A value that follows from a default has no place to mend.
    let Some(node) = context.loaded.node("server.host") else {
        findings.push(finding);
        return;
    };
    let text = &context.loaded.sources.get(node.location.source).text;
    let quote = text
        .get(node.location.range())
        .and_then(|value| value.chars().next())
        .filter(|&first| first == '\'')
        .unwrap_or('"');
    findings.push(finding.fix(node.location, format!("{quote}127.0.0.1{quote}")));
}
