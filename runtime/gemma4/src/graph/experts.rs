//! The mixture of experts.
//!
//! Pairs of a token and an expert are sorted by expert, so that each expert has neighbouring rows. A loop with a run-time
//! trip count goes over tiles of rows of one expert each: an expert without tokens costs nothing, its weights are not
//! read.

use gemma4_hlo::{Builder, Comparison, ElementType, HloError, Value};

use super::GraphError;
use super::kernels::Kernels;
use super::matrix::Matrix;
use super::numerics::{element, gelu_tanh, index, linear, rms_norm, scaled, to_f64};
use super::step::Step;
use super::weights::At;
use crate::config::Moe;
use crate::sharding::ExpertSharding;
use crate::tensors::Role;

/// Rows of a tile: as many as a TPU multiplies at a time without waste, and few enough for steps of one token.
const TILE: u64 = 16;

/// What the experts make of the stream `x` `[T, H]`, this device's part of the sum.
pub(super) fn experts(b: &mut Builder, step: &mut Step<'_>, at: At, moe: &Moe, x: Value) -> Result<Value, GraphError> {
    let (tokens, hidden) = (step.rows.count, step.config.text.hidden_size);
    let (weights, chosen) = b.scope("router", |b| route(b, step, at, moe, x))?;
    let norm = step.weights.of(b, at, Role::PreExpertsNorm)?;
    let input = rms_norm(b, x, Some(norm), step.config.text.rms_norm_eps)?;
    let gate_up = step.weights.located(b, at, Role::ExpertsGateUp)?;
    let down = step.weights.located(b, at, Role::ExpertsDown)?;
    let local = b.shape(gate_up.0.values)?.dims().get(usize::from(gate_up.1.is_some())).copied().unwrap_or(0);

    let pairs = tokens.saturating_mul(moe.top_k);
    let owners = owners(b, step, local, chosen, moe)?;
    if step.kernels == Kernels::Cpu {
        let gate_up = step.weights.matrix(b, at, Role::ExpertsGateUp)?;
        let down = step.weights.matrix(b, at, Role::ExpertsDown)?;
        return Ok(step.operators().experts(b, [input, owners, weights], [gate_up, down])?);
    }
    let places = b.iota(ElementType::S32, &[pairs], 0)?;
    let sorted = b.sort(&[owners, places], 0, true, |b, args| match *args {
        [left, right, ..] => b.compare(Comparison::Lt, left, right),
        _ => b.scalar(false),
    })?;
    let (owners, order) = match *sorted {
        [owners, order] => (owners, order),
        _ => (owners, places),
    };
    let each = index(b, moe.top_k)?;
    let each = b.broadcast_scalar(each, &[pairs])?;
    let of_token = b.divide(order, each)?;
    let rows = b.take(input, of_token, 0)?;
    let zero = b.number(0.0, step.element, &[])?;
    let high = i64::try_from(TILE).unwrap_or(i64::MAX);
    // A tile may reach over the last row.
    let rows = b.pad(rows, zero, &[0, 0], &[high, 0], &[0, 0])?;

    let plan = tiles(b, owners, pairs, local)?;
    let out = b.number(0.0, step.element, &[pairs.saturating_add(TILE), hidden])?;
    let none = b.scalar(0_i32)?;
    let outs = b.for_loop(none, plan.count, &[out], |b, tile, carried| {
        let out = carried.first().copied().unwrap_or(out);
        let (expert, first) = plan.find(b, tile, local)?;
        let none = b.scalar(0_i32)?;
        let rows = b.dynamic_slice(rows, &[first, none], &[TILE, hidden])?;
        let gate_up = of_expert(b, gate_up, expert)?;
        let both = linear(b, rows, gate_up, step.element)?;
        let width = b.shape(both)?.dims().get(1).copied().unwrap_or(0) / 2;
        let gate = b.slice_dim(both, 1, 0, width)?;
        let gate = gelu_tanh(b, gate)?;
        let up = b.slice_dim(both, 1, width, 2 * width)?;
        let inner = b.multiply(gate, up)?;
        let down = of_expert(b, down, expert)?;
        let result = linear(b, inner, down, step.element)?;
        // Rows of the next expert are overwritten by its own tiles, which follow.
        Ok(vec![b.dynamic_update_slice(out, result, &[first, none])?])
    })?;
    let out = outs.first().copied().unwrap_or(out);
    let out = b.slice_dim(out, 0, 0, pairs)?;

    // Rows that no expert of this device has count as zeros.
    let ours = b.broadcast_scalar(plan.rows, &[pairs])?;
    let ours = b.compare(Comparison::Lt, places, ours)?;
    let dims = [pairs, hidden];
    let ours = b.broadcast(ours, &dims, &[0])?;
    let nothing = b.number(0.0, step.element, &dims)?;
    let out = b.select(ours, out, nothing)?;

    // Back into the order of the tokens.
    let back = b.sort(&[order, places], 0, true, |b, args| match *args {
        [left, right, ..] => b.compare(Comparison::Lt, left, right),
        _ => b.scalar(false),
    })?;
    let back = back.get(1).copied().unwrap_or(places);
    let out = b.take(out, back, 0)?;
    let dims = [tokens, moe.top_k, hidden];
    let out = b.reshape(out, &dims)?;
    let out = b.convert(out, ElementType::F32)?;
    let weights = b.broadcast(weights, &dims, &[0, 1])?;
    let out = b.multiply(out, weights)?;
    let sum = b.reduce_sum(out, &[1])?;
    Ok(b.convert(sum, step.element)?)
}

