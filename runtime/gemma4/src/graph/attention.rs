//! Attention over the pages of the KV cache.
//!
//! Softmax is computed as one goes over the blocks: the largest score so far, the sum of the exponentials and the weighted
//! sum of values are carried and rescaled (Milakov and Gimelshein 2018; Dao 2023). Scores are not divided by the root of
//! the head's width: in Gemma 4 the norms of queries and keys carry the scale.

use gemma4_hlo::{
    Builder, Combine, Comparison, DotDimensions, ElementType, HloError, Precision, ScatterDimensions, Value,
};

use super::GraphError;
use super::kernels::{Kernels, Pages};
use super::numerics::{element, for_loop, index, rms_norm, to_f64};
use super::step::Step;
use super::weights::At;
use crate::DType;
use crate::config::{AttentionKind, Layer, Rope};
use crate::tensors::Role;

/// A score that no real score comes near, and whose exponential beside one is 0. Finite, so that a row without any key
/// (one that is not real) stays a number.
const MASKED: f64 = -1e30;

/// Cosines and sines of every row `[T, head_dim/2]` in f32, for one kind of layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotary {
    cos: Value,
    sin: Value,
}

/// The angles at positions `[T]`: `position * theta^(-2j / head_dim)` for the pairs that turn, 0 for the others.
pub(super) fn rotary(b: &mut Builder, positions: Value, rope: Rope, head_dim: u64) -> Result<Rotary, HloError> {
    let rows = b.shape(positions)?.dims().first().copied().unwrap_or(0);
    let half = head_dim / 2;
    // The first pairs turn. At least one is computed, so that no shape is empty.
    let turning = rope.angles.clamp(1, half.max(1));
    let frequencies = frequencies(rope, head_dim, turning);
    let frequencies = b.constant(&frequencies, &[turning])?;
    let dims = [rows, turning];
    let frequencies = b.broadcast(frequencies, &dims, &[1])?;
    let positions = b.convert(positions, ElementType::F32)?;
    let positions = b.broadcast(positions, &dims, &[0])?;
    let angles = b.multiply(positions, frequencies)?;
    let (cos, sin) = (b.cosine(angles)?, b.sine(angles)?);
    let still = i64::try_from(half.saturating_sub(turning)).unwrap_or(0);
    if still == 0 {
        return Ok(Rotary { cos, sin });
    }
    let (one, zero) = (b.scalar(1.0_f32)?, b.scalar(0.0_f32)?);
    let mut pad = |x, with| b.pad(x, with, &[0; 2], &[0, still], &[0; 2]);
    Ok(Rotary { cos: pad(cos, one)?, sin: pad(sin, zero)? })
}

/// Radians that the first `pairs` pairs are turned by for each position.
fn frequencies(rope: Rope, head_dim: u64, pairs: u64) -> Vec<f32> {
    let frequency = |pair: u64| {
        if pair >= rope.angles {
            return 0.0;
        }
        let exponent = -2.0 * to_f64(pair) / to_f64(head_dim);
        #[expect(clippy::cast_possible_truncation, reason = "the model's angles are f32")]
        let frequency = rope.theta.powf(exponent) as f32;
        frequency
    };
    (0..pairs).map(frequency).collect()
}

/// Turns the pairs `(j, j + d/2)` of each head `[T, heads, d]`; the result is rounded to `result`.
fn rotate(b: &mut Builder, x: Value, rotary: Rotary, result: ElementType) -> Result<Value, HloError> {
    let width = b.shape(x)?.dims().last().copied().unwrap_or(0);
    let wide = b.convert(x, ElementType::F32)?;
    let left = b.slice_dim(wide, 2, 0, width / 2)?;
    let right = b.slice_dim(wide, 2, width / 2, width)?;
    let cos = b.broadcast_like(rotary.cos, left, &[0, 2])?;
    let sin = b.broadcast_like(rotary.sin, left, &[0, 2])?;
    let (left_cos, right_sin) = (b.multiply(left, cos)?, b.multiply(right, sin)?);
    let (right_cos, left_sin) = (b.multiply(right, cos)?, b.multiply(left, sin)?);
    let (left, right) = (b.subtract(left_cos, right_sin)?, b.add(right_cos, left_sin)?);
    let turned = b.concatenate(&[left, right], 2)?;
    b.convert(turned, result)
}

