//! A machine without an address that has to fetch from the internet.

use super::prelude::*;

rule!("external-ip-missing-nat", Warning, "a machine without an address on the internet fetches from it");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(gcloud) = context.gcloud() else { return };
    if gcloud.external_ip.get() != Some(&false) {
        return;
    }
    let mut sources = Vec::new();
    if let Some(image) = context.resolved.image.as_deref().filter(|image| from_docker_hub(image)) {
        sources.push(format!("the image {image} from Docker Hub"));
    }
    if context.from_hub() {
        sources.push(format!("the weights of {} from the Hugging Face Hub", context.resolved.model_id));
    }
    if !context.resolved.pip.is_empty() {
        sources.push("Python packages".to_owned());
    }
    if sources.is_empty() {
        return;
    }
    findings.push(
        RULE.finding(context.at("deploy.gcloud.external_ip"), format!("without an external address the machine fetches {}, and Private Google Access reaches Google's services alone", sources.join(" and ")))
            .help("give the network Cloud NAT, or mirror the image to Artifact Registry and the weights to a bucket"),
    );
}

/// Whether an image names no registry, or Docker's own.
fn from_docker_hub(image: &str) -> bool {
    match image.split_once('/') {
        None => true,
        Some((first, _)) => first == "docker.io" || !(first.contains(['.', ':']) || first == "localhost"),
    }
}
