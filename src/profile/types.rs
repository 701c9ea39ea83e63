//! The shape of a profile. The comments on the keys are what editors and docs/profiles.md show.

use std::collections::BTreeMap;

use gemma4_plan::SecretRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::de::Field;
use super::units::{Amount, Bytes, ContainerName, Count, EnvValue, Gib, Port, Share, Span, Tokens};

macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: Field<$type>,)*
        }
        impl $name {
            /// The keys, in order.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

section! {
    /// What you want to serve, on what, and how.
    Profile {
        /// Name of the profile; the file's name without `.toml` when left out.
        name: String,
        /// One line that says what makes this profile different.
        summary: String,
        /// Whether this profile is only there to be extended: lint checks its keys, not that it is complete.
        base: bool,
        /// Profiles that this one builds on, by name or by path relative to this file; later ones win.
        extends: Vec<String>,
        /// The model.
        model: Model,
        /// The hardware.
        hardware: Hardware,
        /// The serving engine.
        engine: Engine,
        /// How the devices share the work.
        parallelism: Parallelism,
        /// What the memory of a device is used for.
        memory: Memory,
        /// Limits of a step.
        scheduler: Scheduler,
        /// Speculative decoding; without this section there is none.
        speculative: Speculative,
        /// Media items a request may hold.
        multimodal: Multimodal,
        /// Tool calls and reasoning.
        chat: Chat,
        /// What survives a restart.
        cache: Cache,
        /// References to secrets by purpose (`hf_token`, `api_key`); values never stand in a profile.
        secrets: BTreeMap<String, Secret>,
        /// The HTTP side.
        server: Server,
        /// What the deployment is sized for; lint uses it.
        workload: Workload,
        /// Settings of the deployment targets.
        deploy: Deploy,
        /// What lint may leave unsaid.
        lint: Lint,
    }
}

section! {
    /// The model.
    Model {
        /// Hugging Face id, a built-in model (`builtin/smoke`), or a folder with a checkpoint (`./path` or absolute).
        id: String,
        /// Size in the Gemma 4 family, for an id that does not show it.
        size: String,
        /// Architecture to load instead of the checkpoint's own, such as `Gemma4ForCausalLM` for text only.
        architecture: String,
        /// Branch, tag or commit of the checkpoint.
        revision: String,
        /// Data type of the weights.
        dtype: WeightDtype,
        /// Weight quantization, as the engine names it. The bundled engine quantizes to `int8` or `int4` while it loads.
        quantization: String,
        /// Whether the engine may run Python code from the checkpoint. Gemma 4 does not need it.
        trust_remote_code: bool,
        /// Most LoRA adapters in one batch.
        max_loras: Count,
    }
}

section! {
    /// The hardware.
    Hardware {
        /// Chips as `family-count` (`v6e-4`, `v5e-1`, `tpu7x-4`, `h100-1`), or `cpu`.
        accelerator: String,
        /// Arrangement of the chips, such as `2x2`; taken from the catalog when left out.
        topology: String,
        /// Usable bytes of one device, in place of the catalog's figure: an observed `bytes_limit`, or the share of RAM for a CPU device.
        memory: Bytes,
        /// Machine type in the cloud; taken from the catalog when left out.
        machine_type: String,
    }
}

section! {
    /// The serving engine.
    Engine {
        /// Which engine.
        kind: EngineKind,
        /// Container image.
        image: String,
        /// Version of vLLM in the image; decides defaults, flags and memory rules.
        version: String,
        /// Python packages installed at every start.
        pip: Vec<String>,
        /// Further flags, checked by name against the engine's option list.
        extra_args: Vec<String>,
        /// Further environment variables. Secrets belong into `[secrets]`.
        env: BTreeMap<String, EnvValue>,
    }
}

section! {
    /// How the devices share the work.
    Parallelism {
        /// Devices that share one copy of the model.
        tensor: Count,
        /// Copies of the model.
        data: Count,
        /// How the bundled engine splits experts over devices.
        experts: ExpertSharding,
    }
}

section! {
    /// What the memory of a device is used for.
    Memory {
        /// Share of the usable memory for weights and KV cache together; the rest is for compiled programs.
        hbm_utilization: Share,
        /// Data type of the KV cache.
        kv_cache_dtype: KvCacheDtype,
        /// Tokens in a KV block; the engine's own rule when left out.
        block_size: Count,
        /// Blocks in the KV pool, in place of what memory allows. Pins compiled programs over changes of the budget.
        num_blocks: Count,
        /// GiB of weights in device memory after loading, all devices together, where it was measured.
        weights_measured: Gib,
        /// Where the bundled engine keeps the per-layer-embedding table of E2B and E4B.
        per_layer_embeddings: Placement,
    }
}

section! {
    /// Limits of a step.
    Scheduler {
        /// Longest sequence in tokens, prompt and output together.
        max_model_len: Tokens,
        /// Most sequences in a step.
        max_num_seqs: Count,
        /// Most tokens in a step.
        max_num_batched_tokens: Tokens,
        /// Distance between token buckets; 0 doubles from bucket to bucket.
        bucket_padding_gap: Amount,
        /// Share KV blocks between requests with the same beginning.
        prefix_caching: bool,
        /// Split long prompts over steps.
        chunked_prefill: bool,
        /// Split media items over steps.
        chunked_mm_input: bool,
        /// Let layers that share KV skip prompt tokens (E2B, E4B).
        kv_sharing_fast_prefill: bool,
        /// Prepare a step while the last one runs; the engine decides when left out.
        async_scheduling: bool,
    }
}

section! {
    /// Speculative decoding.
    Speculative {
        /// How drafts are made; `none` takes back what a parent profile says.
        method: SpeculativeMethod,
        /// Checkpoint of the drafter, for methods that have one.
        model: String,
        /// Draft tokens a step.
        num_tokens: Count,
        /// Shortest n-gram that is looked up in the context.
        prompt_lookup_min: Count,
        /// Longest n-gram that is looked up in the context.
        prompt_lookup_max: Count,
    }
}

section! {
    /// Media items a request may hold. All zero serves text only and saves programs.
    Multimodal {
        /// Images.
        image: Amount,
        /// Audio clips.
        audio: Amount,
        /// Videos.
        video: Amount,
    }
}

section! {
    /// Tool calls and reasoning.
    Chat {
        /// Parser for tool calls.
        tool_call_parser: String,
        /// Let the model choose a tool by itself.
        auto_tool_choice: bool,
        /// Parser for reasoning.
        reasoning_parser: String,
    }
}

section! {
    /// What survives a restart.
    Cache {
        /// Folder for compiled programs.
        compile: String,
        /// Folder for downloaded weights (`HF_HOME`).
        weights: String,
        /// How weight files are read.
        safetensors_load: SafetensorsLoad,
    }
}

section! {
    /// The HTTP side.
    Server {
        /// Address to bind.
        host: String,
        /// Port to bind.
        port: Port,
    }
}

section! {
    /// What the deployment is sized for.
    Workload {
        /// Users at once.
        concurrency: Count,
        /// Prompt tokens a request.
        input_tokens: Tokens,
        /// Output tokens a request.
        output_tokens: Tokens,
    }
}

section! {
    /// Settings of the deployment targets.
    Deploy {
        /// A container on one machine.
        docker: Docker,
        /// A TPU machine in Google Cloud.
        gcloud: Gcloud,
        /// Google Kubernetes Engine.
        gke: Gke,
    }
}

section! {
    /// A container on one machine.
    Docker {
        /// Name of the container: letters, digits, `_`, `.` and `-`.
        name: ContainerName,
        /// Size of /dev/shm in Docker's units (`10gb` is 10 x 2^30).
        shm_size: String,
        /// Mount the host's /dev/shm instead; `shm_size` then has no effect.
        share_dev_shm: bool,
    }
}

section! {
    /// A TPU machine in Google Cloud.
    Gcloud {
        /// Project id.
        project: String,
        /// Zone, such as `us-east5-b`.
        zone: String,
        /// Which API creates the machine.
        plane: Plane,
        /// How capacity is bought.
        provisioning: Provisioning,
        /// When the machine is deleted by itself.
        max_run_duration: Span,
        /// How long to wait for capacity.
        valid_for: Span,
        /// Address ranges (CIDR) that may reach the port; empty keeps it closed, to be reached through a tunnel.
        open_to: Vec<String>,
        /// Whether the machine has an address of its own on the internet.
        external_ip: bool,
        /// Reservation to use.
        reservation: String,
        /// Service account of the machine.
        service_account: String,
        /// Network.
        network: String,
        /// Subnetwork.
        subnetwork: String,
    }
}

section! {
    /// Google Kubernetes Engine.
    Gke {
        /// Cluster.
        cluster: String,
        /// Location of the cluster.
        location: String,
        /// Namespace.
        namespace: String,
        /// Copies of the service, each with machines of its own.
        replicas: Count,
    }
}

section! {
    /// What lint may leave unsaid.
    Lint {
        /// Rules to leave unsaid, each with the reason.
        allow: Vec<Allow>,
    }
}

section! {
    /// A rule to leave unsaid.
    Allow {
        /// Code of the rule.
        rule: String,
        /// Why it does not matter here.
        reason: String,
    }
}

/// A reference to a secret: exactly one of `gcp_secret`, `env` and `file`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "SecretRef")]
pub struct Secret(pub SecretRef);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            gcp_secret: Option<String>,
            env: Option<String>,
            file: Option<String>,
        }
        let raw = Raw::deserialize(deserializer)?;
        match (raw.gcp_secret, raw.env, raw.file) {
            (Some(gcp_secret), None, None) => Ok(Secret(SecretRef::Gcp { gcp_secret })),
            (None, Some(env), None) if !is_variable(&env) => {
                Err(serde::de::Error::custom("`env` names a variable: letters, digits and `_`, not a digit first"))
            }
            (None, Some(env), None) => Ok(Secret(SecretRef::Env { env })),
            (None, None, Some(file)) => Ok(Secret(SecretRef::File { file })),
            _ => Err(serde::de::Error::custom("a secret is exactly one of `gcp_secret`, `env` and `file`")),
        }
    }
}

