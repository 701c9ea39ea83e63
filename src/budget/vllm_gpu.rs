//! vLLM on NVIDIA GPUs: the hybrid allocator of vLLM 0.33, read from its wheel.
//!
//! All layers share one page size; sliding and full layers form groups of equal size; a request is charged its window
//! in sliding groups. The pool that remains after the engine's own profiling run can only be estimated: a profile may
//! pin it with `memory.num_blocks`.

use gemma4_model::AttentionKind;
use gemma4_model::tensors::{Component, Role, Tensor};
use gemma4_plan::{KvCache, KvLayer, MemoryTerm};

use super::placed::{Placed, Weights};
use super::{Budget, Impossible, Sums, buckets, capacity, decide, kind_word, kv_word, term};
use crate::catalog::Version;
use crate::resolve::Resolved;

/// Where vLLM places a tensor on GPUs; `None` if it does not load it.
pub fn place(resolved: &Resolved, tensor: &Tensor) -> Option<Placed> {
    let tp = u64::from(resolved.tensor);
    let limits = &resolved.multimodal;
    let unified = resolved.model.config.unified;
    // KV projections of layers that share KV are dropped while loading.
    if !tensor.used {
        return None;
    }
    // A tower whose media are all switched off is not loaded; the 12B's small embedders always are.
    let no_vision = limits.image == Some(0) && limits.video == Some(0);
    let no_audio = limits.audio == Some(0);
    let skipped = match tensor.component {
        Component::Vision => no_vision,
        Component::Audio => no_audio,
        _ => false,
    };
    if (skipped && !unified) || (resolved.loads_text_only_class() && !tensor.component.is_text()) {
        return None;
    }
    Some(match tensor.role {
        Role::Embedding | Role::Head | Role::PerLayerTable | Role::PerLayerModelProjection => {
            Placed::split(tensor, 0, tp)
        }
        Role::QProj | Role::GateProj | Role::UpProj | Role::ExpertsGateUp => {
            Placed::split(tensor, usize::from(tensor.role == Role::ExpertsGateUp), tp)
        }
        Role::OProj | Role::DownProj => Placed::split(tensor, 1, tp),
        Role::ExpertsDown => Placed::split(tensor, 2, tp),
        Role::KProj | Role::VProj => Placed::vllm_key_value(resolved, tensor, "GPU"),
        Role::VisionPatch | Role::VisionPatchBias if unified => Placed::split(tensor, 0, tp),
        _ => Placed::whole(tensor),
    })
}

/// Buffers that loading makes, on each GPU.
pub fn buffers(resolved: &Resolved) -> Vec<MemoryTerm> {
    let text = &resolved.model.config.text;
    let widths: u64 = [AttentionKind::Sliding, AttentionKind::Full]
        .iter()
        .filter_map(|kind| text.layers.iter().find(|layer| layer.kind == *kind))
        .map(|layer| layer.head_dim)
        .sum();
    let rotary = text.max_position_embeddings.saturating_mul(widths).saturating_mul(2);
    let mut buffers =
        vec![term("weights", "rotary tables", rotary, "shapes", "cos and sin of every position, whole on each GPU")];
    if text.has_ple() {
        let bytes = resolved
            .limits
            .max_num_batched_tokens
            .saturating_mul(text.layers.len() as u64)
            .saturating_mul(text.ple_width)
            .saturating_mul(2);
        buffers.push(term("weights", "per-layer-embedding buffer", bytes, "shapes", "max_num_batched_tokens rows"));
    }
    buffers
}

/// Tokens of the primary block that the attention backend asks for. Read from source, not run on GPUs.
pub fn default_block_size(resolved: &Resolved) -> (u64, &'static str) {
    let prefix_lm =
        resolved.model.config.bidirectional_vision && !resolved.text_only() && !resolved.loads_text_only_class();
    let backend =
        resolved.extra_args.windows(2).find(|pair| pair[0] == "--attention-backend").map(|pair| pair[1].as_str());
    let backend = backend
        .or_else(|| resolved.extra_args.iter().find_map(|argument| argument.strip_prefix("--attention-backend=")));
    match resolved.accelerator.family.as_str() {
        _ if backend == Some("TRITON_ATTN") => (16, "the Triton backend takes vLLM's default"),
        "h100" | "h200" if resolved.memory.kv_dtype == gemma4_model::DType::F8E4M3 => {
            (64, "FlashAttention on Hopper with fp8 KV asks for 64")
        }
        "b200" if prefix_lm => {
            (64, "FlashInfer on Blackwell asks for 64 where images see themselves in both directions")
        }
        _ => (16, "vLLM's default"),
    }
}

