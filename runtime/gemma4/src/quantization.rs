//! Weights that are quantized while they are loaded.
//!
//! Invariant: [`arrays`] alone decides which tensors are quantized and what becomes of them, so that the budget, the loader and
//! the program cannot disagree. What is quantized are the matrices of the language model that rows are multiplied with, and the
//! embedding, which is one of them where it is the head too. Norms, scalars, the router and the table of per-layer embeddings
//! stay as they are: they are small, or read in single rows.
//!
//! A scale belongs to a whole row of the whole tensor, so numbers do not depend on how many devices there are.

use std::fmt;
use std::str::FromStr;

use crate::DType;
use crate::sharding::Placement;
use crate::tensors::{Role, Tensor};

/// How weights are stored on devices, where it is not as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// As integers from -127 to 127 and a float32 for each row `[out, in]`: a weight is their product.
    Int8,
}

/// A name of a quantization that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown quantization `{0}`")]
pub struct UnknownQuantization(
    /// The name as it was written.
    pub String,
);

impl Quantization {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Int8];

    /// Its name in profiles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Quantization {
    type Err = UnknownQuantization;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|known| known.name() == name);
        known.ok_or_else(|| UnknownQuantization(name.to_owned()))
    }
}

/// What an array has of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Its elements, quantized or not.
    Elements,
    /// What each quantized row is multiplied by: an array without the tensor's last dimension.
    Scales,
}

/// An array that a tensor, or a device's part of it, becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// What it has of the tensor.
    pub content: Content,
    /// Element type.
    pub dtype: DType,
    /// Shape on each device.
    pub shape: Vec<u64>,
}

impl Array {
    /// Bytes on each device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let elements = self.shape.iter().fold(1, |product: u64, &size| product.saturating_mul(size));
        self.dtype.bytes(elements).unwrap_or(u64::MAX)
    }
}

/// What becomes of a device's part of `tensor`, whose elements are of type `dtype` where they are not quantized: the elements,
/// and behind them the scales if there are any.
#[must_use]
pub fn arrays(tensor: &Tensor, placement: &Placement, dtype: DType, quantization: Option<Quantization>) -> Vec<Array> {
    let elements = |dtype| Array { content: Content::Elements, dtype, shape: placement.local_shape.clone() };
    match (quantization, placement.local_shape.split_last()) {
        (Some(Quantization::Int8), Some((_, rows))) if is_multiplied(tensor.role) => {
            let scales = Array { content: Content::Scales, dtype: DType::F32, shape: rows.to_vec() };
            vec![elements(DType::I8), scales]
        }
        _ => vec![elements(dtype)],
    }
}

/// Whether a tensor is one matrix or several `[out, in]` that rows of a step are multiplied with, and large.
const fn is_multiplied(role: Role) -> bool {
    matches!(
        role,
        Role::Embedding
            | Role::Head
            | Role::PerLayerModelProjection
            | Role::PerLayerInputGate
            | Role::PerLayerProjection
            | Role::QProj
            | Role::KProj
            | Role::VProj
            | Role::OProj
            | Role::GateProj
            | Role::UpProj
            | Role::DownProj
            | Role::ExpertsGateUp
            | Role::ExpertsDown
    )
}

/// How the rows of a tensor are split, seen without its last dimension.
pub(crate) fn of_rows(tensor: &Tensor, placement: &Placement) -> (Tensor, Placement) {
    let without = |sizes: &[u64]| sizes.split_last().map(|(_, rows)| rows.to_vec()).unwrap_or_default();
    let spec = placement.spec.split_last().map(|(_, rows)| rows.to_vec()).unwrap_or_default();
    let rows = Tensor { shape: without(&tensor.shape), ..tensor.clone() };
    (rows, Placement { spec, local_shape: without(&placement.local_shape), ..placement.clone() })
}