/// Keys from the values `[T, heads, d]` of a layer whose values are its keys before their own norm's weight and rotation.
/// The norm itself is the same for both, so that only its weight is missing.
fn keys_of(
    b: &mut Builder,
    values: Value,
    norm: Value,
    rotary: Rotary,
    result: ElementType,
) -> Result<Value, HloError> {
    let wide = b.convert(values, ElementType::F32)?;
    let norm = b.convert(norm, ElementType::F32)?;
    let norm = b.broadcast_like(norm, wide, &[2])?;
    let normed = b.multiply(wide, norm)?;
    rotate(b, normed, rotary, result)
}

/// Attention of one layer on the normed stream `x` `[T, H]`: the part of the output projection that this device has,
/// summed over its heads `[T, H]`, and the pool with this step's keys and values.
pub(super) fn attention(
    b: &mut Builder,
    step: &mut Step<'_>,
    at: At,
    x: Value,
    pool: Value,
) -> Result<(Value, Value), GraphError> {
    let layer = step.layer(at)?;
    let (queries, token) = if step.kernels == Kernels::Cpu && !step.options.trace {
        normed(b, step, at, &layer, x)?
    } else {
        heads_of(b, step, at, &layer, x)?
    };
    let mut pool = pool;
    if let Some(token) = token {
        pool = b.scope("write", |b| write(b, step, at, &layer, pool, token))?;
    }
    let attended = b.scope("blocks", |b| blocks(b, step, at, &layer, queries, pool))?;
    let rows = step.rows.count;
    let width = b.shape(attended)?.elements().unwrap_or(0) / rows.max(1);
    let attended = b.reshape(attended, &[rows, width])?;
    let projection = step.weights.matrix(b, at, Role::OProj)?;
    Ok((step.operators().linear(b, attended, projection, step.element)?, pool))
}

/// Queries `[T, heads, d]` of the normed stream, and what is stored of each token `[T, n]` if the layer has keys and values of its own: its
/// keys, if they are stored, then its values.
type Heads = (Value, Option<Value>);

/// [`Heads`] by operators of our own.
fn normed(b: &mut Builder, step: &Step<'_>, at: At, layer: &Layer, x: Value) -> Result<Heads, GraphError> {
    let Rotary { cos, sin } = step.rows.rotary(layer.kind)?;
    let mut products = projections(b, step, at, layer, x)?.into_iter();
    let queries = products.next().unwrap_or(x);
    let norm = step.weights.of(b, at, Role::QNorm)?;
    let mut stored: Vec<Value> = products.collect();
    if let [_, values] = *stored.as_slice() {
        let norm = step.weights.of(b, at, Role::KNorm)?;
        stored = vec![stored.first().copied().unwrap_or(values), norm, values];
    }
    let how = (layer.head_dim, step.config.text.rms_norm_eps);
    Ok(step.operators().heads(b, (cos, sin), [queries, norm], &stored, how)?)
}

