//! Produces the parts of all tensors on a few threads.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use super::bytes::LocalBytes;
use super::error::WeightsError;
use super::gate::{Gate, StopOnDrop};
use super::open::Checkpoint;
use super::work::{self, Work};
use crate::DType;
use crate::quantization::{Content, Quantization};
use crate::sharding::{ExpertSharding, Mesh, Placement};
use crate::tensors::{Role, Tensor};

/// Bytes between two touches: the smallest page of any supported system.
const PAGE: usize = 4096;
/// Bytes that are read ahead in one go.
const STEP: usize = 4 << 20;

/// What the weights are cut for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The devices. Copies of the model (`data`) hold the same parts.
    pub mesh: Mesh,
    /// How experts are split.
    pub experts: ExpertSharding,
    /// Element type of all weights on the devices: `bfloat16` or `float32`, or what all files have.
    pub dtype: DType,
    /// How the large weights of the language model are quantized.
    pub quantization: Option<Quantization>,
}

/// Which arrays the layers of the language model become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// One array a tensor.
    #[default]
    PerLayer,
    /// One array for each role of all layers that are alike (same attention, widths and heads, and both with or both
    /// without keys and values of their own), with these layers in order as first dimension. Tensors outside the layers
    /// and those of encoders stay as they are. Stacks are always copies.
    Stacked,
}

/// How file pages come into memory.
#[derive(Clone, Copy, Default)]
pub enum Strategy<'a> {
    /// When they are touched.
    #[default]
    Lazy,
    /// One thread touches them in the order of the files, at most `ahead` bytes before the parts that are done.
    Prefetch {
        /// Bytes.
        ahead: u64,
    },
    /// As [`Self::Prefetch`], with the caller's function in place of touching, for example `madvise(MADV_WILLNEED)`. It is
    /// called with pieces of the files' bytes.
    Advise {
        /// Bytes.
        ahead: u64,
        /// Called on the thread that reads ahead.
        advise: &'a (dyn Fn(&[u8]) + Sync),
    },
}

/// How to load.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Ranks of the model axis whose parts are wanted, each once.
    pub ranks: &'a [u64],
    /// Which arrays the layers become.
    pub layout: Layout,
    /// How file pages come into memory.
    pub strategy: Strategy<'a>,
    /// Threads that produce parts.
    pub workers: NonZeroUsize,
    /// Bytes of buffers that may exist at a time, over all workers. A part that is larger waits until it is alone. A buffer
    /// counts until the callback returns; what the callback keeps beyond that is the caller's.
    pub buffer_bytes: u64,
    /// Roles whose tensors stay in the files, because the host reads them there ([`Checkpoint::row_table`]).
    pub without: &'a [Role],
}

impl<'a> LoadOptions<'a> {
    /// Lazily, a tensor at a time, with two workers and 1 GiB of buffers.
    #[must_use]
    pub const fn new(ranks: &'a [u64]) -> Self {
        let workers = NonZeroUsize::MIN.saturating_add(1);
        Self { ranks, layout: Layout::PerLayer, strategy: Strategy::Lazy, workers, buffer_bytes: 1 << 30, without: &[] }
    }
}

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of all parts handed out so far, this one included.
    pub done: u64,
    /// Bytes of all parts, each counted once however many ranks hold it.
    pub total: u64,
}

/// What some ranks hold of a tensor, or of a stack of them.
pub struct Part<'a> {
    /// The tensor, or those of a stack in the order of their layers.
    pub tensors: Vec<&'a Tensor>,
    /// The ranks of the model axis that hold this part.
    pub ranks: Vec<u64>,
    /// How each tensor is split.
    pub placement: Placement,
    /// What of the tensors it is.
    pub content: Content,
    /// Shape on each of the ranks, that of [`crate::quantization::arrays`], in a stack with the number of layers in front.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: DType,
    /// The elements, row-major, little-endian.
    pub bytes: LocalBytes,
    /// How far the load is.
    pub progress: Progress,
}

/// What a load did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parts handed out.
    pub parts: u64,
    /// Bytes of all parts, in the element type of the target.
    pub bytes: u64,
    /// Bytes of parts that were handed out as they lie in the file.
    pub borrowed_bytes: u64,
    /// Tensors whose elements were converted, by the type they had.
    pub converted: Vec<(DType, u64)>,
}

