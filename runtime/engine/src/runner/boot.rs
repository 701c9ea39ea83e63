//! From a plan to an engine that serves.
//!
//! Invariant: when [`boot`] returns, the weights and the pages are on the devices, every program of the plan is loaded, and
//! one has run. Every setting comes from the plan.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gemma4_model::graph::{LayerForm, ParameterRole, PerLayerTable};
use gemma4_model::quantization::Quantization;
use gemma4_model::tensors::Role;
use gemma4_model::weights::{
    AlignedStore, Checkpoint, FileBytes, Layout, LoadOptions, Part, Progress, Selection, Strategy, Target, WeightsError,
};
use gemma4_model::{Config, DType};
use gemma4_pjrt::mapped::MappedFile;
use gemma4_pjrt::{Buffer, Client, ElementType, HostBytes, Plugin};
use gemma4_plan::Plan;
use thiserror::Error;

use super::programs::{Compiler, Prepared, ProgramError};
use super::xla::{HostTable, WeightKey, Weights, XlaRunner, zeros};
use crate::compile::{self, CompileError, Devices};
use crate::engine::Engine;
use crate::masks::mask_programs;
use crate::scheduler::{OptionsError, Scheduler, SchedulerOptions};
use crate::settings::Settings;
use crate::speculation::NGRAM;
use crate::steps::{NamedStep, StepsError, steps};
use crate::store::{Store, StoreError};

/// Bytes of weight files that are read ahead of where they are used.
const READ_AHEAD: u64 = 256 << 20;

/// Where things are on this machine; none of it changes what is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Folder with the checkpoint.
    pub checkpoint: PathBuf,
    /// XLA's plugin for the plan's devices.
    pub plugin: PathBuf,
    /// Folder of compiled programs.
    pub programs: PathBuf,
    /// Folder of weights in a form that devices take over as they are.
    pub weights: PathBuf,
}

/// How far a start is.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Weights are written once in a form that devices take over as they are.
    Aligning(Progress),
    /// Weights go to the devices.
    Weights(Progress),
    /// Programs are loaded or compiled.
    Programs(Prepared),
    /// A step runs.
    WarmUp,
}

/// What a start took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Durations {
    /// Loading the plugin and looking at the devices.
    pub devices: Duration,
    /// Weights, and the room for the KV cache.
    pub weights: Duration,
    /// Compiling or loading programs.
    pub programs: Duration,
    /// Running the first step.
    pub warm_up: Duration,
}

/// An engine that serves.
pub struct Booted {
    /// The engine.
    pub engine: Engine,
    /// The model.
    pub config: Config,
    /// What the engine really does.
    pub settings: Settings,
    /// What it took.
    pub durations: Durations,
    /// Steps whose programs came compiled from the cache.
    pub cached: usize,
    /// Steps whose programs were compiled.
    pub compiled: usize,
}

/// Why a plan does not become an engine.
#[derive(Debug, Error)]
pub enum BootError {
    /// There are no devices of this kind for the bundled engine.
    #[error("the bundled engine does not run on {0}; it runs on cpu and on TPUs")]
    Devices(
        /// The plan's accelerator.
        String,
    ),
    /// The plan asks for something that this engine has not.
    #[error("the plan has {key} = {found}, which the bundled engine cannot run: {reason}")]
    Unsupported {
        /// The plan's key.
        key: &'static str,
        /// What it says.
        found: String,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// The machine has other devices than the plan.
    #[error("the plan is for {wanted} devices, and this machine has {found} of them; make a plan for this machine")]
    DeviceCount {
        /// Devices of the plan.
        wanted: u32,
        /// Devices that are here.
        found: usize,
    },
    /// The machine has too little memory.
    #[error(
        "weights and KV cache take {} MiB, and {} MiB of this machine's memory are free; \
         lower memory.hbm_utilization or hardware.memory, or end other programs",
        needed >> 20, available >> 20
    )]
    Memory {
        /// Bytes that the plan needs on all devices together.
        needed: u64,
        /// Bytes that the system can give.
        available: u64,
    },
    /// The weights cannot be loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The plan gives no programs for this model.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// A program cannot be made ready.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The devices cannot compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The plan's limits make no scheduler.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The folder of compiled programs cannot be trusted.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The devices refuse.
    #[error(transparent)]
    Xla(#[from] gemma4_pjrt::Error),
    /// The pages cannot be made.
    #[error("the {mib} MiB of the KV cache cannot be had on each device: {reason}")]
    Pool {
        /// MiB on each device.
        mib: u64,
        /// Why not.
        reason: String,
    },
    /// The first step fails.
    #[error("the first step fails: {0}")]
    WarmUp(
        /// Why.
        String,
    ),
    /// The system gives no thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] io::Error),
}

