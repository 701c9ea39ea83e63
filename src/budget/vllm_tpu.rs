//! vLLM on TPU: tpu-inference 0.20 to 0.32, read from its wheels and held against real start-up logs.
//!
//! `avail = limit x utilization - used`, with no term for activations or programs; one block id is one page in every
//! layer that owns a cache; windows save nothing. docs/budget.md has the formula and its accuracy.

use gemma4_model::AttentionKind;
use gemma4_model::tensors::{Component, Role, Tensor};
use gemma4_plan::{KvCache, KvLayer, MemoryTerm};

use super::placed::{Placed, Weights};
use super::{Budget, Impossible, Sums, buckets, capacity, decide, kind_word, kv_word, term};
use crate::catalog::Version;
use crate::resolve::Resolved;

/// Device memory beside the tensors after loading, on each device: tile padding of small arrays and random keys.
/// Fitted: observed runs allow 0.704 to 0.749 MB.
pub const LOADING_OVERHEAD: u64 = 730_000;

/// Where tpu-inference places a tensor; `None` if it does not load it.
///
/// # Errors
/// If the vision tower's heads do not divide, which stops the load.
pub fn place(resolved: &Resolved, tensor: &Tensor) -> Result<Option<Placed>, Impossible> {
    let tp = u64::from(resolved.tensor);
    let config = &resolved.model.config;
    let text_only = resolved.loads_text_only_class();
    if text_only && !tensor.component.is_text() {
        return Ok(None);
    }
    if resolved.runs_through_torch() {
        return Ok(Some(place_torch(resolved, tensor, tp)));
    }
    let split = |dimension| Ok(Some(Placed::split(tensor, dimension, tp)));
    let whole = || Ok(Some(Placed::whole(tensor)));
    match tensor.role {
        Role::Embedding | Role::Head => split(0),
        // Sharded since tpu-inference 0.25.0 (pull request 3004).
        Role::PerLayerTable if resolved.version >= Version::new(0, 25) => split(0),
        Role::PerLayerTable => Ok(Some(Placed {
            note: Some("whole on every device before tpu-inference 0.25".to_owned()),
            ..Placed::whole(tensor)
        })),
        Role::QProj | Role::GateProj | Role::UpProj => split(0),
        Role::OProj | Role::DownProj => split(1),
        Role::KProj | Role::VProj => {
            let heads = tensor.layer.and_then(|layer| config.text.layers.get(layer)).map_or(1, |layer| layer.kv_heads);
            let mut placed = Placed::split(tensor, 0, tp);
            if heads < tp {
                placed.note = Some("split within heads: there are fewer KV heads than devices".to_owned());
            }
            Ok(Some(placed))
        }
        Role::ExpertsGateUp => {
            // Gate and up of each shard are padded to 128 lanes (moe_weights.py: get_w13_padding_config).
            let width = tensor.shape.get(1).copied().unwrap_or(0) / 2;
            let shard = width.div_ceil(tp);
            let padded = shard.next_multiple_of(128);
            if padded == shard {
                split(1)
            } else {
                Ok(Some(Placed::sized(tensor, 1, 2 * padded, format!("{shard} columns padded to {padded} lanes"))))
            }
        }
        Role::ExpertsDown => split(2),
        Role::VisionQ | Role::VisionK | Role::VisionV | Role::VisionO => {
            if resolved.version < Version::new(0, 23) || encoder_is_data_parallel(resolved) {
                return whole();
            }
            let heads = match &config.vision {
                Some(gemma4_model::config::VisionConfig::Tower(tower)) => tower.heads,
                _ => 1,
            };
            if heads % tp != 0 {
                return Err(Impossible {
                    key: "parallelism.tensor",
                    message: format!("the vision tower has {heads} heads, which do not divide by {tp}"),
                });
            }
            split(usize::from(tensor.role == Role::VisionO))
        }
        Role::VisionMlpGate | Role::VisionMlpUp | Role::VisionPatch | Role::VisionProjector
            if !encoder_is_data_parallel(resolved) =>
        {
            split(0)
        }
        Role::VisionMlpDown if !encoder_is_data_parallel(resolved) => split(1),
        Role::ClipScalar => Ok(None),
        _ if tensor.component == Component::Audio => Ok(None),
        _ => whole(),
    }
}

