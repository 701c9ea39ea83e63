//! Whatever the bytes: findings, never a panic; and what is built from a good profile holds its promises.

use gemma4ctl::lint::render::{Batch, Format, render};
use gemma4ctl::{lint, plan, profile};
use proptest::prelude::*;

fn analyze_bytes(bytes: &[u8]) -> plan::Analysis {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("example.toml");
    std::fs::write(&path, bytes).expect("the profile");
    plan::analyze(&path.display().to_string(), &[]).expect("an analysis")
}

/// Renders in every format, which must not panic either, and gives the findings.
fn check(bytes: &[u8]) -> plan::Analysis {
    let analysis = analyze_bytes(bytes);
    let batch = || Batch { sources: &analysis.loaded.sources, diagnostics: &analysis.loaded.diagnostics };
    for format in [Format::Text, Format::Concise, Format::Json, Format::Sarif, Format::Github] {
        let text = render(format, &[batch()], true);
        assert!(!text.is_empty() || analysis.loaded.diagnostics.is_empty());
    }
    for finding in &analysis.loaded.diagnostics {
        let record = analysis.loaded.sources.record(finding);
        assert!(record.line >= 1 && record.column >= 1 && !record.file.is_empty());
        assert!(lint::find(finding.code).is_some(), "{} has no page", finding.code);
    }
    let _ = lint::fix::apply(&analysis.loaded.sources, &analysis.loaded.diagnostics);
    let _ = profile::schema::validate(&analysis.loaded).expect("a valid schema");
    analysis
}

/// A profile with one value replaced by something else.
fn mutated() -> impl Strategy<Value = String> {
    let text = include_str!("../profiles/turbo-stable.toml").to_owned()
        + include_str!("../profiles/base/gemma4-v6e.toml").split_once("base = true").map_or("", |(_, rest)| rest);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let values = prop_oneof![
        Just("0".to_owned()),
        Just("-1".to_owned()),
        Just("9223372036854775807".to_owned()),
        Just("16777216".to_owned()),
        Just("4294967296".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("1e308".to_owned()),
        Just("nan".to_owned()),
        Just("true".to_owned()),
        Just("\"\"".to_owned()),
        Just("\"é\u{1F600}\"".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("1979-05-27".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
    ];
    (0..lines.len(), values).prop_map(move |(at, value)| {
        let mut lines = lines.clone();
        if let Some((key, _)) = lines[at].clone().split_once(" = ") {
            lines[at] = format!("{key} = {value}");
        }
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_findings(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let analysis = check(&bytes);
        prop_assert!(analysis.has_errors());
    }

    #[test]
    fn any_toml_like_text_gives_findings(text in "(\\[?[a-z_.]{1,12}\\]? ?(= ?[-0-9a-z\"\\[\\]{},.é]{0,12})?\n){0,8}") {
        check(text.as_bytes());
    }

    #[test]
    fn a_mutated_profile_gives_a_plan_or_findings(text in mutated()) {
        let analysis = check(text.as_bytes());
        prop_assert!(analysis.plan().is_some() || analysis.has_errors());
        if let Some(plan) = analysis.plan() {
            prop_assert!(serde_json::to_string(&plan).is_ok());
        }
    }

    /// Every count at its bound at once: products of several must not overflow.
    #[test]
    fn extremes_give_a_plan_or_findings(
        base in prop_oneof![Just("turbo-stable"), Just("31b-v6e-8"), Just("e4b-b200"), Just("cpu-e2b"), Just("smoke")],
        version in prop_oneof![Just("0.20"), Just("0.25"), Just("0.32")],
        values in proptest::collection::vec(prop_oneof![Just("1"), Just("2"), Just("65536"), Just("16777216")], 9),
    ) {
        let keys = [
            "scheduler.max_num_seqs", "scheduler.max_num_batched_tokens", "scheduler.max_model_len", "scheduler.bucket_padding_gap",
            "memory.block_size", "memory.num_blocks", "speculative.num_tokens", "parallelism.data", "workload.concurrency",
        ];
        let mut set: Vec<String> = keys.iter().zip(&values).map(|(key, value)| format!("{key}={value}")).collect();
        set.push("speculative.method=ngram".to_owned());
        set.push(format!("engine.version={version}"));
        let analysis = plan::analyze(base, &set).expect("an analysis");
        prop_assert!(analysis.plan().is_some() || analysis.has_errors());
    }

    /// The memory of a plan adds up, and every split tensor covers the whole.
    #[test]
    fn plans_add_up(
        size in prop_oneof![Just("E2B"), Just("E4B"), Just("12B"), Just("26B-A4B"), Just("31B")],
        engine in prop_oneof![Just("vllm-tpu"), Just("bundled")],
        drafts in 0_u64..4,
        tensor in prop_oneof![Just(1_u64), Just(2), Just(4), Just(8)],
        length in 512_u64..131_072,
        seqs in 1_u64..512,
        utilization in 0.3_f64..1.0,
    ) {
        let set = [
            format!("model.id=google/gemma-4-{size}-it"),
            "hardware.accelerator=v6e-8".to_owned(),
            format!("engine.kind={engine}"),
            "engine.version=0.32".to_owned(),
            format!("parallelism.tensor={tensor}"),
            format!("scheduler.max_model_len={length}"),
            format!("scheduler.max_num_seqs={seqs}"),
            format!("memory.hbm_utilization={utilization}"),
            format!("speculative.num_tokens={}", drafts.max(1)),
            format!("speculative.method={}", if drafts > 0 { "ngram" } else { "none" }),
        ];
        let analysis = plan::analyze("31b-v6e-8", &set).expect("an analysis");
        let Some(plan) = analysis.plan() else {
            // Only E2B's and E4B's vision towers do not divide by 8.
            prop_assert!(tensor == 8 && size.starts_with('E') && engine == "vllm-tpu");
            return Ok(());
        };
        let device = plan.memory.per_device;
        prop_assert_eq!(device.limit, (device.usable as f64 * utilization) as u64);
        let sum = |part: &str| plan.memory.terms.iter().filter(|term| term.part == part && term.basis != "derived").map(|term| term.bytes).sum::<u64>();
        prop_assert!(sum("weights").abs_diff(device.weights) <= tensor);
        prop_assert_eq!(sum("programs"), device.programs);
        prop_assert_eq!(i128::from(device.free), i128::from(device.usable) - i128::from(device.weights) - i128::from(device.kv) - i128::from(device.programs));
        if plan.memory.fits {
            prop_assert!(device.weights + device.kv <= device.limit && device.free >= 0);
            prop_assert!(plan.kv_cache.max_concurrency >= 1.0);
        }
        for row in &plan.sharding.tensors {
            prop_assert_eq!(row.shape.len(), row.spec.len());
            for ((whole, local), axis) in row.shape.iter().zip(&row.local_shape).zip(&row.spec) {
                match axis {
                    Some(_) => prop_assert!(local * tensor >= *whole),
                    None => prop_assert_eq!(local, whole),
                }
            }
        }
        // Capacity falls with length.
        for pair in plan.kv_cache.capacity.windows(2) {
            prop_assert!(pair[0].sequences >= pair[1].sequences);
        }
    }
}
