//! From the compiler's answers to a proof.
//!
//! Invariant: `total` is what a device holds while the worst of the compiled graphs runs: the arguments, weights beside
//! them, the largest temporaries and outputs, and the code of all compiled graphs.

use gemma4_engine::compile::{Answer, Bytes, Devices, Identity, Verdict};
use gemma4_model::graph::{ParameterRole, StepGraph};
use gemma4_plan::{Plan, Proof, ProofGraph, ProofMemory};

use crate::words::{gib, plural};

/// A graph and what the compiler said of it.
pub(super) struct Compiled<'a> {
    pub(super) name: &'a str,
    pub(super) graph: &'a StepGraph,
    pub(super) answer: Answer,
}

impl Compiled<'_> {
    /// Bytes of the arguments that `of` chooses, by their shapes.
    fn arguments(&self, of: impl Fn(&ParameterRole) -> bool) -> u64 {
        let chosen = self.graph.parameters.iter().filter(|parameter| of(&parameter.role));
        chosen.map(|parameter| parameter.shape.bytes().unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
    }

    /// The compiler's bytes, or what is known of a graph that is too large.
    fn bytes(&self) -> Bytes {
        match &self.answer.verdict {
            Verdict::Fits(bytes) => *bytes,
            Verdict::Exceeds { .. } => Bytes { arguments: self.arguments(|_| true), ..Bytes::default() },
        }
    }

    fn row(&self) -> ProofGraph {
        let Bytes { arguments, outputs, temporaries, code } = self.bytes();
        let exceeds = match &self.answer.verdict {
            Verdict::Fits(_) => None,
            Verdict::Exceeds { message, .. } => Some(message.clone()),
        };
        let seconds = self.answer.seconds;
        ProofGraph { name: self.name.to_owned(), temporaries, code, arguments, outputs, seconds, exceeds }
    }

    /// Why it does not fit.
    fn reason(&self) -> Option<String> {
        let Verdict::Exceeds { needed, available, message } = &self.answer.verdict else { return None };
        Some(match (needed, available) {
            (Some(needed), Some(available)) => {
                format!("the compiler says that {} needs {} of {}", self.name, gib(*needed), gib(*available))
            }
            _ => format!("the compiler refuses {}: {message}", self.name),
        })
    }
}

pub(super) fn proof(
    plan: &Plan,
    devices: &Devices,
    identity: &Identity,
    compiled: &[Compiled<'_>],
    all_graphs: usize,
) -> Proof {
    let most = |of: &dyn Fn(&Compiled<'_>) -> u64| compiled.iter().map(of).max().unwrap_or(0);
    let beside = compiled.first().map_or(0, |one| beside(plan, one));
    let mut per_device = ProofMemory {
        arguments: most(&|one| one.bytes().arguments),
        weights: most(&|one| one.arguments(|role| matches!(role, ParameterRole::Weight { .. }))),
        kv: most(&|one| one.arguments(|role| *role == ParameterRole::KvPool)),
        beside,
        outputs: most(&|one| one.bytes().outputs),
        temporaries: most(&|one| one.bytes().temporaries),
        code: compiled.iter().map(|one| one.bytes().code).fold(0, u64::saturating_add),
        total: 0,
    };
    // Outputs and temporaries live at the same time, so they are counted for one and the same graph.
    let working = most(&|one| one.bytes().outputs.saturating_add(one.bytes().temporaries));
    per_device.total =
        [per_device.arguments, beside, working, per_device.code].into_iter().fold(0, u64::saturating_add);
    let usable = plan.hardware.usable_hbm_bytes;
    let mut reasons: Vec<String> = compiled.iter().filter_map(Compiled::reason).collect();
    if reasons.is_empty() && per_device.total > usable {
        reasons.push(format!("the compiler counts {} of {}", gib(per_device.total), gib(usable)));
    }
    Proof {
        compiler: identity.compiler.clone(),
        topology: devices.name(),
        fits: reasons.is_empty(),
        reasons,
        per_device,
        graphs: compiled.iter().map(Compiled::row).collect(),
        all_graphs: u64::try_from(all_graphs).unwrap_or(u64::MAX),
        notes: notes(beside, compiled.len(), all_graphs),
    }
}

/// Bytes of weights that the plan puts on a device and the graph does not take.
fn beside(plan: &Plan, compiled: &Compiled<'_>) -> u64 {
    let taken = |name: &str| compiled.graph.parameters.iter().any(|parameter| parameter.name == name);
    let others = plan.sharding.tensors.iter().filter(|row| !taken(&row.name));
    others.map(|row| row.device_bytes).fold(0, u64::saturating_add)
}

fn notes(beside: u64, compiled: usize, all: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if beside > 0 {
        notes.push(format!(
            "{} of weights are no arguments of these graphs; they are counted by their shapes",
            gib(beside)
        ));
    }
    if compiled < all {
        notes.push(format!("code is that of the {} compiled here; the plan has {all}", plural(compiled, "graph")));
    }
    notes
}