/// The layout of the cache in groups.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Tokens of a block of full layers.
    pub full_block: u64,
    /// Tokens of a block of sliding layers.
    pub sliding_block: u64,
    /// Sliding groups; there is one full group.
    pub sliding_groups: u64,
    /// Bytes of one block id on one GPU.
    pub bytes_per_block: u64,
}

impl Layout {
    /// The groups that vLLM forms with a primary block of `primary` tokens (`kv_cache_planning.py`:
    /// `get_kv_cache_groups`, `unify_kv_cache_spec_page_size`).
    ///
    /// # Errors
    /// If the layers do not form groups of equal size and pages of equal bytes, as those of every Gemma 4 do.
    pub fn new(resolved: &Resolved, primary: u64) -> Result<Self, Impossible> {
        let tp = u64::from(resolved.tensor.max(1));
        let text = &resolved.model.config.text;
        let bytes = resolved.memory.kv_dtype.bits() / 8;
        let of = |kind| {
            let layers = text.owning_layers_of(kind).count() as u64;
            let token = text
                .owning_layers_of(kind)
                .next()
                .map_or(0, |(_, layer)| (layer.kv_heads / tp).max(1) * 2 * layer.head_dim * bytes);
            (layers, token)
        };
        let ((full_layers, full_token), (sliding_layers, sliding_token)) =
            (of(AttentionKind::Full), of(AttentionKind::Sliding));
        let page = primary.saturating_mul(full_token.max(sliding_token));
        if full_layers == 0
            || sliding_layers == 0
            || sliding_layers % full_layers != 0
            || page % full_token != 0
            || page % sliding_token != 0
        {
            return Err(Impossible {
                key: "model.id",
                message: "the layers do not form equal groups, so vLLM's plan for them is not known".to_owned(),
            });
        }
        Ok(Layout {
            full_block: page / full_token,
            sliding_block: page / sliding_token,
            sliding_groups: sliding_layers / full_layers,
            bytes_per_block: full_layers.saturating_mul(page),
        })
    }

    /// Blocks that one request of `tokens` needs at admission, with `in_flight` tokens under way.
    pub fn need(&self, tokens: u64, window: u64, in_flight: u64) -> u64 {
        let windowed = (window.saturating_sub(1) + in_flight).min(tokens);
        tokens.div_ceil(self.full_block) + self.sliding_groups * (windowed.div_ceil(self.sliding_block) + 1)
    }
}

/// Tokens that can be under way between two looks of the scheduler: twice the step's budget under asynchronous
/// scheduling (`max_in_flight_tokens`).
pub fn in_flight(resolved: &Resolved) -> u64 {
    let ngram = resolved.speculative.as_ref().is_some_and(|speculative| speculative.method == "ngram");
    let asynchronous =
        resolved.limits.async_scheduling != Some(false) && !ngram && resolved.version > Version::new(0, 21);
    resolved.limits.max_num_batched_tokens.saturating_mul(if asynchronous { 2 } else { 1 })
}

