//! The proof of a plan: its largest programs, built as the engine builds them and given to the XLA compiler for the plan's
//! own devices, which need not be there.
//!
//! Invariant: the figures are the compiler's. What it does not split, the shapes of the program's arguments do; what was
//! not compiled is never counted as if it had been, and the notes say so.

mod assemble;
mod cache;
mod compiler;

use std::path::PathBuf;

use gemma4_engine::compile::{CompileError, Devices};
use gemma4_engine::steps::{StepsError, largest_decode, largest_draft, largest_prefill, steps};
use gemma4_model::Config;
use gemma4_pjrt::install::Target as Plugins;
use gemma4_plan::{Plan, Proof};
use thiserror::Error;

use crate::child::ChildError;

pub use compiler::Compiler;

/// A plan that cannot be proved.
#[derive(Debug, Error)]
pub enum ProveError {
    /// It is for another engine, or does not go with its model.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// No compiler runs without the devices.
    #[error(
        "no compiler for {accelerator} runs without one; proofs are for the accelerators v5e, v5p, v6e, tpu7x and cpu"
    )]
    Devices {
        /// The plan's accelerator.
        accelerator: String,
    },
    /// There is nothing to compile.
    #[error("there is nothing to compile: {0}")]
    Nothing(
        /// Why not.
        &'static str,
    ),
    /// The child does not answer.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The child's answer cannot be read.
    #[error("the process that compiles {name} answered what cannot be read")]
    Answer {
        /// What was compiled.
        name: String,
        /// What is wrong.
        #[source]
        error: CompileError,
    },
    /// The plan cannot be written for the key of the cache.
    #[error("the request to the compiler cannot be written: {0}")]
    Request(#[from] serde_json::Error),
}

/// News on the way to a proof.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The proof was found in the cache.
    Cached(PathBuf),
    /// The proof could not be kept.
    NotKept(String),
    /// The compiler is at work on this graph.
    Compiling {
        /// Its name.
        name: String,
        /// For these devices.
        devices: String,
    },
    /// It is done with it.
    Compiled {
        /// Its name.
        name: String,
        /// Seconds that the compiler took.
        seconds: f64,
    },
}

/// The devices of a plan, and the plugin that compiles for them.
///
/// # Errors
/// [`ProveError::Devices`] for accelerators whose compiler needs them.
pub fn devices(plan: &Plan) -> Result<(Devices, Plugins), ProveError> {
    let devices = Devices::of(plan);
    let devices = devices.ok_or_else(|| ProveError::Devices { accelerator: plan.hardware.accelerator.clone() })?;
    let plugins = match devices {
        Devices::Cpu { .. } => Plugins::Cpu,
        Devices::Topology { .. } => Plugins::Tpu,
    };
    Ok((devices, plugins))
}

/// Proves `plan` for the model `config` with `compiler`, which compiles for the plan's [`devices`].
///
/// # Errors
/// [`ProveError`]. Too little device memory is a result, not an error.
pub fn prove(
    plan: &Plan,
    config: &Config,
    compiler: &Compiler,
    news: &mut dyn FnMut(News),
) -> Result<Proof, ProveError> {
    if plan.kv_cache.blocks == 0 {
        return Err(ProveError::Nothing("the weights leave no room for a single block of the KV cache"));
    }
    let steps = steps(plan, config)?;
    let mut graphs = Vec::new();
    for step in [largest_prefill(&steps), largest_decode(&steps), largest_draft(&steps)].into_iter().flatten() {
        // One may be the largest of several kinds.
        if graphs.iter().all(|(known, _): &(&str, _)| *known != step.name) {
            graphs.push((step.name.as_str(), step.build(config)?));
        }
    }
    if graphs.is_empty() {
        return Err(ProveError::Nothing("the plan has no buckets"));
    }
    let identity = compiler.identity()?;
    let programs: Vec<String> = graphs.iter().map(|(_, graph)| graph.module.canonical()).collect();
    let entry = cache::Entry::new(plan, &compiler.target().devices, &identity, &programs);
    if let Some((path, proof)) = entry.as_ref().and_then(cache::Entry::read) {
        news(News::Cached(path));
        return Ok(proof);
    }
    let mut compiled = Vec::new();
    for (name, graph) in &graphs {
        news(News::Compiling { name: (*name).to_owned(), devices: compiler.target().devices.name() });
        let (answer, _) = compiler.compile(name, graph.module.text(), false)?;
        news(News::Compiled { name: (*name).to_owned(), seconds: answer.seconds });
        compiled.push(assemble::Compiled { name, graph, answer });
    }
    let proof = assemble::proof(plan, &compiler.target().devices, &identity, &compiled, steps.len());
    if let Some(entry) = entry
        && let Err(error) = entry.write(&proof)
    {
        news(News::NotKept(format!("{error:#}")));
    }
    Ok(proof)
}
