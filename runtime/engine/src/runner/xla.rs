//! Steps on devices.
//!
//! Invariant: the pages go into each step and come out of it; between steps there is one set of them, and once a step has
//! failed there is none. Logits leave the devices once they are masked, if they have to be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use gemma4_hlo::{ElementType as HloElement, Module, Parallelism, Shape};
use gemma4_model::graph::{ParameterRole, StepInput};
use gemma4_model::quantization::Content;
use gemma4_model::tensors::Role;
use gemma4_model::weights::RowTable;
use gemma4_pjrt::{Argument, Buffer, ElementType, Execution};

use super::programs::{Compiler, Program, Programs, StepSize, size_of};
use super::{Counters, Logits, RunError, Runner};
use crate::masks::Masks;
use crate::scheduler::Batch;
use crate::steps::NamedStep;

/// What the devices hold of each tensor or stack, by its role and first layer.
pub(crate) type Weights = HashMap<WeightKey, Vec<Buffer>>;

/// Which array of weights: its role, first layer and content.
pub(crate) type WeightKey = (Role, Option<usize>, Content);

/// The per-layer-embedding table in the host's memory.
pub(super) struct HostTable {
    pub(super) rows: RowTable,
    /// Element type of the rows that it gives.
    pub(super) element: ElementType,
    /// Rows of the last step, whose memory the next one takes.
    pub(super) gathered: Vec<u8>,
}

/// A step on the devices.
struct Launched {
    /// Their logits.
    execution: Execution,
    at: Instant,
}

/// Runs steps on the devices of a client.
pub(crate) struct XlaRunner {
    compiler: Compiler,
    steps: Vec<NamedStep>,
    programs: Programs,
    weights: Weights,
    table: Option<HostTable>,
    pool: Vec<Buffer>,
    vocab_size: usize,
}

/// A weight or input that a program needs and nobody has.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not loaded; this is a bug")]
struct Missing(String);

impl XlaRunner {
    pub(super) fn new(
        compiler: Compiler,
        steps: Vec<NamedStep>,
        programs: Programs,
        (weights, table): (Weights, Option<HostTable>),
        pool: Vec<Buffer>,
    ) -> Self {
        let vocab_size = usize::try_from(compiler.config.text.vocab_size).unwrap_or(usize::MAX);
        Self { compiler, steps, programs, weights, table, pool, vocab_size }
    }