/// One expert's part of a weight, which is a stack of layers or one layer's.
fn of_expert(b: &mut Builder, weight: (Matrix, Option<Value>), expert: Value) -> Result<Matrix, HloError> {
    let (stack, layer) = weight;
    match layer {
        Some(layer) => stack.at(b, &[layer, expert]),
        None => stack.at(b, &[expert]),
    }
}

/// Weights `[T, k]` in f32 and experts `[T, k]` of each token.
fn route(b: &mut Builder, step: &mut Step<'_>, at: At, moe: &Moe, x: Value) -> Result<(Value, Value), GraphError> {
    let text = &step.config.text;
    let (tokens, hidden) = (step.rows.count, text.hidden_size);
    let normed = rms_norm(b, x, None, text.rms_norm_eps)?;
    let scale = step.weights.of(b, at, Role::RouterScale)?;
    let scale = b.broadcast(scale, &[tokens, hidden], &[1])?;
    let input = b.multiply(normed, scale)?;
    let input = scaled(b, input, 1.0 / to_f64(hidden).sqrt())?;
    let projection = step.weights.matrix(b, at, Role::RouterProj)?;
    let scores = step.operators().linear(b, input, projection, ElementType::F32)?;
    let dims = [tokens, moe.experts];
    let most = b.reduce_max(scores, &[1])?;
    let most = b.broadcast(most, &dims, &[0])?;
    let scores = b.subtract(scores, most)?;
    let powers = b.exponential(scores)?;
    let sum = b.reduce_sum(powers, &[1])?;
    let sum = b.broadcast(sum, &dims, &[0])?;
    let probabilities = b.divide(powers, sum)?;
    step.trace(at, "router_probs", probabilities);
    let (best, chosen) = b.top_k(probabilities, moe.top_k)?;
    let sum = b.reduce_sum(best, &[1])?;
    let sum = b.broadcast_like(sum, best, &[0])?;
    let weights = b.divide(best, sum)?;
    // Each expert's own scale comes after the weights are made to sum to one.
    let scales = step.weights.of(b, at, Role::PerExpertScale)?;
    let scales = b.convert(scales, ElementType::F32)?;
    let scales = b.take(scales, chosen, 0)?;
    let weights = b.multiply(weights, scales)?;
    step.trace(at, "router_weights", weights);
    Ok((weights, chosen))
}

