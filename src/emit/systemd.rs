//! A systemd unit for a TPU VM or a local box: it runs the container where the plan has an image, else the bundled
//! runtime.

use gemma4_plan::Plan;
use serde_json::json;

use super::{Artifact, EmitError, Service, Templates};

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let service = Service::new(plan);
    let text = templates.render("gemma4.service.j2", &json!({ "plan": plan, "service": service }))?;
    Ok(vec![Artifact::file(format!("{}.service", service.name), text)])
}
