//! The programs that an engine runs for a plan.
//!
//! Invariant: the list is a pure function of plan and configuration, in ascending order of sizes; all of it is compiled
//! before a service is ready, and nothing else is run.

use gemma4_model::graph::{GraphError, Kernels, LayerForm, PerLayerTable, StepGraph, StepOptions, step};
use gemma4_model::kv::{KvError, KvLayout};
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::{Config, DType, UnknownDType};
use gemma4_plan::Plan;
use thiserror::Error;

/// Tokens of an item of attention at most: the rows that a TPU multiplies at once without waste in 16-bit types.
pub const QUERY_TILE: u64 = 16;

/// A step with its name, such as `step.t512.r16`: at most 512 tokens, at most 16 sequences, a row of logits for each. A step
/// that has rows for drafts too says how many: `step.t64.r16.l64`.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedStep {
    /// The name, unique within a plan.
    pub name: String,
    /// What the program is built for.
    pub options: StepOptions,
}

impl NamedStep {
    /// Builds the program.
    ///
    /// # Errors
    /// [`StepsError::Graph`].
    pub fn build(&self, config: &Config) -> Result<StepGraph, StepsError> {
        step(config, &self.options)
            .map_err(|error| StepsError::Graph { name: self.name.clone(), error: Box::new(error) })
    }
}

/// A plan that gives no programs.
#[derive(Debug, Error)]
pub enum StepsError {
    /// The plan is for another engine.
    #[error("the plan is for {0}, which makes programs of its own; only the engine `bundled` has these")]
    Engine(
        /// Kind of the plan's engine.
        String,
    ),
    /// A data type that is not known.
    #[error("{key} of the plan: {error}")]
    DType {
        /// The plan's key.
        key: &'static str,
        /// What is wrong.
        error: UnknownDType,
    },
    /// A word or number that makes no sense there.
    #[error("{key} of the plan is {found}; expected {wanted}")]
    Value {
        /// The plan's key.
        key: &'static str,
        /// What the plan says.
        found: String,
        /// What would do.
        wanted: String,
    },
    /// The cache cannot be laid out.
    #[error("the plan's KV cache: {0}")]
    Kv(#[from] KvError),
    /// A program cannot be built.
    #[error("{name} cannot be built: {error}")]
    Graph {
        /// Name of the step.
        name: String,
        /// Why not.
        error: Box<GraphError>,
    },
}

/// A step that has rows of logits for drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftBucket {
    /// Bucket of tokens.
    pub tokens: u64,
    /// Bucket of requests.
    pub requests: u64,
    /// Rows of logits.
    pub rows: u64,
}

/// The steps that are compiled for drafts of up to `num_tokens` tokens, beside one for each pair of buckets.
///
/// A pair of buckets gets one with a row for every token that a sequence can have computed, where that is more than one a
/// sequence; so drafts that fit the tokens always fit the rows. Not beyond the bucket that holds a whole draft of every
/// sequence: a larger step is one of prompts, which drafts would only delay. There, drafts get the rows that are left.
#[must_use]
pub fn draft_buckets(tokens: &[u64], requests: &[u64], num_tokens: u64) -> Vec<DraftBucket> {
    let each = num_tokens.saturating_add(1);
    let all = requests.iter().max().copied().unwrap_or(0).saturating_mul(each);
    let largest = tokens.iter().filter(|tokens| **tokens >= all).min().copied().unwrap_or(u64::MAX);
    let pairs = tokens.iter().flat_map(|tokens| requests.iter().map(|requests| (*tokens, *requests)));
    let of_pair = |(tokens, requests): (u64, u64)| {
        let rows = requests.saturating_mul(each).min(tokens);
        (tokens <= largest && rows > requests).then_some(DraftBucket { tokens, requests, rows })
    };
    pairs.filter_map(of_pair).collect()
}