/// `--additional-config '{"mm-encoder-tp-mode":"data"}'` keeps the vision tower whole.
pub fn encoder_is_data_parallel(resolved: &Resolved) -> bool {
    // vLLM's own flag of the same name is not read by tpu-inference, so only the JSON form counts.
    resolved.extra_args.iter().any(|argument| {
        argument.contains('{') && argument.contains("\"mm-encoder-tp-mode\"") && argument.contains("\"data\"")
    })
}

/// The 12B's class runs through PyTorch, with vLLM's own layers.
fn place_torch(resolved: &Resolved, tensor: &Tensor, tp: u64) -> Placed {
    match tensor.role {
        // The output head becomes a tensor of its own.
        Role::Embedding => Placed {
            copies: 2,
            note: Some("twice: the output head is a copy".to_owned()),
            ..Placed::split(tensor, 0, tp)
        },
        Role::QProj | Role::GateProj | Role::UpProj => Placed::split(tensor, 0, tp),
        Role::OProj | Role::DownProj => Placed::split(tensor, 1, tp),
        Role::KProj | Role::VProj => Placed::vllm_key_value(resolved, tensor, "device"),
        Role::VisionPatch => Placed::split(tensor, 0, tp),
        _ => Placed::whole(tensor),
    }
}

/// Buffers that loading makes, on each device.
pub fn buffers(resolved: &Resolved) -> Vec<MemoryTerm> {
    let mut buffers =
        vec![term("weights", "loading overhead", LOADING_OVERHEAD, "measured", "fitted to fifteen start-up logs")];
    if resolved.runs_through_torch() && resolved.env.get("SLICE_ROPE_CACHE").map(String::as_str) != Some("1") {
        let text = &resolved.model.config.text;
        let widths: u64 = [AttentionKind::Sliding, AttentionKind::Full]
            .iter()
            .filter_map(|kind| text.layers.iter().find(|layer| layer.kind == *kind))
            .map(|layer| layer.head_dim)
            .sum();
        buffers.push(term(
            "weights",
            "rotary tables",
            text.max_position_embeddings.saturating_mul(widths).saturating_mul(2),
            "shapes",
            "vLLM's PyTorch path keeps cos and sin for every position",
        ));
    }
    buffers
}

/// The block size that tpu-inference chooses, and why (`flash_attn.py`: `get_page_size`, `get_min_page_size`).
pub fn block_size(max_model_len: u64, max_num_seqs: u64) -> (u64, String) {
    let page = if max_model_len > 8192 { 16 } else { (max_model_len.next_power_of_two() / 16).clamp(16, 256) };
    let least = min_block_size(max_model_len, max_num_seqs);
    let rule = if max_model_len > 8192 {
        "16 above 8,192 tokens".to_owned()
    } else {
        format!("a sixteenth of {} tokens, from 16 to 256", max_model_len.next_power_of_two())
    };
    if least > page {
        (
            least,
            format!(
                "{rule}; raised from {page} to {least} so that the block tables of {max_num_seqs} sequences fit into scalar memory"
            ),
        )
    } else {
        (page, rule)
    }
}

/// The smallest block size whose block tables fit into half of the 1 MiB of scalar memory.
pub fn min_block_size(max_model_len: u64, max_num_seqs: u64) -> u64 {
    let entries = (524_288 / max_num_seqs.max(1) / 4).max(1);
    max_model_len.div_ceil(entries).next_power_of_two()
}

