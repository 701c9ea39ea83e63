//! Command lines of shipped profiles against what vLLM's own argument parser, of the very version, made of them.
//! `scripts/vllm_parser.py` records the answers in an environment of 10 GB; `.ci/slow` makes it and compares again.

use std::collections::BTreeMap;

use gemma4ctl::plan;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
    argv: Vec<String>,
    refused: Option<String>,
    #[serde(default)]
    parsed: BTreeMap<String, Value>,
}

#[test]
fn vllm_reads_what_the_plan_says() {
    let answers: BTreeMap<String, Answer> =
        serde_json::from_str(include_str!("fixtures/vllm-parser.json")).expect("the recorded answers");
    let mut left: Vec<&str> = answers.keys().map(String::as_str).collect();
    for (name, _) in gemma4ctl::profile::list() {
        let plan = plan::analyze(&name, &[]).expect("an analysis").plan().expect("a plan");
        if plan.engine.argv.first().map(String::as_str) != Some("vllm") {
            continue;
        }
        let answer = answers.get(&name).unwrap_or_else(|| panic!("{name} is not recorded: run scripts/vllm_parser.py"));
        left.retain(|other| *other != name);
        assert_eq!(
            (&answer.version, &answer.argv),
            (&plan.engine.version, &plan.engine.argv),
            "{name} has changed since its answer was recorded: run scripts/vllm_parser.py"
        );
        assert_eq!(answer.refused, None, "{name} is refused by vLLM {}", answer.version);

        let says = |option: &str, expected: Value| {
            assert_eq!(answer.parsed.get(option), Some(&expected), "{name}: {option}");
        };
        says("model_tag", json!(plan.model.id));
        says("host", json!(plan.server.host));
        says("port", json!(plan.server.port));
        says("max_model_len", json!(plan.scheduler.max_model_len));
        says("max_num_seqs", json!(plan.scheduler.max_num_seqs));
        says("max_num_batched_tokens", json!(plan.scheduler.max_num_batched_tokens));
        says("gpu_memory_utilization", json!(plan.memory.utilization));
        if let Some(config) = answer.parsed.get("speculative_config") {
            let speculative = plan.speculative.as_ref().expect("the plan speculates too");
            assert_eq!(config["num_speculative_tokens"], json!(speculative.num_tokens), "{name}");
        }
        if let Some(limits) = answer.parsed.get("limit_mm_per_prompt") {
            assert_eq!(limits["image"], json!(plan.multimodal.image), "{name}");
            assert_eq!(limits.get("audio").cloned(), plan.multimodal.audio.map(|audio| json!(audio)), "{name}");
        }
        if answer.parsed.contains_key("block_size") {
            says("block_size", json!(plan.kv_cache.block_size));
        }
        // Every option on the command line was read as one: an option that is swallowed as another's value is not.
        let options = plan.engine.argv.iter().filter(|word| word.starts_with("--")).count();
        assert_eq!(answer.parsed.len(), options + 1, "{name}: {:?}", answer.parsed.keys());
    }
    assert!(left.is_empty(), "recorded, but not shipped: {left:?}");
    assert!(!answers.is_empty());
}
