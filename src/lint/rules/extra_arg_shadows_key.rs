//! A flag for something that a profile key says.

use super::prelude::*;

rule!("extra-arg-shadows-key", Error, "a flag that sets what a profile key sets");

/// Flags that the plan writes, and the keys they come from. `--no-` forms are meant too.
const FLAGS: [(&str, &str); 31] = [
    ("--model", "model.id"),
    ("--host", "server.host"),
    ("--port", "server.port"),
    ("--tensor-parallel-size", "parallelism.tensor"),
    ("-tp", "parallelism.tensor"),
    ("--data-parallel-size", "parallelism.data"),
    ("-dp", "parallelism.data"),
    ("--dtype", "model.dtype"),
    ("--kv-cache-dtype", "memory.kv_cache_dtype"),
    ("--gpu-memory-utilization", "memory.hbm_utilization"),
    ("--device-memory-utilization", "memory.hbm_utilization"),
    ("--max-model-len", "scheduler.max_model_len"),
    ("--max-num-seqs", "scheduler.max_num_seqs"),
    ("--max-num-batched-tokens", "scheduler.max_num_batched_tokens"),
    ("--block-size", "memory.block_size"),
    ("--num-gpu-blocks-override", "memory.num_blocks"),
    ("--revision", "model.revision"),
    ("--quantization", "model.quantization"),
    ("-q", "model.quantization"),
    ("--max-loras", "model.max_loras"),
    ("--speculative-config", "speculative"),
    ("-sc", "speculative"),
    ("--safetensors-load-strategy", "cache.safetensors_load"),
    ("--limit-mm-per-prompt", "multimodal"),
    ("--tool-call-parser", "chat.tool_call_parser"),
    ("--reasoning-parser", "chat.reasoning_parser"),
    ("--enable-auto-tool-choice", "chat.auto_tool_choice"),
    ("--enable-prefix-caching", "scheduler.prefix_caching"),
    ("--enable-chunked-prefill", "scheduler.chunked_prefill"),
    ("--async-scheduling", "scheduler.async_scheduling"),
    ("--kv-sharing-fast-prefill", "scheduler.kv_sharing_fast_prefill"),
];

/// The key for a flag, and how it is said there where that is not plain.
fn key_of(flag: &str) -> Option<&'static str> {
    let positive = flag.strip_prefix("--no-").map(|name| format!("--{name}"));
    let flag = positive.as_deref().unwrap_or(flag);
    match flag {
        "--disable-chunked-mm-input" => Some("scheduler.chunked_mm_input"),
        "--trust-remote-code" => Some("model.trust_remote_code"),
        _ => FLAGS.iter().find(|(name, _)| *name == flag).map(|(_, key)| *key),
    }
}

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    if !context.on_vllm() {
        return;
    }
    let names_architecture = context.resolved.extra_args.iter().any(|argument| argument.contains("architectures"));
    for (flag, place) in context.extra_flags() {
        // Other overrides of the configuration have no key.
        let overrides = flag == "--hf-overrides" && (names_architecture || context.is_set("model.architecture"));
        let Some(key) = (if overrides { Some("model.architecture") } else { key_of(&flag) }) else { continue };
        let shown = if key.contains('.') { format!("`{key}`") } else { format!("`[{key}]`") };
        let mut finding = RULE
            .finding(place, format!("`{flag}` is what {shown} says: the plan is computed without the flag, and the engine would follow one of the two"))
            .help(format!("write it as {shown} and take the flag out"));
        if context.is_set(key) {
            finding = finding.related(context.at(key), "the key is here");
        }
        findings.push(finding);
    }
}
