//! A server that answers everybody who reaches it.

use super::open_to_world::open_range;
use super::prelude::*;

rule!("open-port-without-key", Warning, "the server listens on every address and asks for no key");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !matches!(resolved.serving.host.as_str(), "0.0.0.0" | "::" | "") {
        return;
    }
    let key = resolved.serving.secrets.contains_key("api_key")
        || resolved.env.contains_key("VLLM_API_KEY")
        || context.has_flag("--api-key");
    // Where nobody wrote the host or a way to deploy, the address is only the engine's default.
    let meant = context.is_set("server.host") || context.gcloud().is_some() || context.docker().is_some();
    if key || !meant {
        return;
    }
    let help = "add `[secrets]` with `api_key = { env = \"NAME\" }` (or `file`, or `gcp_secret`), or bind 127.0.0.1 and use a tunnel";
    let finding = match open_range(context) {
        Some((range, location)) => {
            let mut finding = RULE.finding(
                location,
                format!(
                    "port {} is open to {range}, and there is no `secrets.api_key`: anybody can use the model",
                    resolved.serving.port
                ),
            );
            finding.severity = Severity::Error;
            finding
        }
        None => RULE.finding(
            context.at("server.host"),
            format!(
                "the server listens on {} without `secrets.api_key`: whoever reaches port {} can use the model",
                if resolved.serving.host.is_empty() { "every address" } else { &resolved.serving.host },
                resolved.serving.port
            ),
        ),
    };
    findings.push(finding.help(help));
}
