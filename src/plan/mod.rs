//! From a profile to a plan.

mod argv;
mod build;
pub mod diff;
pub mod explain;

use gemma4_plan::Proof;

use crate::budget::{self, Budget, Impossible};
use crate::diagnostic::has_errors;
use crate::lint;
use crate::profile::{self, Loaded};
use crate::resolve::{self, Resolved};

pub use build::build;

/// A profile, read, resolved, budgeted and linted.
#[derive(Debug)]
pub struct Analysis {
    /// The profile and all findings.
    pub loaded: Loaded,
    /// Its values, if enough is known.
    pub resolved: Option<Resolved>,
    /// Its budget, or why there can be none.
    pub budget: Option<Result<Budget, Impossible>>,
    /// What a compiler said of its plan, if one was asked.
    pub proof: Option<Proof>,
}

impl Analysis {
    /// Whether any finding is an error.
    pub fn has_errors(&self) -> bool {
        has_errors(&self.loaded.diagnostics)
    }

    /// The plan, if it can be computed.
    pub fn plan(&self) -> Option<gemma4_plan::Plan> {
        match (&self.resolved, &self.budget) {
            (Some(resolved), Some(Ok(budget))) => {
                Some(gemma4_plan::Plan { proof: self.proof.clone(), ..build(&self.loaded, resolved, budget) })
            }
            _ => None,
        }
    }
}

/// Reads, resolves, budgets and lints the profile that `argument` names.
///
/// # Errors
/// If the profile cannot be opened, a `--set` argument is malformed, or a catalog file of the user cannot be used.
pub fn analyze(argument: &str, set: &[String]) -> anyhow::Result<Analysis> {
    analyze_loaded(profile::load(argument, set)?)
}

/// The same with what a compiler said of the profile's plan: it counts in the budget, and so in the findings.
///
/// # Errors
/// As for [`analyze`].
pub fn analyze_proved(argument: &str, set: &[String], proof: &Proof) -> anyhow::Result<Analysis> {
    analyze_with(profile::load(argument, set)?, Some(proof))
}

/// The same for a profile that was loaded already.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn analyze_loaded(loaded: Loaded) -> anyhow::Result<Analysis> {
    analyze_with(loaded, None)
}

fn analyze_with(mut loaded: Loaded, proof: Option<&Proof>) -> anyhow::Result<Analysis> {
    // A key of the wrong shape was reported and is read as not set; going on shows what else is wrong.
    let readable = !loaded.diagnostics.iter().any(|finding| finding.code == "toml-syntax");
    let mut resolved = if readable { resolve::resolve(&mut loaded)? } else { None };
    let mut budget = resolved.as_ref().map(budget::compute);
    if let (Some(Ok(budget)), Some(proof)) = (&mut budget, proof) {
        budget.add_proof(proof);
    }
    if let (Some(resolved), Some(Ok(budget))) = (&mut resolved, &budget) {
        explain::record_block_size(resolved, budget);
    }
    lint::run(&mut loaded, resolved.as_ref(), budget.as_ref());
    Ok(Analysis { loaded, resolved, budget, proof: proof.cloned() })
}
