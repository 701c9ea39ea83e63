//! The layers: unrolled, or as loops over patterns of layers.

use gemma4_hlo::{Builder, Value};

use super::GraphError;
use super::attention::attention;
use super::feed_forward::feed_forward;
use super::numerics::{for_loop, gelu_tanh, index, rms_norm};
use super::segments::{Segment, segments};
use super::step::{LayerForm, Step};
use super::weights::At;
use crate::config::Layer;
use crate::tensors::Role;

/// The stream `[T, H]` after all layers, and the pool.
pub(super) fn layers(
    b: &mut Builder,
    step: &mut Step<'_>,
    stream: Value,
    per_layer: Option<Value>,
    pool: Value,
) -> Result<(Value, Value), GraphError> {
    let (mut stream, mut pool) = (stream, pool);
    if step.options.layers == LayerForm::Unrolled {
        for index in 0..step.config.text.layers.len() {
            (stream, pool) = layer(b, step, At::Layer(index), stream, per_layer, pool)?;
        }
        return Ok((stream, pool));
    }
    for segment in segments(&step.config.text) {
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
    per_layer: Option<Value>,
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
    per_layer: Option<Value>,
    pool: Value,
) -> Result<(Value, Value), GraphError> {
    b.scope(&format!("layer.{}", at.representative()), |b| {
        let eps = step.config.text.rms_norm_eps;
        let norm = step.weights.of(b, at, Role::InputNorm)?;
        let input = rms_norm(b, stream, Some(norm), eps)?;
        let (attended, pool) = b.scope("attention", |b| attention(b, step, at, input, pool))?;
        let attended = step.sum(b, attended)?;
        step.trace(at, "attn", attended);
        let norm = step.weights.of(b, at, Role::PostAttentionNorm)?;
        let attended = rms_norm(b, attended, Some(norm), eps)?;
        let stream = b.add(stream, attended)?;

        let added = b.scope("feed_forward", |b| feed_forward(b, step, at, stream))?;
        let norm = step.weights.of(b, at, Role::PostFeedforwardNorm)?;
        let added = rms_norm(b, added, Some(norm), eps)?;
        let mut stream = b.add(stream, added)?;
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
    per_layer: Value,
) -> Result<Value, GraphError> {
    let (rows, width) = (step.options.tokens, step.config.text.ple_width);
    let layer = at.linear(b, |layer| u64::try_from(layer).ok())?;
    let none = b.scalar(0_i32)?;
    let own = b.dynamic_slice(per_layer, &[none, layer, none], &[rows, 1, width])?;
    let own = b.reshape(own, &[rows, width])?;
    step.trace(at, "ple", own);
    let gate = step.weights.of(b, at, Role::PerLayerInputGate)?;
    let gate = step.kernels.linear(b, stream, gate, step.element)?;
    let gate = gelu_tanh(b, gate)?;
    let gated = b.multiply(gate, own)?;
    let projection = step.weights.of(b, at, Role::PerLayerProjection)?;
    let added = step.kernels.linear(b, gated, projection, step.element)?;
    let norm = step.weights.of(b, at, Role::PostPerLayerInputNorm)?;
    let added = rms_norm(b, added, Some(norm), step.config.text.rms_norm_eps)?;
    Ok(b.add(stream, added)?)
}
