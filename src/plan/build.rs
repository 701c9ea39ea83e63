//! Puts a plan together from resolved values, budget and findings.

use std::collections::BTreeMap;

use gemma4_plan::{
    CompileCache, Engine, Hardware, Mesh, Model, Plan, ProfileSummary, Scheduler, Server, Sharding, digest,
};

use super::argv;
use crate::budget::Budget;
use crate::profile::tree::Value;
use crate::profile::{EngineKind, Loaded, schema};
use crate::resolve::Resolved;

/// The plan, its digest not yet computed.
pub fn build(loaded: &Loaded, resolved: &Resolved, budget: &Budget) -> Plan {
    let command = argv::command(resolved, |key| loaded.node(key).is_some());
    let mut plan = Plan {
        format: gemma4_plan::FORMAT.to_owned(),
        digest: String::new(),
        checksum: String::new(),
        profile: ProfileSummary { name: loaded.name.clone(), summary: loaded.profile.summary.get().cloned() },
        model: Model {
            id: resolved.model_id.clone(),
            size: resolved.model.size.clone(),
            architecture: resolved.architecture.clone(),
            revision: resolved.revision.clone(),
            dtype: resolved.dtype.name().to_owned(),
            quantization: resolved.quantization.clone(),
            trust_remote_code: resolved.trust_remote_code,
            fingerprint: resolved.model.fingerprint.clone(),
            per_layer_embeddings: resolved.memory.per_layer_embeddings.to_string(),
            safetensors_load: resolved.serving.safetensors_load.clone(),
            context_length: resolved.model.config.text.max_position_embeddings,
            parameters: parameters(resolved),
        },
        hardware: Hardware {
            accelerator: resolved.accelerator_name.clone(),
            family: resolved.accelerator.family.clone(),
            topology: resolved.slice.topology.clone(),
            chips: resolved.slice.chips,
            devices: resolved.devices,
            hosts: resolved.slice.hosts,
            machine_type: resolved.slice.machine_type.clone(),
            usable_hbm_bytes: resolved.usable,
        },
        engine: Engine {
            kind: resolved.kind.as_str().to_owned(),
            version: resolved.version_text.clone(),
            image: resolved.image.clone(),
            pip: resolved.pip.clone(),
            argv: command.argv,
            env: command.env,
            notes: command.notes,
        },
        scheduler: Scheduler {
            max_model_len: resolved.limits.max_model_len,
            max_num_seqs: resolved.limits.max_num_seqs,
            max_num_batched_tokens: resolved.limits.max_num_batched_tokens,
            bucket_padding_gap: resolved.limits.padding_gap,
            prefix_caching: resolved.limits.prefix_caching,
            chunked_prefill: resolved.limits.chunked_prefill,
            chunked_mm_input: resolved.limits.chunked_mm_input,
            kv_sharing_fast_prefill: resolved.limits.fast_prefill,
            async_scheduling: resolved.limits.async_scheduling,
        },
        speculative: resolved.speculative.clone(),
        multimodal: resolved.multimodal.clone(),
        chat: resolved.serving.chat.clone(),
        sharding: Sharding {
            mesh: Mesh { data: resolved.data, model: resolved.tensor },
            experts: resolved.experts.to_string(),
            tensors: budget.tensors.clone(),
        },
        buckets: budget.buckets.clone(),
        kv_cache: budget.kv.clone(),
        memory: budget.memory.clone(),
        compile_cache: CompileCache { path: resolved.serving.compile_cache.clone(), key: String::new() },
        server: Server { host: resolved.serving.host.clone(), port: resolved.serving.port },
        secrets: resolved.serving.secrets.clone(),
        workload: resolved.serving.workload.clone(),
        deploy: deploy(loaded),
        proof: None,
        diagnostics: loaded.diagnostics.iter().map(|finding| loaded.sources.record(finding)).collect(),
        provenance: resolved.provenance.clone(),
    };
    plan.compile_cache.key = compile_key(&plan, resolved);
    plan.digest = digest::compute(&plan);
    plan
}

/// Parameters that the model uses of what the engine loads.
fn parameters(resolved: &Resolved) -> u64 {
    let text_only = resolved.kind == EngineKind::Bundled || resolved.loads_text_only_class();
    let used =
        resolved.model.kinds.iter().filter(|kind| kind.tensor.used && (kind.tensor.component.is_text() || !text_only));
    used.map(|kind| kind.tensor.elements().saturating_mul(kind.count)).sum()
}

/// Changes whenever the engine's compiled programs would not be reused: shapes, mesh, version and topology, not names,
/// addresses or utilization as such.
fn compile_key(plan: &Plan, resolved: &Resolved) -> String {
    // Variables that say where things are, not what is compiled.
    let neutral = ["HF_HOME", "VLLM_XLA_CACHE_PATH", "VLLM_CACHE_ROOT", "VLLM_LOGGING_LEVEL"];
    let env: BTreeMap<&String, &String> =
        plan.engine.env.iter().filter(|(name, _)| !neutral.contains(&name.as_str())).collect();
    // Whatever may change a program is in the key: a miss costs a compile, a false hit a wrong promise.
    let key = serde_json::json!({
        "engine": [plan.engine.kind, resolved.version.to_string(), plan.engine.image],
        "pip": plan.engine.pip,
        "topology": [plan.hardware.family, plan.hardware.topology],
        "config": format!("{:?}", resolved.model.config),
        "model": [plan.model.dtype.as_str(), plan.model.architecture.as_str()],
        "quantization": plan.model.quantization,
        "max_loras": resolved.max_loras,
        "mesh": plan.sharding.mesh,
        "experts": resolved.experts.as_str(),
        "tokens": plan.buckets.tokens,
        "requests": plan.buckets.requests,
        "logits": plan.buckets.logits,
        "speculative": plan.speculative,
        "kv": plan.kv_cache.dtype,
        "blocks": [plan.kv_cache.block_size, plan.kv_cache.blocks, plan.scheduler.max_model_len.div_ceil(plan.kv_cache.block_size.max(1))],
        "scheduler": [plan.scheduler.kv_sharing_fast_prefill, plan.scheduler.async_scheduling.unwrap_or(true)],
        "env": env,
        "extra_args": resolved.extra_args,
        "text_only": resolved.text_only(),
    });
    digest::sha256(key.to_string().as_bytes())
}

/// The `[deploy]` tables as they were written, after typed checking.
fn deploy(loaded: &Loaded) -> BTreeMap<String, serde_json::Value> {
    match loaded.table.get("deploy").map(|node| &node.value) {
        Some(Value::Table(table)) => match schema::to_json(table) {
            serde_json::Value::Object(map) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        },
        _ => BTreeMap::new(),
    }
}