impl Checkpoint {
    /// Cuts one tensor for one rank: its elements, quantized or not.
    ///
    /// # Errors
    /// [`WeightsError`] if the model does not read such a tensor, the mesh cannot split it, no conversion leads to the
    /// element type, or there is no memory.
    pub fn part(&self, name: &str, target: &Target, rank: u64) -> Result<Part<'_>, WeightsError> {
        let matched = self.matched().iter().find(|matched| matched.tensor.name == name);
        let unknown = || WeightsError::UnknownTensor { tensor: name.to_owned() };
        let works = work::single(self, target, rank, matched.ok_or_else(unknown)?)?;
        let work = works.first().ok_or_else(unknown)?;
        let progress = Progress { done: work.bytes(), total: work.bytes() };
        Ok(part(work, work.produce(self)?, progress))
    }

    /// Produces every part that the ranks hold and gives it to `on_part`, on several threads at once and in an order that
    /// follows the files only roughly. Returns when all are handed out, or soon after `on_part` breaks off: then with its value.
    /// A panic of `on_part` ends the load and goes on in the caller.
    ///
    /// # Errors
    /// [`WeightsError`] for ranks or types that do not suit, before any part is produced; for memory or files that fail,
    /// afterwards.
    pub fn load<B: Send>(
        &self,
        target: &Target,
        options: &LoadOptions<'_>,
        on_part: impl Fn(Part<'_>) -> ControlFlow<B> + Sync,
    ) -> Result<ControlFlow<B, LoadReport>, WeightsError> {
        let works = work::list(self, target, options)?;
        let report = report(&works);
        Ok(match self.run(&works, options, (0, report.bytes), on_part)? {
            ControlFlow::Break(value) => ControlFlow::Break(value),
            ControlFlow::Continue(()) => ControlFlow::Continue(report),
        })
    }

    /// Produces these parts. `before` bytes of `total` are counted as handed out already.
    pub(super) fn run<B: Send>(
        &self,
        works: &[Work<'_>],
        options: &LoadOptions<'_>,
        (before, total): (u64, u64),
        on_part: impl Fn(Part<'_>) -> ControlFlow<B> + Sync,
    ) -> Result<ControlFlow<B>, WeightsError> {
        let gate = Gate::default();
        let (next, handed_out) = (AtomicUsize::new(0), AtomicU64::new(before));
        let worker = || -> Result<ControlFlow<B>, WeightsError> {
            let stop_unless_finished = StopOnDrop(&gate);
            while !gate.is_stopped() {
                let Some(work) = works.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let Some(reservation) = gate.reserve(work.buffer_bytes(), options.buffer_bytes) else { break };
                let bytes = work.produce(self)?;
                let done = handed_out.fetch_add(work.bytes(), Ordering::Relaxed).saturating_add(work.bytes());
                let progress = Progress { done, total };
                if let ControlFlow::Break(value) = on_part(part(work, bytes, progress)) {
                    return Ok(ControlFlow::Break(value));
                }
                drop(reservation);
                gate.add_done(work.extent_bytes());
            }
            // The others still have parts to finish.
            std::mem::forget(stop_unless_finished);
            Ok(ControlFlow::Continue(()))
        };
        thread::scope(|scope| {
            let stop_readers = StopOnDrop(&gate);
            let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
            if !matches!(options.strategy, Strategy::Lazy) {
                let reader = || self.read_ahead(works, options.strategy, &gate);
                spawn("weights-ahead").spawn_scoped(scope, reader).map_err(WeightsError::Thread)?;
            }
            let mut workers = Vec::new();
            for _ in 0..options.workers.get().min(works.len()) {
                workers.push(spawn("weights").spawn_scoped(scope, worker).map_err(WeightsError::Thread)?);
            }
            let mut outcome: Result<ControlFlow<B>, WeightsError> = Ok(ControlFlow::Continue(()));
            for worker in workers {
                let ended = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
                if matches!(outcome, Ok(ControlFlow::Continue(()))) {
                    outcome = ended;
                }
            }
            drop(stop_readers);
            outcome
        })
    }

    /// Brings the pages of the parts into memory, in the order of the list.
    fn read_ahead(&self, works: &[Work<'_>], strategy: Strategy<'_>, gate: &Gate) {
        let ahead = match strategy {
            Strategy::Lazy => return,
            Strategy::Prefetch { ahead } | Strategy::Advise { ahead, .. } => ahead,
        };
        let bring = |piece: &[u8]| match strategy {
            Strategy::Advise { advise, .. } => advise(piece),
            Strategy::Lazy | Strategy::Prefetch { .. } => touch(piece),
        };
        let mut read: u64 = 0;
        for (matched, extent) in works.iter().flat_map(Work::extents) {
            // A file that has changed is the workers' to report.
            let Ok((file, tensor)) = self.place_of(matched) else { return };
            let stored = file.as_ref().as_ref().get(tensor).and_then(|stored| stored.get(extent));
            for piece in stored.unwrap_or_default().chunks(STEP) {
                let Some(done) = gate.wait_for_room_ahead(read, ahead) else { return };
                read = read.saturating_add(piece.len() as u64);
                // What the workers have overtaken is in memory already.
                if done < read {
                    bring(piece);
                }
            }
        }
    }
}

fn touch(piece: &[u8]) {
    let sum = piece.iter().step_by(PAGE).fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    black_box(sum);
}

pub(super) fn part<'a>(work: &Work<'a>, bytes: LocalBytes, progress: Progress) -> Part<'a> {
    Part {
        tensors: work.members.iter().map(|member| &member.matched.tensor).collect(),
        ranks: work.ranks.clone(),
        placement: work.placement.clone(),
        content: work.array.content,
        shape: work.shape(),
        dtype: work.array.dtype,
        bytes,
        progress,
    }
}

pub(super) fn report(works: &[Work<'_>]) -> LoadReport {
    let mut report = LoadReport::default();
    let mut converted: Vec<(&str, DType)> = Vec::new();
    for work in works {
        report.parts = report.parts.saturating_add(1);
        report.bytes = report.bytes.saturating_add(work.bytes());
        if work.buffer_bytes() == 0 {
            report.borrowed_bytes = report.borrowed_bytes.saturating_add(work.bytes());
        }
        let members = work.members.iter().filter(|member| member.is_converted());
        converted.extend(members.map(|member| (member.matched.tensor.name.as_str(), member.matched.entry.dtype)));
    }
    converted.sort_unstable();
    converted.dedup();
    for (_, from) in converted {
        match report.converted.iter_mut().find(|(known, _)| *known == from) {
            Some((_, tensors)) => *tensors = tensors.saturating_add(1),
            None => report.converted.push((from, 1)),
        }
    }
    report
}
