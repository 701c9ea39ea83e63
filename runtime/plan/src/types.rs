//! The types of a plan file. Names and keys are a contract; adding keys is allowed, renaming them is not.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What exactly will run, whether it fits, and why each value is what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Format of the file; a reader refuses a format it does not know.
    pub format: String,
    /// SHA-256 over everything that determines the running service.
    pub digest: String,
    /// SHA-256 over the bytes of the file, its own digits counted as zeros.
    pub checksum: String,
    /// The profile the plan was made from.
    pub profile: ProfileSummary,
    /// The model that is served.
    pub model: Model,
    /// The hardware, per launch.
    pub hardware: Hardware,
    /// The serving engine and how it is started.
    pub engine: Engine,
    /// Limits of the scheduler.
    pub scheduler: Scheduler,
    /// Speculative decoding, if any.
    pub speculative: Option<Speculative>,
    /// Media items a request may hold.
    pub multimodal: Multimodal,
    /// Parsing of tool calls and reasoning.
    pub chat: Chat,
    /// The device mesh, and the place of each kind of tensor on it.
    pub sharding: Sharding,
    /// The shapes that are compiled.
    pub buckets: Buckets,
    /// Layout and capacity of the KV cache.
    pub kv_cache: KvCache,
    /// The budget, in bytes.
    pub memory: Memory,
    /// Where compiled programs are kept.
    pub compile_cache: CompileCache,
    /// The HTTP side.
    pub server: Server,
    /// References to secrets by name; values never enter a plan.
    pub secrets: BTreeMap<String, SecretRef>,
    /// What the deployment is sized for, if the profile says.
    pub workload: Option<Workload>,
    /// Settings of the deployment targets, as the profile gives them.
    pub deploy: BTreeMap<String, serde_json::Value>,
    /// Proof by the compiler, with `--prove`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proof: Option<Proof>,
    /// What the linter found.
    pub diagnostics: Vec<Diagnostic>,
    /// Where each value came from, by the key of the profile.
    pub provenance: BTreeMap<String, Provenance>,
}

/// Name and one-line description of the profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileSummary {
    /// The profile's name.
    pub name: String,
    /// Its one-line description.
    pub summary: Option<String>,
}

/// The model that is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// A Hugging Face model id, a built-in model, or a folder with a checkpoint.
    pub id: String,
    /// Size in the Gemma 4 family, such as `26B-A4B`.
    pub size: String,
    /// Architecture name that the engine loads.
    pub architecture: String,
    /// Revision of the checkpoint, if pinned.
    pub revision: Option<String>,
    /// Data type of the weights.
    pub dtype: String,
    /// Weight quantization, as the engine names it, if any.
    pub quantization: Option<String>,
    /// Whether the engine may run code from the checkpoint.
    pub trust_remote_code: bool,
    /// For a local folder: SHA-256 of its configuration and tensor headers.
    pub fingerprint: Option<String>,
    /// Where the per-layer-embedding table lives: `device` or `host`.
    pub per_layer_embeddings: String,
    /// How weight files are read, if not as the engine likes.
    pub safetensors_load: Option<String>,
    /// The longest context the model was made for, in tokens.
    pub context_length: u64,
    /// Parameters that the engine loads.
    pub parameters: u64,
}

/// The hardware of one launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hardware {
    /// Accelerator as `family-chips`, or `cpu`.
    pub accelerator: String,
    /// Chip family.
    pub family: String,
    /// Physical arrangement of the chips.
    pub topology: String,
    /// Chips (or GPUs).
    pub chips: u32,
    /// Devices as the engine counts them (tpu7x has two a chip).
    pub devices: u32,
    /// Machines.
    pub hosts: u32,
    /// Machine type in the cloud, where one is known.
    pub machine_type: Option<String>,
    /// Bytes a program can use on one device.
    pub usable_hbm_bytes: u64,
}

/// The serving engine and how it is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Engine {
    /// `vllm-tpu`, `vllm-gpu` or `bundled`.
    pub kind: String,
    /// Version whose rules and defaults apply.
    pub version: String,
    /// Container image, for engines that run in one.
    pub image: Option<String>,
    /// Python packages installed before the start.
    pub pip: Vec<String>,
    /// The command line.
    pub argv: Vec<String>,
    /// Environment variables. Secrets are not among them.
    pub env: BTreeMap<String, String>,
    /// What of the profile was left out or renamed for this version, and why.
    pub notes: Vec<String>,
}

