//! Bytes on each device, by the rules of the engine that will run.
//!
//! An engine's module says how it places tensors and how it lays out its KV cache; this module adds up. Everything is
//! a function of [`Resolved`]: the machine that computes the budget plays no part.

pub mod buckets;
pub mod bundled;
mod placed;
mod proved;
pub mod vllm_gpu;
pub mod vllm_tpu;
mod weights;

use gemma4_plan::{Buckets, Capacity, DeviceMemory, KvCache, Memory, MemoryTerm, Proof, TensorPlacement};

use crate::profile::EngineKind;
use crate::resolve::Resolved;
use crate::words::gib;

pub use placed::{Placed, Weights};

/// The budget of a resolved profile.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Where tensors live.
    pub tensors: Vec<TensorPlacement>,
    /// Shapes that are compiled.
    pub buckets: Buckets,
    /// The KV cache.
    pub kv: KvCache,
    /// The sums.
    pub memory: Memory,
    /// Blocks that one request of the longest length needs.
    pub blocks_per_request: u64,
    /// The key that decides why it does not fit.
    pub decisive: Option<&'static str>,
}

impl Budget {
    /// Puts what a compiler counted in the place of what the budget knows of programs, and decides again.
    pub fn add_proof(&mut self, proof: &Proof) {
        proved::add(self, proof);
    }
}

/// A mesh or cache layout that the engine cannot make, with the key to blame.
#[derive(Debug, Clone)]
pub struct Impossible {
    /// Key of the profile.
    pub key: &'static str,
    /// Why.
    pub message: String,
}

/// Computes the budget.
///
/// # Errors
/// If the tensors cannot be split as asked.
pub fn compute(resolved: &Resolved) -> Result<Budget, Impossible> {
    let weights = weights::place_all(resolved)?;
    match resolved.kind {
        EngineKind::VllmTpu => vllm_tpu::budget(resolved, weights),
        EngineKind::VllmGpu => vllm_gpu::budget(resolved, weights),
        EngineKind::Bundled => bundled::budget(resolved, weights),
    }
}

/// Lengths at which the capacity of the pool is shown, tokens.
fn curve(max_model_len: u64) -> Vec<u64> {
    let mut lengths: Vec<u64> = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072]
        .into_iter()
        .filter(|&length| length < max_model_len)
        .collect();
    lengths.push(max_model_len);
    lengths
}

/// The capacity of `blocks` at several lengths, given what a sequence needs.
fn capacity(blocks: u64, max_model_len: u64, need: impl Fn(u64) -> u64) -> Vec<Capacity> {
    curve(max_model_len)
        .into_iter()
        .map(|sequence_tokens| {
            let sequences = blocks / need(sequence_tokens).max(1);
            Capacity { sequence_tokens, sequences, tokens: sequences.saturating_mul(sequence_tokens) }
        })
        .collect()
}

/// What the sums are made of.
struct Sums {
    weights: u64,
    kv: u64,
    terms: Vec<MemoryTerm>,
    expected_programs: u64,
    blocks: u64,
    blocks_per_request: u64,
    /// Blocks that the engine holds back when it checks for one request.
    held_back: u64,
}

/// Adds up and decides.
fn decide(resolved: &Resolved, sums: Sums) -> (Memory, Option<&'static str>) {
    let Sums { weights, kv, mut terms, expected_programs, blocks, blocks_per_request, held_back } = sums;
    let usable = resolved.usable;
    let limit = (usable as f64 * resolved.memory.utilization) as u64;
    let programs: u64 = terms
        .iter()
        .filter(|term| term.part == "programs" && term.basis != "derived")
        .fold(0, |sum, term| sum.saturating_add(term.bytes));
    let used = weights.saturating_add(kv);
    let free = i64::try_from(i128::from(usable) - i128::from(weights) - i128::from(kv) - i128::from(programs))
        .unwrap_or(i64::MIN);
    let mut reasons = Vec::new();
    let mut decisive = None;
    if weights > limit {
        decisive = Some(if weights > usable { "parallelism.tensor" } else { "memory.hbm_utilization" });
        reasons.push(format!(
            "weights take {} of each device, and the limit is {} ({} x {})",
            gib(weights),
            gib(limit),
            gib(usable),
            resolved.memory.utilization
        ));
    } else if used > limit {
        decisive = Some("memory.num_blocks");
        reasons.push(format!(
            "weights and the KV pool take {} of each device, and the limit is {}",
            gib(used),
            gib(limit)
        ));
    } else if blocks < blocks_per_request.saturating_add(held_back) {
        let few = resolved.memory.num_blocks.is_some();
        decisive = Some(if few { "memory.num_blocks" } else { "scheduler.max_model_len" });
        reasons.push(format!(
            "one request of {} tokens needs {blocks_per_request} KV blocks{}, and the pool has {blocks}",
            resolved.limits.max_model_len,
            if held_back > 0 { " and one held back" } else { "" }
        ));
    }
    if decisive.is_none() && free < 0 {
        decisive = Some("memory.hbm_utilization");
        reasons.push(format!(
            "compiled programs were seen to need {}, and utilization {} leaves {} beside weights and KV cache",
            gib(programs),
            resolved.memory.utilization,
            gib(usable.saturating_sub(used))
        ));
    }
    terms.retain(|term| term.bytes > 0);
    let memory = Memory {
        fits: reasons.is_empty(),
        reasons,
        utilization: resolved.memory.utilization,
        per_device: DeviceMemory { usable, limit, weights, kv, programs, free },
        terms,
        expected_programs,
    };
    (memory, decisive)
}

/// A term of the budget.
fn term(part: &str, name: impl Into<String>, bytes: u64, basis: &str, source: impl Into<String>) -> MemoryTerm {
    MemoryTerm { part: part.to_owned(), name: name.into(), bytes, basis: basis.to_owned(), source: source.into() }
}

/// The attention kind as it stands in a plan.
fn kind_word(kind: gemma4_model::AttentionKind) -> &'static str {
    match kind {
        gemma4_model::AttentionKind::Sliding => "sliding",
        gemma4_model::AttentionKind::Full => "full",
    }
}

/// The KV data type as profiles write it; `fp8` is e4m3.
fn kv_word(dtype: gemma4_model::DType) -> String {
    match dtype {
        gemma4_model::DType::F8E4M3 => "fp8".to_owned(),
        gemma4_model::DType::F8E5M2 => "fp8_e5m2".to_owned(),
        other => other.name().to_owned(),
    }
}
