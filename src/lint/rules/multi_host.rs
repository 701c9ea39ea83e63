//! More machines than any Gemma 4 needs.

use super::prelude::*;
use crate::profile::Plane;

rule!("multi-host", Warning, "a slice of several machines for a model that fits on one");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let slice = &resolved.slice;
    if slice.hosts <= 1 {
        return;
    }
    let family = &resolved.accelerator.family;
    let name = &resolved.accelerator_name;
    let per_host = (resolved.devices / slice.hosts).max(1);
    let spans = if resolved.tensor > per_host {
        format!(", and one copy of the model over {} devices spans them", resolved.tensor)
    } else {
        String::new()
    };
    // Several machines have to start together and find each other, which one create command does not arrange.
    let alone =
        if resolved.deployment.plane == Some(Plane::ComputeEngine) { "; `compute-engine` creates one machine" } else { "" };
    let largest = resolved.accelerator.slices.iter().filter(|slice| slice.hosts == 1).map(|slice| slice.chips).max();
    let help = match largest {
        Some(chips) => format!(
            "use {family}-{chips}, the largest with one machine, and `deploy.gke.replicas` for more throughput: each copy serves by itself"
        ),
        None => "use a slice with one machine, and `deploy.gke.replicas` for more throughput".to_owned(),
    };
    findings.push(
        RULE.finding(context.at("hardware.accelerator"), format!("{name} is {} machines{spans}{alone}", slice.hosts))
            .help(help),
    );
}