/// [`Heads`] in StableHLO.
fn heads_of(b: &mut Builder, step: &mut Step<'_>, at: At, layer: &Layer, x: Value) -> Result<Heads, GraphError> {
    let weight = |b: &mut Builder, step: &Step<'_>, role| step.weights.of(b, at, role);
    let rotary = step.rows.rotary(layer.kind)?;
    let (element, eps) = (step.element, step.config.text.rms_norm_eps);
    let mut products = projections(b, step, at, layer, x)?.into_iter();
    // What has not been projected together with the others is projected where it is needed.
    let mut project = |b: &mut Builder, step: &Step<'_>, role| match products.next() {
        Some(product) => Ok::<_, GraphError>(product),
        None => {
            let projection = step.weights.matrix(b, at, role)?;
            Ok(step.operators().linear(b, x, projection, element)?)
        }
    };
    let queries = project(b, step, Role::QProj)?;
    let queries = heads(b, queries, layer.head_dim)?;
    let norm = weight(b, step, Role::QNorm)?;
    let queries = rms_norm(b, queries, Some(norm), eps)?;
    let queries = rotate(b, queries, rotary, element)?;
    step.trace(at, "q", queries);

    let mut token = None;
    if layer.owns_kv() {
        let raw = project(b, step, Role::KProj)?;
        let raw = heads(b, raw, layer.head_dim)?;
        let norm = weight(b, step, Role::KNorm)?;
        let (keys, values) = if layer.k_eq_v {
            let values = rms_norm(b, raw, None, eps)?;
            // Attention makes the keys from the stored values. Here they are made only to be looked at.
            if step.options.trace {
                let keys = keys_of(b, values, norm, rotary, element)?;
                step.trace(at, "k", keys);
            }
            (None, values)
        } else {
            let keys = rms_norm(b, raw, Some(norm), eps)?;
            let keys = rotate(b, keys, rotary, element)?;
            step.trace(at, "k", keys);
            let values = project(b, step, Role::VProj)?;
            let values = heads(b, values, layer.head_dim)?;
            (Some(keys), rms_norm(b, values, None, eps)?)
        };
        step.trace(at, "v", values);
        let mut flat = Vec::new();
        for side in keys.into_iter().chain([values]) {
            let dims = b.shape(side)?.dims().to_vec();
            flat.push(b.reshape(side, &[dims.first().copied().unwrap_or(0), dims.iter().skip(1).product()])?);
        }
        token = Some(b.concatenate(&flat, 1)?);
    }
    Ok((queries, token))
}

/// Queries, keys and values of the stream, as far as the layer has them, from one pass over it; none where there is no kernel
/// for that.
fn projections(b: &mut Builder, step: &Step<'_>, at: At, layer: &Layer, x: Value) -> Result<Vec<Value>, GraphError> {
    if step.kernels == Kernels::Hlo {
        return Ok(Vec::new());
    }
    let roles: &[Role] = match (layer.owns_kv(), layer.k_eq_v) {
        (false, _) => &[Role::QProj],
        (true, true) => &[Role::QProj, Role::KProj],
        (true, false) => &[Role::QProj, Role::KProj, Role::VProj],
    };
    let mut weights = Vec::with_capacity(roles.len());
    for role in roles {
        weights.push(step.weights.matrix(b, at, *role)?);
    }
    Ok(step.operators().products(b, x, &weights, step.element)?)
}

/// `[T, heads * d]` as `[T, heads, d]`.
fn heads(b: &mut Builder, x: Value, width: u64) -> Result<Value, HloError> {
    let dims = b.shape(x)?.dims().to_vec();
    let (rows, all) = (dims.first().copied().unwrap_or(0), dims.get(1).copied().unwrap_or(0));
    b.reshape(x, &[rows, all.checked_div(width).unwrap_or(0), width])
}

/// Keys and values in the element type of the cache. What is too large for it becomes its largest number: e4m3 has no
/// infinity to round to.
fn stored(b: &mut Builder, x: Value, dtype: DType, element: ElementType) -> Result<Value, HloError> {
    let most = match dtype {
        DType::F8E4M3 => 448.0,
        DType::F8E5M2 => 57_344.0,
        _ => return b.convert(x, element),
    };
    let of = b.shape(x)?.element();
    let (least, most) = (b.number(-most, of, &[])?, b.number(most, of, &[])?);
    let x = b.clamp(least, x, most)?;
    b.convert(x, element)
}

