//! The mesh asks for more devices than there are, or leaves some idle.

use super::prelude::*;
use crate::catalog::AcceleratorKind;

rule!("tensor-parallel-devices", Error, "tensor x data parallelism is not the number of devices");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if resolved.accelerator.kind == AcceleratorKind::Cpu {
        return;
    }
    let (wanted, devices) = (resolved.tensor.saturating_mul(resolved.data), resolved.devices);
    if wanted == devices {
        return;
    }
    let name = &resolved.accelerator_name;
    let per_chip = resolved.accelerator.devices_per_chip;
    let devices_text = if per_chip > 1 { format!("{name} has {devices} devices ({per_chip} a chip)") } else { format!("{name} has {devices} devices") };
    let mut finding = RULE.finding(context.at("parallelism.tensor"), format!("tensor {} x data {} is {wanted}, and {devices_text}", resolved.tensor, resolved.data));
    if wanted < devices {
        // It runs, and pays for chips that do nothing.
        finding.severity = Severity::Warning;
        finding = finding.help(format!("{} devices would be idle: use them, or take a smaller slice", devices - wanted));
    } else {
        finding = finding.help(format!("the largest tensor parallel size here is {}", devices / resolved.data.max(1)));
    }
    findings.push(finding);
}
