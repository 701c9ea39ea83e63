//! An engine that does not run on the hardware.

use super::prelude::*;
use crate::catalog::AcceleratorKind;
use crate::profile::EngineKind;

rule!("engine-hardware-mismatch", Error, "the engine does not run on this hardware");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let wanted = match resolved.kind {
        EngineKind::VllmTpu => AcceleratorKind::Tpu,
        EngineKind::VllmGpu => AcceleratorKind::Gpu,
        EngineKind::Bundled => return,
    };
    let help = match resolved.accelerator.kind {
        kind if kind == wanted => return,
        AcceleratorKind::Tpu => "use `vllm-tpu` or `bundled`",
        AcceleratorKind::Gpu => "use `vllm-gpu` or `bundled`",
        AcceleratorKind::Cpu => "use `bundled`",
    };
    findings.push(
        RULE.finding(
            context.at("engine.kind"),
            format!(
                "`{}` does not run on {} ({})",
                resolved.kind, resolved.accelerator_name, resolved.accelerator.title
            ),
        )
        .help(help),
    );
}
