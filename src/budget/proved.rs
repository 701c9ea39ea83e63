//! What a proof adds to a budget.
//!
//! Invariant: only what the compiler counted decides whether it fits; the code of graphs that were not compiled is a derived
//! term.

use gemma4_plan::Proof;

use super::{Budget, term};
use crate::words::{gib, plural};

/// Puts the compiler's figures in the place of what the budget says of programs.
pub(super) fn add(budget: &mut Budget, proof: &Proof) {
    let memory = &mut budget.memory;
    let counted = proof.per_device;
    let source = format!("{} for {}", proof.compiler.lines().next().unwrap_or_default(), proof.topology);
    let compiled = proof.graphs.len();
    let working = counted.total.saturating_sub(counted.arguments).saturating_sub(counted.beside);
    let working = working.saturating_sub(counted.code);
    let inputs = counted.arguments.saturating_sub(counted.weights).saturating_sub(counted.kv);
    let code = format!("code of {}", plural(compiled, "graph"));
    memory.terms.retain(|term| term.part != "programs");
    for (name, bytes) in [
        ("temporaries and outputs of the largest graph".to_owned(), working),
        ("inputs of a step".to_owned(), inputs),
        (code, counted.code),
    ] {
        memory.terms.push(term("programs", name, bytes, "proved", source.clone()));
    }
    let largest = proof.graphs.iter().map(|graph| graph.code).max().unwrap_or(0);
    let others = proof.all_graphs.saturating_sub(u64::try_from(compiled).unwrap_or(u64::MAX));
    memory.expected_programs = largest.saturating_mul(others);
    let name = format!("code of {others} more graphs, if each is as large as the largest");
    memory.terms.push(term("programs", name, memory.expected_programs, "derived", source));
    memory.terms.retain(|term| term.bytes > 0);

    let device = &mut memory.per_device;
    device.programs = working.saturating_add(inputs).saturating_add(counted.code);
    let free = [device.weights, device.kv, device.programs].into_iter().map(i128::from).sum::<i128>();
    device.free = i64::try_from(i128::from(device.usable) - free).unwrap_or(i64::MIN);
    let mut reasons = proof.reasons.clone();
    if reasons.is_empty() && device.free < 0 {
        let needed = device.weights.saturating_add(device.kv).saturating_add(device.programs);
        reasons.push(format!(
            "with the programs that the compiler made it needs {} of {}",
            gib(needed),
            gib(device.usable)
        ));
    }
    if memory.fits && !reasons.is_empty() {
        memory.fits = false;
        budget.decisive = Some("memory.hbm_utilization");
    }
    memory.reasons.append(&mut reasons);
}
