//! How requests are served, and where the service is deployed.

use std::collections::BTreeMap;

use gemma4_plan::{Chat, Multimodal, SecretRef, Speculative, Workload};

use super::provenance::{Recorder, default, derived};
use crate::catalog::Accelerator;
use crate::profile::{Loaded, Plane, Provisioning, SpeculativeMethod};

/// How requests are served.
#[derive(Debug)]
pub struct Serving {
    /// Tool calls and reasoning.
    pub chat: Chat,
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
}

/// Where the service is deployed.
#[derive(Debug)]
pub struct Deployment {
    /// The API that creates the machine, if said or if there is one choice.
    pub plane: Option<Plane>,
    /// How capacity is bought.
    pub provisioning: Option<Provisioning>,
    /// When the machine is deleted, seconds.
    pub max_run_duration: Option<u64>,
}

/// Resolves `[multimodal]`.
pub(super) fn multimodal(loaded: &Loaded, record: &mut Recorder<'_>) -> Multimodal {
    let multimodal_section = loaded.profile.multimodal.get().cloned().unwrap_or_default();
    Multimodal {
        image: record.optional("multimodal.image", &multimodal_section.image, |count| count.0, "not limited"),
        audio: record.optional("multimodal.audio", &multimodal_section.audio, |count| count.0, "not limited"),
        video: record.optional("multimodal.video", &multimodal_section.video, |count| count.0, "not limited"),
    }
}

/// Resolves `[speculative]`; none without a method.
pub(super) fn speculative(loaded: &Loaded, record: &mut Recorder<'_>) -> Option<Speculative> {
    let speculative_section = loaded.profile.speculative.get().cloned().unwrap_or_default();
    let method = record.pick(
        "speculative.method",
        &speculative_section.method,
        |method| *method,
        || default(SpeculativeMethod::None, "no speculation"),
    );
    if method == SpeculativeMethod::None {
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
    }
}

/// Resolves `[chat]`, `[cache]`, `[server]`, `[secrets]` and `[workload]`.
pub(super) fn serving(loaded: &Loaded, record: &mut Recorder<'_>) -> Serving {
    let chat_section = loaded.profile.chat.get().cloned().unwrap_or_default();
    let chat = Chat {
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
    let cache = loaded.profile.cache.get().cloned().unwrap_or_default();
    let compile_cache = record.optional("cache.compile", &cache.compile, Clone::clone, "the engine's own folder");
    let weights_cache = record.optional("cache.weights", &cache.weights, Clone::clone, "the engine's own folder");
    let safetensors_load = record.optional(
        "cache.safetensors_load",
        &cache.safetensors_load,
        |load| load.as_str().to_owned(),
        "the engine's default",
    );
    let server = loaded.profile.server.get().cloned().unwrap_or_default();
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
    let secrets: BTreeMap<String, SecretRef> = loaded
        .profile
        .secrets
        .get()
        .map(|map| map.iter().map(|(name, secret)| (name.clone(), secret.0.clone())).collect())
        .unwrap_or_default();
    let workload_section = loaded.profile.workload.get().cloned().unwrap_or_default();
    let workload = loaded.profile.workload.get().map(|_| Workload {
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
    Serving { chat, compile_cache, weights_cache, safetensors_load, host, port, secrets, workload }
}

/// Resolves what lint and artifacts need of `[deploy]`.
pub(super) fn deployment(loaded: &Loaded, accelerator: &Accelerator, record: &mut Recorder<'_>) -> Deployment {
    let deploy = loaded.profile.deploy.get().cloned().unwrap_or_default();
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

    Deployment { plane, provisioning, max_run_duration }
}
