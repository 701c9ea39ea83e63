//! From token ids to the stream and the per-layer embeddings, and from the stream to logits.
//!
//! Tables are split by rows over the devices: each looks up the ids that it has and adds zeros for the others.

use std::ops::Range;

use gemma4_hlo::{Builder, Combine, Comparison, HloError, Value};

use super::GraphError;
use super::kernels::Operators;
use super::matrix::Matrix;
use super::numerics::{index, rms_norm, scaled, to_f64};
use super::step::Step;
use crate::tensors::Role;

/// Rows `[T, width]` of a table whose rows are split over the devices, as far as `columns` of them.
fn lookup(b: &mut Builder, step: &Step<'_>, table: Matrix, columns: Range<u64>) -> Result<Value, HloError> {
    let dims = b.shape(table.values)?.dims().to_vec();
    let local = dims.first().copied().unwrap_or(0);
    let width = columns.end - columns.start;
    let Some(rank) = step.rank else {
        return table.take(b, step.rows.token_ids, columns, step.element);
    };
    let rows = [step.rows.count];
    let size = index(b, local)?;
    let start = b.multiply(rank, size)?;
    let start = b.broadcast_scalar(start, &rows)?;
    let ids = b.subtract(step.rows.token_ids, start)?;
    let (zero, size) = (index(b, 0)?, b.broadcast_scalar(size, &rows)?);
    let zero = b.broadcast_scalar(zero, &rows)?;
    let (above, below) = (b.compare(Comparison::Ge, ids, zero)?, b.compare(Comparison::Lt, ids, size)?);
    let ours = b.and(above, below)?;
    // Ids of other devices are moved to some row of ours, and that row is dropped.
    let found = table.take(b, ids, columns, step.element)?;
    let dims = [step.rows.count, width];
    let ours = b.broadcast(ours, &dims, &[0])?;
    let nothing = b.number(0.0, step.element, &dims)?;
    let found = b.select(ours, found, nothing)?;
    b.all_reduce(found, &step.groups, Combine::Add)
}

/// The stream before the first layer `[T, H]`: the embeddings times the root of the width, which is rounded to the type
/// of the weights first.
pub(super) fn embed(b: &mut Builder, step: &Step<'_>) -> Result<Value, GraphError> {
    let table = step.weights.global_matrix(Role::Embedding)?;
    let found = lookup(b, step, table, 0..step.config.text.hidden_size)?;
    Ok(scaled(b, found, to_f64(step.config.text.hidden_size).sqrt())?)
}

/// The per-layer embeddings of some layers `[T, layers, P]`, of the stream before the first one.
pub(super) fn per_layer(
    b: &mut Builder,
    step: &Step<'_>,
    stream: Value,
    layers: &Range<usize>,
) -> Result<Value, GraphError> {
    let text = &step.config.text;
    let dims = [step.rows.count, layers.len() as u64, text.ple_width];
    let columns = layers.start as u64 * text.ple_width..layers.end as u64 * text.ple_width;
    let by_token = match step.rows.per_layer_rows {
        Some(rows) => part(b, rows, 1, columns.clone())?,
        None => {
            let table = step.weights.global_matrix(Role::PerLayerTable)?;
            lookup(b, step, table, columns.clone())?
        }
    };
    let by_token = b.reshape(by_token, &dims)?;
    let by_token = scaled(b, by_token, to_f64(text.ple_width).sqrt())?;
    let mut projection = step.weights.global_matrix(Role::PerLayerModelProjection)?;
    if layers.len() < text.layers.len() {
        projection = projection.rows(b, columns)?;
    }
    let by_input = step.operators().linear(b, stream, projection, step.element)?;
    let by_input = scaled(b, by_input, 1.0 / to_f64(text.hidden_size).sqrt())?;
    let by_input = b.reshape(by_input, &dims)?;
    let norm = step.weights.global(Role::PerLayerProjectionNorm)?;
    let by_input = rms_norm(b, by_input, Some(norm), text.rms_norm_eps)?;
    let sum = b.add(by_input, by_token)?;
    Ok(scaled(b, sum, std::f64::consts::FRAC_1_SQRT_2)?)
}

/// A part of one dimension, or all of it.
fn part(b: &mut Builder, x: Value, dim: usize, wanted: Range<u64>) -> Result<Value, HloError> {
    if wanted == (0..b.shape(x)?.dims().get(dim).copied().unwrap_or(0)) {
        return Ok(x);
    }
    b.slice_dim(x, dim, wanted.start, wanted.end)
}

/// The logits `[R, V]` in f32 of the wanted rows of the stream, on every device; of no meaning in those that are not `real`.
pub(super) fn logits(b: &mut Builder, step: &mut Step<'_>, rows: Value, real: Value) -> Result<Value, GraphError> {
    let (text, operators) = (&step.config.text, Operators { real, ..step.operators() });
    let norm = step.weights.global(Role::FinalNorm)?;
    let rows = operators.norm(b, rows, norm, text.rms_norm_eps, None)?;
    let head = step.weights.global_matrix(if text.tied_embeddings { Role::Embedding } else { Role::Head })?;
    let mut logits = operators.capped(b, rows, head, text.final_logit_softcap)?;
    if step.rank.is_some() {
        logits = b.all_gather(logits, 1, &step.groups)?;
    }
    step.trace_global("final_norm", rows);
    Ok(logits)
}
