//! What the memory of a device is used for.

use gemma4_model::DType;

use super::provenance::{Recorder, default};
use crate::profile::{KvCacheDtype, Loaded, Placement};

/// Choices about device memory.
#[derive(Debug)]
pub struct MemoryChoices {
    /// Share of the memory for weights and KV cache.
    pub utilization: f64,
    /// KV data type as it was written.
    pub kv_word: KvCacheDtype,
    /// KV data type.
    pub kv_dtype: DType,
    /// Block size, if somebody chose one.
    pub block_size: Option<u64>,
    /// Blocks, if somebody chose a number.
    pub num_blocks: Option<u64>,
    /// Measured bytes of weights, all devices together.
    pub weights_measured: Option<u64>,
    /// Where the per-layer-embedding table lives.
    pub per_layer_embeddings: Placement,
}

/// Resolves `[memory]` for weights of `dtype`.
pub(super) fn memory(loaded: &Loaded, dtype: DType, record: &mut Recorder<'_>) -> MemoryChoices {
    let memory = loaded.profile.memory.get().cloned().unwrap_or_default();
    let number = |value: &toml::Value| value.as_float();
    let utilization =
        record.pick_or_engine("memory.hbm_utilization", &memory.hbm_utilization, |share| share.0, number, 0.92);
    let kv_word = record.pick(
        "memory.kv_cache_dtype",
        &memory.kv_cache_dtype,
        |dtype| *dtype,
        || default(KvCacheDtype::Auto, "the data type of the weights"),
    );
    let kv_dtype = match kv_word {
        KvCacheDtype::Auto => dtype,
        KvCacheDtype::Bfloat16 => DType::Bf16,
        KvCacheDtype::Float16 => DType::F16,
        KvCacheDtype::Float32 => DType::F32,
        KvCacheDtype::Fp8 | KvCacheDtype::Fp8E4m3 => DType::F8E4M3,
        KvCacheDtype::Fp8E5m2 => DType::F8E5M2,
    };
    let block_size = memory.block_size.get().map(|count| count.0);
    if block_size.is_some() {
        record.pick("memory.block_size", &memory.block_size, |count| count.0, || default(0, ""));
    }
    let num_blocks = record.optional("memory.num_blocks", &memory.num_blocks, |count| count.0, "as many as fit");
    let weights_measured = record.optional(
        "memory.weights_measured",
        &memory.weights_measured,
        |gib| gib.bytes,
        "computed from shapes, or from the catalog's measurements",
    );
    let per_layer_embeddings = record.pick(
        "memory.per_layer_embeddings",
        &memory.per_layer_embeddings,
        |placement| *placement,
        || default(Placement::Device, "in device memory"),
    );

    MemoryChoices { utilization, kv_word, kv_dtype, block_size, num_blocks, weights_measured, per_layer_embeddings }
}
