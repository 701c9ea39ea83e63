//! Weight quantization that the engine cannot run.

use super::prelude::*;
use gemma4_model::quantization::Quantization;

use super::quantized_weights_unmeasured::quantized_name;
use crate::catalog::Version;
use crate::profile::EngineKind;

rule!("weight-quantization-unsupported", Error, "weight quantization that the engine does not have for this model");

const HELP: &str = "use a checkpoint that is quantized already (FP8-dynamic or QAT), or qwix through `--additional-config` with a `quantization` entry";

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if let (EngineKind::Bundled, None, Some(method)) = (resolved.kind, resolved.quantized_at_load(), &resolved.quantization) {
        let known = Quantization::ALL.map(Quantization::name).join(" or ");
        findings.push(
            RULE.finding(context.at("model.quantization"), format!("the bundled engine does not quantize weights to `{method}`"))
                .help(format!("it takes a checkpoint of 16 or 32 bits and quantizes it while it loads, to {known}")),
        );
    }
    if !context.on_tpu() {
        return;
    }
    let id = resolved.model_id.to_lowercase();
    let torch = resolved.runs_through_torch();
    if !torch && id.contains("w4a16") {
        findings.push(
            RULE.finding(
                context.at("model.id"),
                format!(
                    "vLLM's JAX path has no 4-bit weights with 16-bit activations, which {} names",
                    resolved.model_id
                ),
            )
            .help("use a checkpoint with 8-bit weights, such as FP8-dynamic, or the 16-bit one"),
        );
    }
    let Some(method) = resolved.quantization.as_deref() else { return };
    let renamed = resolved.version >= Version::new(0, 24);
    let known: &[&str] = match (torch, renamed) {
        (false, _) => &["fp8", "gpt_oss_mxfp4", "compressed-tensors"],
        (true, false) => &["compressed-tensors", "awq", "fp8", "gpt_oss_mxfp4", "modelopt_fp4", "deepseek_v4_fp8"],
        (true, true) => &["compressed-tensors", "auto_awq", "fp8", "gpt_oss_mxfp4", "modelopt_fp4", "deepseek_v4_fp8"],
    };
    let path = if torch { "PyTorch" } else { "JAX" };
    let published = quantized_name(&id).is_some() || resolved.model.config.quantization.is_some();
    let at = context.at("model.quantization");
    if !known.contains(&method) {
        let finding = RULE.finding(
            at,
            format!(
                "vLLM {} on TPU does not take `{method}` weights on the {path} path, which loads {}",
                resolved.version, resolved.model.size
            ),
        );
        findings.push(match (torch, method) {
            (true, "awq") => finding.help("since 0.24 it is called `auto_awq`"),
            (true, "auto_awq") => finding.help("before 0.24 it is called `awq`"),
            _ => finding.help(format!("it takes {}; {HELP}", known.join(", "))),
        });
    } else if method == "fp8" && !published {
        findings.push(
            RULE.finding(
                at,
                format!(
                    "vLLM on TPU cannot quantize {} to fp8 while it loads: `fp8` reads checkpoints that are in fp8",
                    resolved.model_id
                ),
            )
            .help(HELP),
        );
    }
}
