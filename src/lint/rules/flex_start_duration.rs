//! Flex-start without the duration that it needs.

use super::prelude::*;
use crate::profile::{Plane, Provisioning};

rule!("flex-start-duration", Error, "flex-start needs a duration between ten minutes and seven days");

const SHORTEST: u64 = 600;
const LONGEST: u64 = 7 * 86_400;

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if resolved.deployment.provisioning != Some(Provisioning::FlexStart) || !resolved.accelerator.flex_start {
        return;
    }
    let text = context.gcloud().and_then(|gcloud| gcloud.max_run_duration.get()).map_or("", |span| span.text.as_str());
    let (key, message) = match resolved.deployment.max_run_duration {
        // GKE ends a node after seven days by itself.
        None if resolved.deployment.plane == Some(Plane::Gke) => return,
        None => (
            "deploy.gcloud.provisioning",
            "flex-start machines are created for a stated time, and there is no `max_run_duration`".to_owned(),
        ),
        Some(seconds) if seconds > LONGEST => {
            ("deploy.gcloud.max_run_duration", format!("{text} is longer than the seven days of flex-start"))
        }
        Some(seconds) if seconds < SHORTEST => {
            ("deploy.gcloud.max_run_duration", format!("{text} is shorter than the ten minutes of flex-start"))
        }
        Some(_) => return,
    };
    findings.push(
        RULE.finding(context.at(key), message).help("set `deploy.gcloud.max_run_duration` between \"10m\" and \"7d\""),
    );
}
