//! Cache plans for GPUs against plans that vLLM 0.33's own planning code made (see fixtures/vllm-gpu/make_goldens.py).

use gemma4ctl::budget::vllm_gpu::{Layout, in_flight};
use gemma4ctl::plan;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Case {
    model: String,
    tp: u64,
    kv_dtype: String,
    block_size: u64,
    max_model_len: i64,
    available_bytes: u64,
    max_num_batched_tokens: u64,
    #[serde(default)]
    disable_hybrid: bool,
    async_scheduling: Option<bool>,
    num_gpu_blocks_override: Option<u64>,
    expected: Expected,
}

#[derive(Debug, Deserialize)]
struct Expected {
    groups: Vec<Group>,
    bytes_per_block: u64,
    starts: bool,
    blocks: Option<u64>,
    tokens: Option<u64>,
    max_concurrency: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Group {
    kind: String,
    block_size: u64,
}

#[test]
fn cache_plans_equal_those_of_vllm() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/vllm-gpu/goldens.json")).expect("the goldens");
    let mut compared = 0;
    for case in cases {
        // The uniform layout behind a switch that no profile has.
        if case.disable_hybrid {
            continue;
        }
        // -1 lets the engine search for the longest length, which a plan does not.
        let Ok(max_model_len) = u64::try_from(case.max_model_len) else { continue };
        let mut set = vec![
            format!("model.id=google/gemma-4-{}-it", case.model),
            "hardware.accelerator=b200-8".to_owned(),
            "engine.version=0.33".to_owned(),
            format!("parallelism.tensor={}", case.tp),
            format!("memory.kv_cache_dtype={}", if case.kv_dtype == "bf16" { "bfloat16" } else { &case.kv_dtype }),
            format!("memory.block_size={}", case.block_size),
            format!("scheduler.max_model_len={}", case.max_model_len),
            format!("scheduler.max_num_batched_tokens={}", case.max_num_batched_tokens),
        ];
        if let Some(asynchronous) = case.async_scheduling {
            set.push(format!("scheduler.async_scheduling={asynchronous}"));
        }
        let analysis = plan::analyze("e4b-b200", &set).expect("an analysis");
        let resolved = analysis.resolved.as_ref().expect("resolved values");
        let what = format!("{case:?}");
        let layout = Layout::new(resolved, case.block_size).expect("a layout");
        for group in &case.expected.groups {
            let block = if group.kind == "full" { layout.full_block } else { layout.sliding_block };
            assert_eq!(block, group.block_size, "{what}");
        }
        assert_eq!(layout.sliding_groups + 1, case.expected.groups.len() as u64, "{what}");
        assert_eq!(layout.bytes_per_block, case.expected.bytes_per_block, "{what}");
        let blocks = case.num_gpu_blocks_override.unwrap_or(case.available_bytes / layout.bytes_per_block);
        let need = layout.need(max_model_len, resolved.model.config.text.sliding_window, in_flight(resolved));
        assert_eq!(blocks > need, case.expected.starts, "{what}: starts");
        if case.expected.starts {
            assert_eq!(Some(blocks), case.expected.blocks, "{what}");
            let concurrency = blocks as f64 / need as f64;
            assert_eq!(Some(concurrency), case.expected.max_concurrency, "{what}");
            assert_eq!(Some((concurrency * max_model_len as f64) as u64), case.expected.tokens, "{what}");
        }
        compared += 1;
    }
    assert!(compared >= 200, "only {compared} cases were compared");
}

/// Bytes of weights on each GPU without rotary tables and buffers, from the shapes that vLLM's model classes load.
#[test]
fn weights_on_gpus_follow_the_model_classes() {
    // E4B is 400 parameters below a sum that was made by hand: its towers have 478,088,384 by the checkpoint's own shapes.
    let table: [(&str, [u64; 4]); 5] = [
        ("E2B", [10_208_596_934, 5_621_994_438, 3_328_693_190, 2_182_042_566]),
        ("E4B", [15_882_203_604, 8_474_800_596, 4_807_799_252, 2_974_298_580]),
        ("12B", [23_950_917_728, 12_033_519_968, 6_074_821_088, 3_095_471_648]),
        ("26B-A4B", [51_640_708_252, 26_404_662_428, 13_801_057_436, 7_499_254_940]),
        ("31B", [62_766_378_712, 31_960_264_408, 16_557_207_256, 8_910_728_920]),
    ];
    for (size, expected) in table {
        for (tensor, bytes) in [1, 2, 4, 8].into_iter().zip(expected) {
            let set = [
                format!("model.id=google/gemma-4-{size}-it"),
                "hardware.accelerator=b200-8".to_owned(),
                format!("parallelism.tensor={tensor}"),
            ];
            let plan = plan::analyze("e4b-b200", &set).expect("an analysis").plan().expect("a plan");
            let buffers: u64 = plan
                .memory
                .terms
                .iter()
                .filter(|term| term.part == "weights" && (term.name.contains("rotary") || term.name.contains("buffer")))
                .map(|term| term.bytes)
                .sum();
            assert_eq!(plan.memory.per_device.weights - buffers, bytes, "{size} at {tensor}");
        }
    }
}

/// The one figure that a server on a GPU is known to have logged: E2B on an L4, about 9,622 bytes a token at 16,384.
#[test]
fn the_logged_bytes_per_token_of_an_l4_are_met() {
    let set = [
        "model.id=google/gemma-4-E2B-it",
        "hardware.accelerator=l4-1",
        "engine.version=0.33",
        "scheduler.max_model_len=16384",
        "scheduler.max_num_batched_tokens=2048",
        "scheduler.max_num_seqs=256",
    ]
    .map(str::to_owned);
    let plan = plan::analyze("e4b-b200", &set).expect("an analysis").plan().expect("a plan");
    assert!(plan.kv_cache.bytes_per_token.abs_diff(9_622) <= 4, "{}", plan.kv_cache.bytes_per_token);
}
