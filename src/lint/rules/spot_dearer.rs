//! Spot at a price above flex-start.

use super::prelude::*;
use crate::profile::Provisioning;

rule!("spot-dearer", Warning, "spot costs no less than flex-start, and can be taken back");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let accelerator = &context.resolved.accelerator;
    let Some(prices) = accelerator.price.as_ref() else { return };
    if context.resolved.deployment.provisioning != Some(Provisioning::Spot)
        || !accelerator.flex_start
        || prices.spot < prices.flex_start
    {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("deploy.gcloud.provisioning"),
            format!(
                "spot is {} and flex-start {} {} for {} ({})",
                prices.spot, prices.flex_start, prices.unit, accelerator.family, prices.source
            ),
        )
        .help("use `provisioning = \"flex-start\"` with `max_run_duration`, up to seven days that nobody takes back"),
    );
}