/// Limits of the scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scheduler {
    /// Longest sequence, prompt and output together, in tokens.
    pub max_model_len: u64,
    /// Most sequences in one step.
    pub max_num_seqs: u64,
    /// Most tokens in one step.
    pub max_num_batched_tokens: u64,
    /// Distance between token buckets; 0 means powers of two.
    pub bucket_padding_gap: u64,
    /// Whether blocks of equal prefixes are shared.
    pub prefix_caching: bool,
    /// Whether prompts are split over steps.
    pub chunked_prefill: bool,
    /// Whether media items may be split over steps.
    pub chunked_mm_input: bool,
    /// Whether layers that share KV skip prompt tokens.
    pub kv_sharing_fast_prefill: bool,
    /// Whether steps are prepared while the last one runs; none leaves it to the engine.
    pub async_scheduling: Option<bool>,
}

/// Speculative decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Speculative {
    /// The method, such as `ngram`.
    pub method: String,
    /// Checkpoint of the drafter, for methods that have one.
    pub model: Option<String>,
    /// Draft tokens a step.
    pub num_tokens: u64,
    /// Shortest n-gram that is looked up.
    pub prompt_lookup_min: Option<u64>,
    /// Longest n-gram that is looked up.
    pub prompt_lookup_max: Option<u64>,
}

/// Media items a request may hold; none leaves a kind unlimited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Multimodal {
    /// Images.
    pub image: Option<u64>,
    /// Audio clips.
    pub audio: Option<u64>,
    /// Videos.
    pub video: Option<u64>,
}

/// Parsing of tool calls and reasoning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Chat {
    /// Parser for tool calls.
    pub tool_call_parser: Option<String>,
    /// Whether the model may choose a tool by itself.
    pub auto_tool_choice: bool,
    /// Parser for reasoning.
    pub reasoning_parser: Option<String>,
}

/// The device mesh, and the place of each kind of tensor on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sharding {
    /// Size of each mesh axis, in devices.
    pub mesh: Mesh,
    /// How experts are split: `tensor` or `expert`.
    pub experts: String,
    /// One row for each distinct tensor; tensors of equal layers share a row.
    pub tensors: Vec<TensorPlacement>,
}

/// Size of each mesh axis, in devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mesh {
    /// Data parallelism: copies of the model.
    pub data: u32,
    /// Tensor parallelism: devices that share one copy.
    pub model: u32,
}

/// Where a tensor lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TensorPlacement {
    /// Name in the checkpoint, of the first layer that has this row's shape.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<u64>,
    /// For each dimension the mesh axis it is split over, or null.
    pub spec: Vec<Option<String>>,
    /// Shape on one device.
    pub local_shape: Vec<u64>,
    /// Layers that have such a tensor; empty for tensors outside the layers.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub layers: Vec<u32>,
    /// Bytes on one device, all rows of this kind together.
    pub device_bytes: u64,
    /// Why the shape is not simply divided, where it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// The shapes that are compiled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Buckets {
    /// Token counts of a step.
    pub tokens: Vec<u64>,
    /// Sequence counts of a step.
    pub requests: Vec<u64>,
    /// Row counts of the logits under speculative decoding.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub logits: Vec<u64>,
    /// Programs compiled before the service is ready, where the engine's list is known.
    pub graphs: Option<u64>,
    /// Estimated seconds of a cold compile, where it was measured for this kind of model.
    pub compile_seconds: Option<u64>,
}

/// Layout and capacity of the KV cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KvCache {
    /// Data type of the entries.
    pub dtype: String,
    /// Tokens a block.
    pub block_size: u64,
    /// Bytes a token costs on all devices of one model copy together, at the longest sequence.
    pub bytes_per_token: u64,
    /// Bytes of one block on all devices of one model copy together.
    pub bytes_per_block: u64,
    /// Blocks in the pool of one model copy.
    pub blocks: u64,
    /// Tokens that the pool holds in sequences of the longest length.
    pub tokens: u64,
    /// Sequences of the longest length that fit at once.
    pub max_concurrency: f64,
    /// The layers that own a cache.
    pub layers: Vec<KvLayer>,
    /// What the pool holds for sequences of other lengths.
    pub capacity: Vec<Capacity>,
}

/// The cache of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KvLayer {
    /// Index of the layer.
    pub layer: u32,
    /// `sliding` or `full`.
    pub kind: String,
    /// Shape of one block of this layer, all devices together. For the bundled engine `[tokens, sides, heads, head_dim]`: keys
    /// and values (2 sides), or values alone (1) where keys are made from them.
    pub block_shape: Vec<u64>,
}

/// What the pool holds for sequences of one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Length of each sequence, in tokens.
    pub sequence_tokens: u64,
    /// Whole sequences that fit.
    pub sequences: u64,
    /// Tokens they hold.
    pub tokens: u64,
}

