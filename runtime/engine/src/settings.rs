//! What a running engine does, to hold against a plan.

use gemma4_model::graph::PerLayerTable;
use gemma4_model::sharding::ExpertSharding;
use gemma4_plan::Plan;
use serde::{Deserialize, Serialize};

use crate::compile::Devices;
use crate::scheduler::SchedulerOptions;
use crate::speculation::SpeculationOptions;
use crate::steps::{NamedStep, kv_dtype};

/// The settings of an engine. Those of a running one come from what it really uses: its programs, its pages, its limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Digest of the plan.
    pub digest: String,
    /// Model id.
    pub model: String,
    /// Data type of weights and stream.
    pub dtype: String,
    /// The devices, such as `cpu:4`.
    pub devices: String,
    /// Copies of the model.
    pub data_parallel: u64,
    /// Devices that share a copy of the model.
    pub tensor_parallel: u64,
    /// How experts are split.
    pub experts: String,
    /// Where the per-layer-embedding table is.
    pub per_layer_embeddings: String,
    /// Longest sequence in tokens.
    pub max_model_len: u64,
    /// Most sequences in a step.
    pub max_num_seqs: u64,
    /// Most tokens in a step.
    pub max_num_batched_tokens: u64,
    /// Whether prefixes are found again.
    pub prefix_caching: bool,
    /// Whether layers that share KV run only for the rows with logits, where the model has any.
    pub kv_sharing_fast_prefill: bool,
    /// Token counts of the programs.
    pub token_buckets: Vec<u64>,
    /// Sequence counts of the programs.
    pub request_buckets: Vec<u64>,
    /// Rows of logits of the programs for drafts.
    pub logits_buckets: Vec<u64>,
    /// How drafts are made.
    pub speculation: Option<SpeculationOptions>,
    /// Data type of keys and values.
    pub kv_dtype: String,
    /// Bytes of a page on all devices together.
    pub kv_page_bytes: u64,
    /// Pages of the pool.
    pub kv_pages: u64,
}

impl Settings {
    /// What `plan` asks for.
    #[must_use]
    pub fn of_plan(plan: &Plan) -> Self {
        let (scheduler, cache, mesh) = (&plan.scheduler, &plan.kv_cache, plan.sharding.mesh);
        Self {
            digest: plan.digest.clone(),
            model: plan.model.id.clone(),
            dtype: plan.model.dtype.clone(),
            devices: Devices::of(plan).map_or_else(|| plan.hardware.accelerator.clone(), |devices| devices.name()),
            data_parallel: mesh.data.into(),
            tensor_parallel: mesh.model.into(),
            experts: plan.sharding.experts.clone(),
            per_layer_embeddings: plan.model.per_layer_embeddings.clone(),
            max_model_len: scheduler.max_model_len,
            max_num_seqs: scheduler.max_num_seqs,
            max_num_batched_tokens: scheduler.max_num_batched_tokens,
            prefix_caching: scheduler.prefix_caching,
            kv_sharing_fast_prefill: scheduler.kv_sharing_fast_prefill,
            token_buckets: plan.buckets.tokens.clone(),
            request_buckets: plan.buckets.requests.clone(),
            logits_buckets: plan.buckets.logits.clone(),
            speculation: plan.speculative.as_ref().map(SpeculationOptions::of_plan),
            // The profile's words for what the cache holds.
            kv_dtype: kv_dtype(&cache.dtype).map_or_else(|_| cache.dtype.clone(), |dtype| dtype.to_string()),
            kv_page_bytes: cache.bytes_per_block,
            kv_pages: cache.blocks,
        }
    }

    /// What an engine with these programs and limits does; `digest` and `model` name what it was started for.
    pub(crate) fn of_engine(plan: &Plan, devices: &Devices, steps: &[NamedStep], scheduler: &SchedulerOptions) -> Self {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let drafts: Vec<NamedStep> =
            steps.iter().filter(|step| step.options.rows > step.options.sequences).cloned().collect();
        let distinct = |steps: &[NamedStep], of: fn(&NamedStep) -> u64| {
            let mut sizes: Vec<u64> = steps.iter().map(of).collect();
            sizes.sort_unstable();
            sizes.dedup();
            sizes
        };
        let options = steps.first().map(|step| &step.options);
        let word = |word: Option<String>| word.unwrap_or_default();
        let experts = options.map(|options| match options.experts {
            ExpertSharding::Tensor => "tensor",
            ExpertSharding::Expert => "expert",
        });
        let per_layer_embeddings = options.map(|options| match options.per_layer_table {
            PerLayerTable::Device => "device",
            PerLayerTable::Host => "host",
        });
        Self {
            digest: plan.digest.clone(),
            model: plan.model.id.clone(),
            dtype: word(options.map(|options| options.dtype.to_string())),
            devices: devices.name(),
            data_parallel: options.map_or(0, |options| options.mesh.data),
            tensor_parallel: options.map_or(0, |options| options.mesh.model),
            experts: experts.unwrap_or_default().to_owned(),
            per_layer_embeddings: per_layer_embeddings.unwrap_or_default().to_owned(),
            max_model_len: count(scheduler.max_model_len),
            max_num_seqs: count(scheduler.max_num_seqs),
            max_num_batched_tokens: count(scheduler.max_num_batched_tokens),
            prefix_caching: scheduler.pool.prefix_caching,
            kv_sharing_fast_prefill: options.is_some_and(|options| options.fast_prefill),
            token_buckets: distinct(steps, |step| step.options.tokens),
            request_buckets: distinct(steps, |step| step.options.sequences),
            logits_buckets: distinct(&drafts, |step| step.options.rows),
            speculation: scheduler.speculation,
            kv_dtype: word(options.map(|options| options.kv.dtype().to_string())),
            kv_page_bytes: options
                .map_or(0, |options| options.kv.page_bytes_per_device().saturating_mul(options.mesh.model)),
            kv_pages: count(scheduler.pool.pages),
        }
    }

    /// Every setting that differs: its name, its value here, its value in `other`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let table = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(table)) => table,
            _ => serde_json::Map::new(),
        };
        let (here, there) = (table(self), table(other));
        let differing = here.into_iter().filter_map(|(name, value)| {
            let other = there.get(&name).cloned().unwrap_or_default();
            (value != other).then(|| (name, value.to_string(), other.to_string()))
        });
        differing.collect()
    }
}