/// Writes what is stored of this step's tokens `[T, n]` to their slots. A token's are neighbours in the page: its keys, then its values, or
/// values alone, each head after head.
fn write(
    b: &mut Builder,
    step: &Step<'_>,
    at: At,
    layer: &Layer,
    pool: Value,
    token: Value,
) -> Result<Value, GraphError> {
    let token = stored(b, token, step.options.kv.dtype(), step.kv_element)?;
    let (rows, width) = match *b.shape(token)?.dims() {
        [rows, width] => (rows, width),
        _ => (0, 0),
    };
    if step.kernels == Kernels::Cpu {
        let pages = pages(b, step, at, layer, pool)?;
        let slots = step.slots(layer.kind)?;
        return Ok(step.operators().write(b, &pages, token, slots)?);
    }
    let [_, _, lanes] = step.options.kv.pool_shape(1);
    let each = width / lanes;
    let token = b.reshape(token, &[rows, each, lanes])?;

    let start = step.page_row(b, at)?;
    let start = b.broadcast_scalar(start, &[rows, 1])?;
    let slots = step.slots(layer.kind)?;
    let pages = b.slice_dim(slots, 1, 0, 1)?;
    let tokens = b.slice_dim(slots, 1, 1, 2)?;
    let chunk = index(b, each)?;
    let chunk = b.broadcast_scalar(chunk, &[rows, 1])?;
    let within = b.multiply(tokens, chunk)?;
    let within = b.add(within, start)?;
    let indices = b.concatenate(&[pages, within], 1)?;
    let dims = ScatterDimensions {
        update_window_dims: vec![1, 2],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0, 1],
        index_vector_dim: 1,
        ..ScatterDimensions::default()
    };
    Ok(b.scatter(pool, indices, token, &dims, Combine::Replace)?)
}

/// Attention of queries `[T, heads, d]` over the blocks that they see, in items.
fn blocks(
    b: &mut Builder,
    step: &Step<'_>,
    at: At,
    layer: &Layer,
    queries: Value,
    pool: Value,
) -> Result<Value, GraphError> {
    let dims = b.shape(queries)?.dims().to_vec();
    let (rows, heads, width) = match dims.as_slice() {
        [rows, heads, width] => (*rows, *heads, *width),
        _ => (0, 0, 0),
    };
    let kv_heads = step.kv_heads(at)?;
    if step.kernels == Kernels::Cpu {
        let keys = remade_keys(b, step, at)?;
        let pages = pages(b, step, at, layer, pool)?;
        let (table, first) = (step.block_table(layer.kind)?, step.first_block(layer.kind)?);
        let mut others = vec![step.rows.positions, step.rows.items, step.rows.num_items, table, first];
        if let Some(Keys { norm, rope }) = keys {
            let turning = rope.angles.clamp(1, (width / 2).max(1));
            others.extend([norm, b.constant(&frequencies(rope, width, turning), &[turning])?]);
        }
        let window = if layer.kind == AttentionKind::Full { 0 } else { step.config.text.sliding_window };
        return Ok(step.operators().attention(b, &pages, queries, &others, (kv_heads, window))?);
    }
    let group = heads.checked_div(kv_heads).unwrap_or(0);
    let tile = step.options.query_tile;
    // A tile may reach over the last row; what it writes there is cut off again.
    let padded = rows.saturating_add(tile);
    let shape = [rows, kv_heads, group, width];
    let queries = b.reshape(queries, &shape)?;
    let zero = b.number(0.0, step.element, &[])?;
    let high = i64::try_from(tile).unwrap_or(i64::MAX);
    let queries = b.pad(queries, zero, &[0; 4], &[high, 0, 0, 0], &[0; 4])?;
    let no_position = b.scalar(0_i32)?;
    let positions = b.pad(step.rows.positions, no_position, &[0], &[high], &[0])?;
    let out = b.number(0.0, step.element, &[padded, kv_heads, group, width])?;

    let none = b.scalar(0_i32)?;
    let first_row = step.page_row(b, at)?;
    let keys = remade_keys(b, step, at)?;
    let tokens = step.options.kv.tokens_per_block(layer.kind);
    let reach = Reach { first_row, keys, tile, tokens, kv_heads, group, width };
    let outs = for_loop(b, none, step.rows.num_items, &[out], |b, item, carried| {
        let out = carried.first().copied().unwrap_or(out);
        let (first, attended) = item_attention(b, step, layer.kind, &reach, (queries, positions, pool), item)?;
        let none = b.scalar(0_i32)?;
        // Rows after the item's own are overwritten by the items that follow.
        Ok(vec![b.dynamic_update_slice(out, attended, &[first, none, none, none])?])
    })?;
    let out = outs.first().copied().unwrap_or(out);
    Ok(b.slice_dim(out, 0, 0, rows)?)
}

