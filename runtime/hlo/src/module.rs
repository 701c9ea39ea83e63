//! A module of functions. Invariant: a function is in the module only if all of it was built without an error, and it
//! calls only functions that were there before it, so calls never form a cycle.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::attributes::is_identifier;
use crate::builder::{Block, Known, Sight, size};
use crate::{Builder, HloError, Problem, Shape, Value, print};

/// Numbers modules and functions of this process, so that their handles cannot be mixed up. Never printed.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// On how many devices the program runs, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Parallelism {
    /// One device, no collectives.
    #[default]
    Single,
    /// The same program on this many replicas; collectives name replicas. Compile with `num_replicas`.
    Replicas(u32),
    /// The same program on this many partitions, written on local shapes: every instruction is marked
    /// `{manual}` so that the partitioner leaves it alone, and collectives name global device ids. Compile with
    /// `num_partitions` and `use_spmd_partitioning`, without Shardy.
    ManualPartitions(u32),
}

impl Parallelism {
    /// The number of devices.
    pub const fn devices(self) -> u32 {
        match self {
            Self::Single => 1,
            Self::Replicas(count) | Self::ManualPartitions(count) => count,
        }
    }

    /// Whether instructions are marked as already partitioned.
    pub(crate) const fn is_manual(self) -> bool {
        matches!(self, Self::ManualPartitions(_))
    }
}

/// A parameter of the main function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) donated_to: Option<usize>,
}

impl Parameter {
    /// A parameter. The name is for readers: it is written as a location and reaches XLA's dumps.
    pub fn new(name: impl Into<String>, shape: Shape) -> Self {
        Self { name: name.into(), shape, donated_to: None }
    }

    /// Gives the parameter's buffer to an output (counted from 0) of the same shape, so that it is updated in place. The
    /// caller's buffer is gone after the call.
    #[must_use]
    pub fn donated_to(mut self, output: usize) -> Self {
        self.donated_to = Some(output);
        self
    }
}

/// A private function of a module: a small copyable handle for [`Builder::call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    pub(crate) module: u64,
    pub(crate) index: usize,
}

/// What a call must know of a function.
#[derive(Clone, Debug)]
pub(crate) struct Signature {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Shape>,
    pub(crate) results: Vec<Shape>,
}

/// A function that was built.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) signature: Signature,
    pub(crate) public: bool,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) body: Block,
    pub(crate) values: Vec<Known>,
    pub(crate) scopes: Vec<String>,
}

/// A StableHLO module.
#[derive(Debug)]
pub struct Module {
    id: u64,
    name: String,
    parallelism: Parallelism,
    channels: u64,
    functions: Vec<Built>,
}

impl Module {
    /// An empty module. The name is the one XLA gives to its dumps.
    ///
    /// # Errors
    /// The name is not an identifier (letters, digits, `_`, `$`, `.`; no digit first), or there are 0 devices.
    pub fn new(name: &str, parallelism: Parallelism) -> Result<Self, HloError> {
        let refuse = |problem| HloError::new("module", name, &[], problem);
        check_name(name).map_err(refuse)?;
        let devices = parallelism.devices();
        // XLA counts devices as signed 32-bit numbers.
        if devices == 0 || i32::try_from(devices).is_err() {
            let (found, most) = (i128::from(devices), i128::from(i32::MAX));
            return Err(refuse(Problem::Range { what: "the number of devices", found, least: 1, most }));
        }
        Ok(Self { id: next_id(), name: name.to_owned(), parallelism, channels: 0, functions: Vec::new() })
    }

    /// The module's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the module runs.
    pub const fn parallelism(&self) -> Parallelism {
        self.parallelism
    }

    /// The shapes of the main function's parameters and results, once it is built.
    pub fn signature(&self) -> Option<(&[Shape], &[Shape])> {
        let main = self.functions.iter().find(|function| function.public)?;
        Some((&main.signature.parameters, &main.signature.results))
    }

