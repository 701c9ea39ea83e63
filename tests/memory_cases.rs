//! Plans against what real vLLM servers on TPU printed when they started.
//!
//! A case is met when the block count comes out exactly, or, where only rounded totals were printed, lies inside the
//! window that their digits leave.

use gemma4ctl::plan;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    model: String,
    hardware: String,
    tensor_parallel: u32,
    kv_cache_dtype: String,
    gpu_memory_utilization: f64,
    max_model_len: u64,
    max_num_seqs: Option<u64>,
    block_size: u64,
    hbm_used_gib_total: Option<f64>,
    hbm_limit_gib_total: Option<f64>,
    observed_blocks: Option<u64>,
    observed_tokens: Option<u64>,
    observed_max_concurrency: Option<f64>,
    engine_version: String,
    note: Option<String>,
}

fn cases() -> Vec<Case> {
    let text = include_str!("fixtures/vllm-tpu/memory-cases.json");
    serde_json::from_str::<Cases>(text).expect("the cases").cases
}

/// The plan of a case, with weights in use given where the checkpoint is not one of Google's.
fn plan_of(case: &Case, weights_gib: Option<f64>) -> gemma4_plan::Plan {
    let family = case.hardware.split([' ', ',']).next().expect("an accelerator");
    let version = match case.id.as_str() {
        // Builds whose log prints no number.
        "G17" => "0.28",
        "G19" => "0.25",
        _ => case
            .engine_version
            .split_whitespace()
            .find(|word| word.starts_with("0."))
            .expect("a version")
            .trim_end_matches(','),
    };
    let dtype = if case.kv_cache_dtype == "bf16" { "bfloat16" } else { &case.kv_cache_dtype };
    let id = case.model.split(' ').next().expect("an id");
    let mut text = format!(
        "[model]\nid = \"{id}\"\n{}[hardware]\naccelerator = \"{family}\"\n[engine]\nkind = \"vllm-tpu\"\nversion = \"{version}\"\n[parallelism]\ntensor = {}\n[memory]\nkv_cache_dtype = \"{dtype}\"\nhbm_utilization = {}\n",
        if case.model.contains("31B QAT") { "size = \"31B\"\n" } else { "" },
        case.tensor_parallel,
        case.gpu_memory_utilization,
    );
    if let Some(gib) = weights_gib {
        text.push_str(&format!("weights_measured = {gib}\n"));
    }
    text.push_str(&format!("[scheduler]\nmax_model_len = {}\n", case.max_model_len));
    if let Some(seqs) = case.max_num_seqs {
        text.push_str(&format!("max_num_seqs = {seqs}\n"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("case.toml");
    std::fs::write(&path, text).expect("the profile");
    let analysis = plan::analyze(&path.display().to_string(), &[]).expect("an analysis");
    analysis.plan().unwrap_or_else(|| panic!("{}: no plan; {:?}", case.id, analysis.loaded.diagnostics))
}

#[test]
fn every_observed_pool_is_met() {
    for case in cases() {
        let google = case.model.starts_with("google/");
        if google {
            let plan = plan_of(&case, None);
            assert_eq!(Some(plan.kv_cache.blocks), case.observed_blocks, "{}", case.id);
            assert_eq!(plan.kv_cache.block_size, case.block_size, "{}: block size", case.id);
            // The report of G19 prints half of what its blocks hold.
            if case.note.is_none() {
                assert_eq!(Some(plan.kv_cache.tokens), case.observed_tokens, "{}: tokens", case.id);
            }
            if let Some(concurrency) = case.observed_max_concurrency {
                assert!(
                    (plan.kv_cache.max_concurrency - concurrency).abs() < 0.006,
                    "{}: {}",
                    case.id,
                    plan.kv_cache.max_concurrency
                );
            }
            if let Some(used) = case.hbm_used_gib_total {
                let planned =
                    plan.memory.per_device.weights as f64 * f64::from(case.tensor_parallel) / (1_u64 << 30) as f64;
                // Two printed digits; G17 lies 0.0066 off, and its block count leaves that open.
                assert!((planned - used).abs() <= 0.007, "{}: {planned} GiB of weights, {used} printed", case.id);
            }
            if let Some(limit) = case.hbm_limit_gib_total {
                let planned =
                    plan.hardware.usable_hbm_bytes as f64 * f64::from(case.tensor_parallel) / (1_u64 << 30) as f64;
                assert!((planned - limit).abs() <= 0.0051, "{}: {planned} GiB usable, {limit} printed", case.id);
            }
        } else {
            let used = case.hbm_used_gib_total.expect("measured weights");
            let (most, least) = (plan_of(&case, Some(used - 0.005)), plan_of(&case, Some(used + 0.005)));
            match (case.observed_blocks, case.observed_tokens) {
                (Some(blocks), _) => {
                    assert!((least.kv_cache.blocks..=most.kv_cache.blocks).contains(&blocks), "{}", case.id)
                }
                (None, Some(tokens)) => {
                    assert!((least.kv_cache.tokens..=most.kv_cache.tokens).contains(&tokens), "{}", case.id)
                }
                _ => panic!("{}: nothing observed", case.id),
            }
            // A window that holds anything would prove nothing.
            assert!(most.kv_cache.blocks - least.kv_cache.blocks <= 2, "{}", case.id);
        }
    }
}

#[test]
fn runs_that_failed_are_refused() {
    let verdict = |set: &[&str]| {
        let set: Vec<String> = ["model.size=31B"].iter().chain(set).map(|text| (*text).to_owned()).collect();
        let set = if set.iter().any(|text| text.starts_with("model.id")) { set[1..].to_vec() } else { set };
        plan::analyze("31b-v6e-8", &set).expect("an analysis").plan().expect("a plan").memory.fits
    };
    // 31B on v6e-8: 1,024 sequences at 0.92 wanted 1.50 GiB and did not get it; 0.85 worked.
    assert!(!verdict(&[
        "scheduler.max_num_seqs=1024",
        "memory.hbm_utilization=0.92",
        "memory.kv_cache_dtype=bfloat16"
    ]));
    assert!(verdict(&["scheduler.max_num_seqs=1024", "memory.hbm_utilization=0.85", "memory.kv_cache_dtype=bfloat16"]));
    // E2B on v5e: 0.95 with 256 sequences wanted 384 MiB and had 347; 0.92 worked.
    let v5e = [
        "model.id=google/gemma-4-E2B-it",
        "hardware.accelerator=v5e-1",
        "parallelism.tensor=1",
        "engine.version=0.26",
        "scheduler.max_num_seqs=256",
    ];
    assert!(!verdict(&[&v5e[..], &["memory.hbm_utilization=0.95"]].concat()));
    assert!(verdict(&[&v5e[..], &["memory.hbm_utilization=0.92"]].concat()));
    // 12B on one v6e chip with a 16-bit cache refuses 16,384 tokens and takes 8,192.
    let small = [
        "model.id=google/gemma-4-12B-it",
        "hardware.accelerator=v6e-1",
        "parallelism.tensor=1",
        "memory.kv_cache_dtype=bfloat16",
        "scheduler.max_num_seqs=256",
    ];
    assert!(!verdict(&[&small[..], &["scheduler.max_model_len=16384"]].concat()));
    assert!(verdict(&[&small[..], &["scheduler.max_model_len=8192"]].concat()));
}

/// GiB on each chip after loading at tensor parallel size 1, 2, 4 and 8, from the sizing tables of tpu-inference 0.32.
#[test]
fn weights_on_tpu_follow_the_published_tables() {
    let table = [
        ("E2B", "", [8.9705, 4.5387, 2.3228, 0.0]),
        ("E4B", "", [14.3189, 7.2516, 3.7179, 0.0]),
        ("12B", "", [24.556, 12.5196, 6.5014, 3.4923]),
        ("12B", "Gemma4ForCausalLM", [22.179, 11.090, 5.546, 2.774]),
        ("26B-A4B", "", [50.645, 25.356, 15.289, 7.677]),
        ("31B", "", [58.251, 29.149, 14.598, 7.322]),
    ];
    for (size, architecture, expected) in table {
        for (tensor, gib) in [1, 2, 4, 8].into_iter().zip(expected) {
            let mut set = vec![
                format!("model.id=google/gemma-4-{size}-it"),
                "hardware.accelerator=v6e-8".to_owned(),
                "engine.version=0.32".to_owned(),
                format!("parallelism.tensor={tensor}"),
            ];
            if !architecture.is_empty() {
                set.push(format!("model.architecture={architecture}"));
            }
            let analysis = plan::analyze("31b-v6e-8", &set).expect("an analysis");
            match analysis.plan() {
                Some(plan) => {
                    let planned = (plan.memory.per_device.weights - gemma4ctl::budget::vllm_tpu::LOADING_OVERHEAD)
                        as f64
                        / (1_u64 << 30) as f64;
                    assert!(
                        (planned - gib).abs() < 0.0006,
                        "{size} {architecture} at {tensor}: {planned:.4} GiB, expected {gib}"
                    );
                }
                // E2B and E4B do not load at 8: their vision towers have 12 heads.
                None => assert!(gib == 0.0, "{size} at {tensor}: no plan"),
            }
        }
    }
}

/// Blocks for the newer v6e limit at 0.92, as derived from the engine's source.
#[test]
fn pools_follow_the_derived_table() {
    let table: [(&str, u32, &str, u64, u64); 14] = [
        ("E2B", 1, "bfloat16", 16384, 35_993),
        ("E2B", 4, "fp8", 16384, 48_095),
        ("E2B", 1, "fp8", 8192, 4_499),
        ("E4B", 1, "bfloat16", 16384, 8_439),
        ("E4B", 1, "fp8", 16384, 16_879),
        ("E4B", 4, "fp8", 16384, 29_285),
        ("12B", 4, "bfloat16", 16384, 7_591),
        ("12B", 4, "fp8", 16384, 13_014),
        ("12B", 8, "fp8", 16384, 14_774),
        ("26B-A4B", 4, "fp8", 16384, 12_595),
        ("26B-A4B", 8, "fp8", 16384, 19_721),
        ("31B", 4, "fp8", 16384, 3_862),
        ("31B", 8, "bfloat16", 16384, 5_849),
        ("31B", 8, "fp8", 16384, 10_026),
    ];
    for (size, tensor, dtype, length, blocks) in table {
        let set = [
            format!("model.id=google/gemma-4-{size}-it"),
            format!("hardware.accelerator=v6e-{tensor}"),
            "engine.version=0.28".to_owned(),
            format!("parallelism.tensor={tensor}"),
            format!("memory.kv_cache_dtype={dtype}"),
            "memory.hbm_utilization=0.92".to_owned(),
            format!("scheduler.max_model_len={length}"),
            "scheduler.max_num_seqs=256".to_owned(),
        ];
        let plan = plan::analyze("31b-v6e-8", &set).expect("an analysis").plan().expect("a plan");
        assert_eq!(plan.kv_cache.blocks, blocks, "{size} TP {tensor} {dtype} {length}");
    }
}

/// E2B on v6e-4 at utilization 0.4, fp8 cache: windows against whole sequences, from the plans of both engines.
#[test]
fn windows_hold_four_times_the_tokens_in_the_same_bytes() {
    let plan_with = |set: &[String]| {
        let analysis = plan::analyze("e2b-v6e-4", set).expect("the profile");
        analysis.plan().expect("a plan")
    };
    let vllm = plan_with(&[]);
    assert_eq!((vllm.engine.kind.as_str(), vllm.kv_cache.dtype.as_str()), ("vllm-tpu", "fp8"));
    let bytes = vllm.kv_cache.blocks * vllm.kv_cache.bytes_per_block;
    let bundled = "engine.kind=bundled".to_owned();
    let page = plan_with(std::slice::from_ref(&bundled)).kv_cache.bytes_per_block;
    // Keys and values of 32 tokens in 12 sliding layers of 256 elements, on each of 4 devices.
    assert_eq!(page, 4 * 32 * 12 * 2 * 256);
    let windows = plan_with(&[bundled, format!("memory.num_blocks={}", bytes / page)]);
    assert!(windows.kv_cache.blocks * page <= bytes && windows.memory.fits);
    let tokens = |plan: &gemma4_plan::Plan, length: u64| {
        let found = plan.kv_cache.capacity.iter().find(|entry| entry.sequence_tokens == length);
        found.map(|entry| entry.tokens).expect("a length of the curve")
    };
    // 64 full blocks of 64 tokens, 16 sliding ones of 32 for the window and one more; a step's chunk of 4096 is set aside.
    let by_hand = (bytes / page - 4096 / 32) / (64 + 17) * 4096;
    assert_eq!(tokens(&windows, 4096), by_hand);
    assert!(by_hand >= 4 * tokens(&vllm, 4096), "{by_hand} against {}", tokens(&vllm, 4096));
    // Longer sequences gain more; short ones, which the window holds whole, gain what vLLM pads.
    let gains: Vec<f64> = [512, 1024, 2048, 4096, 8192, 16384]
        .iter()
        .map(|&length| tokens(&windows, length) as f64 / tokens(&vllm, length) as f64)
        .collect();
    assert!(gains.is_sorted() && gains[0] >= 1.9, "{gains:?}");
}

/// E2B's table of 262,144 rows with 35 layers of 256 numbers of two bytes leaves the device; its rows come with each step.
#[test]
fn the_per_layer_table_in_host_memory_leaves_its_bytes_to_the_cache() {
    let plan_with = |place: &str| {
        let set = ["engine.kind=bundled".to_owned(), format!("memory.per_layer_embeddings={place}")];
        plan::analyze("e2b-v6e-1", &set).expect("the profile").plan().expect("a plan")
    };
    let (device, host) = (plan_with("device"), plan_with("host"));
    let row = 35 * 256 * 2;
    assert_eq!(device.memory.per_device.weights - host.memory.per_device.weights, 262_144 * row);
    assert!(host.kv_cache.tokens > device.kv_cache.tokens && host.digest != device.digest);
    let rows = |plan: &gemma4_plan::Plan| {
        let terms = plan.memory.terms.iter().filter(|term| term.part == "programs");
        terms.map(|term| (term.basis.clone(), term.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(rows(&device), []);
    let tokens = host.buckets.tokens.last().copied().expect("a bucket");
    assert_eq!(rows(&host), [("derived".to_owned(), tokens * row)]);
}
