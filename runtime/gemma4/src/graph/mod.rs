//! One step of the language model as a StableHLO program.
//!
//! Invariant: the program is a pure function of [`StepOptions`]: the same options give the same text. Every device runs
//! the same program on local shapes ([`crate::sharding::place`] decides them), with explicit collectives: one sum over the
//! devices after attention, one after the feed-forward part, one for each lookup in a sharded table, and one gather of the
//! logits.
//!
//! A step is ragged: the new tokens of all its sequences (prefill chunks, decodes, drafts) lie one after another in one
//! bucket of `T` rows, of which the first `num_tokens` are real. Keys and values of these tokens are written into the pages
//! of the pool first; attention then goes over items (up to `query_tile` neighbouring tokens of one sequence each) and, for
//! each item, over the KV blocks that its queries see. Both loops have run-time trip counts, so work grows with the
//! tokens that are there and nothing is gathered to the longest sequence. Rows of logits have a bucket of their own, of which the first
//! `num_logit_rows` are real. Operators of our own compute real rows alone; in StableHLO all of a bucket are computed.
//!
//! With [`StepOptions::fast_prefill`], the layers after the last one that owns keys and values run only for the rows whose
//! logits are wanted: nothing else reads what they make of the others.
//!
//! * [`StepOptions`], [`step`]: what is built, and building it
//! * [`Kernels`]: who computes the hot operators
//! * [`StepParameter`]: every argument in order, with what belongs into it
//! * [`MaskOptions`], [`mask`]: a program beside the steps, which rules tokens out of their logits
//!
//! Letters beside those of the crate: `T` token rows of the bucket, `S` sequences, `R` rows that need logits, `I` items,
//! `B` blocks of a block table.

mod attention;
mod embedding;
mod experts;
mod feed_forward;
mod kernels;
mod layers;
mod mask;
mod matrix;
mod numerics;
mod parameters;
mod rows;
mod segments;
mod step;
mod weights;

pub use kernels::{ATTENTION, EXPERTS, GATED, GATED_ROWS, HEADS, KV_WRITE, Kernels, LINEAR, NORM};
pub use mask::{MASK_BITS, MaskOptions, mask};
pub use parameters::{ParameterRole, StepInput, StepParameter};
pub use step::{LayerForm, PerLayerTable, StepGraph, StepOptions, TracePoint, step};

use crate::DType;
use crate::sharding::ShardingError;

/// A step that cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// An operation refused its operands.
    #[error(transparent)]
    Hlo(#[from] gemma4_hlo::HloError),
    /// The mesh cannot split a tensor.
    #[error(transparent)]
    Sharding(#[from] ShardingError),
    /// An element type that the model cannot compute in.
    #[error("the model computes in float32, bfloat16 or float16, not in {0}")]
    DType(
        /// The type asked for.
        DType,
    ),
    /// A size that makes no step.
    #[error("{what} is {found}; a step needs {wanted}")]
    Size {
        /// What it is the size of.
        what: &'static str,
        /// The size asked for.
        found: u64,
        /// What would do.
        wanted: &'static str,
    },
    /// The KV cache was laid out for another model or mesh.
    #[error("layer {layer} has no place in the KV cache; lay it out for this model and this mesh")]
    KvLayout {
        /// Index of the layer.
        layer: usize,
    },
    /// The KV cache was laid out for another number of devices.
    #[error("the KV cache is laid out for {laid_out} devices, and the mesh splits the model over {mesh}")]
    KvDevices {
        /// Devices of the layout.
        laid_out: u64,
        /// Devices of the mesh's model axis.
        mesh: u64,
    },
    /// A weight that a layer needs is not among the tensors of its configuration.
    #[error("the configuration has no {role} for layer {layer:?}")]
    Weight {
        /// What the tensor does.
        role: String,
        /// Its layer, if it belongs to one.
        layer: Option<usize>,
    },
}