/// The expert of each pair `[T*k]`, counted among those of this device; `local` for pairs of other devices and of rows
/// that are not real.
fn owners(b: &mut Builder, step: &Step<'_>, local: u64, chosen: Value, moe: &Moe) -> Result<Value, HloError> {
    let pairs = step.rows.count.saturating_mul(moe.top_k);
    let mut owners = b.reshape(chosen, &[pairs])?;
    let others = index(b, local)?;
    let others = b.broadcast_scalar(others, &[pairs])?;
    if let Some(rank) = step.rank.filter(|_| step.options.experts == ExpertSharding::Expert) {
        let size = index(b, local)?;
        let start = b.multiply(rank, size)?;
        let start = b.broadcast_scalar(start, &[pairs])?;
        owners = b.subtract(owners, start)?;
        let zero = b.splat(0_i32, &[pairs])?;
        let (above, below) = (b.compare(Comparison::Ge, owners, zero)?, b.compare(Comparison::Lt, owners, others)?);
        let ours = b.and(above, below)?;
        owners = b.select(ours, owners, others)?;
    }
    let each = index(b, moe.top_k)?;
    let real = b.multiply(step.rows.real, each)?;
    let real = b.broadcast_scalar(real, &[pairs])?;
    let places = b.iota(ElementType::S32, &[pairs], 0)?;
    let real = b.compare(Comparison::Lt, places, real)?;
    b.select(real, owners, others)
}

/// Which rows belong to which expert, and how many tiles they make.
struct Tiles {
    /// Number of tiles, a scalar.
    count: Value,
    /// Number of rows, a scalar.
    rows: Value,
    /// Tiles of the experts up to and with each one.
    tiles_after: Value,
    /// Tiles of the experts before each one.
    tiles_before: Value,
    /// First row of each expert.
    starts: Value,
}

/// `owners` are sorted.
fn tiles(b: &mut Builder, owners: Value, pairs: u64, local: u64) -> Result<Tiles, HloError> {
    let dims = [local, pairs];
    let owners = b.broadcast(owners, &dims, &[1])?;
    let experts = b.iota(ElementType::S32, &dims, 0)?;
    let same = b.compare(Comparison::Eq, owners, experts)?;
    let same = b.convert(same, ElementType::S32)?;
    let counts = b.reduce_sum(same, &[1])?;
    let ends = b.cumulative_sum(counts, 0)?;
    let starts = b.subtract(ends, counts)?;
    let tile = index(b, TILE)?;
    let (tile, round) = (b.broadcast_scalar(tile, &[local])?, index(b, TILE - 1)?);
    let round = b.broadcast_scalar(round, &[local])?;
    let tiles = b.add(counts, round)?;
    let tiles = b.divide(tiles, tile)?;
    let tiles_after = b.cumulative_sum(tiles, 0)?;
    let tiles_before = b.subtract(tiles_after, tiles)?;
    Ok(Tiles {
        count: b.reduce_sum(tiles, &[0])?,
        rows: b.reduce_sum(counts, &[0])?,
        tiles_after,
        tiles_before,
        starts,
    })
}

impl Tiles {
    /// The expert of a tile and its first row.
    fn find(&self, b: &mut Builder, tile: Value, local: u64) -> Result<(Value, Value), HloError> {
        let tiles = b.broadcast_scalar(tile, &[local])?;
        let done = b.compare(Comparison::Le, self.tiles_after, tiles)?;
        let done = b.convert(done, ElementType::S32)?;
        let expert = b.reduce_sum(done, &[0])?;
        let (before, start) = (element(b, self.tiles_before, expert)?, element(b, self.starts, expert)?);
        let within = b.subtract(tile, before)?;
        let size = index(b, TILE)?;
        let within = b.multiply(within, size)?;
        Ok((expert, b.add(start, within)?))
    }
}
