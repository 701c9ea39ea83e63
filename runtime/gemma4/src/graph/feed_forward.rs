//! The feed-forward part of a layer: the dense MLP, and the experts that run beside it where there are any.

use gemma4_hlo::{Builder, Value};

use super::GraphError;
use super::experts::experts;
use super::step::Step;
use super::weights::At;
use crate::tensors::Role;

/// What is added to the stream `x` `[T, H]`, before its last norm.
pub(super) fn feed_forward(b: &mut Builder, step: &mut Step<'_>, at: At, x: Value) -> Result<Value, GraphError> {
    let eps = step.config.text.rms_norm_eps;
    let norm = step.weights.of(b, at, Role::PreFeedforwardNorm)?;
    let input = step.operators().norm(b, x, norm, eps, None)?;
    let dense = b.scope("mlp", |b| mlp(b, step, at, input))?;
    let dense = step.sum(b, dense)?;
    step.trace(at, "mlp", dense);
    let Some(moe) = step.config.text.moe else { return Ok(dense) };

    let routed = b.scope("experts", |b| experts(b, step, at, &moe, x))?;
    let routed = step.sum(b, routed)?;
    step.trace(at, "moe", routed);
    let norm = step.weights.of(b, at, Role::PostDenseNorm)?;
    let dense = step.operators().norm(b, dense, norm, eps, None)?;
    let norm = step.weights.of(b, at, Role::PostExpertsNorm)?;
    let routed = step.operators().norm(b, routed, norm, eps, None)?;
    Ok(b.add(dense, routed)?)
}

/// `down(gelu(gate(x)) * up(x))`, this device's part of the sum.
fn mlp(b: &mut Builder, step: &Step<'_>, at: At, x: Value) -> Result<Value, GraphError> {
    let hidden = step.operators().gated(b, x, |b, role| step.weights.matrix(b, at, role))?;
    let down = step.weights.matrix(b, at, Role::DownProj)?;
    Ok(step.operators().linear(b, hidden, down, step.element)?)
}
