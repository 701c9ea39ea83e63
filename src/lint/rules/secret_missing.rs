//! A download without a token.

use super::prelude::*;

rule!("secret-missing", Info, "the weights are downloaded without a token");

/// Variables from which the Hub's client takes a token.
const VARIABLES: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !context.on_vllm()
        || !context.from_hub()
        || resolved.serving.secrets.contains_key("hf_token")
        || VARIABLES.iter().any(|name| resolved.env.contains_key(*name))
    {
        return;
    }
    findings.push(
        RULE.finding(context.at("model.id"), format!("`{}` is downloaded from the Hugging Face Hub, and there is no `secrets.hf_token`", resolved.model_id))
            .help("add `[secrets]` with `hf_token = { env = \"HF_TOKEN\" }` (or `file`, or `gcp_secret`), unless the weights are in `cache.weights` already"),
    );
}
