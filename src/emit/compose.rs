//! A Compose file.

use gemma4_plan::Plan;
use serde_json::json;

use super::docker::containers_only;
use super::{Artifact, EmitError, Templates};

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let service = containers_only(plan, "compose")?;
    let text = templates.render("compose.yaml.j2", &json!({ "plan": plan, "service": service }))?;
    Ok(vec![Artifact::file("compose.yaml", text)])
}
