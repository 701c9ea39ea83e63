//! A machine in Google Cloud without a place.

use super::prelude::*;

rule!("zone-missing", Info, "a machine in Google Cloud without project or zone");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(gcloud) = context.gcloud() else { return };
    let missing = match (gcloud.project.get(), gcloud.zone.get()) {
        (None, None) => "`project` and `zone`",
        (None, Some(_)) => "`project`",
        (Some(_), None) => "`zone`",
        (Some(_), Some(_)) => return,
    };
    findings.push(
        RULE.finding(
            context.at("deploy.gcloud"),
            format!("`deploy.gcloud` does not say {missing}, so a command goes wherever the caller's gcloud is set to"),
        )
        .help("name both; few zones have this accelerator, and quota is granted by project and zone"),
    );
}
