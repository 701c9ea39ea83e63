//! The compiler, in a child for each request.
//!
//! Invariant: this process loads no plugin; a compiler that aborts costs one request.

use std::ffi::OsStr;
use std::time::Duration;

use gemma4_engine::compile::{Answer, Identity, Request, Target, read_answer};
use gemma4_pjrt::environment::TPU_COMPILE_ONLY;
use serde::Deserialize;

use super::ProveError;
use crate::child;

/// How long a compiler may take to load.
const LOAD_LIMIT: Duration = Duration::from_secs(300);

/// How long one graph may take to compile; the largest took two minutes on two cores.
const COMPILE_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// A compiler that works in children.
#[derive(Debug, Clone)]
pub struct Compiler {
    target: Target,
}

impl Compiler {
    /// The compiler of a plugin for some devices. Nothing is started yet.
    pub fn new(target: Target) -> Self {
        Compiler { target }
    }

    /// The plugin and the devices.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Who compiles, and how.
    ///
    /// # Errors
    /// [`ProveError::Child`] when the plugin does not load or the devices are other than the plan's.
    pub fn identity(&self) -> Result<Identity, ProveError> {
        Ok(self.ask("the plugin's version", &Request::Identify(self.target.clone()), LOAD_LIMIT)?.0)
    }

    /// Compiles the program called `name`. The bytes are those of the compiled program if `executable` asks for them and
    /// there is one.
    ///
    /// # Errors
    /// [`ProveError::Child`] when the compiler refuses or dies.
    pub fn compile(&self, name: &str, program: String, executable: bool) -> Result<(Answer, Vec<u8>), ProveError> {
        let request = Request::Compile { target: self.target.clone(), program, executable };
        self.ask(name, &request, COMPILE_LIMIT)
    }

    fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        name: &str,
        request: &Request,
        limit: Duration,
    ) -> Result<(T, Vec<u8>), ProveError> {
        let request = serde_json::to_vec(request)?;
        let words = ["runtime", "compile-step"].map(OsStr::new);
        let answer = child::run(&words, &TPU_COMPILE_ONLY, &request, limit)?;
        let (answer, rest) =
            read_answer(&answer).map_err(|error| ProveError::Answer { name: name.to_owned(), error })?;
        Ok((answer, rest.to_vec()))
    }
}
