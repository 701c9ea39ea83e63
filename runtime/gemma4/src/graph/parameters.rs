//! The arguments of a step.

use gemma4_hlo::{ElementType, Parameter, Shape};

use crate::config::AttentionKind;
use crate::quantization::Content;
use crate::tensors::Role;

/// An argument of a step, in the order of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepParameter {
    /// Its name in the program.
    pub name: String,
    /// What belongs into it.
    pub role: ParameterRole,
    /// Its shape on each device.
    pub shape: Shape,
}

impl StepParameter {
    pub(super) fn new(name: String, role: ParameterRole, shape: Shape) -> Self {
        Self { name, role, shape }
    }

    pub(super) fn input(input: StepInput, dims: &[u64]) -> Self {
        Self::new(input.name(), ParameterRole::Input(input), Shape::new(ElementType::S32, dims))
    }

    /// As the builder wants it. The pool is updated in place: it is the output after the logits.
    pub(super) fn declared(&self) -> Parameter {
        let parameter = Parameter::new(self.name.clone(), self.shape.clone());
        if self.role == ParameterRole::KvPool { parameter.donated_to(super::step::POOL_OUTPUT) } else { parameter }
    }
}

/// What belongs into an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParameterRole {
    /// What the step is about. Every device gets the same.
    Input(StepInput),
    /// Rows of the per-layer-embedding table by the token ids of the step `[T, L*P]`, in the element type of the model, where
    /// the table is in the host's memory ([`crate::weights::RowTable`] gathers them). Every device gets the same; anything
    /// finite in rows that are not real.
    PerLayerRows,
    /// The pages of the KV cache, of the shape [`crate::kv::KvLayout::pool_shape`]. It is donated, and comes back as the second output.
    KvPool,
    /// A weight: the device's part of the tensor with this role.
    Weight {
        /// What the tensor does.
        role: Role,
        /// Its layers: none for a tensor outside of the layers, several for a stack, whose first dimension they are.
        layers: Vec<usize>,
        /// What of the tensor it is.
        content: Content,
    },
}

/// What a step is about. All are of type s32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepInput {
    /// Token ids `[T]`; anything valid in rows that are not real.
    TokenIds,
    /// Places of the tokens in their sequences `[T]`, from 0.
    Positions,
    /// How many rows are real, a scalar.
    NumTokens,
    /// Items of attention `[I, 3]`: first row, number of rows, sequence. The rows of an item are neighbouring tokens of one
    /// sequence, at most the query tile; items come in the order of their rows.
    Items,
    /// How many items are real, a scalar.
    NumItems,
    /// Where the keys and values of a token go `[T, 2]`: page, and token within the block. A page that does not exist
    /// (such as the number of pages) drops them, as rows that are not real have to.
    Slots(AttentionKind),
    /// Pages of each sequence `[S, B]`, from the block that [`Self::FirstBlock`] names.
    BlockTable(AttentionKind),
    /// The first block of each sequence's table `[S]`: 0, or for sliding layers the oldest block that is kept.
    FirstBlock(AttentionKind),
    /// Rows whose logits are wanted `[R]`. Those that are not real name a real one, such as the first.
    LogitRows,
    /// How many of them are real, a scalar: the first ones.
    NumLogitRows,
    /// Items of attention among the wanted rows `[R, 3]`, as [`Self::Items`] are among all: place of the first in
    /// [`Self::LogitRows`], number of rows, sequence. Only with fast prefill.
    LogitItems,
    /// How many of these items are real, a scalar. Only with fast prefill.
    NumLogitItems,
}

impl StepInput {
    pub(super) fn name(self) -> String {
        match self {
            Self::TokenIds => "token_ids".to_owned(),
            Self::Positions => "positions".to_owned(),
            Self::NumTokens => "num_tokens".to_owned(),
            Self::Items => "items".to_owned(),
            Self::NumItems => "num_items".to_owned(),
            Self::Slots(kind) => format!("{kind}.slots"),
            Self::BlockTable(kind) => format!("{kind}.block_table"),
            Self::FirstBlock(kind) => format!("{kind}.first_block"),
            Self::LogitRows => "logit_rows".to_owned(),
            Self::NumLogitRows => "num_logit_rows".to_owned(),
            Self::LogitItems => "logit_items".to_owned(),
            Self::NumLogitItems => "num_logit_items".to_owned(),
        }
    }
}