    /// Starts the program of this size with `input` as its inputs; its output on each device are the logits `[R, V]`, the
    /// same on all.
    fn launch<'a>(
        &mut self,
        size: StepSize,
        input: impl Fn(StepInput) -> &'a [i32],
    ) -> Result<Launched, Box<dyn std::error::Error>> {
        let Self { compiler, programs, weights, table, pool, .. } = self;
        let program = programs.steps.get(&size).ok_or_else(|| Missing(format!("the program of size {size:?}")))?;
        let client = &compiler.client;
        let devices = program.executable.devices();
        if let Some(HostTable { rows, gathered, .. }) = table {
            rows.gather(input(StepInput::TokenIds), gathered);
        }
        let mut inputs: Vec<Vec<Buffer>> = Vec::with_capacity(devices.len());
        for &device in devices {
            let of_device = program.parameters.iter().filter_map(|parameter| match parameter.role {
                ParameterRole::Input(which) => Some(client.buffer_of(input(which), &dims(&parameter.shape), device)),
                ParameterRole::PerLayerRows => table.as_ref().map(|HostTable { element, gathered, .. }| {
                    client.buffer(gathered, *element, &dims(&parameter.shape), device)
                }),
                _ => None,
            });
            inputs.push(of_device.collect::<Result<_, _>>()?);
        }
        let mut arguments: Vec<Vec<Argument<'_>>> = Vec::with_capacity(devices.len());
        // From here on the pages belong to the step.
        for ((place, inputs), pool) in inputs.iter().enumerate().zip(std::mem::take(pool)) {
            let (mut inputs, mut pool) = (inputs.iter(), Some(pool));
            let of_device = program.parameters.iter().map(|parameter| {
                let argument = match &parameter.role {
                    ParameterRole::Input(_) | ParameterRole::PerLayerRows => inputs.next().map(Argument::Keep),
                    ParameterRole::KvPool => pool.take().map(Argument::Donate),
                    ParameterRole::Weight { role, layers, content } => {
                        let of = weights.get(&(*role, layers.first().copied(), *content));
                        of.and_then(|of| of.get(place)).map(Argument::Keep)
                    }
                };
                argument.ok_or_else(|| Missing(parameter.name.clone()))
            });
            arguments.push(of_device.collect::<Result<_, _>>()?);
        }
        let at = Instant::now();
        let Execution { outputs, done } = program.executable.launch(arguments)?;
        let mut logits = Vec::with_capacity(devices.len());
        for outputs in outputs {
            let mut outputs = outputs.into_iter();
            logits.push(outputs.next().into_iter().collect());
            self.pool.extend(outputs.next());
        }
        Ok(Launched { execution: Execution { outputs: logits, done }, at })
    }

    /// Runs the step of this size; gives its logits.
    fn execute<'a>(
        &mut self,
        size: StepSize,
        input: impl Fn(StepInput) -> &'a [i32],
    ) -> Result<Logits, Box<dyn std::error::Error>> {
        let Launched { execution, at } = self.launch(size, input)?;
        let outputs = execution.wait()?;
        Counters::add_since(&self.compiler.counters.device_nanoseconds, at);
        Ok(Logits::new(of_first(&outputs)?, self.vocab_size))
    }

    /// Runs the step of this size, and masks its logits where they are.
    fn execute_masked<'a>(
        &mut self,
        size: StepSize,
        input: impl Fn(StepInput) -> &'a [i32],
        masks: &mut dyn FnMut() -> Masks,
    ) -> Result<Logits, Box<dyn std::error::Error>> {
        let Launched { execution: step, at } = self.launch(size, input)?;
        // The devices are at work meanwhile.
        let masks = masks();
        let (_, _, rows) = size;
        let program = self.programs.masks.get(&rows).ok_or_else(|| Missing(format!("the mask of {rows} rows")))?;
        let words = self.vocab_size.div_ceil(u32::BITS as usize);
        let dims = [rows.cast_signed(), i64::try_from(words)?];
        let upload = |device: &usize| self.compiler.client.buffer_of(masks.words(), &dims, *device);
        let uploaded = program.devices().iter().map(upload).collect::<Result<Vec<_>, _>>()?;
        let unmasked = masks.keeps_unmasked().then(|| of_first(&step.outputs)).transpose()?;
        let arguments = step.outputs.into_iter().zip(uploaded).map(|(logits, masks)| {
            // In place of the logits come those that are masked; nobody needs the masks any more.
            logits.into_iter().chain([masks]).map(Argument::Donate).collect()
        });
        let masked = program.launch(arguments.collect());
        // The step first: if it failed, its words say why.
        Execution { outputs: Vec::new(), done: step.done }.wait()?;
        let masked = masked?.wait()?;
        Counters::add_since(&self.compiler.counters.device_nanoseconds, at);
        let logits = Logits::new(of_first(&masked)?, self.vocab_size);
        Ok(logits.with_unmasked(unmasked))
    }

    /// Compiles a program that should have been there. Whoever waits for it is told by a counter.
    fn compile(&mut self, size: StepSize) -> Result<(), Box<dyn std::error::Error>> {
        let step = self.steps.iter().find(|step| size_of(step) == size);
        let step = step.ok_or_else(|| Missing(format!("a step of size {size:?}")))?;
        tracing::error!(program = step.name, "compiled while requests wait; all programs should have been ready");
        Counters::add(&self.compiler.counters.compiles_while_serving);
        let (program, _) = self.compiler.program(step)?;
        self.programs.steps.insert(size, program);
        Ok(())
    }

    /// Runs the smallest step without a token, which brings the weights into memory.
    pub(super) fn warm_up(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let Some(step) = self.steps.iter().min_by_key(|step| size_of(step)) else {
            return Ok(());
        };
        let size = size_of(step);
        let program = self.programs.steps.get(&size).ok_or_else(|| Missing(step.name.clone()))?;
        let nowhere = i32::try_from(step.options.pages).unwrap_or(i32::MAX);
        let zeros: HashMap<StepInput, Vec<i32>> = program
            .parameters
            .iter()
            .filter_map(|parameter| match parameter.role {
                // Slots of a page that does not exist: nothing is written.
                ParameterRole::Input(input @ StepInput::Slots(_)) => {
                    Some((input, vec![nowhere; count(&parameter.shape)]))
                }
                ParameterRole::Input(input) => Some((input, vec![0; count(&parameter.shape)])),
                _ => None,
            })
            .collect();
        // Not counted: nobody asked for it.
        self.launch(size, |input| zeros.get(&input).map_or(&[], Vec::as_slice))?.execution.wait()?;
        Ok(())
    }

    /// The size of a batch's step, whose program is there afterwards.
    fn prepared(&mut self, batch: &Batch) -> Result<StepSize, Box<dyn std::error::Error>> {
        let shape = batch.shape();
        // They came from numbers of this type.
        let size = (shape.tokens as u64, shape.sequences as u64, shape.rows as u64);
        if !self.programs.steps.contains_key(&size) {
            self.compile(size)?;
        }
        Ok(size)
    }

    /// What came of a step; what the pages hold after one that failed is not known.
    fn end_of(
        &mut self,
        batch: &Batch,
        outcome: Result<Logits, Box<dyn std::error::Error>>,
    ) -> Result<Logits, RunError> {
        outcome.map_err(|error| {
            self.pool.clear();
            RunError { step: batch.step(), reason: error.to_string() }
        })
    }

    /// Counts what a step of this size left out.
    fn count_skipped(&self, size: StepSize, batch: &Batch) {
        let skips = |program: &Program| {
            program.parameters.iter().any(|one| one.role == ParameterRole::Input(StepInput::LogitItems))
        };
        if self.programs.steps.get(&size).is_some_and(skips) {
            let skipped = batch.tokens().saturating_sub(batch.logits());
            Counters::add_all(&self.compiler.counters.fast_prefill_skipped_tokens, skipped as u64);
        }
    }
}

