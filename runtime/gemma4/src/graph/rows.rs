//! The rows that layers run over: those of all tokens, or those whose logits are wanted.

use gemma4_hlo::{Builder, HloError, Value};

use super::GraphError;
use super::attention::{Rotary, rotary};
use crate::config::{AttentionKind, Layer};

/// Rows of the stream, with what is known of each.
#[derive(Debug)]
pub(super) struct Rows {
    /// How many there are, those that are not real included.
    pub(super) count: u64,
    /// How many are real, an s32 scalar.
    pub(super) real: Value,
    pub(super) token_ids: Value,
    pub(super) positions: Value,
    /// Items of attention `[.., 3]`.
    pub(super) items: Value,
    /// How many items are real, an s32 scalar.
    pub(super) num_items: Value,
    /// Their rows of the per-layer-embedding table; `None` if the table is a weight, or there is none.
    pub(super) per_layer_rows: Option<Value>,
    /// Of each kind of layer that runs over them. Empty until [`Self::turn`].
    rotary: Vec<(AttentionKind, Rotary)>,
}

impl Rows {
    /// All rows of a step.
    pub(super) const fn new(
        count: u64,
        real: Value,
        (token_ids, positions): (Value, Value),
        (items, num_items): (Value, Value),
        per_layer_rows: Option<Value>,
    ) -> Self {
        Self { count, real, token_ids, positions, items, num_items, per_layer_rows, rotary: Vec::new() }
    }

    /// The rows that `wanted` `[count]` names, of which the first `real` are, as rows of their own with items of their own.
    pub(super) fn take(
        &self,
        b: &mut Builder,
        (wanted, count, real): (Value, u64, Value),
        (items, num_items): (Value, Value),
    ) -> Result<Self, HloError> {
        let token_ids = b.take(self.token_ids, wanted, 0)?;
        let positions = b.take(self.positions, wanted, 0)?;
        let per_layer_rows = match self.per_layer_rows {
            Some(rows) => Some(b.take(rows, wanted, 0)?),
            None => None,
        };
        Ok(Self::new(count, real, (token_ids, positions), (items, num_items), per_layer_rows))
    }

    /// Makes the angles for these layers.
    pub(super) fn turn(&mut self, b: &mut Builder, layers: &[Layer]) -> Result<(), HloError> {
        for layer in layers {
            if self.rotary.iter().any(|(kind, _)| *kind == layer.kind) {
                continue;
            }
            let angles = b.scope("rotary", |b| rotary(b, self.positions, layer.rope, layer.head_dim))?;
            self.rotary.push((layer.kind, angles));
        }
        Ok(())
    }

    /// The angles for layers of this kind.
    pub(super) fn rotary(&self, kind: AttentionKind) -> Result<Rotary, GraphError> {
        let found = self.rotary.iter().find(|(known, _)| *known == kind).map(|(_, rotary)| *rotary);
        found.ok_or_else(|| GraphError::Weight { role: format!("angles for {kind} attention"), layer: None })
    }
}
