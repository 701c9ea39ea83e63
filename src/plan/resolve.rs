//! From a typed profile to resolved values: catalog entries looked up, defaults filled in, every value with its origin.
//!
//! After this step nobody reads the profile again, except lint rules that point into its text.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gemma4_model::DType;
use gemma4_plan::{Provenance, SecretRef, Speculative, Workload};

use super::provenance::{Recorder, default, derived};
use crate::catalog::{self, Accelerator, AcceleratorKind, Engine, Model, Slice, Version};
use crate::diagnostic::Diagnostic;
use crate::profile::messages::nearest;
use crate::profile::{
    EngineKind, ExpertSharding, KvCacheDtype, Loaded, Placement, Plane, Provisioning, SpeculativeMethod, WeightDtype,
};

/// Everything that a plan is computed from.
#[derive(Debug)]
pub struct Resolved {
    /// Engine.
    pub engine: Arc<Engine>,
    /// Kind of the engine.
    pub kind: EngineKind,
    /// Version whose rules apply.
    pub version: Version,
    /// Version as it was written.
    pub version_text: String,
    /// Container image.
    pub image: Option<String>,
    /// Python packages installed at every start.
    pub pip: Vec<String>,
    /// Further flags.
    pub extra_args: Vec<String>,
    /// Further environment.
    pub env: BTreeMap<String, String>,
    /// Model id.
    pub model_id: String,
    /// The model.
    pub model: Arc<Model>,
    /// Architecture that the engine loads.
    pub architecture: String,
    /// Revision.
    pub revision: Option<String>,
    /// Data type of the weights.
    pub dtype: DType,
    /// Data type as it was written.
    pub dtype_word: WeightDtype,
    /// Weight quantization asked for.
    pub quantization: Option<String>,
    /// Whether code of the checkpoint may run.
    pub trust_remote_code: bool,
    /// LoRA adapters.
    pub max_loras: Option<u64>,
    /// The accelerator's family.
    pub accelerator: Arc<Accelerator>,
    /// Accelerator as it was written.
    pub accelerator_name: String,
    /// The slice; made up for a CPU.
    pub slice: Slice,
    /// Devices as the engine counts them.
    pub devices: u32,
    /// Usable bytes of one device.
    pub usable: u64,
    /// Source of that figure.
    pub usable_source: String,
    /// Devices that share one copy of the model.
    pub tensor: u32,
    /// Copies of the model.
    pub data: u32,
    /// How experts are split.
    pub experts: ExpertSharding,
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
    /// Speculation.
    pub speculative: Option<Speculative>,
    /// Limits of media items: image, audio, video.
    pub multimodal: gemma4_plan::Multimodal,
    /// Tool calls and reasoning.
    pub chat: gemma4_plan::Chat,
    /// Compile cache.
    pub compile_cache: Option<String>,
    /// Weights cache.
    pub weights_cache: Option<String>,
    /// How weight files are read.
    pub safetensors_load: Option<String>,
    /// Bind address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// References to secrets.
    pub secrets: BTreeMap<String, SecretRef>,
    /// What it is sized for.
    pub workload: Option<Workload>,
    /// The API that creates the machine, if said or if there is one choice.
    pub plane: Option<Plane>,
    /// How capacity is bought.
    pub provisioning: Option<Provisioning>,
    /// When the machine is deleted, seconds.
    pub max_run_duration: Option<u64>,
    /// Origins.
    pub provenance: BTreeMap<String, Provenance>,
}

impl Resolved {
    /// Whether every modality is switched off.
    pub fn text_only(&self) -> bool {
        let limits = &self.multimodal;
        let none = |limit: Option<u64>| limit == Some(0);
        none(limits.image) && none(limits.audio) && none(limits.video)
    }

    /// Whether the model that the engine loads takes images, audio or video at all.
    pub fn is_multimodal(&self) -> bool {
        let config = &self.model.config;
        self.kind != EngineKind::Bundled
            && !self.loads_text_only_class()
            && (config.vision.is_some() || config.audio.is_some())
    }

