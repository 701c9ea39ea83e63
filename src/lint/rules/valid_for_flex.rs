//! A wait for capacity that is longer than the service allows.

use super::prelude::*;
use crate::profile::{Plane, Provisioning};

rule!("valid-for-flex", Warning, "flex-start on Compute Engine waits for at most two hours");

const LONGEST: u64 = 2 * 3_600;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let Some(wait) = context.gcloud().and_then(|gcloud| gcloud.valid_for.get()) else { return };
    if resolved.deployment.provisioning != Some(Provisioning::FlexStart)
        || resolved.deployment.plane != Some(Plane::ComputeEngine)
        || wait.seconds <= LONGEST
    {
        return;
    }
    let help = if resolved.accelerator.planes.contains(&Plane::QueuedResource) {
        "set it to \"2h\" or less, or use `plane = \"queued-resource\"`, where a request waits longer"
    } else {
        "set it to \"2h\" or less, and ask again when it runs out"
    };
    findings.push(
        RULE.finding(
            context.at("deploy.gcloud.valid_for"),
            format!("a single flex-start machine waits for at most 2h, and this asks for {}", wait.text),
        )
        .help(help),
    );
}
