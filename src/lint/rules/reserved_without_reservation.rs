//! A reservation without a name, or a name without a reservation.

use super::prelude::*;
use crate::profile::Provisioning;

rule!("reserved-without-reservation", Error, "`provisioning` and `reservation` do not agree");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(gcloud) = context.gcloud() else { return };
    let reserved = context.resolved.deployment.provisioning == Some(Provisioning::Reserved);
    let finding = match gcloud.reservation.get() {
        None if reserved => RULE
            .finding(context.at("deploy.gcloud.provisioning"), "`reserved` does not say which reservation")
            .help("add `deploy.gcloud.reservation`, the name of the reservation"),
        Some(reservation) if !reserved => {
            let other = context.resolved.deployment.provisioning.map_or_else(
                || "there is no `provisioning`".to_owned(),
                |other| format!("`provisioning` is `{other}`"),
            );
            RULE.finding(
                context.at("deploy.gcloud.reservation"),
                format!("{other}, and the reservation `{reservation}` is used with `reserved` alone"),
            )
            .help("set `provisioning = \"reserved\"`, or take `reservation` out")
        }
        _ => return,
    };
    findings.push(finding);
}
