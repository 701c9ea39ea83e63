//! A vision tower whose heads cannot be split over the chips.

use super::prelude::*;
use crate::budget::vllm_tpu::encoder_is_data_parallel;
use crate::catalog::Version;
use gemma4_model::config::VisionConfig;

rule!("vision-tower-heads", Error, "a vision tower whose heads do not divide over the chips");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let loads_tower = context.on_tpu() && !resolved.runs_through_torch() && !resolved.loads_text_only_class();
    if !loads_tower || resolved.version < Version::new(0, 23) || encoder_is_data_parallel(resolved) {
        return;
    }
    let Some(VisionConfig::Tower(tower)) = &resolved.model.config.vision else { return };
    let tp = u64::from(resolved.tensor);
    if tower.heads.is_multiple_of(tp.max(1)) {
        return;
    }
    findings.push(
        RULE.finding(context.at("parallelism.tensor"), format!("the vision tower of {} has {} heads, which do not divide by {tp}: loading stops", resolved.model.size, tower.heads)).help(
            "keep the tower whole on every chip with `engine.extra_args = [\"--additional-config\", '{\"mm-encoder-tp-mode\":\"data\"}']`, or choose another size; limits of 0 do not help, the tower is loaded all the same",
        ),
    );
}