/// Starts the engine of `plan`.
///
/// One engine of several CPU devices may run in a process at a time: the collectives of XLA's CPU plugin meet by the numbers
/// of their devices, and those of two clients are the same.
///
/// # Errors
/// [`BootError`]; what was compiled until then is kept.
pub fn boot(plan: &Plan, places: &Places, on_progress: &(dyn Fn(Stage) + Sync)) -> Result<Booted, BootError> {
    let start = Instant::now();
    supported(plan)?;
    let devices = Devices::of(plan).ok_or_else(|| BootError::Devices(plan.hardware.accelerator.clone()))?;
    memory(plan, &devices)?;
    // What can be refused cheaply is refused before anything is loaded.
    let store = Store::open(&places.programs)?;
    let files = Mutex::new(Vec::new());
    let checkpoint = Checkpoint::open(&places.checkpoint, Selection::default(), |path: &Path| {
        let file = MappedFile::open(path).map_err(io::Error::other)?;
        files.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&file));
        let file: FileBytes = file;
        Ok(file)
    })?;
    let config = checkpoint.config().clone();
    let steps = steps(plan, &config)?;
    let window = config.text.sliding_window;
    let options = steps.iter().map(|step| &step.options);
    let speculative = plan.speculative.as_ref();
    let options = SchedulerOptions::new(&plan.scheduler, speculative, options, config.text.vocab_size, window)?;
    let settings = Settings::of_engine(plan, &devices, &steps, &options);
    let scheduler = Scheduler::new(options)?;

    let client = client(&places.plugin, &devices)?;
    let compiler = compiler(client, &config, devices, store)?;
    let mut durations = Durations { devices: start.elapsed(), ..Durations::default() };

    let start = Instant::now();
    let weights = load(&checkpoint, &compiler, &steps, &places.weights, on_progress)?;
    let table = host_table(&checkpoint, &steps)?;
    // A first start has read all of the checkpoint, and now has most of it a second time in aligned form.
    for file in files.into_inner().unwrap_or_else(PoisonError::into_inner) {
        file.release()?;
    }
    let pool = pool(&compiler, &steps)?;
    durations.weights = start.elapsed();

    let start = Instant::now();
    let masks = mask_programs(&steps, &config);
    let programs = compiler.prepare(&steps, &masks, &|prepared| on_progress(Stage::Programs(prepared)))?;
    durations.programs = start.elapsed();
    let cached = programs.cached_steps;
    let compiled = steps.len().saturating_sub(cached);

    on_progress(Stage::WarmUp);
    let start = Instant::now();
    let mut runner = XlaRunner::new(compiler, steps, programs, (weights, table), pool);
    runner.warm_up().map_err(|error| BootError::WarmUp(error.to_string()))?;
    durations.warm_up = start.elapsed();
    let engine = Engine::start(scheduler, Box::new(runner))?;
    Ok(Booted { engine, config, settings, durations, cached, compiled })
}