/// Bytes of one block of a layer over all devices, and its shape without the block count.
fn page(heads: u64, head_dim: u64, tp: u64, block: u64, bits: u64) -> (u64, Vec<u64>) {
    let packing = 32 / bits;
    let heads = heads.max(tp);
    let head_dim = if head_dim == 64 { 64 } else { head_dim.next_multiple_of(128) };
    let rows = (2 * heads / tp).div_ceil(packing) * tp;
    let bytes = block.saturating_mul(rows).saturating_mul(packing).saturating_mul(head_dim).saturating_mul(bits) / 8;
    (bytes, vec![block, rows, packing, head_dim])
}

/// Entries (a head's K or V) of one device's row that fp8 leaves empty, for lint: whether fp8 halves a layer.
pub fn fp8_halves(heads: u64, tp: u64) -> bool {
    heads.max(tp) / tp.max(1) >= 2
}

/// Memory that the compiled programs need beside the pool: measured terms, and what is only derived.
fn programs(resolved: &Resolved, requests: &[u64], logits: &[u64]) -> (Vec<MemoryTerm>, u64) {
    let bytes = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    let wide = |list: &[u64]| list.iter().map(|&value| u128::from(value)).sum::<u128>();
    let vocabulary = u128::from(resolved.model.config.text.vocab_size);
    let largest = u128::from(requests.last().copied().unwrap_or(buckets::MIN_REQUESTS));
    let mut terms = vec![term(
        "programs",
        "structured decoding",
        bytes(largest * vocabulary * 6),
        "measured",
        "384 MiB for 256 sequences (run G10) and 1.50 GiB for 1,024 (run G15)",
    )];
    // What is held while programs are compiled ahead is not there when they are not.
    let ahead = !buckets::skips_compilation(resolved);
    if ahead {
        let held = "held while compiling (shapes from source); with it run G10 closes to the MiB";
        terms.push(term(
            "programs",
            "structured decoding, dummies",
            bytes(wide(requests) * vocabulary * 2),
            "measured",
            held,
        ));
    }
    let seen = resolved.engine.programs.iter().find(|entry| {
        entry.family == resolved.accelerator.family
            && entry.size == resolved.model.size
            && entry.tensor == u64::from(resolved.tensor)
    });
    if let Some(seen) = seen {
        if seen.total {
            // The observation is of everything together.
            terms.clear();
        }
        terms.push(term(
            "programs",
            if seen.total { "programs" } else { "executables" },
            seen.mib << 20,
            "measured",
            seen.source.clone(),
        ));
    }
    let mut expected: u64 = if resolved.model.size == "31B" { 1 << 30 } else { 256 << 20 };
    let drafts = resolved.speculative.as_ref().is_some_and(|speculative| speculative.method == "ngram");
    if drafts && ahead && resolved.version >= Version::new(0, 23) {
        let pairs: u128 = logits
            .iter()
            .flat_map(|&rows| {
                requests
                    .iter()
                    .filter(move |&&request| request <= rows)
                    .map(move |&request| u128::from(rows) + u128::from(request))
            })
            .sum();
        let product = 2 * requests.len() as u128 * wide(logits);
        let held = bytes(vocabulary * (6 * pairs + product + product / u128::from(resolved.tensor.max(1))));
        let source =
            "tpu-inference 0.23 and later keep every dummy until all programs are queued; not seen on hardware";
        terms.push(term("programs", "n-gram speculation, dummies", held, "derived", source));
        expected = expected.saturating_add(held);
    }
    (terms, expected)
}

