//! An API that cannot create this machine.

use super::prelude::*;
use crate::catalog::AcceleratorKind;

rule!("plane-unavailable", Error, "the chosen API cannot create this accelerator");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(plane) = context.gcloud().and_then(|gcloud| gcloud.plane.get()) else { return };
    let accelerator = &context.resolved.accelerator;
    // A GPU's machine may come from anywhere; the catalog does not know.
    if accelerator.planes.contains(plane) || accelerator.kind == AcceleratorKind::Gpu {
        return;
    }
    let planes: Vec<String> = accelerator.planes.iter().map(|plane| format!("`{plane}`")).collect();
    let help = match planes.as_slice() {
        [] => "take `deploy.gcloud` out: it is not a machine of Google Cloud".to_owned(),
        planes => format!("use {}", planes.join(" or ")),
    };
    findings.push(
        RULE.finding(context.at("deploy.gcloud.plane"), format!("`{plane}` cannot create {}", accelerator.family))
            .help(help),
    );
}