/// The programs of `plan` for the model `config`: one for each pair of a tokens bucket and a requests bucket, and those of
/// [`draft_buckets`] if the plan speculates.
///
/// # Errors
/// [`StepsError`] if the plan is for another engine, or does not go with the configuration.
pub fn steps(plan: &Plan, config: &Config) -> Result<Vec<NamedStep>, StepsError> {
    if plan.engine.kind != "bundled" {
        return Err(StepsError::Engine(plan.engine.kind.clone()));
    }
    let mesh = Mesh { data: u64::from(plan.sharding.mesh.data), model: u64::from(plan.sharding.mesh.model) };
    let experts = match plan.sharding.experts.as_str() {
        "tensor" => ExpertSharding::Tensor,
        "expert" => ExpertSharding::Expert,
        other => return Err(value("sharding.experts", other, "tensor or expert")),
    };
    let dtype: DType = parse("model.dtype", &plan.model.dtype)?;
    let quantization = plan.model.quantization.as_deref();
    let quantization =
        quantization.map(|name| name.parse().map_err(|_| value("model.quantization", name, "int8 or int4")));
    let quantization = quantization.transpose()?;
    // A stack of layers costs copies on CPUs, and minutes of compiling without one elsewhere. XLA's own code for products of
    // bfloat16 is slow on CPUs.
    let (layers, kernels) = match plan.hardware.family.as_str() {
        "cpu" => (LayerForm::Unrolled, Kernels::Cpu),
        _ => (LayerForm::Looped, Kernels::Hlo),
    };
    let per_layer_table = match plan.model.per_layer_embeddings.as_str() {
        "device" => PerLayerTable::Device,
        "host" => PerLayerTable::Host,
        other => return Err(value("model.per_layer_embeddings", other, "device or host")),
    };
    let kv = kv_layout(plan, config, mesh.model)?;
    let options = |tokens, sequences, rows| StepOptions {
        mesh,
        experts,
        dtype,
        quantization,
        kv: kv.clone(),
        pages: plan.kv_cache.blocks,
        tokens,
        sequences,
        rows,
        max_model_len: plan.scheduler.max_model_len,
        query_tile: QUERY_TILE.min(tokens),
        layers,
        per_layer_table,
        kernels,
        fast_prefill: plan.scheduler.kv_sharing_fast_prefill,
        trace: false,
    };
    let mut steps = Vec::with_capacity(plan.buckets.tokens.len().saturating_mul(plan.buckets.requests.len()));
    for &tokens in &plan.buckets.tokens {
        for &requests in &plan.buckets.requests {
            let options = options(tokens, requests, requests);
            steps.push(NamedStep { name: format!("step.t{tokens}.r{requests}"), options });
        }
    }
    let drafts = plan.speculative.as_ref().map(|speculative| speculative.num_tokens);
    let drafts = drafts.map(|drafts| draft_buckets(&plan.buckets.tokens, &plan.buckets.requests, drafts));
    for DraftBucket { tokens, requests, rows } in drafts.unwrap_or_default() {
        let options = options(tokens, requests, rows);
        steps.push(NamedStep { name: format!("step.t{tokens}.r{requests}.l{rows}"), options });
    }
    steps.sort_by_key(|step| (step.options.tokens, step.options.sequences, step.options.rows));
    Ok(steps)
}

/// The largest step of a prompt: the largest buckets. `None` if there is no step.
pub fn largest_prefill(steps: &[NamedStep]) -> Option<&NamedStep> {
    steps.iter().max_by_key(|step| (step.options.tokens, step.options.sequences, step.options.rows))
}

/// The largest step in which every sequence gets one token: the most sequences, in the smallest bucket that holds a token
/// of each (or else the largest). `None` if there is no step.
pub fn largest_decode(steps: &[NamedStep]) -> Option<&NamedStep> {
    let most = steps.iter().map(|step| step.options.sequences).max()?;
    let with_most = steps.iter().filter(|step| step.options.sequences == most);
    with_most.min_by_key(|step| {
        let StepOptions { tokens, .. } = step.options;
        // Buckets that hold them all come first, the smallest before the others.
        if tokens >= most { (false, tokens) } else { (true, u64::MAX - tokens) }
    })
}

/// The step with the most rows of logits, if some have rows for drafts.
pub fn largest_draft(steps: &[NamedStep]) -> Option<&NamedStep> {
    let drafts = steps.iter().filter(|step| step.options.rows > step.options.sequences);
    drafts.max_by_key(|step| (step.options.rows, step.options.tokens))
}

/// The cache's layout, which has to give the bytes that the plan counted with.
fn kv_layout(plan: &Plan, config: &Config, devices: u64) -> Result<KvLayout, StepsError> {
    let cache = &plan.kv_cache;
    let dtype = kv_dtype(&cache.dtype)?;
    let block = u32::try_from(cache.block_size)
        .map_err(|_| value("kv_cache.block_size", cache.block_size, "at most 65536 tokens"))?;
    let layout = KvLayout::new(config, devices, dtype, block)?;
    let bytes = layout.page_bytes_per_device().saturating_mul(devices);
    if bytes != cache.bytes_per_block {
        let wanted = format!("{bytes} for this model; the plan was made for another");
        return Err(value("kv_cache.bytes_per_block", cache.bytes_per_block, wanted));
    }
    Ok(layout)
}

/// Data type of keys and values by the profile's words for it.
pub(crate) fn kv_dtype(word: &str) -> Result<DType, StepsError> {
    match word {
        // Without more it is e4m3.
        "fp8" => Ok(DType::F8E4M3),
        "fp8_e5m2" => Ok(DType::F8E5M2),
        other => parse("kv_cache.dtype", other),
    }
}

fn parse(key: &'static str, word: &str) -> Result<DType, StepsError> {
    word.parse().map_err(|error| StepsError::DType { key, error })
}

fn value(key: &'static str, found: impl ToString, wanted: impl Into<String>) -> StepsError {
    StepsError::Value { key, found: found.to_string(), wanted: wanted.into() }
}
