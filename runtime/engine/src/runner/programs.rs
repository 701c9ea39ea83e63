//! The compiled programs of a plan on the devices that are here.
//!
//! Invariant: a program is only run if it was compiled for exactly these devices by this compiler with these flags: just
//! now, or earlier and kept with all of that (see [`crate::store`]).

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use gemma4_model::Config;
use gemma4_model::graph::StepParameter;
use gemma4_pjrt::{Client, CompileOptions, LoadedExecutable};
use thiserror::Error;

use super::Counters;
use crate::compile::{Devices, Identity};
use crate::steps::{NamedStep, StepsError};
use crate::store::{Key, Store, StoreError};

/// A program that could not be made ready.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It cannot be built.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// The compiler or the devices refuse.
    #[error("{name}: {error}")]
    Xla {
        /// Name of the step.
        name: String,
        /// What they say.
        error: gemma4_pjrt::Error,
    },
    /// The folder of compiled programs cannot be trusted or read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far the programs are.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Programs that are ready.
    pub done: usize,
    /// Programs that there are.
    pub total: usize,
    /// The one that became ready last.
    pub name: String,
    /// Whether it came compiled from the cache.
    pub cached: bool,
    /// Seconds that it took.
    pub seconds: f64,
}

/// A program that can be run.
pub(super) struct Program {
    pub(super) parameters: Vec<StepParameter>,
    pub(super) executable: LoadedExecutable,
}

/// Makes programs ready.
pub(super) struct Compiler {
    pub(super) client: Client,
    pub(super) config: Config,
    pub(super) devices: Devices,
    pub(super) identity: Identity,
    pub(super) options: CompileOptions,
    pub(super) store: Store,
    pub(super) counters: Arc<Counters>,
}

/// Size of a step: tokens, sequences and rows of logits.
pub(super) type StepSize = (u64, u64, u64);

/// The size that names a step among those of a plan.
pub(super) const fn size_of(step: &NamedStep) -> StepSize {
    (step.options.tokens, step.options.sequences, step.options.rows)
}

impl Compiler {
    /// Makes all programs ready, on as many threads as there are processors.
    pub(super) fn prepare(
        &self,
        steps: &[NamedStep],
        on_progress: &(dyn Fn(Prepared) + Sync),
    ) -> Result<HashMap<StepSize, Program>, ProgramError> {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ready: Mutex<HashMap<StepSize, Program>> = Mutex::default();
        let worker = || -> Result<(), ProgramError> {
            while let Some(step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                // Whoever fails leaves nothing for the others to begin.
                let stop = |error| {
                    next.store(steps.len(), Ordering::Relaxed);
                    error
                };
                let (program, cached) = self.program(step).map_err(stop)?;
                Counters::add(if cached { &self.counters.warm_cache_hits } else { &self.counters.warm_cache_misses });
                ready.lock().unwrap_or_else(PoisonError::into_inner).insert(size_of(step), program);
                on_progress(Prepared {
                    done: done.fetch_add(1, Ordering::Relaxed) + 1,
                    total: steps.len(),
                    name: step.name.clone(),
                    cached,
                    seconds: start.elapsed().as_secs_f64(),
                });
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(steps.len());
        let outcomes: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        outcomes.into_iter().collect::<Result<(), _>>()?;
        Ok(ready.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads a program, or compiles and keeps it. Returns whether it was loaded.
    pub(super) fn program(&self, step: &NamedStep) -> Result<(Program, bool), ProgramError> {
        let name = step.name.as_str();
        let graph = step.build(&self.config)?;
        let key = Key::new(&graph, &self.devices, &self.identity)?;
        if let Some(executable) = self.kept(name, &key)? {
            return Ok((Program { parameters: graph.parameters, executable }, true));
        }
        let failed = |error| ProgramError::Xla { name: name.to_owned(), error };
        let executable = self.client.compile(graph.module.text().as_bytes(), &self.options).map_err(failed)?;
        // A program that cannot be kept runs all the same.
        let kept = executable.executable().serialize().map_err(|error| error.to_string());
        let kept = kept.and_then(|bytes| self.store.write(name, &key, &bytes).map_err(|error| error.to_string()));
        if let Err(error) = kept {
            tracing::warn!(program = name, error, "the compiled program is not kept; the next start compiles it again");
        }
        Ok((Program { parameters: graph.parameters, executable }, false))
    }

    /// The program from the cache; what is there and is of no use is told and replaced.
    fn kept(&self, name: &str, key: &Key) -> Result<Option<LoadedExecutable>, ProgramError> {
        let bytes = match self.store.read(name, key) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error @ (StoreError::Mismatch { .. } | StoreError::Damaged { .. })) => {
                tracing::warn!(program = name, %error, "compiled again");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        match self.client.load(&bytes) {
            Ok(executable) => Ok(Some(executable)),
            Err(error) => {
                let path = self.store.path(name, key);
                tracing::warn!(program = name, path = %path.display(), %error, "cannot be loaded, compiled again");
                Ok(None)
            }
        }
    }
}