/// How a layer's keys are made, if values are stored alone.
fn remade_keys(b: &mut Builder, step: &Step<'_>, at: At) -> Result<Option<Keys>, GraphError> {
    Ok(match step.owner_layer(at)? {
        (of, owner) if owner.k_eq_v => Some(Keys { norm: step.weights.of(b, of, Role::KNorm)?, rope: owner.rope }),
        _ => None,
    })
}

/// The layer's part of the pages.
fn pages(b: &mut Builder, step: &Step<'_>, at: At, layer: &Layer, pool: Value) -> Result<Pages, GraphError> {
    Ok(Pages { pool, row: step.page_row(b, at)?, tokens: step.options.kv.tokens_per_block(layer.kind) })
}

/// How keys are made from values that are stored alone.
#[derive(Clone, Copy)]
struct Keys {
    /// Weight of the keys' norm `[d]`.
    norm: Value,
    rope: Rope,
}

/// What is the same for all items.
struct Reach {
    /// The row at which the layer's part of a page begins.
    first_row: Value,
    /// `None`: keys are stored beside the values.
    keys: Option<Keys>,
    tile: u64,
    /// Tokens of a block.
    tokens: u64,
    kv_heads: u64,
    group: u64,
    width: u64,
}

/// First row of an item, and the attention of its tile `[tile, kv heads, group, d]`.
fn item_attention(
    b: &mut Builder,
    step: &Step<'_>,
    kind: AttentionKind,
    reach: &Reach,
    (queries, positions, pool): (Value, Value, Value),
    item: Value,
) -> Result<(Value, Value), GraphError> {
    let Reach { tile, tokens, kv_heads, group, width, keys: remade, .. } = *reach;
    let [_, _, lanes] = step.options.kv.pool_shape(1);
    let zero = b.scalar(0_i32)?;
    let one = b.scalar(1_i32)?;
    let fields = b.dynamic_slice(step.rows.items, &[item, zero], &[1, 3])?;
    let fields = b.reshape(fields, &[3])?;
    let two = b.scalar(2_i32)?;
    let (first, count, sequence) = (element(b, fields, zero)?, element(b, fields, one)?, element(b, fields, two)?);
    let tile_queries = b.dynamic_slice(queries, &[first, zero, zero, zero], &[tile, kv_heads, group, width])?;
    let tile_positions = b.dynamic_slice(positions, &[first], &[tile])?;
    let lowest = element(b, tile_positions, zero)?;
    let highest = b.add(lowest, count)?;
    let highest = b.subtract(highest, one)?;
    let block = index(b, tokens)?;
    let last = b.divide(highest, block)?;
    let end = b.add(last, one)?;
    let window = index(b, step.config.text.sliding_window)?;
    let begin = match kind {
        AttentionKind::Full => zero,
        AttentionKind::Sliding => {
            let oldest = b.subtract(lowest, window)?;
            let oldest = b.add(oldest, one)?;
            let oldest = b.maximum(oldest, zero)?;
            b.divide(oldest, block)?
        }
    };
    let first_block = element(b, step.first_block(kind)?, sequence)?;
    let table = step.block_table(kind)?;

    let scores_dims = [kv_heads, tile, group];
    let most = b.number(MASKED, ElementType::F32, &scores_dims)?;
    let sum = b.number(0.0, ElementType::F32, &scores_dims)?;
    let total = b.number(0.0, ElementType::F32, &[kv_heads, tile, group, width])?;
    let carried = b.for_loop(begin, end, &[most, sum, total], |b, number, carried| {
        let [most, sum, total] = *carried else { return Ok(carried.to_vec()) };
        let place = b.subtract(number, first_block)?;
        let page = b.dynamic_slice(table, &[sequence, place], &[1, 1])?;
        let page = b.reshape(page, &[])?;
        let sides: u64 = if remade.is_some() { 1 } else { 2 };
        let part = tokens.saturating_mul(sides).saturating_mul(kv_heads).saturating_mul(width);
        let part = b.dynamic_slice(pool, &[page, reach.first_row, zero], &[1, part / lanes, lanes])?;
        let part = b.reshape(part, &[tokens, sides, kv_heads, width])?;
        let side = |b: &mut Builder, at: u64| -> Result<Value, HloError> {
            let side = b.slice_dim(part, 1, at, at + 1)?;
            let side = b.reshape(side, &[tokens, kv_heads, width])?;
            b.convert(side, step.element)
        };
        let start = index(b, tokens)?;
        let start = b.multiply(number, start)?;
        let start = b.broadcast_scalar(start, &[tokens])?;
        let keys_at = b.iota(ElementType::S32, &[tokens], 0)?;
        let keys_at = b.add(keys_at, start)?;
        let (keys, values) = match remade {
            Some(Keys { norm, rope }) => {
                let values = side(b, 0)?;
                let rotary = rotary(b, keys_at, rope, width)?;
                (keys_of(b, values, norm, rotary, step.element)?, values)
            }
            None => (side(b, 0)?, side(b, 1)?),
        };
        let dims = DotDimensions {
            left_batch: vec![1],
            right_batch: vec![1],
            left_contract: vec![3],
            right_contract: vec![2],
        };
        let scores = b.dot_general(tile_queries, keys, &dims, ElementType::F32, Precision::Default)?;

        // Which keys each query of the tile sees.
        let keys_at = b.broadcast(keys_at, &[tile, tokens], &[1])?;
        let queries_at = b.broadcast(tile_positions, &[tile, tokens], &[0])?;
        let mut seen = b.compare(Comparison::Le, keys_at, queries_at)?;
        if kind == AttentionKind::Sliding {
            let window = b.broadcast_scalar(window, &[tile, tokens])?;
            let reached = b.add(keys_at, window)?;
            let near = b.compare(Comparison::Gt, reached, queries_at)?;
            seen = b.and(seen, near)?;
        }
        let dims = [kv_heads, tile, group, tokens];
        let seen = b.broadcast(seen, &dims, &[1, 3])?;
        let masked = b.number(MASKED, ElementType::F32, &dims)?;
        let scores = b.select(seen, scores, masked)?;

        let new_most = b.reduce_max(scores, &[3])?;
        let new_most = b.maximum(most, new_most)?;
        let rescale = b.subtract(most, new_most)?;
        let rescale = b.exponential(rescale)?;
        let shift = b.broadcast(new_most, &dims, &[0, 1, 2])?;
        let scores = b.subtract(scores, shift)?;
        let weights = b.exponential(scores)?;
        let new_sum = b.reduce_sum(weights, &[3])?;
        let sum = b.multiply(sum, rescale)?;
        let sum = b.add(sum, new_sum)?;
        let weights = b.convert(weights, step.element)?;
        let dims = DotDimensions {
            left_batch: vec![0],
            right_batch: vec![1],
            left_contract: vec![3],
            right_contract: vec![0],
        };
        let part = b.dot_general(weights, values, &dims, ElementType::F32, Precision::Default)?;
        let rescale = b.broadcast(rescale, &[kv_heads, tile, group, width], &[0, 1, 2])?;
        let total = b.multiply(total, rescale)?;
        Ok(vec![new_most, sum, b.add(total, part)?])
    })?;
    let (sum, total) = match *carried {
        [_, sum, total] => (sum, total),
        _ => (sum, total),
    };
    let sum = b.broadcast(sum, &[kv_heads, tile, group, width], &[0, 1, 2])?;
    let attended = b.divide(total, sum)?;
    let attended = b.transpose(attended, &[1, 0, 2, 3])?;
    Ok((first, b.convert(attended, step.element)?))
}