/// Whether this engine does what the plan says.
fn supported(plan: &Plan) -> Result<(), BootError> {
    let unsupported = |key, found: String, reason| Err(BootError::Unsupported { key, found, reason });
    if plan.sharding.mesh.data > 1 {
        let reason = "one process runs one copy of the model; set parallelism.data = 1 and launch several";
        return unsupported("parallelism.data", plan.sharding.mesh.data.to_string(), reason);
    }
    if let Some(speculative) = plan.speculative.as_ref().filter(|speculative| speculative.method != NGRAM) {
        let reason = "it looks drafts up in the context and has no other way to make them; use `ngram`";
        return unsupported("speculative.method", speculative.method.clone(), reason);
    }
    if let Some(method) = plan.model.quantization.as_ref().filter(|name| name.parse::<Quantization>().is_err()) {
        let reason = "it loads unquantized checkpoints, and quantizes them to `int8` or `int4` alone";
        return unsupported("model.quantization", method.clone(), reason);
    }
    if plan.hardware.hosts > 1 {
        let reason = "it runs on one machine; choose a slice of one host";
        return unsupported("hardware.hosts", plan.hardware.hosts.to_string(), reason);
    }
    Ok(())
}

/// On CPUs the plan's devices are made of this machine's memory, so that has to be there.
fn memory(plan: &Plan, devices: &Devices) -> Result<(), BootError> {
    let Devices::Cpu { count } = devices else { return Ok(()) };
    let memory = &plan.memory.per_device;
    let needed = memory.weights.saturating_add(memory.kv).saturating_mul(u64::from(*count));
    match available() {
        Some(available) if available < needed => Err(BootError::Memory { needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that the system can give without swapping, if it says.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn map(path: &Path) -> io::Result<FileBytes> {
    let file: Arc<MappedFile> = MappedFile::open(path).map_err(io::Error::other)?;
    Ok(file)
}

fn client(plugin: &Path, devices: &Devices) -> Result<Client, BootError> {
    let client = compile::client(Plugin::load(plugin)?, devices)?;
    let (wanted, found) = (devices.count(), client.device_count());
    if u32::try_from(found) == Ok(wanted) { Ok(client) } else { Err(BootError::DeviceCount { wanted, found }) }
}

fn compiler(client: Client, config: &Config, devices: Devices, store: Store) -> Result<Compiler, CompileError> {
    let (identity, options) = {
        let compiler = compile::Compiler::Client(client.clone());
        (compiler.identity()?, compiler.options()?)
    };
    let counters = Arc::default();
    Ok(Compiler { client, config: config.clone(), devices, identity, options, store, counters })
}

/// Whether the per-layer-embedding table stays in the host's memory. All steps of a plan agree on it.
fn on_host(steps: &[NamedStep], config: &Config) -> bool {
    let host = steps.first().is_some_and(|step| step.options.per_layer_table == PerLayerTable::Host);
    host && config.text.ple_width > 0
}

/// The per-layer-embedding table, if it stays in the host's memory.
fn host_table(checkpoint: &Checkpoint, steps: &[NamedStep]) -> Result<Option<HostTable>, BootError> {
    let dtype = steps.first().map(|step| step.options.dtype).filter(|_| on_host(steps, checkpoint.config()));
    let Some(dtype) = dtype else { return Ok(None) };
    let rows = checkpoint.row_table(Role::PerLayerTable, dtype)?;
    Ok(Some(HostTable { rows, element: element(dtype)?, gathered: Vec::new() }))
}

/// Brings the weights to the devices.
fn load(
    checkpoint: &Checkpoint,
    compiler: &Compiler,
    steps: &[NamedStep],
    folder: &Path,
    on_progress: &(dyn Fn(Stage) + Sync),
) -> Result<Weights, BootError> {
    // All steps of a plan share their weights.
    let Some(options) = steps.first().map(|step| &step.options) else { return Ok(Weights::new()) };
    let target = Target {
        mesh: options.mesh,
        experts: options.experts,
        dtype: options.dtype,
        quantization: options.quantization,
    };
    let ranks: Vec<u64> = (0..options.mesh.model).collect();
    let layout = if options.layers == LayerForm::Looped { Layout::Stacked } else { Layout::PerLayer };
    let workers = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let strategy = Strategy::Prefetch { ahead: READ_AHEAD };
    let without: &[Role] = if on_host(steps, checkpoint.config()) { &[Role::PerLayerTable] } else { &[] };
    let load = LoadOptions { layout, workers, strategy, without, ..LoadOptions::new(&ranks) };
    let loaded: Mutex<Loading> = Mutex::default();
    let take = |part: Part<'_>| match buffers(&compiler.client, &part) {
        Ok(buffers) => {
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((key, buffers)) = buffers {
                loaded.entry(key).or_default().extend(buffers);
            }
            drop(loaded);
            on_progress(Stage::Weights(part.progress));
            ControlFlow::Continue(())
        }
        Err(error) => ControlFlow::Break(error),
    };
    let outcome = if matches!(compiler.devices, Devices::Cpu { .. }) {
        let on_progress = &|progress| on_progress(Stage::Aligning(progress));
        checkpoint.load_aligned(&target, &load, &AlignedStore { folder, map: &map, on_progress }, take)?
    } else {
        checkpoint.load(&target, &load, take)?
    };
    if let ControlFlow::Break(error) = outcome {
        return Err(error.into());
    }
    let by_rank = |(key, mut parts): (_, Vec<(u64, Buffer)>)| {
        parts.sort_by_key(|(rank, _)| *rank);
        (key, parts.into_iter().map(|(_, buffer)| buffer).collect())
    };
    Ok(loaded.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().map(by_rank).collect())
}

/// An array by rank on the devices that hold it.
type OnDevices = Vec<(u64, Buffer)>;

/// Arrays that are on devices already.
type Loading = HashMap<WeightKey, OnDevices>;

/// A part on each device that holds it; returns when it is there.
fn buffers(client: &Client, part: &Part<'_>) -> gemma4_pjrt::Result<Option<(WeightKey, OnDevices)>> {
    let Some(tensor) = part.tensors.first() else { return Ok(None) };
    let dims: Vec<i64> = part.shape.iter().map(|size| size.cast_signed()).collect();
    let bytes = HostBytes::new(Arc::new(part.bytes.clone()));
    let mut buffers = Vec::with_capacity(part.ranks.len());
    for &rank in &part.ranks {
        let device = usize::try_from(rank).unwrap_or(usize::MAX);
        buffers.push(client.borrow(bytes.clone(), element(part.dtype)?, &dims, device)?);
    }
    for buffer in &buffers {
        buffer.ready()?.wait()?;
    }
    let buffers = buffers.into_iter().zip(&part.ranks).map(|(buffer, rank)| (*rank, buffer)).collect();
    Ok(Some(((tensor.role, tensor.layer, part.content), buffers)))
}

/// The plugin's name of a data type.
fn element(dtype: DType) -> gemma4_pjrt::Result<ElementType> {
    Ok(match dtype {
        DType::F32 => ElementType::F32,
        DType::Bf16 => ElementType::BF16,
        DType::F16 => ElementType::F16,
        DType::F8E4M3 => ElementType::F8E4M3FN,
        DType::F8E5M2 => ElementType::F8E5M2,
        DType::I8 => ElementType::S8,
        DType::U16 => ElementType::U16,
        other => {
            return Err(gemma4_pjrt::Error::Arguments(format!("weights of type {other} have no place on devices")));
        }
    })
}

/// The pages, empty, on each device.
fn pool(compiler: &Compiler, steps: &[NamedStep]) -> Result<Vec<Buffer>, BootError> {
    let Some(step) = steps.first() else { return Ok(Vec::new()) };
    let graph = step.build(&compiler.config)?;
    let pool = graph.parameters.iter().find(|parameter| parameter.role == ParameterRole::KvPool);
    let Some(pool) = pool else { return Ok(Vec::new()) };
    let mib = pool.shape.bytes().unwrap_or(u64::MAX) >> 20;
    zeros(compiler, &pool.shape).map_err(|error| BootError::Pool { mib, reason: error.to_string() })
}
