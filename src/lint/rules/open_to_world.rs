//! A firewall rule for everybody.

use super::prelude::*;
use crate::diagnostic::Location;

rule!("open-to-world", Warning, "the port is open to the whole internet");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some((range, location)) = open_range(context) else { return };
    findings.push(
        RULE.finding(location, format!("{range} lets every address on the internet reach port {}", context.resolved.serving.port))
            .help("name the ranges of your users, or leave `open_to` empty and reach the port through a tunnel (`gcloud compute ssh` with `-L`)"),
    );
}

/// The range in `deploy.gcloud.open_to` that holds every address, if there is one.
pub(super) fn open_range<'a>(context: &'a Context<'_>) -> Option<(&'a str, Location)> {
    context.strings("deploy.gcloud.open_to").into_iter().find(|(range, _)| range.trim().ends_with("/0"))
}