/// The only output of the first device.
fn of_first(outputs: &[Vec<Buffer>]) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let output = outputs.iter().flatten().next();
    Ok(output.ok_or_else(|| Missing("an output".to_owned()))?.to_vec::<f32>()?)
}

impl Runner for XlaRunner {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        let mut run = || {
            let size = self.prepared(batch)?;
            let logits = self.execute(size, |input| batch.input(input))?;
            self.count_skipped(size, batch);
            Ok(logits)
        };
        let outcome = run();
        self.end_of(batch, outcome)
    }

    fn run_masked(&mut self, batch: &Batch, masks: &mut dyn FnMut() -> Masks) -> Result<Logits, RunError> {
        let mut run = || {
            let size = self.prepared(batch)?;
            let logits = self.execute_masked(size, |input| batch.input(input), masks)?;
            self.count_skipped(size, batch);
            Counters::add(&self.compiler.counters.masked_steps);
            Ok(logits)
        };
        let outcome = run();
        self.end_of(batch, outcome)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.compiler.counters)
    }
}

/// An array of zeros of `shape` on each of `devices` devices, made there.
pub(super) fn zeros(compiler: &Compiler, shape: &Shape) -> Result<Vec<Buffer>, Box<dyn std::error::Error>> {
    let parallelism = match compiler.devices.count() {
        1 => Parallelism::Single,
        devices => Parallelism::ManualPartitions(devices),
    };
    let mut module = Module::new("pool", parallelism)?;
    module.main(&[], |b, _| {
        let zero = b.number(0.0, HloElement::F32, &[])?;
        let zero = b.convert(zero, shape.element())?;
        Ok(vec![b.broadcast_scalar(zero, shape.dims())?])
    })?;
    let program = compiler.client.compile(module.text().as_bytes(), &compiler.options)?;
    let outputs = program.execute(program.devices().iter().map(|_| Vec::new()).collect())?;
    Ok(outputs.into_iter().flatten().collect())
}

pub(super) fn dims(shape: &Shape) -> Vec<i64> {
    shape.dims().iter().map(|size| size.cast_signed()).collect()
}

fn count(shape: &Shape) -> usize {
    shape
        .dims()
        .iter()
        .fold(1, |product: usize, size| product.saturating_mul(usize::try_from(*size).unwrap_or(usize::MAX)))
}
