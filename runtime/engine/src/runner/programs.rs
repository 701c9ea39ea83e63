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

use gemma4_hlo::Module;
use gemma4_model::Config;
use gemma4_model::graph::StepParameter;
use gemma4_pjrt::{Client, CompileOptions, LoadedExecutable};
use thiserror::Error;

use super::Counters;
use crate::compile::{Devices, Identity};
use crate::masks::NamedMask;
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
        /// Name of the program.
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

/// All programs of a plan, ready to run.
#[derive(Default)]
pub(super) struct Programs {
    pub(super) steps: HashMap<StepSize, Program>,
    /// By their rows.
    pub(super) masks: HashMap<u64, LoadedExecutable>,
    /// Steps that came compiled from the cache.
    pub(super) cached_steps: usize,
}

/// A program to be made ready.
enum Wanted<'a> {
    Step(&'a NamedStep),
    Mask(&'a NamedMask),
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
        masks: &[NamedMask],
        on_progress: &(dyn Fn(Prepared) + Sync),
    ) -> Result<Programs, ProgramError> {
        let wanted: Vec<Wanted<'_>> = steps.iter().map(Wanted::Step).chain(masks.iter().map(Wanted::Mask)).collect();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ready: Mutex<Programs> = Mutex::default();
        let worker = || -> Result<(), ProgramError> {
            while let Some(wanted_now) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let start = Instant::now();
                // Whoever fails leaves nothing for the others to begin.
                let stop = |error| {
                    next.store(wanted.len(), Ordering::Relaxed);
                    error
                };
                let (name, cached) = self.prepare_one(wanted_now, &ready).map_err(stop)?;
                Counters::add(if cached { &self.counters.warm_cache_hits } else { &self.counters.warm_cache_misses });
                on_progress(Prepared {
                    done: done.fetch_add(1, Ordering::Relaxed) + 1,
                    total: wanted.len(),
                    name,
                    cached,
                    seconds: start.elapsed().as_secs_f64(),
                });
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(wanted.len());
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

    /// Makes one program ready; gives its name, and whether it was loaded.
    fn prepare_one(&self, wanted: &Wanted<'_>, ready: &Mutex<Programs>) -> Result<(String, bool), ProgramError> {
        match wanted {
            Wanted::Step(step) => {
                let (program, cached) = self.program(step)?;
                let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
                ready.steps.insert(size_of(step), program);
                ready.cached_steps += usize::from(cached);
                Ok((step.name.clone(), cached))
            }
            Wanted::Mask(mask) => {
                let (executable, cached) = self.executable(&mask.name, &mask.build()?)?;
                let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
                ready.masks.insert(mask.options.rows, executable);
                Ok((mask.name.clone(), cached))
            }
        }
    }

    /// Loads the program of a step, or compiles and keeps it. Returns whether it was loaded.
    pub(super) fn program(&self, step: &NamedStep) -> Result<(Program, bool), ProgramError> {
        let graph = step.build(&self.config)?;
        let (executable, cached) = self.executable(&step.name, &graph.module)?;
        Ok((Program { parameters: graph.parameters, executable }, cached))
    }

    /// Loads a program, or compiles and keeps it. Returns whether it was loaded.
    fn executable(&self, name: &str, module: &Module) -> Result<(LoadedExecutable, bool), ProgramError> {
        let key = Key::new(module, &self.devices, &self.identity)?;
        if let Some(executable) = self.kept(name, &key)? {
            return Ok((executable, true));
        }
        let failed = |error| ProgramError::Xla { name: name.to_owned(), error };
        let executable = self.client.compile(module.text().as_bytes(), &self.options).map_err(failed)?;
        // A program that cannot be kept runs all the same.
        let kept = executable.executable().serialize().map_err(|error| error.to_string());
        let kept = kept.and_then(|bytes| self.store.write(name, &key, &bytes).map_err(|error| error.to_string()));
        if let Err(error) = kept {
            tracing::warn!(program = name, error, "the compiled program is not kept; the next start compiles it again");
        }
        Ok((executable, false))
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
