//! The bundled engine: shapes, sharding and cache layout straight from `gemma4-model`, which the runtime uses too.

use gemma4_model::kv::KvLayout;
use gemma4_plan::{Buckets, KvCache, KvLayer};

use super::placed::Weights;
use super::{Budget, Impossible, Sums, buckets, capacity, decide, kind_word, kv_word, term};
use crate::catalog::AcceleratorKind;
use crate::profile::Placement;
use crate::resolve::Resolved;

/// Tokens of a block when nobody chooses.
pub const DEFAULT_BLOCK: u64 = 32;

/// Rounds a block count down to seven significant bits, so that a small change of the budget keeps the compiled
/// programs (the pool's size is part of their shapes). At most 1.6 % of the pool is given up.
fn round_blocks(blocks: u64) -> u64 {
    let keep = 7;
    let bits = 64 - blocks.leading_zeros();
    if bits <= keep { blocks } else { blocks >> (bits - keep) << (bits - keep) }
}

/// Bytes on each device of the per-layer-embedding rows of a step of `tokens`, where the table is in host memory.
fn per_layer_rows(resolved: &Resolved, tokens: u64) -> u64 {
    let text = &resolved.model.config.text;
    if resolved.memory.per_layer_embeddings != Placement::Host {
        return 0;
    }
    let row = text.ple_width.saturating_mul(text.layers.len() as u64);
    resolved.dtype.bytes(row.saturating_mul(tokens)).unwrap_or(u64::MAX)
}

/// Bytes on each device of the logits that drafts add to the largest step; every device gets all of them.
fn draft_logits(resolved: &Resolved, buckets: &Buckets) -> u64 {
    let rows = |rows: &[u64]| rows.iter().max().copied().unwrap_or(0);
    let added = rows(&buckets.logits).saturating_sub(rows(&buckets.requests));
    added.saturating_mul(resolved.model.config.text.vocab_size).saturating_mul(4)
}

/// The budget.
///
/// # Errors
/// If the cache cannot be laid out for this model, mesh and block size.
pub fn budget(resolved: &Resolved, weights: Weights) -> Result<Budget, Impossible> {
    let tp = u64::from(resolved.tensor.max(1));
    let text = &resolved.model.config.text;
    let block = resolved.memory.block_size.unwrap_or(DEFAULT_BLOCK);
    let block_u32 = u32::try_from(block).unwrap_or(u32::MAX);
    let layout = KvLayout::new(&resolved.model.config, tp, resolved.memory.kv_dtype, block_u32)
        .map_err(|error| Impossible { key: "memory.block_size", message: error.to_string() })?;
    let page = layout.page_bytes_per_device();
    let used = resolved
        .memory
        .weights_measured
        .map_or(weights.device_bytes, |bytes| bytes / tp / u64::from(resolved.data.max(1)));
    let limit = (resolved.usable as f64 * resolved.memory.utilization) as u64;
    let available = i128::from(limit) - i128::from(used);
    let fitting = u64::try_from(available.max(0)).unwrap_or(0) / page.max(1);

    // One step's prompt chunks stand in the windowed part of the pool beside the windows themselves.
    let chunk = resolved.limits.max_num_batched_tokens;
    let reserve = chunk.div_ceil(layout.tokens_per_block(gemma4_model::AttentionKind::Sliding).max(1));
    let need = |tokens: u64| layout.blocks_for_sequence(tokens, 0);
    let wanted =
        resolved.limits.max_num_seqs.saturating_mul(need(resolved.limits.max_model_len)).saturating_add(reserve);
    let blocks = match (resolved.memory.num_blocks, resolved.accelerator.kind) {
        (Some(blocks), _) => blocks,
        (None, AcceleratorKind::Cpu) if wanted <= fitting => wanted,
        _ => round_blocks(fitting),
    };
    let per_request = layout.blocks_for_sequence(resolved.limits.max_model_len, chunk);
    let usable_blocks = blocks.saturating_sub(reserve);
    let one = need(resolved.limits.max_model_len);
    let max_concurrency = usable_blocks as f64 / one.max(1) as f64;
    let kv_bytes = blocks.saturating_mul(page);
    let mut terms = weights.terms;
    terms.push(term(
        "kv",
        format!("{blocks} pages"),
        kv_bytes,
        "shapes",
        "windowed layers keep their window; pages of both kinds have the same bytes",
    ));
    let buckets = buckets::compute(resolved);
    let rows = per_layer_rows(resolved, buckets.tokens.last().copied().unwrap_or(0));
    terms.push(term(
        "programs",
        "rows of the per-layer-embedding table, largest step",
        rows,
        "derived",
        "the table is in host memory; every device gets the rows of a step's tokens",
    ));
    let logits = draft_logits(resolved, &buckets);
    terms.push(term(
        "programs",
        "logits of drafts, largest step",
        logits,
        "derived",
        "a row of float32 for each draft token; every device gets all rows",
    ));
    let sums = Sums {
        weights: used,
        kv: kv_bytes,
        terms,
        expected_programs: rows.saturating_add(logits),
        blocks,
        blocks_per_request: per_request.min(one + reserve),
        held_back: 0,
    };
    let blocks_per_request = sums.blocks_per_request;
    let (memory, decisive) = decide(resolved, sums);
    let layers = text
        .owning_layers()
        .map(|(index, layer)| {
            let mut block_shape = layout.block_shape(index).unwrap_or_default();
            // The table shows all devices together; each holds its heads.
            if let Some(heads) = block_shape.get_mut(2) {
                *heads = heads.saturating_mul(tp);
            }
            KvLayer { layer: index as u32, kind: kind_word(layer.kind).to_owned(), block_shape }
        })
        .collect();
    let bytes_per_block = page.saturating_mul(tp);
    let kv = KvCache {
        dtype: kv_word(resolved.memory.kv_dtype),
        block_size: block,
        bytes_per_token: bytes_per_block.saturating_mul(one).div_ceil(resolved.limits.max_model_len.max(1)),
        bytes_per_block,
        blocks,
        tokens: (max_concurrency * resolved.limits.max_model_len as f64) as u64,
        max_concurrency,
        layers,
        capacity: capacity(usable_blocks, resolved.limits.max_model_len, need),
    };
    Ok(Budget { tensors: weights.rows, buckets, kv, memory, blocks_per_request, decisive })
}

#[cfg(test)]
mod tests {
    use super::round_blocks;

    #[test]
    fn rounding_gives_up_little() {
        assert_eq!(round_blocks(100), 100);
        assert_eq!(round_blocks(18_523), 18_432);
        for blocks in [129, 1_000, 99_999, 123_456_789] {
            let rounded = round_blocks(blocks);
            assert!(rounded <= blocks && (blocks - rounded) * 64 <= blocks);
        }
    }
}
