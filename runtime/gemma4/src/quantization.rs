//! Weights that are quantized while they are loaded.
//!
//! Invariant: [`arrays`] alone decides which tensors are quantized and what becomes of them, so that the budget, the loader and
//! the program cannot disagree. What is quantized are the matrices of the language model that rows are multiplied with, and the
//! embedding, which is one of them where it is the head too. Norms, scalars, the router and the table of per-layer embeddings
//! stay as they are: they are small, or read in single rows.
//!
//! A scale belongs to a whole row of the whole tensor, or to a group of neighbours in it that no device has only a part of, so
//! numbers depend on how many devices there are only where [`Quantization::of`] does.

use std::fmt;
use std::str::FromStr;

use crate::DType;
use crate::sharding::Placement;
use crate::tensors::{Role, Tensor};

/// Neighbours in a row `[out, in]` that share a scale with [`Quantization::Int4`].
pub const GROUP: usize = 32;
/// Groups that are packed together with [`Quantization::Int4`]: a word of 16 bits has one integer of each.
pub const GROUPS_OF_BLOCK: usize = 4;

/// How weights are stored on devices, where it is not as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// As integers from -127 to 127 and a float32 for each row `[out, in]`: a weight is their product.
    Int8,
    /// As integers from -8 to 7 and a bfloat16 for each [`GROUP`] of neighbours in a row `[out, in]`: a weight is their product.
    ///
    /// Rows are blocks of [`GROUPS_OF_BLOCK`] groups, the last of them filled up with zeros. A block is as many words of 16 bits as
    /// a group has integers; bits `4 * g .. 4 * g + 4` of word `i` are the integer `i` of the group `g`, in two's complement.
    Int4,
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
    pub const ALL: [Self; 2] = [Self::Int8, Self::Int4];

    /// Its name in profiles.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// What becomes of a device's part of `tensor` where this is asked for; `None` if it stays as it is.
    ///
    /// In place of four bits there are eight for the embedding and the head, which matter most for what a model says, and where a
    /// device's part of a row is not made of whole groups.
    #[must_use]
    pub fn of(self, tensor: &Tensor, placement: &Placement) -> Option<Self> {
        let width = placement.local_shape.last().filter(|_| is_multiplied(tensor.role))?;
        let is_looked_up = matches!(tensor.role, Role::Embedding | Role::Head);
        let has_groups = *width > 0 && width.is_multiple_of(GROUP as u64);
        if self == Self::Int4 && !is_looked_up && has_groups { Some(Self::Int4) } else { Some(Self::Int8) }
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

/// Words of 16 bits that a row of so many integers of four bits is packed into.
#[must_use]
pub const fn packed_words(width: usize) -> usize {
    width.div_ceil(GROUP * GROUPS_OF_BLOCK).saturating_mul(GROUP)
}

/// What an array has of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Its elements, quantized or not.
    Elements,
    /// What each quantized row is multiplied by: an array without the tensor's last dimension. With [`Quantization::Int4`], what
    /// each group is multiplied by, and the last dimension are the groups of a row.
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
    let quantization = quantization.and_then(|quantization| quantization.of(tensor, placement));
    let shape = placement.local_shape.clone();
    let (Some(quantization), Some((&width, rows))) = (quantization, placement.local_shape.split_last()) else {
        return vec![Array { content: Content::Elements, dtype, shape }];
    };
    let of_row = |size: u64| rows.iter().copied().chain([size]).collect();
    let (elements, scales) = match quantization {
        Quantization::Int8 => ((DType::I8, shape), (DType::F32, rows.to_vec())),
        Quantization::Int4 => {
            let words = usize::try_from(width).map_or(u64::MAX, |width| packed_words(width) as u64);
            ((DType::U16, of_row(words)), (DType::Bf16, of_row(width / GROUP as u64)))
        }
    };
    [(Content::Elements, elements), (Content::Scales, scales)]
        .map(|(content, (dtype, shape))| Array { content, dtype, shape })
        .to_vec()
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
