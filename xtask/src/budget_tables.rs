//! The tables of docs/budget.md: what real servers printed, and what other estimators say.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use gemma4ctl::plan;
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    model: String,
    hardware: String,
    tensor_parallel: u32,
    kv_cache_dtype: String,
    gpu_memory_utilization: f64,
    max_model_len: u64,
    max_num_seqs: Option<u64>,
    hbm_used_gib_total: Option<f64>,
    observed_blocks: Option<u64>,
    observed_tokens: Option<u64>,
    engine_version: String,
}

pub(crate) fn sections() -> anyhow::Result<Vec<(&'static str, String)>> {
    Ok(vec![("accuracy", accuracy()?), ("estimators", estimators()?), ("capacity", capacity()?)])
}

/// The arguments that describe a case to the planner.
fn settings(case: &Case) -> Vec<String> {
    let family = case.hardware.split([' ', ',']).next().unwrap_or("");
    let version = case.engine_version.split_whitespace().find_map(|word| {
        let word = word.trim_end_matches(',');
        (word.starts_with("0.")).then(|| word.to_owned())
    });
    let mut set = vec![
        format!("hardware.accelerator={family}"),
        "engine.kind=vllm-tpu".to_owned(),
        format!("parallelism.tensor={}", case.tensor_parallel),
        format!(
            "memory.kv_cache_dtype={}",
            if case.kv_cache_dtype == "bf16" { "bfloat16" } else { &case.kv_cache_dtype }
        ),
        format!("memory.hbm_utilization={}", case.gpu_memory_utilization),
        format!("scheduler.max_model_len={}", case.max_model_len),
        // Builds without a number: the nightly of August 2026, and the line that shards the per-layer table.
        format!(
            "engine.version={}",
            version.unwrap_or_else(|| if case.engine_version.contains("0.25") {
                "0.25".to_owned()
            } else {
                "0.28".to_owned()
            })
        ),
    ];
    if let Some(seqs) = case.max_num_seqs {
        set.push(format!("scheduler.max_num_seqs={seqs}"));
    }
    if case.model.starts_with("google/") {
        set.push(format!("model.id={}", case.model));
    } else {
        let size = if case.model.contains("26B") { "26B-A4B" } else { "31B" };
        set.push(format!("model.id={}", case.model.split(' ').next().unwrap_or("")));
        set.push(format!("model.size={size}"));
        set.push(format!("memory.weights_measured={}", case.hbm_used_gib_total.unwrap_or(0.0)));
    }
    set
}

/// A profile that says nothing, for cases that are described by `--set` alone.
fn empty_profile() -> anyhow::Result<(tempfile::TempDir, String)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("case.toml");
    std::fs::write(&path, "")?;
    Ok((folder, path.display().to_string()))
}

fn accuracy() -> anyhow::Result<String> {
    let text = std::fs::read_to_string(super::root().join("tests/fixtures/vllm-tpu/memory-cases.json"))?;
    let cases: Cases = serde_json::from_str(&text)?;
    let (_folder, profile) = empty_profile()?;
    let mut table = String::from(
        "| Run | Model | Hardware | KV | Utilization | Longest | Seen | Planned |\n|---|---|---|---|---|---|---|---|\n",
    );
    for case in &cases.cases {
        let analysis = plan::analyze(&profile, &settings(case))?;
        let plan = analysis.plan().with_context(|| format!("no plan for case {}", case.id))?;
        let seen = match (case.observed_blocks, case.observed_tokens) {
            (Some(blocks), _) => format!("{blocks} blocks"),
            (None, Some(tokens)) => format!("{tokens} tokens"),
            _ => String::new(),
        };
        let planned = if case.observed_blocks.is_some() {
            format!("{} blocks", plan.kv_cache.blocks)
        } else {
            format!("{} tokens", plan.kv_cache.tokens)
        };
        let measured = if case.model.starts_with("google/") { "" } else { " (weights as measured)" };
        let _ = writeln!(
            table,
            "| {} | {}{measured} | {} | {} | {} | {} | {seen} | {planned} |",
            case.id,
            case.model,
            case.hardware.split([' ', ',']).next().unwrap_or(""),
            case.kv_cache_dtype,
            case.gpu_memory_utilization,
            case.max_model_len
        );
    }
    Ok(table)
}

#[derive(Deserialize)]
struct Estimates {
    versions: BTreeMap<String, String>,
    cases: Vec<Estimate>,
}

#[derive(Deserialize)]
struct Estimate {
    model: String,
    sequence_tokens: u64,
    estimator: String,
    kv_bytes: Option<u64>,
}

fn gib(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "refused".to_owned(), |bytes| format!("{:.2}", bytes as f64 / (1_u64 << 30) as f64))
}

fn estimators() -> anyhow::Result<String> {
    let estimates: Estimates =
        serde_json::from_str(&std::fs::read_to_string(super::root().join("scripts/estimators.json"))?)?;
    let (_folder, profile) = empty_profile()?;
    let versions: Vec<String> = estimates.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let mut table = format!(
        "Estimators: {}.\n\n| Model | Tokens | gemma4ctl, vllm-tpu | gemma4ctl, bundled | hf-mem | aiconfigurator |\n|---|---|---|---|---|---|\n",
        versions.join(", ")
    );
    for size in ["E2B", "E4B", "12B", "26B-A4B", "31B"] {
        for tokens in [32_768_u64, 131_072] {
            let planned = |engine: &str| -> anyhow::Result<Option<u64>> {
                let set = [
                    format!("model.id=google/gemma-4-{size}-it"),
                    "hardware.accelerator=v5p-1".to_owned(),
                    format!("engine.kind={engine}"),
                    "memory.kv_cache_dtype=bfloat16".to_owned(),
                    format!("scheduler.max_model_len={tokens}"),
                ];
                Ok(plan::analyze(&profile, &set)?.plan().map(|plan| plan.kv_cache.bytes_per_token * tokens))
            };
            let other = |name: &str| {
                estimates
                    .cases
                    .iter()
                    .find(|case| case.model == size && case.sequence_tokens == tokens && case.estimator == name)
                    .and_then(|case| case.kv_bytes)
            };
            let _ = writeln!(
                table,
                "| {size} | {tokens} | {} | {} | {} | {} |",
                gib(planned("vllm-tpu")?),
                gib(planned("bundled")?),
                gib(other("hf-mem")),
                gib(other("aiconfigurator"))
            );
        }
    }
    Ok(table)
}

/// Tokens that E2B on v6e-4 holds, vLLM against the bundled engine, by length of the sequences.
fn capacity() -> anyhow::Result<String> {
    let plan_for = |set: &[&str]| -> anyhow::Result<gemma4_plan::Plan> {
        let set: Vec<String> = set.iter().map(|&text| text.to_owned()).collect();
        plan::analyze("e2b-v6e-4", &set)?.plan().context("no plan for e2b-v6e-4")
    };
    let vllm = plan_for(&[])?;
    let bundled = plan_for(&["engine.kind=bundled"])?;
    let mut table = String::from("| Tokens a sequence | vllm-tpu | bundled | Ratio |\n|---|---|---|---|\n");
    for (one, two) in vllm.kv_cache.capacity.iter().zip(&bundled.kv_cache.capacity) {
        let _ = writeln!(
            table,
            "| {} | {} | {} | {:.1} |",
            one.sequence_tokens,
            one.tokens,
            two.tokens,
            two.tokens as f64 / one.tokens.max(1) as f64
        );
    }
    Ok(table)
}
