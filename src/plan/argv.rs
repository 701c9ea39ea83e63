//! The engine's command line and environment.
//!
//! What the profile says is always on the command line; of the defaults, those on which the budget rests are too, so
//! that a plan means the same under another build of the engine. Values are arguments of their own, never parts of a
//! shell line.

use std::collections::BTreeMap;

use serde_json::json;

use crate::catalog::Version;
use crate::profile::{EngineKind, KvCacheDtype};
use crate::resolve::Resolved;

/// A command line with its environment.
pub(super) struct Command {
    /// Arguments, the program first.
    pub(super) argv: Vec<String>,
    /// Environment variables.
    pub(super) env: BTreeMap<String, String>,
    /// What was left out or renamed, and why.
    pub(super) notes: Vec<String>,
}

/// The command of a resolved profile.
pub(super) fn command(resolved: &Resolved, is_set: impl Fn(&str) -> bool) -> Command {
    match resolved.kind {
        EngineKind::VllmTpu | EngineKind::VllmGpu => vllm(resolved, is_set),
        EngineKind::Bundled => Command {
            argv: ["gemma4ctl", "runtime", "serve", "PLAN"].map(str::to_owned).to_vec(),
            env: resolved.env.clone(),
            notes: vec!["every setting is read from the plan file that stands in for PLAN".to_owned()],
        },
    }
}

fn vllm(resolved: &Resolved, is_set: impl Fn(&str) -> bool) -> Command {
    let tpu = resolved.kind == EngineKind::VllmTpu;
    let mut argv: Vec<String> = ["vllm", "serve"].map(str::to_owned).to_vec();
    argv.push(resolved.model_id.clone());
    let mut notes = Vec::new();
    let mut value = |flag: &str, text: String| {
        argv.push(flag.to_owned());
        argv.push(text);
    };
    value("--host", resolved.serving.host.clone());
    value("--port", resolved.serving.port.to_string());
    value("--tensor-parallel-size", resolved.tensor.to_string());
    if resolved.data > 1 {
        value("--data-parallel-size", resolved.data.to_string());
    }
    value("--dtype", resolved.dtype_word.to_string());
    value(
        "--kv-cache-dtype",
        if resolved.memory.kv_word == KvCacheDtype::Auto {
            "auto".to_owned()
        } else {
            resolved.memory.kv_word.to_string()
        },
    );
    value("--gpu-memory-utilization", resolved.memory.utilization.to_string());
    value("--max-model-len", resolved.limits.max_model_len.to_string());
    value("--max-num-seqs", resolved.limits.max_num_seqs.to_string());
    value("--max-num-batched-tokens", resolved.limits.max_num_batched_tokens.to_string());
    if let Some(block_size) = resolved.memory.block_size {
        value("--block-size", block_size.to_string());
    }
    if let Some(blocks) = resolved.memory.num_blocks {
        value("--num-gpu-blocks-override", blocks.to_string());
    }
    if let Some(revision) = &resolved.revision {
        value("--revision", revision.clone());
    }
    if let Some(quantization) = &resolved.quantization {
        value("--quantization", quantization.clone());
    }
    if let Some(max_loras) = resolved.max_loras {
        // The count alone enables nothing.
        value("--max-loras", max_loras.to_string());
    }
    if resolved.architecture != resolved.model.config.architecture {
        value("--hf-overrides", json!({ "architectures": [resolved.architecture] }).to_string());
    }
    if let Some(speculative) = &resolved.speculative {
        let mut config = json!({ "method": speculative.method, "num_speculative_tokens": speculative.num_tokens });
        if let Some(model) = &speculative.model {
            config["model"] = model.as_str().into();
        }
        if let Some(min) = speculative.prompt_lookup_min {
            config["prompt_lookup_min"] = min.into();
        }
        if let Some(max) = speculative.prompt_lookup_max {
            config["prompt_lookup_max"] = max.into();
        }
        value("--speculative-config", config.to_string());
    }
    if let Some(load) = &resolved.serving.safetensors_load {
        value("--safetensors-load-strategy", load.clone());
    }
    let limits = &resolved.multimodal;
    let limit = [("image", limits.image), ("audio", limits.audio), ("video", limits.video)];
    if limit.iter().any(|(_, count)| count.is_some()) {
        let map: serde_json::Map<String, serde_json::Value> =
            limit.into_iter().filter_map(|(name, count)| count.map(|count| (name.to_owned(), count.into()))).collect();
        value("--limit-mm-per-prompt", serde_json::Value::Object(map).to_string());
    }
    if let Some(parser) = &resolved.serving.chat.tool_call_parser {
        value("--tool-call-parser", parser.clone());
    }
    if let Some(parser) = &resolved.serving.chat.reasoning_parser {
        value("--reasoning-parser", parser.clone());
    }
    if resolved.serving.chat.auto_tool_choice {
        argv.push("--enable-auto-tool-choice".to_owned());
    }
    // Booleans that the profile says, in either direction.
    let mut switch = |key: &str, on: bool, yes: &str, no: &str| {
        if is_set(key) {
            argv.push(if on { yes } else { no }.to_owned());
        }
    };
    switch(
        "scheduler.prefix_caching",
        resolved.limits.prefix_caching,
        "--enable-prefix-caching",
        "--no-enable-prefix-caching",
    );
    switch(
        "scheduler.chunked_prefill",
        resolved.limits.chunked_prefill,
        "--enable-chunked-prefill",
        "--no-enable-chunked-prefill",
    );
    switch(
        "scheduler.async_scheduling",
        resolved.limits.async_scheduling == Some(true),
        "--async-scheduling",
        "--no-async-scheduling",
    );
    if is_set("scheduler.chunked_mm_input") && !resolved.limits.chunked_mm_input {
        argv.push("--disable-chunked-mm-input".to_owned());
    }
    if resolved.limits.fast_prefill {
        argv.push("--kv-sharing-fast-prefill".to_owned());
    }
    if resolved.max_loras.is_some() {
        argv.push("--enable-lora".to_owned());
    }
    if resolved.trust_remote_code {
        argv.push("--trust-remote-code".to_owned());
    }
    let mut arguments = resolved.extra_args.iter().peekable();
    while let Some(argument) = arguments.next() {
        let (name, inline) = argument.split_once('=').map_or((argument.as_str(), false), |(name, _)| (name, true));
        let name = name.replace('_', "-");
        let gone = resolved.engine.flags.iter().find(|flag| flag.name == name && resolved.version >= flag.until);
        let Some(flag) = gone else {
            argv.push(argument.clone());
            continue;
        };
        notes.push(format!("left out {name}: {}", flag.help));
        // Its value goes with it, and nothing that is a flag itself.
        if flag.takes_value && !inline {
            arguments.next_if(|next| !next.starts_with('-'));
        }
    }

    let mut env = resolved.env.clone();
    if tpu && resolved.limits.padding_gap > 0 {
        env.insert("VLLM_TPU_BUCKET_PADDING_GAP".to_owned(), resolved.limits.padding_gap.to_string());
        if resolved.version >= Version::new(0, 26) {
            notes.push("this version prints `Unknown vLLM environment variable detected: VLLM_TPU_BUCKET_PADDING_GAP`, and applies it".to_owned());
        }
    }
    if let Some(path) = &resolved.serving.compile_cache {
        env.insert(if tpu { "VLLM_XLA_CACHE_PATH" } else { "VLLM_CACHE_ROOT" }.to_owned(), path.clone());
    }
    if let Some(path) = &resolved.serving.weights_cache {
        env.insert("HF_HOME".to_owned(), path.clone());
    }
    Command { argv, env, notes }
}