    /// Whether the architecture is overridden to the text-only class.
    pub fn loads_text_only_class(&self) -> bool {
        self.architecture == "Gemma4ForCausalLM"
    }

    /// Whether vLLM on TPU runs this architecture through PyTorch rather than JAX: the 12B's class is not registered there.
    pub fn runs_through_torch(&self) -> bool {
        let registered = self.loads_text_only_class() && self.version >= Version::new(0, 24);
        self.kind == EngineKind::VllmTpu && self.model.config.unified && !registered
    }
}

/// Resolves a profile. Findings are added to `loaded`; `None` means that too little is known to go on.
pub fn resolve(loaded: &mut Loaded) -> anyhow::Result<Option<Resolved>> {
    let mut findings = Vec::new();
    let resolved = resolve_into(loaded, &mut findings);
    loaded.diagnostics.append(&mut findings);
    resolved
}

fn resolve_into(loaded: &Loaded, findings: &mut Vec<Diagnostic>) -> anyhow::Result<Option<Resolved>> {
    let profile = &loaded.profile;
    let empty = Default::default;
    let (model_section, hardware) =
        (profile.model.get().cloned().unwrap_or_else(empty), profile.hardware.get().cloned().unwrap_or_default());
    let engine_section = profile.engine.get().cloned().unwrap_or_default();
    let (Some(model_id), Some(accelerator_name), Some(kind)) =
        (model_section.id.get(), hardware.accelerator.get(), engine_section.kind.get().copied())
    else {
        return Ok(None);
    };
    let engine = catalog::engine(kind)?;
    let mut record = Recorder::new(loaded, &engine);

    // What runs where.
    record.pick("model.id", &model_section.id, Clone::clone, || default(String::new(), ""));
    record.pick("hardware.accelerator", &hardware.accelerator, Clone::clone, || default(String::new(), ""));
    record.pick("engine.kind", &engine_section.kind, |kind| kind.as_str(), || default("", ""));
    let model = find_model(loaded, model_id, model_section.size.get().map(String::as_str), findings)?;
    let hardware_found =
        find_accelerator(loaded, accelerator_name, hardware.topology.get().map(String::as_str), findings)?;
    let version_text = record.pick("engine.version", &engine_section.version, Clone::clone, || {
        default(engine.latest.to_string(), format!("the newest version of {} in the catalog", engine.kind))
    });
    let version = match version_text.parse::<Version>() {
        Ok(version) => Some(version),
        Err(message) => {
            findings.push(Diagnostic::error(
                "invalid-value",
                loaded.locate("engine.version"),
                format!("`engine.version`: {message}"),
            ));
            None
        }
    };
    let (Some(model), Some((accelerator, mut slice)), Some(version)) = (model, hardware_found, version) else {
        return Ok(None);
    };
    if let Some(size) = model_section.size.get() {
        record.record("model.size", size, gemma4_plan::Source::Profile, "written in the profile".to_owned());
    }

    // Parallelism.
    let parallelism = profile.parallelism.get().cloned().unwrap_or_default();
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let data = record.pick(
        "parallelism.data",
        &parallelism.data,
        |count| narrow(count.0),
        || default(1, "one copy of the model"),
    );
    let all_devices = slice.chips.saturating_mul(accelerator.devices_per_chip);
    let tensor = record.pick(
        "parallelism.tensor",
        &parallelism.tensor,
        |count| narrow(count.0),
        || {
            if accelerator.kind == AcceleratorKind::Cpu {
                default(1, "one virtual device")
            } else {
                derived(
                    (all_devices / data.max(1)).max(1),
                    format!("all {all_devices} devices of {accelerator_name}, divided by parallelism.data"),
                )
            }
        },
    );
    let experts = record.pick(
        "parallelism.experts",
        &parallelism.experts,
        |experts| *experts,
        || default(ExpertSharding::Tensor, "every device takes part in every expert"),
    );
    let devices = if accelerator.kind == AcceleratorKind::Cpu { tensor.saturating_mul(data) } else { all_devices };
    if accelerator.kind == AcceleratorKind::Cpu {
        slice.chips = devices;
        slice.topology = devices.to_string();
    }
    record.pick("hardware.topology", &hardware.topology, Clone::clone, || {
        derived(slice.topology.clone(), format!("the arrangement of {accelerator_name}"))
    });
    let machine_type = record.pick(
        "hardware.machine_type",
        &hardware.machine_type,
        |value| Some(value.clone()),
        || derived(slice.machine_type.clone(), format!("the machine type of {accelerator_name} in the catalog")),
    );
    slice.machine_type = machine_type;
    let from_catalog = accelerator.usable(kind, version);
    let (usable, usable_source) = match (hardware.memory.get(), from_catalog) {
        (Some(memory), _) => (memory.0, "hardware.memory in the profile".to_owned()),
        (None, Some((bytes, source))) => (bytes, source.to_owned()),
        (None, None) => (0, "unknown".to_owned()),
    };
    record.pick(
        "hardware.memory",
        &hardware.memory,
        |memory| memory.0,
        || default(usable, format!("bytes of one device: {usable_source}")),
    );

    // The model.
    let dtype_word = record.pick(
        "model.dtype",
        &model_section.dtype,
        |dtype| *dtype,
        || default(WeightDtype::Auto, "the checkpoint's own"),
    );
    let dtype = match dtype_word {
        WeightDtype::Auto => model.config.dtype.unwrap_or(DType::Bf16),
        WeightDtype::Bfloat16 => DType::Bf16,
        WeightDtype::Float16 => DType::F16,
        WeightDtype::Float32 => DType::F32,
    };
    let architecture = record.pick("model.architecture", &model_section.architecture, Clone::clone, || {
        derived(model.config.architecture.clone(), "the architecture that the checkpoint names")
    });
    let revision = record.optional(
        "model.revision",
        &model_section.revision,
        Clone::clone,
        "the newest revision when the weights are fetched",
    );
    let quantization =
        record.optional("model.quantization", &model_section.quantization, Clone::clone, "as the checkpoint is");
    let trust_remote_code = record.pick(
        "model.trust_remote_code",
        &model_section.trust_remote_code,
        |value| *value,
        || default(false, "Gemma 4 needs no code from the checkpoint"),
    );
    let max_loras = record.optional("model.max_loras", &model_section.max_loras, |count| count.0, "no adapters");

    // Limits of a step.
    let scheduler = profile.scheduler.get().cloned().unwrap_or_default();
    let multimodal_section = profile.multimodal.get().cloned().unwrap_or_default();
    let multimodal = gemma4_plan::Multimodal {
        image: record.optional("multimodal.image", &multimodal_section.image, |count| count.0, "not limited"),
        audio: record.optional("multimodal.audio", &multimodal_section.audio, |count| count.0, "not limited"),
        video: record.optional("multimodal.video", &multimodal_section.video, |count| count.0, "not limited"),
    };
    let text_only = [multimodal.image, multimodal.audio, multimodal.video].iter().all(|limit| *limit == Some(0))
        || architecture == "Gemma4ForCausalLM";
    let context = model.config.text.max_position_embeddings;
    let max_model_len = record.pick(
        "scheduler.max_model_len",
        &scheduler.max_model_len,
        |tokens| tokens.0,
        || derived(context, format!("the longest context of {}", model.size)),
    );
    let integer = |value: &toml::Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
    let boolean = toml::Value::as_bool;
    let large_gpu = (kind == EngineKind::VllmGpu).then(|| gpu_defaults(accelerator.nominal_hbm_gib)).flatten();
    let explicit_budget = scheduler.max_num_batched_tokens.get().map(|tokens| tokens.0);
    let explicit_seqs = scheduler.max_num_seqs.get().is_some();
    let mut seqs = integer_default(&engine, "scheduler.max_num_seqs", 256);
    let mut budget = integer_default(&engine, "scheduler.max_num_batched_tokens", 2048);
    let mut budget_why = "the engine's server default".to_owned();
    if let Some((tokens, sequences)) = large_gpu {
        (seqs, budget) = (sequences, tokens);
        budget_why = format!("the engine's server default on a GPU with {:.0} GiB", accelerator.nominal_hbm_gib);
    }
    let raises = kind != EngineKind::Bundled && version >= Version::new(0, 22);
    if raises && model.config.bidirectional_vision && !text_only && budget < LARGEST_MEDIA_ITEM {
        budget = LARGEST_MEDIA_ITEM;
        budget_why = format!(
            "raised from the default: a video of {LARGEST_MEDIA_ITEM} tokens must fit into one step, because images see themselves in both directions"
        );
    }
    let budget = record.pick(
        "scheduler.max_num_batched_tokens",
        &scheduler.max_num_batched_tokens,
        |tokens| tokens.0,
        || default(budget, budget_why),
    );
    let mut seqs_why = "the engine's server default".to_owned();
    if kind != EngineKind::Bundled && !explicit_seqs && seqs > explicit_budget.unwrap_or(budget) {
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
            gemma4_plan::Source::Derived,
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

    // Speculation.
    let speculative_section = profile.speculative.get().cloned().unwrap_or_default();
    let method = record.pick(
        "speculative.method",
        &speculative_section.method,
        |method| *method,
        || default(SpeculativeMethod::None, "no speculation"),
    );
    let speculative = if method == SpeculativeMethod::None {
        None
    } else {
        Some(Speculative {
            method: method.as_str().to_owned(),
            model: record.optional("speculative.model", &speculative_section.model, Clone::clone, "no drafter"),
            num_tokens: record.pick(
                "speculative.num_tokens",
                &speculative_section.num_tokens,
                |count| count.0,
                || default(3, "gemma4ctl's default; vLLM has none"),
            ),
            prompt_lookup_min: record.optional(
                "speculative.prompt_lookup_min",
                &speculative_section.prompt_lookup_min,
                |count| count.0,
                "the engine's default, 5 for n-grams",
            ),
            prompt_lookup_max: record.optional(
                "speculative.prompt_lookup_max",
                &speculative_section.prompt_lookup_max,
                |count| count.0,
                "the engine's default, 5 for n-grams",
            ),
        })
    };

    // Memory.
    let memory = profile.memory.get().cloned().unwrap_or_default();
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

    // The rest.
    let chat_section = profile.chat.get().cloned().unwrap_or_default();
    let chat = gemma4_plan::Chat {
        tool_call_parser: record.optional(
            "chat.tool_call_parser",
            &chat_section.tool_call_parser,
            Clone::clone,
            "tool calls are not parsed",
        ),
        auto_tool_choice: record.pick(
            "chat.auto_tool_choice",
            &chat_section.auto_tool_choice,
            |value| *value,
            || default(false, "the model does not choose tools by itself"),
        ),
        reasoning_parser: record.optional(
            "chat.reasoning_parser",
            &chat_section.reasoning_parser,
            Clone::clone,
            "reasoning is not told apart",
        ),
    };
    let cache = profile.cache.get().cloned().unwrap_or_default();
    let compile_cache = record.optional("cache.compile", &cache.compile, Clone::clone, "the engine's own folder");
    let weights_cache = record.optional("cache.weights", &cache.weights, Clone::clone, "the engine's own folder");
    let safetensors_load = record.optional(
        "cache.safetensors_load",
        &cache.safetensors_load,
        |load| load.as_str().to_owned(),
        "the engine's default",
    );
    let server = profile.server.get().cloned().unwrap_or_default();
    let host = record.pick_or_engine(
        "server.host",
        &server.host,
        Clone::clone,
        |value| value.as_str().map(str::to_owned),
        "127.0.0.1".to_owned(),
    );
    let port = record.pick_or_engine(
        "server.port",
        &server.port,
        |port| port.0,
        |value| value.as_integer().and_then(|port| u16::try_from(port).ok()),
        8000,
    );
    let secrets: BTreeMap<String, SecretRef> = profile
        .secrets
        .get()
        .map(|map| map.iter().map(|(name, secret)| (name.clone(), secret.0.clone())).collect())
        .unwrap_or_default();
    let workload_section = profile.workload.get().cloned().unwrap_or_default();
    let workload = profile.workload.get().map(|_| Workload {
        concurrency: record.optional(
            "workload.concurrency",
            &workload_section.concurrency,
            |count| count.0,
            "not said",
        ),
        input_tokens: record.optional(
            "workload.input_tokens",
            &workload_section.input_tokens,
            |tokens| tokens.0,
            "not said",
        ),
        output_tokens: record.optional(
            "workload.output_tokens",
            &workload_section.output_tokens,
            |tokens| tokens.0,
            "not said",
        ),
    });
    let image = record.pick(
        "engine.image",
        &engine_section.image,
        |image| Some(image.clone()),
        || match (&engine.image, kind) {
            (Some(repository), EngineKind::VllmTpu | EngineKind::VllmGpu) => {
                derived(Some(format!("{repository}:v{version}.0")), "the release of engine.version")
            }
            _ => default(None, "runs without a container"),
        },
    );
    let pip =
        record.optional("engine.pip", &engine_section.pip, Clone::clone, "nothing is installed").unwrap_or_default();
    let extra_args =
        record.optional("engine.extra_args", &engine_section.extra_args, Clone::clone, "none").unwrap_or_default();
    let env: BTreeMap<String, String> = engine_section
        .env
        .get()
        .map(|map| map.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect())
        .unwrap_or_default();
    let deploy = profile.deploy.get().cloned().unwrap_or_default();
    let gcloud = deploy.gcloud.get().cloned().unwrap_or_default();
    let plane = record.pick(
        "deploy.gcloud.plane",
        &gcloud.plane,
        |plane| Some(plane.as_str()),
        || {
            derived(
                accelerator.planes.first().map(|plane| plane.as_str()),
                format!("the first API that can create {}", accelerator.family),
            )
        },
    );
    let plane =
        accelerator.planes.iter().chain(gcloud.plane.get()).find(|known| Some(known.as_str()) == plane).copied();
    let provisioning = gcloud.provisioning.get().copied();
    let max_run_duration = gcloud.max_run_duration.get().map(|span| span.seconds);

    let provenance = record.finish();
    Ok(Some(Resolved {
        kind,
        version,
        version_text,
        image,
        pip,
        extra_args,
        env,
        model_id: model_id.clone(),
        architecture,
        revision,
        dtype,
        dtype_word,
        quantization,
        trust_remote_code,
        max_loras,
        accelerator_name: accelerator_name.clone(),
        slice,
        devices,
        usable,
        usable_source,
        tensor,
        data,
        experts,
        utilization,
        kv_word,
        kv_dtype,
        block_size,
        num_blocks,
        weights_measured,
        per_layer_embeddings,
        max_model_len,
        max_num_seqs,
        max_num_batched_tokens: budget,
        padding_gap,
        prefix_caching,
        chunked_prefill,
        chunked_mm_input,
        fast_prefill,
        async_scheduling,
        speculative,
        multimodal,
        chat,
        compile_cache,
        weights_cache,
        safetensors_load,
        host,
        port,
        secrets,
        workload,
        plane,
        provisioning,
        max_run_duration,
        provenance,
        model,
        accelerator,
        engine,
    }))
}

/// Tokens of Gemma 4's largest media item: a video of 32 frames with 78 tokens each (70 of the image, 8 around it).
pub const LARGEST_MEDIA_ITEM: u64 = 2496;

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

fn integer_default(engine: &Engine, key: &str, otherwise: u64) -> u64 {
    engine
        .default(key)
        .and_then(|entry| entry.value.as_integer())
        .and_then(|number| u64::try_from(number).ok())
        .unwrap_or(otherwise)
}

fn find_model(
    loaded: &Loaded,
    id: &str,
    size: Option<&str>,
    findings: &mut Vec<Diagnostic>,
) -> anyhow::Result<Option<Arc<Model>>> {
    let location = loaded.locate("model.id");
    if id.starts_with('.') || id.starts_with('/') {
        let folder = if id.starts_with('/') { Path::new(id).to_owned() } else { loaded.folder.join(id) };
        return match catalog::local_model(&folder) {
            Ok(model) => Ok(Some(Arc::new(model))),
            Err(catalog::CatalogError::Checkpoint(message)) => {
                findings.push(Diagnostic::error("unusable-checkpoint", location, format!("`model.id` is not a folder with a Gemma 4 checkpoint: {message}"))
                    .help("a folder holds config.json and model.safetensors (or its shards with model.safetensors.index.json); the path starts at the profile's folder"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        };
    }
    if let Some(model) = catalog::model(id, size)? {
        return Ok(Some(model));
    }
    let names = catalog::model_names()?;
    let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut finding =
        Diagnostic::error("unknown-model", location, format!("the catalog does not know the model `{id}`"));
    finding = match nearest(id, &borrowed) {
        Some(name) => finding.help(format!("did you mean `{name}`?")),
        None => finding.help(format!(
            "known: {}; say `model.size` for a checkpoint of another name, or use a folder",
            names.join(", ")
        )),
    };
    findings.push(finding);
    Ok(None)
}

fn find_accelerator(
    loaded: &Loaded,
    name: &str,
    topology: Option<&str>,
    findings: &mut Vec<Diagnostic>,
) -> anyhow::Result<Option<(Arc<Accelerator>, Slice)>> {
    let location = loaded.locate("hardware.accelerator");
    let (family, count) = match name.rsplit_once('-') {
        Some((family, count)) if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) => {
            (family, count.parse::<u32>().ok())
        }
        _ => (name, None),
    };
    let Some(accelerator) = catalog::accelerator(family)? else {
        let names = catalog::accelerator_names()?;
        let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut families: Vec<&str> =
            names.iter().map(|name| name.rsplit_once('-').map_or(name.as_str(), |(family, _)| family)).collect();
        families.dedup();
        let finding = Diagnostic::error(
            "unknown-accelerator",
            location,
            format!("the catalog does not know the accelerator `{name}`"),
        );
        findings.push(match nearest(name, &borrowed) {
            Some(near) => finding.help(format!("did you mean `{near}`?")),
            None => finding.help(format!("write family-chips; families: {}", families.join(", "))),
        });
        return Ok(None);
    };
    if accelerator.kind == AcceleratorKind::Cpu {
        let chips = count.unwrap_or(1);
        return Ok(Some((
            accelerator,
            Slice { chips, topology: chips.to_string(), machine_type: None, hosts: 1, host_ram_gib: None },
        )));
    }
    let sizes: Vec<String> = accelerator.slices.iter().map(|slice| format!("{family}-{}", slice.chips)).collect();
    let slice = count.and_then(|count| accelerator.slice(count)).cloned();
    let Some(slice) = slice else {
        let message = match count {
            Some(count) => format!("there is no {family} slice with {count} chips"),
            None => format!("`{name}` does not say how many chips"),
        };
        findings.push(
            Diagnostic::error("unknown-accelerator", location, message)
                .help(format!("the sizes are {}", sizes.join(", "))),
        );
        return Ok(None);
    };
    if let Some(topology) = topology
        && topology != slice.topology
    {
        findings.push(
            Diagnostic::error(
                "topology-mismatch",
                loaded.locate("hardware.topology"),
                format!("{name} is arranged as {}, not {topology}", slice.topology),
            )
            .help("leave `hardware.topology` out, or name another accelerator"),
        );
        return Ok(None);
    }
    Ok(Some((accelerator, slice)))
}
