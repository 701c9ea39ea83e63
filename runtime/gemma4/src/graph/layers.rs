//! The layers: unrolled, or as loops over patterns of layers.

use std::ops::Range;

use gemma4_hlo::{Builder, Value};

use super::GraphError;
use super::attention::attention;
use super::embedding;
use super::feed_forward::feed_forward;
use super::kernels::layer_rows;
use super::numerics::{for_loop, index};
use super::segments::{Segment, segments};
use super::step::{LayerForm, Step};
use super::weights::At;
use crate::config::Layer;
use crate::tensors::Role;

/// The per-layer embeddings `[T, layers, P]` of some layers.
#[derive(Clone, Copy, Debug)]
struct PerLayer {
    /// The first of these layers.
    first: usize,
    values: Value,
}

/// The stream `[T, H]` after these layers, and the pool. `embedded` is the stream before the first layer of all.
pub(super) fn layers(
    b: &mut Builder,
    step: &mut Step<'_>,
    layers: Range<usize>,
    (stream, embedded): (Value, Value),
    pool: Value,
) -> Result<(Value, Value), GraphError> {
    let per_layer = if step.config.text.ple_width > 0 {
        let values = b.scope("per_layer_embeddings", |b| embedding::per_layer(b, step, embedded, &layers))?;
        Some(PerLayer { first: layers.start, values })
    } else {
        None
    };
    let (mut stream, mut pool) = (stream, pool);
    if step.options.layers == LayerForm::Unrolled {
        for index in layers {
            (stream, pool) = layer(b, step, At::Layer(index), stream, per_layer, pool)?;
        }
        return Ok((stream, pool));
    }
    for segment in segments(&step.config.text, layers) {
        (stream, pool) =
            b.scope(&format!("layers.{}", segment.first), |b| run(b, step, segment, stream, per_layer, pool))?;
    }
    Ok((stream, pool))
}

fn run(
    b: &mut Builder,
    step: &mut Step<'_>,
    segment: Segment,
    stream: Value,
    per_layer: Option<PerLayer>,
    pool: Value,
) -> Result<(Value, Value), GraphError> {
    let Segment { first, period, repeats } = segment;
    if repeats < 2 {
        let mut state = (stream, pool);
        for index in first..first + period {
            state = layer(b, step, At::Layer(index), state.0, per_layer, state.1)?;
        }
        return Ok(state);
    }
    let (none, limit) = (b.scalar(0_i32)?, index(b, repeats as u64)?);
    let owning = step.config.text.layers.iter().skip(first).take(period).any(Layer::owns_kv);
    // Layers that borrow keys and values do not change the pool. If it were carried all the same, the TPU compiler would
    // take it out of the loop and end the process over the loop's sharding, which still counts it.
    let state = if owning { vec![stream, pool] } else { vec![stream] };
    let carried = for_loop(b, none, limit, &state, |b, counter, carried| {
        let (mut stream, mut pool) = state_of(carried, stream, pool);
        for first in first..first + period {
            let at = At::Loop { first, segment, counter };
            (stream, pool) = layer(b, step, at, stream, per_layer, pool)?;
        }
        Ok(if owning { vec![stream, pool] } else { vec![stream] })
    })?;
    Ok(state_of(&carried, stream, pool))
}

/// The stream and the pool, where a loop carries them; what it does not carry is as it was.
fn state_of(carried: &[Value], stream: Value, pool: Value) -> (Value, Value) {
    (carried.first().copied().unwrap_or(stream), carried.get(1).copied().unwrap_or(pool))
}

fn layer(
    b: &mut Builder,
    step: &mut Step<'_>,
    at: At,
    stream: Value,
    per_layer: Option<PerLayer>,
    pool: Value,
) -> Result<(Value, Value), GraphError> {
    b.scope(&format!("layer.{}", at.representative()), |b| {
        let eps = step.config.text.rms_norm_eps;
        let norm = step.weights.of(b, at, Role::InputNorm)?;
        let input = step.operators().norm(b, stream, norm, eps, None)?;
        let (attended, pool) = b.scope("attention", |b| attention(b, step, at, input, pool))?;
        let attended = step.sum(b, attended)?;
        step.trace(at, "attn", attended);
        let norm = step.weights.of(b, at, Role::PostAttentionNorm)?;
        let stream = step.operators().norm(b, attended, norm, eps, Some(stream))?;

        let added = b.scope("feed_forward", |b| feed_forward(b, step, at, stream))?;
        let norm = step.weights.of(b, at, Role::PostFeedforwardNorm)?;
        let mut stream = step.operators().norm(b, added, norm, eps, Some(stream))?;
        if let Some(per_layer) = per_layer {
            stream = b.scope("per_layer_input", |b| per_layer_input(b, step, at, stream, per_layer))?;
        }
        let scalar = step.weights.of(b, at, Role::LayerScalar)?;
        let scalar = b.reshape(scalar, &[])?;
        let scalar = b.broadcast_like(scalar, stream, &[])?;
        let stream = b.multiply(stream, scalar)?;
        step.trace(at, "out", stream);
        Ok((stream, pool))
    })
}

/// The stream with the layer's per-layer embedding added.
fn per_layer_input(
    b: &mut Builder,
    step: &mut Step<'_>,
    at: At,
    stream: Value,
    per_layer: PerLayer,
) -> Result<Value, GraphError> {
    let layer = at.linear(b, |layer| u64::try_from(layer.checked_sub(per_layer.first)?).ok())?;
    if step.options.trace {
        let own = layer_rows(b, per_layer.values, layer)?;
        step.trace(at, "ple", own);
    }
    let gate = |b: &mut Builder| step.weights.matrix(b, at, Role::PerLayerInputGate);
    let gated = step.operators().gated_rows(b, stream, gate, per_layer.values, layer)?;
    let projection = step.weights.matrix(b, at, Role::PerLayerProjection)?;
    let added = step.operators().linear(b, gated, projection, step.element)?;
    let norm = step.weights.of(b, at, Role::PostPerLayerInputNorm)?;
    Ok(step.operators().norm(b, added, norm, step.config.text.rms_norm_eps, Some(stream))?)
}