/// What the engine measures at start-up and a plan can only estimate, on each GPU.
fn profiled(resolved: &Resolved) -> Vec<MemoryTerm> {
    let mib = 1_u64 << 20;
    let outside = if resolved.tensor > 1 { 600 * mib } else { 150 * mib };
    let vocabulary = resolved.model.config.text.vocab_size;
    let tower = matches!(resolved.model.config.vision, Some(gemma4_model::config::VisionConfig::Tower(_)));
    let vision = if tower
        && !(resolved.multimodal.image == Some(0) && resolved.multimodal.video == Some(0))
        && !resolved.loads_text_only_class()
    {
        (resolved.usable as f64 * 0.06) as u64
    } else {
        0
    };
    let sampler = resolved.limits.max_num_seqs.saturating_mul(vocabulary).saturating_mul(10);
    vec![
        term(
            "programs",
            "CUDA context and communication",
            outside,
            "derived",
            "llm-d-planner's measurements on H100, other models",
        ),
        term(
            "programs",
            "activations",
            vision.max(sampler),
            "derived",
            "the larger of the vision profile (6 % of memory) and the sampler's logits",
        ),
        term("programs", "CUDA graphs", 512 * mib, "derived", "0.39 to 1.03 GiB on H100, other models"),
    ]
}

/// The budget.
///
/// # Errors
/// If the layers do not form the groups that vLLM makes of Gemma 4.
pub fn budget(resolved: &Resolved, weights: Weights) -> Result<Budget, Impossible> {
    let primary = resolved.memory.block_size.unwrap_or_else(|| default_block_size(resolved).0);
    let layout = Layout::new(resolved, primary)?;
    let text = &resolved.model.config.text;
    let tp = u64::from(resolved.tensor.max(1));
    let used = resolved
        .memory
        .weights_measured
        .map_or(weights.device_bytes, |bytes| bytes / tp / u64::from(resolved.data.max(1)));
    let mut terms = if resolved.memory.weights_measured.is_some() {
        vec![term("weights", "weights, measured", used, "measured", "memory.weights_measured in the profile")]
    } else {
        weights.terms
    };
    let estimated = profiled(resolved);
    let expected_programs: u64 = estimated.iter().map(|term| term.bytes).sum();
    let requested = (resolved.usable as f64 * resolved.memory.utilization).ceil();
    let available = requested - used as f64 - expected_programs as f64;
    let fitting = if available > 0.0 { available as u64 / layout.bytes_per_block.max(1) } else { 0 };
    let blocks = resolved.memory.num_blocks.unwrap_or(fitting);
    let in_flight = in_flight(resolved);
    let need = |tokens: u64| layout.need(tokens, text.sliding_window, in_flight);
    let per_request = need(resolved.limits.max_model_len);
    let max_concurrency = blocks as f64 / per_request as f64;
    let kv_bytes = blocks.saturating_mul(layout.bytes_per_block);
    terms.push(term(
        "kv",
        format!("{blocks} blocks"),
        kv_bytes,
        if resolved.memory.num_blocks.is_some() { "profile" } else { "derived" },
        "hybrid allocator of vLLM 0.33",
    ));
    terms.extend(estimated);
    let held_back = u64::from(resolved.version >= Version::new(0, 29));
    let sums = Sums {
        weights: used,
        kv: kv_bytes,
        terms,
        expected_programs,
        blocks,
        blocks_per_request: per_request,
        held_back,
    };
    let (memory, decisive) = decide(resolved, sums);
    let layers = text
        .owning_layers()
        .map(|(index, layer)| {
            let block = if layer.kind == AttentionKind::Full { layout.full_block } else { layout.sliding_block };
            KvLayer {
                layer: index as u32,
                kind: kind_word(layer.kind).to_owned(),
                block_shape: vec![2, block, layer.kv_heads.max(tp), layer.head_dim],
            }
        })
        .collect();
    let bytes_per_block = layout.bytes_per_block.saturating_mul(tp);
    let kv = KvCache {
        dtype: kv_word(resolved.memory.kv_dtype),
        block_size: primary,
        bytes_per_token: bytes_per_block.saturating_mul(per_request) / resolved.limits.max_model_len.max(1),
        bytes_per_block,
        blocks,
        tokens: (max_concurrency * resolved.limits.max_model_len as f64) as u64,
        max_concurrency,
        layers,
        capacity: capacity(blocks, resolved.limits.max_model_len, need),
    };
    Ok(Budget {
        tensors: weights.rows,
        buckets: buckets::compute(resolved),
        kv,
        memory,
        blocks_per_request: per_request,
        decisive,
    })
}
