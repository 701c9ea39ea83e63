//! The proof of a plan for people: the compiler's bytes beside the budget's.

use clap::builder::styling::AnsiColor;
use gemma4_plan::{Plan, Proof};

use super::Output;
use super::plan_text::{INDENT, colour, row};
use crate::words::{plural, size};

/// Writes the proof, if the plan has one.
pub(super) fn proof(output: &mut Output, plan: &Plan) {
    let Some(proof) = &plan.proof else { return };
    let verdict = if proof.fits {
        let style = colour(AnsiColor::Green).bold();
        format!("{style}fits{style:#}: {} of {}", size(proof.per_device.total), size(plan.hardware.usable_hbm_bytes))
    } else {
        let style = colour(AnsiColor::Red).bold();
        format!("{style}does not fit{style:#}: {}", proof.reasons.join("; "))
    };
    output.line("");
    row(output, "proof", &format!("{}, compiled for {}", compiler(proof), proof.topology));
    row(output, "", &verdict);
    for line in table(plan, proof) {
        output.line(format!("{:<INDENT$}{line}", ""));
    }
    for graph in &proof.graphs {
        let outcome = match &graph.exceeds {
            Some(_) => "too large".to_owned(),
            None => format!(
                "temporaries {}, outputs {}, code {}",
                size(graph.temporaries),
                size(graph.outputs),
                size(graph.code)
            ),
        };
        row(output, "", &format!("{}: {outcome}, {:.0} s to compile", graph.name, graph.seconds));
    }
    if let Some(others) = proof.all_graphs.checked_sub(proof.graphs.len() as u64).filter(|others| *others > 0) {
        let others = usize::try_from(others).unwrap_or(usize::MAX);
        row(output, "", &format!("{} of the plan, smaller than these, not compiled", plural(others, "more graph")));
    }
    for note in &proof.notes {
        row(output, "", note);
    }
}

/// The compiler in a few words: its own may be many lines.
fn compiler(proof: &Proof) -> String {
    proof.compiler.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Bytes by kind: what the budget says, what the compiler says.
fn table(plan: &Plan, proof: &Proof) -> Vec<String> {
    let (budget, counted) = (&plan.memory.per_device, &proof.per_device);
    let inputs = counted.arguments.saturating_sub(counted.weights).saturating_sub(counted.kv);
    let weights = counted.weights.saturating_add(counted.beside);
    let rows = [
        ("weights", Some(budget.weights), weights),
        ("KV cache", Some(budget.kv), counted.kv),
        ("other arguments", None, inputs),
        ("temporaries", None, counted.temporaries),
        ("outputs", None, counted.outputs),
        ("code", None, counted.code),
    ];
    let line = |name: &str, left: &str, right: &str| format!("{name:<16}{left:>12}{right:>12}");
    let body = rows.map(|(name, left, right)| line(name, &left.map(size).unwrap_or_default(), &size(right)));
    std::iter::once(line("", "budget", "compiler")).chain(body).collect()
}