    /// Builds the function that the program runs. `build` gets the parameters and returns the outputs.
    ///
    /// # Errors
    /// What `build` refused; a donated parameter whose output is missing, of another shape or given twice; a second
    /// main function.
    pub fn main(
        &mut self,
        parameters: &[Parameter],
        build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<(), HloError> {
        self.add("main", true, parameters, build)?;
        Ok(())
    }

    /// Builds a private function, which later functions can [`Builder::call`], so that a repeated piece is written
    /// once. Parameters are called by their place.
    ///
    /// # Errors
    /// What `build` refused; a name that is taken or is not an identifier.
    pub fn function(
        &mut self,
        name: &str,
        parameters: &[Shape],
        build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<Function, HloError> {
        let named = |(index, shape): (usize, &Shape)| Parameter::new(format!("{name}.{index}"), shape.clone());
        let parameters: Vec<Parameter> = parameters.iter().enumerate().map(named).collect();
        self.add(name, false, &parameters, build)
    }

    fn add(
        &mut self,
        name: &str,
        public: bool,
        parameters: &[Parameter],
        build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<Function, HloError> {
        let shapes: Vec<Shape> = parameters.iter().map(|parameter| parameter.shape.clone()).collect();
        let refuse = |problem| HloError::new("function", name, &shapes, problem);
        check_name(name).map_err(refuse)?;
        if self.functions.iter().any(|function| function.signature.name == name) || (name == "main" && !public) {
            let reason = "is taken; choose another";
            return Err(refuse(Problem::Name { name: name.to_owned(), reason }));
        }
        let mut builder = Builder::new(name, next_id(), self.id, self.parallelism);
        builder.channels = self.channels;
        builder.signatures = self.functions.iter().map(|function| function.signature.clone()).collect();
        let (body, results) = builder.body("function", "func.return", Sight::Enclosing, &shapes, build)?;
        check_donations(parameters, &results).map_err(refuse)?;
        self.channels = builder.channels;
        let (values, scopes) = builder.finish();
        let signature = Signature { name: name.to_owned(), parameters: shapes, results };
        self.functions.push(Built { signature, public, parameters: parameters.to_vec(), body, values, scopes });
        Ok(Function { module: self.id, index: self.functions.len() - 1 })
    }

    /// The module as StableHLO text for PJRT's format `mlir`, with scopes and parameter names as locations. The same
    /// calls give the same bytes.
    pub fn text(&self) -> String {
        print::module(&self.name, self.parallelism, &self.functions, print::Locations::Written)
    }

    /// The module without locations: what a cache key is made of, since renaming a scope or a parameter does not change
    /// what runs.
    pub fn canonical(&self) -> String {
        print::module(&self.name, self.parallelism, &self.functions, print::Locations::Omitted)
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    if is_identifier(name) {
        return Ok(());
    }
    let reason = "is not an identifier; use letters, digits, `_`, `$` and `.`, and no digit first";
    Err(Problem::Name { name: name.to_owned(), reason })
}

fn check_donations(parameters: &[Parameter], results: &[Shape]) -> Result<(), Problem> {
    let mut taken = Vec::new();
    for parameter in parameters {
        let Some(output) = parameter.donated_to else { continue };
        let Some(shape) = results.get(output) else {
            let (found, most) = (i128::from(size(output)), i128::from(size(results.len())) - 1);
            return Err(Problem::Range { what: "the output of a donated parameter", found, least: 0, most });
        };
        if *shape != parameter.shape {
            let what = format!("parameter {:?}, donated to output {output},", parameter.name);
            return Err(Problem::Shapes { what, found: parameter.shape.clone(), wanted: shape.clone() });
        }
        if taken.contains(&size(output)) {
            taken.push(size(output));
            let (what, wanted) = ("the outputs of donated parameters", "different from each other");
            return Err(Problem::List { what, found: taken, wanted });
        }
        taken.push(size(output));
    }
    Ok(())
}
