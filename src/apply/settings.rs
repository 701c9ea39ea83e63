//! What a running service of the bundled engine does, held against its plan.

use std::time::Duration;

use gemma4_engine::settings::Settings;
use gemma4_plan::Plan;
use serde::{Deserialize, Serialize};

use super::http;

/// How long the service may take to say what it does.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A setting of a running service that is not the plan's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Name of the setting.
    pub setting: String,
    /// Its value in the plan.
    pub plan: String,
    /// Its value in the service.
    pub running: String,
}

/// What `/server_info` says.
#[derive(Deserialize)]
struct Info {
    settings: Settings,
}

/// Asks the service at `base_url` what it does. None differ where there is nothing to compare with.
///
/// # Errors
/// If it does not say, or not in words that are understood.
pub fn differences(plan: &Plan, base_url: &str) -> Result<Vec<Difference>, String> {
    let key = super::secret(plan, "api_key").map_err(|error| error.to_string())?;
    let text = http::get(&format!("{base_url}/server_info"), key.as_deref(), TIMEOUT)
        .map_err(|error| format!("{base_url} does not say what it runs: {error}"))?;
    let info: Info = serde_json::from_str(&text)
        .map_err(|error| format!("what {base_url} says of itself makes no sense: {error}"))?;
    let differences = Settings::of_plan(plan).differences(&info.settings);
    Ok(differences.into_iter().map(|(setting, plan, running)| Difference { setting, plan, running }).collect())
}
