//! Flex-start where it is not sold.

use super::prelude::*;
use crate::catalog::AcceleratorKind;
use crate::profile::Provisioning;

rule!("flex-start-unavailable", Error, "flex-start for an accelerator that does not have it");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let accelerator = &context.resolved.accelerator;
    if context.resolved.deployment.provisioning != Some(Provisioning::FlexStart) || accelerator.flex_start
        || accelerator.kind == AcceleratorKind::Gpu
    {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("deploy.gcloud.provisioning"),
            format!("the catalog knows no flex-start for {}", accelerator.family),
        )
        .help("use `on-demand`, `spot` or `reserved`; v5e and v6e have flex-start"),
    );
}
