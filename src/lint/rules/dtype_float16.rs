//! 16 bits with too small a range.

use super::prelude::*;
use crate::profile::WeightDtype;
use gemma4_model::config::VisionConfig;

rule!("dtype-float16", Warning, "weights in float16, whose range is smaller than that of Gemma 4");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if resolved.dtype_word != WeightDtype::Float16 {
        return;
    }
    let overflows = matches!(&resolved.model.config.vision, Some(VisionConfig::Tower(tower)) if tower.standardized)
        && context.on_vllm();
    let mut message = "Gemma 4 is published in bfloat16, and float16 ends at 65,504".to_owned();
    if overflows {
        message.push_str(&format!(": the vision tower of {} went beyond it in vLLM before 0.22", resolved.model.size));
    }
    findings.push(
        RULE.finding(context.at("model.dtype"), message)
            .help("use `bfloat16`: as many bytes, and as fast on TPUs and recent GPUs"),
    );
}