/// Whether a shell can have a variable of this name; anything else would be code in the scripts that read it.
fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal $(| $alias:literal)*,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)*
        }
        impl $name {
            /// The word as it stands in a profile.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Which engine serves.
    EngineKind {
        /// vLLM with tpu-inference, in a container.
        VllmTpu = "vllm-tpu",
        /// vLLM on NVIDIA GPUs, in a container.
        VllmGpu = "vllm-gpu",
        /// The runtime that comes with gemma4ctl.
        Bundled = "bundled",
    }
}

words! {
    /// Data type of the weights.
    WeightDtype {
        /// The checkpoint's own.
        Auto = "auto",
        /// 16 bits, the published type.
        Bfloat16 = "bfloat16",
        /// 16 bits with a small range.
        Float16 = "float16",
        /// 32 bits.
        Float32 = "float32",
    }
}

words! {
    /// Data type of the KV cache.
    KvCacheDtype {
        /// That of the weights.
        Auto = "auto",
        /// 16 bits.
        Bfloat16 = "bfloat16",
        /// 16 bits with a small range.
        Float16 = "float16",
        /// 32 bits (bundled engine).
        Float32 = "float32",
        /// 8 bits, the same as `fp8_e4m3`.
        Fp8 = "fp8",
        /// 8 bits with 3 bits of mantissa.
        Fp8E4m3 = "fp8_e4m3",
        /// 8 bits with 2 bits of mantissa.
        Fp8E5m2 = "fp8_e5m2",
    }
}