/// The budget.
///
/// # Errors
/// None today; the signature is that of all engines.
pub fn budget(resolved: &Resolved, weights: Weights) -> Result<Budget, Impossible> {
    let tp = u64::from(resolved.tensor.max(1));
    let text = &resolved.model.config.text;
    let buckets = buckets::compute(resolved);
    let block = resolved
        .memory
        .block_size
        .unwrap_or_else(|| block_size(resolved.limits.max_model_len, resolved.limits.max_num_seqs).0);
    let bits = resolved.memory.kv_dtype.bits().clamp(1, 32);
    let mut bytes_per_block = 0_u64;
    let mut layers = Vec::new();
    for (index, layer) in text.owning_layers() {
        let (bytes, block_shape) = page(layer.kv_heads, layer.head_dim, tp, block, bits);
        bytes_per_block = bytes_per_block.saturating_add(bytes);
        layers.push(KvLayer { layer: index as u32, kind: kind_word(layer.kind).to_owned(), block_shape });
    }

    // Weights in use: measured where known, else from shapes.
    let copies = u64::from(resolved.data.max(1));
    let measured = resolved
        .memory
        .weights_measured
        .map(|bytes| (bytes / copies, "memory.weights_measured in the profile".to_owned()))
        .or_else(|| {
            let known =
                resolved.engine.weights.iter().find(|entry| entry.id == resolved.model_id && entry.tensor == tp);
            known.map(|entry| ((entry.gib * (1_u64 << 30) as f64) as u64, entry.source.clone()))
        });
    let (used, mut terms) = match measured {
        Some((bytes, source)) => (bytes, vec![term("weights", "weights, measured", bytes / tp, "measured", source)]),
        None => (weights.device_bytes.saturating_mul(tp), weights.terms),
    };

    // The engine's own arithmetic, in float64 and in its order.
    let available = (resolved.usable as f64 * tp as f64 * resolved.memory.utilization - used as f64).trunc();
    let fitting = if available > 0.0 { available as u64 / bytes_per_block.max(1) } else { 0 };
    let blocks = resolved.memory.num_blocks.unwrap_or(fitting);
    let per_request = resolved.limits.max_model_len.div_ceil(block.max(1));
    let max_concurrency = blocks as f64 / per_request as f64;
    let kv_bytes = blocks.saturating_mul(bytes_per_block) / tp;
    terms.push(term(
        "kv",
        format!("{blocks} blocks"),
        kv_bytes,
        "shapes",
        "page packing, head replication and lane padding of the ragged paged attention kernel",
    ));
    let (program_terms, expected_programs) = programs(resolved, &buckets.requests, &buckets.logits);
    terms.extend(program_terms);

    // Since vLLM 0.29 one block is held back when the start-up check asks for room.
    let held_back = u64::from(resolved.version >= Version::new(0, 29));
    let sums = Sums {
        weights: used / tp,
        kv: kv_bytes,
        terms,
        expected_programs,
        blocks,
        blocks_per_request: per_request,
        held_back,
    };
    let (memory, decisive) = decide(resolved, sums);
    let kv = KvCache {
        dtype: kv_word(resolved.memory.kv_dtype),
        block_size: block,
        bytes_per_token: bytes_per_block / block.max(1),
        bytes_per_block,
        blocks,
        tokens: (max_concurrency * resolved.limits.max_model_len as f64) as u64,
        max_concurrency,
        layers,
        capacity: capacity(blocks, resolved.limits.max_model_len, |tokens| tokens.div_ceil(block.max(1))),
    };
    Ok(Budget { tensors: weights.rows, buckets, kv, memory, blocks_per_request: per_request, decisive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_follow_the_table() {
        let table = [
            (2048, [128, 128, 128]),
            (8192, [256, 256, 256]),
            (16384, [16, 32, 128]),
            (32768, [32, 64, 256]),
            (131_072, [128, 256, 1024]),
            (262_144, [256, 512, 2048]),
        ];
        for (length, expected) in table {
            for (seqs, block) in [128, 256, 1024].into_iter().zip(expected) {
                assert_eq!(block_size(length, seqs).0, block, "length {length}, sequences {seqs}");
            }
        }
    }

    #[test]
    fn pages_have_the_logged_shapes() {
        assert_eq!(page(1, 256, 4, 32, 8), (131_072, vec![32, 4, 4, 256]));
        assert_eq!(page(1, 512, 4, 32, 8).0, 262_144);
        assert_eq!(page(1, 256, 1, 64, 16), (65_536, vec![64, 1, 2, 256]));
        assert_eq!(page(8, 256, 1, 1, 16).0, 8_192);
    }
}
