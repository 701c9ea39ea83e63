//! The limits of a step, with the defaults that engines derive from each other.

use gemma4_plan::{Multimodal, Source};

use super::Identity;
use super::provenance::{Recorder, default, derived};
use crate::catalog::{Engine, Version};
use crate::profile::{EngineKind, Loaded};

/// The limits of a step.
#[derive(Debug)]
pub struct Limits {
    /// Longest sequence.
    pub max_model_len: u64,
    /// Most sequences in a step.
    pub max_num_seqs: u64,
    /// Most tokens in a step.
    pub max_num_batched_tokens: u64,
    /// Distance between token buckets.
    pub padding_gap: u64,
    /// Prefix caching.
    pub prefix_caching: bool,
    /// Chunked prefill.
    pub chunked_prefill: bool,
    /// Whether media items may be split.
    pub chunked_mm_input: bool,
    /// Fast prefill.
    pub fast_prefill: bool,
    /// Asynchronous scheduling, if somebody said.
    pub async_scheduling: Option<bool>,
}

/// Resolves `[scheduler]`. `text_only` says that every kind of media is switched off.
pub(super) fn limits(
    loaded: &Loaded,
    identity: &Identity,
    multimodal: &Multimodal,
    text_only: bool,
    record: &mut Recorder<'_>,
) -> Limits {
    let Identity { kind, version, engine, model, accelerator, .. } = identity;
    let (kind, version) = (*kind, *version);
    let scheduler = loaded.profile.scheduler.get().cloned().unwrap_or_default();
    let context = model.config.text.max_position_embeddings;
    let max_model_len = record.pick(
        "scheduler.max_model_len",
        &scheduler.max_model_len,
        |tokens| tokens.0,
        || derived(context, format!("the longest context of {}", model.size)),
    );
    let integer = |value: &toml::Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
    let boolean = toml::Value::as_bool;
    let explicit_seqs = scheduler.max_num_seqs.get().map(|count| count.0);
    let mut seqs = integer_default(engine, version, "scheduler.max_num_seqs", 256);
    let mut budget = integer_default(engine, version, "scheduler.max_num_batched_tokens", 2048);
    let mut budget_why = "the engine's server default".to_owned();
    if kind == EngineKind::VllmGpu
        && let Some((tokens, sequences)) = gpu_defaults(accelerator.nominal_hbm_gib)
    {
        (seqs, budget) = (sequences, tokens);
        budget_why = format!("the engine's server default on a GPU with {:.0} GiB", accelerator.nominal_hbm_gib);
    }
    // vLLM 0.20 and 0.21 do not raise it.
    let raises = kind != EngineKind::Bundled && version >= Version::new(0, 22) && model.config.bidirectional_vision;
    let item = largest_media_item(multimodal);
    if raises && !text_only && budget < item {
        budget = item;
        budget_why = format!(
            "raised from the default: a media item of {item} tokens must fit into one step, because images see themselves in both directions"
        );
    }
    let most = explicit_seqs.unwrap_or(seqs).saturating_mul(max_model_len);
    if kind != EngineKind::Bundled && budget > most {
        budget = most;
        budget_why = "capped at max_num_seqs x max_model_len".to_owned();
    }
    let budget = record.pick(
        "scheduler.max_num_batched_tokens",
        &scheduler.max_num_batched_tokens,
        |tokens| tokens.0,
        || default(budget, budget_why),
    );
    let mut seqs_why = "the engine's server default".to_owned();
    if kind != EngineKind::Bundled && seqs > budget {
        seqs = budget;
        seqs_why = "the engine's default, capped at max_num_batched_tokens".to_owned();
    }
    let max_num_seqs =
        record.pick("scheduler.max_num_seqs", &scheduler.max_num_seqs, |count| count.0, || default(seqs, seqs_why));
    let padding_gap = record.pick_or_engine(
        "scheduler.bucket_padding_gap",
        &scheduler.bucket_padding_gap,
        |amount| amount.0,
        integer,
        0,
    );
    let prefix_caching =
        record.pick_or_engine("scheduler.prefix_caching", &scheduler.prefix_caching, |value| *value, boolean, true);
    let chunked_prefill =
        record.pick_or_engine("scheduler.chunked_prefill", &scheduler.chunked_prefill, |value| *value, boolean, true);
    let mut chunked_mm_input =
        record.pick_or_engine("scheduler.chunked_mm_input", &scheduler.chunked_mm_input, |value| *value, boolean, true);
    if kind == EngineKind::VllmGpu && chunked_mm_input && model.config.bidirectional_vision && !text_only {
        chunked_mm_input = false;
        record.record(
            "scheduler.chunked_mm_input",
            &false,
            Source::Derived,
            "forced by vLLM on GPUs: images of this model see themselves in both directions".to_owned(),
        );
    }
    let shared = model.config.text.num_kv_shared() > 0;
    let fast_prefill = record.pick(
        "scheduler.kv_sharing_fast_prefill",
        &scheduler.kv_sharing_fast_prefill,
        |value| *value,
        || match kind {
            EngineKind::Bundled if shared => derived(true, "exact, so on where the model has layers that share KV"),
            EngineKind::Bundled => derived(false, format!("{} has no layers that share KV", model.size)),
            _ => default(false, format!("the default of {}", engine.kind)),
        },
    );
    let async_scheduling = record.optional(
        "scheduler.async_scheduling",
        &scheduler.async_scheduling,
        |value| *value,
        "the engine decides",
    );

    Limits {
        max_model_len,
        max_num_seqs,
        max_num_batched_tokens: budget,
        padding_gap,
        prefix_caching,
        chunked_prefill,
        chunked_mm_input,
        fast_prefill,
        async_scheduling,
    }
}

/// Tokens of Gemma 4's largest media item: a video of 32 frames with 78 tokens each (70 of the image, 8 around it).
pub const LARGEST_MEDIA_ITEM: u64 = 2496;

/// Tokens of the largest media item that a request may hold.
pub fn largest_media_item(multimodal: &Multimodal) -> u64 {
    match (multimodal.video, multimodal.image) {
        (Some(0), Some(0)) => 0,
        (Some(0), _) => IMAGE,
        _ => LARGEST_MEDIA_ITEM,
    }
}

/// Tokens of an image at the default resolution.
const IMAGE: u64 = 280;

/// vLLM's server defaults on GPUs by memory: batched tokens and sequences (`get_batch_defaults` in vLLM 0.33).
fn gpu_defaults(gib: f64) -> Option<(u64, u64)> {
    if gib >= 160.0 {
        Some((16384, 1024))
    } else if gib >= 70.0 {
        Some((8192, 1024))
    } else {
        None
    }
}

fn integer_default(engine: &Engine, version: Version, key: &str, otherwise: u64) -> u64 {
    engine
        .default(key, version)
        .and_then(|entry| entry.value.as_integer())
        .and_then(|number| u64::try_from(number).ok())
        .unwrap_or(otherwise)
}