words! {
    /// How experts are split over devices.
    ExpertSharding {
        /// Each device holds a part of every expert.
        Tensor = "tensor",
        /// Each device holds some whole experts.
        Expert = "expert",
    }
}

words! {
    /// Where a tensor lives.
    Placement {
        /// In the device's memory.
        Device = "device",
        /// In the host's memory.
        Host = "host",
    }
}

words! {
    /// How drafts are made.
    SpeculativeMethod {
        /// No speculation.
        None = "none",
        /// Looked up in the context.
        Ngram = "ngram",
        /// Gemma 4's own drafter.
        Mtp = "mtp",
        /// An EAGLE drafter.
        Eagle = "eagle",
        /// An EAGLE 3 drafter.
        Eagle3 = "eagle3",
    }
}

words! {
    /// How weight files are read.
    SafetensorsLoad {
        /// By memory map, page by page.
        Lazy = "lazy",
        /// Whole files at once.
        Eager = "eager",
        /// Ahead, in the background.
        Prefetch = "prefetch",
    }
}

words! {
    /// Which API creates the machine.
    Plane {
        /// `gcloud compute instances`: v6e and v5p.
        ComputeEngine = "compute-engine",
        /// `gcloud alpha compute tpus queued-resources`: v5e, v6e, v5p.
        QueuedResource = "queued-resource",
        /// Google Kubernetes Engine.
        Gke = "gke",
    }
}

words! {
    /// How capacity is bought.
    Provisioning {
        /// Listed price, as long as wanted.
        OnDemand = "on-demand",
        /// Up to seven days, once capacity comes free.
        FlexStart = "flex-start",
        /// Can be taken back at any moment.
        Spot = "spot",
        /// From a reservation.
        Reserved = "reserved",
    }
}