/// The budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Whether weights, KV cache and known programs fit.
    pub fits: bool,
    /// Why it does not fit; empty when it does.
    pub reasons: Vec<String>,
    /// Share of the usable bytes that weights and KV cache may take.
    pub utilization: f64,
    /// Bytes on each device.
    pub per_device: DeviceMemory,
    /// The terms behind the sums, each with its source.
    pub terms: Vec<MemoryTerm>,
    /// Bytes that are expected but not proved; never part of `fits`.
    pub expected_programs: u64,
}

/// Bytes on one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceMemory {
    /// What programs can use.
    pub usable: u64,
    /// What weights and KV cache may take: usable x utilization.
    pub limit: u64,
    /// Weights after loading.
    pub weights: u64,
    /// The KV pool.
    pub kv: u64,
    /// Compiled programs and their buffers, as far as measured or proved.
    pub programs: u64,
    /// What is left; negative when it does not fit.
    pub free: i64,
}

/// One term of the budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryTerm {
    /// The sum it belongs to: `weights`, `kv` or `programs`.
    pub part: String,
    /// What it is.
    pub name: String,
    /// Bytes on one device.
    pub bytes: u64,
    /// `shapes`, `measured`, `profile`, `proved` or `derived`; derived terms never decide whether it fits.
    pub basis: String,
    /// Where the rule or figure comes from.
    pub source: String,
}

/// Where compiled programs are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompileCache {
    /// Folder as the engine sees it; none means the engine's own default.
    pub path: Option<String>,
    /// Changes whenever the compiled programs would not be reused.
    pub key: String,
}

/// The HTTP side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Server {
    /// Address that is bound.
    pub host: String,
    /// Port that is bound.
    pub port: u16,
}

/// A reference to a secret, resolved at launch and never before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum SecretRef {
    /// A secret in Google Secret Manager.
    Gcp {
        /// Its name.
        gcp_secret: String,
    },
    /// A variable in the environment of whoever launches.
    Env {
        /// Its name.
        env: String,
    },
    /// A file on the machine that launches.
    File {
        /// Its path.
        file: String,
    },
}

/// What a deployment is sized for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workload {
    /// Users at once.
    pub concurrency: Option<u64>,
    /// Prompt tokens a request.
    pub input_tokens: Option<u64>,
    /// Output tokens a request.
    pub output_tokens: Option<u64>,
}

/// What the XLA compiler says of the plan's programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    /// Compiler and version.
    pub compiler: String,
    /// Topology compiled for.
    pub topology: String,
    /// The verdict.
    pub fits: bool,
    /// Why it does not fit; empty when it does.
    pub reasons: Vec<String>,
    /// Bytes on one device.
    pub per_device: ProofMemory,
    /// The graphs that were compiled: the largest of prompts and the largest of answers.
    pub graphs: Vec<ProofGraph>,
    /// Graphs that the engine compiles for the plan; those not in `graphs` are smaller.
    pub all_graphs: u64,
    /// What was counted how.
    pub notes: Vec<String>,
}

/// Bytes on one device by the compiler's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProofMemory {
    /// All arguments of the graph that has most.
    pub arguments: u64,
    /// Arguments that are weights.
    pub weights: u64,
    /// Arguments that are the KV cache.
    pub kv: u64,
    /// Weights on the device that no compiled graph takes.
    pub beside: u64,
    /// Outputs, of the graph that has most, that take no argument's place.
    pub outputs: u64,
    /// Temporaries of the graph that has most.
    pub temporaries: u64,
    /// Code of the compiled graphs together.
    pub code: u64,
    /// Everything together.
    pub total: u64,
}

/// One compiled graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProofGraph {
    /// Its name.
    pub name: String,
    /// Bytes of temporaries.
    pub temporaries: u64,
    /// Bytes of code.
    pub code: u64,
    /// Bytes of arguments.
    pub arguments: u64,
    /// Bytes of outputs that take no argument's place.
    pub outputs: u64,
    /// Seconds that the compiler took.
    pub seconds: f64,
    /// The compiler's words, if it found the graph too large; its bytes are then unknown and 0, but for the arguments,
    /// which are the sum of their shapes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exceeds: Option<String>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// It will probably hurt.
    Warning,
    /// It will not run, or not as written.
    Error,
}

impl Severity {
    /// The word as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// A finding, with the place it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Diagnostic {
    /// Code of the rule.
    pub code: String,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What to do.
    pub help: Option<String>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// The value.
    pub value: serde_json::Value,
    /// Who set it.
    pub source: Source,
    /// The file, for values that were written down.
    pub file: Option<String>,
    /// Line in that file, from 1.
    pub line: Option<u32>,
    /// The reason, in words.
    pub why: String,
}

/// Who set a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The profile itself.
    Profile,
    /// A profile it extends.
    Extends,
    /// `--set` on the command line.
    Set,
    /// The engine's or gemma4ctl's default.
    Default,
    /// Computed from other values.
    Derived,
}
