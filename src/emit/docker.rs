//! A script that starts the service with `docker run`.

use gemma4_plan::Plan;
use serde_json::json;

use super::{Artifact, EmitError, Service, Templates};

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let service = containers_only(plan, "docker")?;
    let text = templates.render("docker-run.sh.j2", &json!({ "plan": plan, "service": service }))?;
    Ok(vec![Artifact::script("docker-run.sh", text)])
}

/// The service, if its engine has an image.
pub(super) fn containers_only(plan: &Plan, target: &'static str) -> Result<Service, EmitError> {
    if plan.engine.image.is_none() {
        return Err(EmitError::WrongEngine {
            target,
            engine: plan.engine.kind.clone(),
            help: "its plan names no image; use the target `systemd`, or say `engine.image`",
        });
    }
    Ok(Service::new(plan))
}
