//! The whole command line from outside: exit code, stdout and stderr of the real binary.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use insta::{assert_snapshot, with_settings};

use common::Outcome;

/// A folder with nothing of the repository in it, so that names mean the built-in profiles.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Place { folder: tempfile::tempdir().expect("a folder") }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> &Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
        self
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).expect("a file")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        common::command(self.path(), arguments)
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments))
    }
}

/// A small profile without findings.
const SMALL: &str = "name = \"small\"\n\n[model]\nid = \"builtin/smoke\"\n\n[hardware]\naccelerator = \"cpu\"\n\n[engine]\nkind = \"bundled\"\n\n[scheduler]\nmax_model_len = 2048\nmax_num_seqs = 8\n\n[cache]\ncompile = \"~/.cache/gemma4ctl/xla\"\n";

#[test]
fn the_plan_of_turbo_stable() {
    let outcome = Place::new().run(&["plan", "turbo-stable"]);
    with_settings!({ filters => vec![(r"sha256:[0-9a-f]{64}", "sha256:[digest]")] }, {
        assert_snapshot!("plan_turbo_stable", outcome.all());
    });
}

#[test]
fn the_json_of_turbo_stable_has_every_promised_key() {
    let outcome = Place::new().run(&["plan", "turbo-stable", "--format", "json"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let plan = outcome.json();
    for pointer in [
        "/format",
        "/digest",
        "/profile/name",
        "/model/id",
        "/hardware/accelerator",
        "/hardware/topology",
        "/hardware/chips",
        "/hardware/devices",
        "/hardware/usable_hbm_bytes",
        "/engine/kind",
        "/engine/image",
        "/engine/argv/0",
        "/engine/env",
        "/sharding/mesh/data",
        "/sharding/mesh/model",
        "/sharding/tensors/0/name",
        "/sharding/tensors/0/shape",
        "/sharding/tensors/0/spec",
        "/sharding/tensors/0/local_shape",
        "/buckets/tokens/0",
        "/buckets/requests/0",
        "/kv_cache/dtype",
        "/kv_cache/block_size",
        "/kv_cache/bytes_per_token",
        "/kv_cache/blocks",
        "/kv_cache/tokens",
        "/kv_cache/max_concurrency",
        "/kv_cache/layers/0/kind",
        "/kv_cache/layers/0/block_shape",
        "/memory/fits",
        "/memory/per_device/usable",
        "/memory/per_device/limit",
        "/memory/per_device/weights",
        "/memory/per_device/kv",
        "/memory/per_device/programs",
        "/memory/per_device/free",
        "/compile_cache/path",
        "/compile_cache/key",
        "/diagnostics/0/code",
        "/diagnostics/0/severity",
        "/diagnostics/0/message",
        "/diagnostics/0/file",
        "/diagnostics/0/line",
        "/diagnostics/0/column",
        "/diagnostics/0/help",
        "/provenance/scheduler.max_num_seqs/source",
        "/provenance/scheduler.max_num_seqs/file",
        "/provenance/scheduler.max_num_seqs/line",
        "/provenance/scheduler.max_num_seqs/why",
    ] {
        assert!(plan.pointer(pointer).is_some(), "{pointer} is missing");
    }
    assert_eq!(plan["buckets"]["tokens"].as_array().map(Vec::len), Some(13));
    assert_eq!(plan["kv_cache"]["layers"].as_array().map(Vec::len), Some(30));
    assert_eq!(plan["provenance"]["scheduler.max_num_seqs"]["source"], "extends");
    assert_eq!(plan["provenance"]["scheduler.bucket_padding_gap"]["source"], "profile");
}

#[test]
fn the_reported_e2b_run_comes_out_to_the_block() {
    let plan = Place::new().run(&["plan", "e2b-v6e-4", "--format", "json"]).json();
    assert_eq!(plan["kv_cache"]["blocks"], 18_523);
    assert_eq!(plan["kv_cache"]["tokens"], 592_736);
    assert_eq!(plan["kv_cache"]["bytes_per_token"], 73_728);
    assert_eq!(plan["kv_cache"]["layers"].as_array().map(Vec::len), Some(15));
    assert_eq!(
        plan["kv_cache"]["layers"][0],
        serde_json::json!({ "layer": 0, "kind": "sliding", "block_shape": [32, 4, 4, 256] })
    );
}

#[test]
fn every_seed_flag_is_on_the_command_line_of_turbo_stable() {
    let plan = Place::new().run(&["plan", "turbo-stable", "--format", "json"]).json();
    let argv: Vec<&str> =
        plan["engine"]["argv"].as_array().expect("argv").iter().filter_map(serde_json::Value::as_str).collect();
    assert_eq!(argv[..3], ["vllm", "serve", "google/gemma-4-26B-A4B-it"]);
    for pair in [
        ["--tensor-parallel-size", "4"],
        ["--dtype", "bfloat16"],
        ["--kv-cache-dtype", "fp8"],
        ["--gpu-memory-utilization", "0.9"],
        ["--block-size", "32"],
        ["--max-model-len", "16384"],
        ["--max-num-seqs", "256"],
        ["--max-num-batched-tokens", "4096"],
        ["--speculative-config", r#"{"method":"ngram","num_speculative_tokens":3}"#],
        ["--safetensors-load-strategy", "prefetch"],
        ["--limit-mm-per-prompt", r#"{"image":4,"audio":1}"#],
        ["--tool-call-parser", "gemma4"],
        ["--reasoning-parser", "gemma4"],
        ["--host", "0.0.0.0"],
        ["--port", "8000"],
    ] {
        assert!(argv.windows(2).any(|window| window == pair), "{pair:?} is not in {argv:?}");
    }
    for flag in
        ["--enable-prefix-caching", "--disable-chunked-mm-input", "--enable-auto-tool-choice", "--trust-remote-code"]
    {
        assert!(argv.contains(&flag), "{flag} is not in {argv:?}");
    }
    assert_eq!(
        plan["engine"]["env"],
        serde_json::json!({ "HF_HOME": "/dev/shm", "VLLM_TPU_BUCKET_PADDING_GAP": "512", "VLLM_XLA_CACHE_PATH": "/dev/shm/vllm_cache" })
    );
}

#[test]
fn the_difference_between_two_plans() {
    let place = Place::new();
    assert_snapshot!("plan_against", place.run(&["plan", "turbo-stable", "--against", "peak-may-13"]).all());
    assert_eq!(place.run(&["plan", "turbo-stable", "--against", "peak-may-13", "--detailed-exitcode"]).code, 3);
    assert_eq!(place.run(&["plan", "turbo-stable", "--against", "turbo-stable", "--detailed-exitcode"]).code, 0);
    let json = place.run(&["plan", "turbo-stable", "--against", "peak-may-13", "--format", "json"]).json();
    assert_eq!(json["same"], false);
    // Against a plan file.
    assert_eq!(place.run(&["plan", "peak-may-13", "--out", "peak.json"]).code, 0);
    assert_eq!(place.run(&["plan", "turbo-stable", "--against", "peak.json", "--format", "json"]).json(), json);
}

#[test]
fn a_plan_that_does_not_fit_is_printed_and_fails() {
    let place = Place::new();
    place.write(
        "big.toml",
        "extends = [\"31b-v6e-8\"]\n[hardware]\naccelerator = \"v6e-1\"\n[parallelism]\ntensor = 1\n",
    );
    let outcome = place.run(&["plan", "big.toml", "--format", "json", "--out", "big.json"]);
    assert_eq!(outcome.code, 1);
    let plan = outcome.json();
    assert_eq!(plan["memory"]["fits"], false);
    let finding = plan["diagnostics"]
        .as_array()
        .expect("diagnostics")
        .iter()
        .find(|finding| finding["code"] == "does-not-fit")
        .expect("a finding")
        .clone();
    assert_eq!(
        (finding["file"].as_str(), finding["line"].as_u64(), finding["column"].as_u64()),
        (Some("big.toml"), Some(5), Some(10))
    );
    assert!(!place.path().join("big.json").exists(), "nothing is written unless all is well");
    assert!(outcome.stderr.contains("was not written"), "{}", outcome.stderr);
}

#[test]
fn explain_tells_the_story_of_a_value() {
    let place = Place::new();
    place.write("mine.toml", "extends = [\"turbo-stable\"]\n\n[scheduler]\nmax_num_seqs = 64\n");
    assert_snapshot!("explain_block_size", place.run(&["explain", "turbo-stable", "scheduler.block_size"]).all());
    assert_snapshot!("explain_override", place.run(&["explain", "mine.toml", "scheduler.max_num_seqs"]).all());
    assert_snapshot!("explain_default", place.run(&["explain", "e2b-v6e-1", "memory.hbm_utilization"]).all());
    assert_snapshot!("explain_derived", place.run(&["explain", "e2b-v6e-1", "memory.block_size"]).all());
    assert_snapshot!(
        "explain_set",
        place.run(&["explain", "e2b-v6e-1", "engine.version", "--set", "engine.version=0.30"]).all()
    );
    assert_snapshot!("explain_typo", place.run(&["explain", "e2b-v6e-1", "scheduler.max_num_seq"]).all());
    let rule = place.run(&["explain", "fp8-kv-no-gain"]);
    assert!(rule.code == 0 && rule.stdout.starts_with("# fp8-kv-no-gain\n"));
}

#[test]
fn bad_profiles_are_findings() {
    let place = Place::new();
    place
        .write("empty.toml", "")
        .write("binary.toml", b"\xff\xfe\x00[model]")
        .write("syntax.toml", "[model]\nid = \n[[[\n")
        .write("deep.toml", format!("a = {}{}", "[".repeat(5000), "]".repeat(5000)))
        .write("number.toml", "[scheduler]\nmax_num_seqs = 99999999999999999999999\n")
        .write("typo.toml", "[model]\nid = \"google/gemma-4-E2B-it\"\n[hardware]\naccelerator = \"v6e-2\"\n[engine]\nkind = \"vllm-tpu\"\n[scheduler]\nmax_num_seq = 64\n")
        .write("a.toml", "extends = [\"b\"]\n")
        .write("b.toml", "extends = [\"a\"]\n")
        .write("orphan.toml", "extends = [\"turbo-stabel\"]\n");
    for file in ["empty", "binary", "syntax", "deep", "number", "typo", "a", "orphan"] {
        let name = format!("{file}.toml");
        let outcome = place.run(&["plan", &name, "--format", "json"]);
        assert_eq!(outcome.code, 1, "{name}: {}", outcome.all());
        let document = outcome.json();
        let diagnostics = document["diagnostics"].as_array().expect("diagnostics");
        assert!(!diagnostics.is_empty());
        for finding in diagnostics {
            assert!(
                finding["line"].as_u64() >= Some(1)
                    && finding["column"].as_u64() >= Some(1)
                    && finding["file"].is_string(),
                "{name}: {finding}"
            );
        }
    }
    assert_snapshot!("lint_typo", place.run(&["lint", "typo.toml"]).all());
    assert_snapshot!("lint_cycle", place.run(&["lint", "a.toml"]).all());
    assert_snapshot!("lint_orphan", place.run(&["lint", "orphan.toml", "--format", "concise"]).all());
    assert_snapshot!("lint_empty", place.run(&["lint", "empty.toml"]).all());
    assert_snapshot!("lint_syntax", place.run(&["lint", "syntax.toml"]).all());
}

#[test]
fn wrong_command_lines_exit_with_2() {
    let place = Place::new();
    place.write("small.toml", SMALL);
    for arguments in [
        &["plan"][..],
        &["plan", "turbo-stabel"],
        &["plan", "missing.toml"],
        &["plan", "small.toml", "--set", "nonsense"],
        &["plan", "small.toml", "--fromat", "json"],
        &["lint"],
        &["lint", "missing/*.toml"],
        &["lint", "small.toml", "--deny", "nonsense"],
        &["explain", "no-such-thing"],
        &["init", "--model", "google/gemma-4-E2B-it"],
        &["frobnicate"],
    ] {
        let outcome = place.run(arguments);
        assert_eq!(outcome.code, 2, "{arguments:?}: {}", outcome.all());
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{arguments:?}: {}", outcome.all());
    }
    let outcome = place.run(&["plan", "turbo-stabel"]);
    assert!(outcome.stderr.contains("did you mean `turbo-stable`?"), "{}", outcome.stderr);
}

#[test]
fn set_overrides_and_is_checked() {
    let place = Place::new();
    place.write("small.toml", SMALL);
    let plan = place
        .run(&[
            "plan",
            "small.toml",
            "--format",
            "json",
            "--set",
            "scheduler.max_num_seqs=4",
            "--set",
            "model.revision=0.1",
        ])
        .json();
    assert_eq!(plan["scheduler"]["max_num_seqs"], 4);
    assert_eq!(plan["model"]["revision"], "0.1");
    assert_eq!(plan["provenance"]["scheduler.max_num_seqs"]["source"], "set");
    let wrong = place.run(&["plan", "small.toml", "--set", "scheduler.max_num_seqs=many"]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.stdout.contains("[wrong-type] --set:1"), "{}", wrong.stdout);
}

#[test]
fn lint_in_every_format() {
    let place = Place::new();
    place
        .write("profiles/one.toml", "name = \"one\"\nextends = [\"e2b-v6e-1\"]\n[server]\nhost = \"localhost\"\n")
        .write("profiles/two.toml", SMALL.replace("small", "two"))
        .write("profiles/Cargo.toml", "[package]\n");
    for format in ["text", "concise", "json", "sarif", "github"] {
        let outcome = place.run(&["lint", "profiles", "--format", format]);
        assert_eq!(outcome.code, 0, "{format}: {}", outcome.all());
        assert!(outcome.stdout.contains("localhost-name"), "{format}: {}", outcome.all());
    }
    assert_snapshot!("lint_json", place.run(&["lint", "profiles/o*.toml", "--format", "json"]).stdout);
    assert_eq!(place.run(&["lint", "profiles", "--deny", "warnings"]).code, 1);
    assert_eq!(place.run(&["lint", "profiles", "--deny", "localhost-name"]).code, 1);
    assert_eq!(place.run(&["lint", "profiles", "--deny", "cannot-shard"]).code, 0);
    assert_eq!(
        place.run(&["lint", "profiles", "--deny", "warnings", "--format", "sarif"]).code,
        0,
        "SARIF exits 0 whatever it found"
    );
    assert_eq!(place.run(&["lint", "profiles/two.toml", "--deny", "warnings"]).code, 0);
}

#[test]
fn fixes_keep_formatting_and_comments() {
    let place = Place::new();
    let before = "# my profile\nname = \"mine\"   # keep this\nextends = [\"e2b-v6e-1\"]\n\n[server]\nhost = 'localhost' # local only\n\n[scheduler]\n  max_num_seq = 64\n";
    place.write("mine.toml", before);
    let outcome = place.run(&["lint", "mine.toml", "--fix", "--format", "concise"]);
    assert_eq!(outcome.code, 0, "{}", outcome.all());
    let after = before.replace("'localhost'", "'127.0.0.1'").replace("max_num_seq ", "max_num_seqs ");
    assert_eq!(place.read("mine.toml"), after);
    assert!(outcome.stderr.contains("mended 2 findings in 1 file"), "{}", outcome.stderr);
    // A second time there is nothing to do, and nothing is written.
    assert!(place.run(&["lint", "mine.toml", "--fix"]).stderr.contains("mended 0 findings in 0 files"));
}

#[test]
fn allowances_need_a_reason() {
    let place = Place::new();
    let profile = |allow: &str| format!("name = \"mine\"\nextends = [\"e2b-v6e-1\"]\n[lint]\nallow = [{allow}]\n");
    place.write("mine.toml", profile("{ rule = \"fp8-kv-no-gain\", reason = \"accuracy was measured\" }"));
    assert!(!place.run(&["lint", "mine.toml"]).stdout.contains("fp8-kv-no-gain"));
    place.write("mine.toml", profile("{ rule = \"fp8-kv-no-gain\" }"));
    let outcome = place.run(&["lint", "mine.toml"]);
    assert!(
        outcome.stdout.contains("is allowed without a reason") && outcome.stdout.contains("warning[fp8-kv-no-gain]"),
        "{}",
        outcome.stdout
    );
    place.write("mine.toml", profile("{ rule = \"fp8-kv-no-gian\", reason = \"a typo\" }"));
    assert!(place.run(&["lint", "mine.toml"]).stdout.contains("did you mean `fp8-kv-no-gain`?"));
}

#[test]
fn secrets_never_come_out() {
    let place = Place::new();
    let token = "hf_PlantedPlantedPlanted0123456789";
    place.write(
        "mine.toml",
        format!("name = \"mine\"\nextends = [\"e2b-v6e-1\"]\n[secrets]\nhf_token = \"{token}\"\n[engine]\nenv = {{ HF_TOKEN = \"{token}\", OTHER = \"Bearer {token}\" }}\nextra_args = [\"--api-key\", \"{token}\", \"--api-key={token}\"]\n"),
    );
    let mut all = String::new();
    for arguments in [
        &["plan", "mine.toml"][..],
        &["plan", "mine.toml", "--format", "json"],
        &["plan", "mine.toml", "--against", "e2b-v6e-1"],
        &["plan", "mine.toml", "--against", "e2b-v6e-1", "--format", "json"],
        &["lint", "mine.toml"],
        &["lint", "mine.toml", "--format", "json"],
        &["lint", "mine.toml", "--format", "sarif"],
        &["lint", "mine.toml", "--format", "github"],
        &["explain", "mine.toml"],
        &["explain", "mine.toml", "--format", "json"],
        &["explain", "mine.toml", "engine.extra_args"],
    ] {
        let outcome = place.run(arguments);
        assert!(
            outcome.code == 1 || arguments[0] == "explain" || arguments.contains(&"sarif"),
            "{arguments:?}: {}",
            outcome.all()
        );
        all.push_str(&outcome.all());
    }
    assert!(!all.contains(token), "the token came out");
    assert!(all.contains("secret-in-profile"));
}

#[test]
fn the_digest_is_the_same_anywhere() {
    let digest = |place: &Place, file: &str| place.run(&["plan", file, "--format", "json"]).json()["digest"].clone();
    let (one, two) = (Place::new(), Place::new());
    one.write("here.toml", SMALL);
    two.write("there/deep/other.toml", SMALL.replace("small", "other name"));
    assert_eq!(
        digest(&one, "here.toml"),
        digest(&two, "there/deep/other.toml"),
        "neither path nor name is in the digest"
    );
    one.write("here.toml", SMALL.replace("max_num_seqs = 8", "max_num_seqs = 9"));
    assert_ne!(digest(&one, "here.toml"), digest(&two, "there/deep/other.toml"));
}

#[test]
fn a_changed_plan_file_is_refused() {
    let place = Place::new();
    place.write("small.toml", SMALL);
    assert_eq!(place.run(&["plan", "small.toml", "--out", "plan.json"]).code, 0);
    let good = place.read("plan.json");
    assert_eq!(place.run(&["plan", "small.toml", "--against", "plan.json"]).code, 0);
    for (what, text) in [
        ("a setting", good.replace("\"max_num_seqs\": 8", "\"max_num_seqs\": 9")),
        ("white space", good.replacen("  ", "   ", 1)),
        ("a note", good.replacen("\"why\": \"", "\"why\": \"X", 1)),
        ("the format", good.replace("gemma4ctl.plan/1", "gemma4ctl.plan/9")),
        ("truncation", good[..good.len() / 2].to_owned()),
    ] {
        assert_ne!(text, good, "{what} was not changed");
        place.write("bad.json", text);
        let outcome = place.run(&["plan", "small.toml", "--against", "bad.json"]);
        assert_eq!(outcome.code, 2, "{what}: {}", outcome.all());
        assert!(outcome.stderr.contains("cannot use bad.json"), "{what}: {}", outcome.stderr);
    }
}

#[test]
fn init_writes_profiles_that_plan() {
    let place = Place::new();
    for (model, accelerator) in [
        ("google/gemma-4-E2B-it", "v6e-1"),
        ("google/gemma-4-31B-it", "v6e-8"),
        ("google/gemma-4-E4B-it", "h100-1"),
        ("builtin/smoke", "cpu"),
        ("google/gemma-4-E2B-it", "cpu"),
    ] {
        let outcome = place.run(&["init", "mine", "--model", model, "--accelerator", accelerator, "--force"]);
        assert_eq!(outcome.code, 0, "{}", outcome.all());
        let plan = place.run(&["plan", "mine.toml", "--format", "json"]);
        assert_eq!(plan.code, 0, "{model} on {accelerator}: {}", plan.all());
        assert_eq!(
            plan.json()["diagnostics"]
                .as_array()
                .map(|list| list.iter().filter(|finding| finding["severity"] == "warning").count()),
            Some(0),
            "{model} on {accelerator}: {}",
            plan.all()
        );
    }
    let again = place.run(&["init", "mine", "--model", "builtin/smoke", "--accelerator", "cpu"]);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("is there already"));
}

#[test]
fn names_are_looked_up_in_order() {
    let place = Place::new();
    assert_eq!(place.run(&["plan", "smoke", "--format", "json"]).json()["profile"]["name"], "smoke");
    place.write("config/profiles/smoke.toml", SMALL.replace("\"small\"", "\"from config\""));
    assert_eq!(place.run(&["plan", "smoke", "--format", "json"]).json()["profile"]["name"], "from config");
    place.write("profiles/smoke.toml", SMALL.replace("\"small\"", "\"from folder\""));
    assert_eq!(place.run(&["plan", "smoke", "--format", "json"]).json()["profile"]["name"], "from folder");
    let list = place.run(&["profiles"]);
    assert!(list.stdout.contains("turbo-stable") && list.code == 0);
}

#[test]
fn a_user_can_add_to_the_catalog() {
    let place = Place::new();
    place.write("catalog/accelerators/mine.toml", "family = \"tpu9z\"\nkind = \"tpu\"\ntitle = \"Mine\"\ndevices_per_chip = 1\nnominal_hbm_gib = 64\nfp8_matrix_units = false\nplanes = []\nflex_start = false\nsource = \"me\"\n[[usable]]\nbytes = 68000000000\nsource = \"me\"\n[[slice]]\nchips = 4\ntopology = \"2x2\"\nhosts = 1\n");
    let plan = place.run(&["plan", "e2b-v6e-4", "--set", "hardware.accelerator=tpu9z-4", "--format", "json"]).json();
    assert_eq!(plan["hardware"]["usable_hbm_bytes"], 68_000_000_000_u64);
    place.write("catalog/accelerators/broken.toml", "family = 3\n");
    let outcome = place.run(&["plan", "e2b-v6e-4"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("catalog/accelerators/broken.toml"), "{}", outcome.stderr);
}

/// The configuration of a tiny checkpoint.
const CONFIG: &str = include_str!("fixtures/gemma4/tiny-e2b/bf16/config.json");

/// A checkpoint with the tensors of that configuration, all zero.
fn checkpoint() -> Vec<u8> {
    let tensors: std::collections::BTreeMap<String, (String, Vec<u64>)> =
        serde_json::from_str(include_str!("../runtime/gemma4/tests/tensor_lists/tiny-e2b.json")).expect("the tensors");
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, (dtype, shape)) in tensors {
        let bytes = shape.iter().product::<u64>() * if dtype == "BF16" { 2 } else { 4 };
        header.insert(name, serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes] }));
        at += bytes;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + usize::try_from(at).expect("a size"), 0);
    file
}

#[test]
fn a_local_checkpoint_is_planned_by_its_contents() {
    let digest = |folder: &str| {
        let place = Place::new();
        place
            .write(&format!("{folder}/config.json"), CONFIG)
            .write(&format!("{folder}/model.safetensors"), checkpoint());
        place.write("mine.toml", SMALL.replace("builtin/smoke", &format!("./{folder}")).replace("2048", "1024"));
        let outcome = place.run(&["plan", "mine.toml", "--format", "json"]);
        assert_eq!(outcome.code, 0, "{}", outcome.all());
        let plan = outcome.json();
        assert!(plan["model"]["fingerprint"].as_str().is_some_and(|text| text.starts_with("sha256:")));
        plan["digest"].clone()
    };
    assert_eq!(digest("weights"), digest("elsewhere"), "the folder's name is not in the digest");
    let place = Place::new();
    place.write("mine.toml", SMALL.replace("builtin/smoke", "./nowhere"));
    let outcome = place.run(&["plan", "mine.toml"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stdout.contains("unusable-checkpoint"), "{}", outcome.stdout);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let mut child = place
        .command(&["plan", "turbo-stable", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_and_completions_are_results() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert!(help.code == 0 && help.stdout.contains("lint") && help.stderr.is_empty());
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(place.run(&["completions", shell]).stdout.contains("gemma4ctl"), "{shell}");
    }
    for which in ["profile", "plan"] {
        assert!(place.run(&["schema", which]).json()["title"].is_string());
    }
}

#[test]
fn schema_check_says_what_lint_says() {
    let place = Place::new();
    place.write("mine.toml", "[scheduler]\nmax_num_seq = 1\n");
    let outcome = place.run(&["schema", "profile", "--check", "mine.toml", "--format", "concise"]);
    assert_eq!(outcome.code, 1);
    assert_snapshot!("schema_check", outcome.stdout);
}

#[test]
fn fixes_never_make_a_profile_worse() {
    let place = Place::new();
    for text in [
        "extends = [\"e2b-v6e-1\"]\n[scheduler]\nmax_num_seq = 8\nmax_num_seqs = 16\n",
        "extends = [\"e2b-v6e-1\"]\n[scheduler]\nmax_num_seq = 8\nmax_num_seqz = 16\n",
        "extends = [\"e2b-v6e-1\"]\n[schedular]\nmax_num_seqs = 8\n[scheduler]\nmax_num_seqs = 16\n",
        "extends = [\"e2b-v6e-1\"]\n[engine]\nextra_args = [\"--disable-lora\"]\n",
    ] {
        place.write("mine.toml", text);
        place.run(&["lint", "mine.toml", "--fix"]);
        assert_eq!(place.read("mine.toml"), text);
    }
    // Nothing is written when a file of the same run cannot be read.
    let text = "name = \"mine\"\nextends = [\"e2b-v6e-1\"]\n[server]\nhost = \"localhost\"\n";
    place.write("mine.toml", text);
    assert_eq!(place.run(&["lint", "--fix", "mine.toml", "nope.toml"]).code, 2);
    assert_eq!(place.read("mine.toml"), text);
}

#[cfg(unix)]
#[test]
fn files_are_written_where_links_lead_and_devices_stay_devices() {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt};
    let place = Place::new();
    place.write("small.toml", SMALL).write("real.json", "old");
    std::os::unix::fs::symlink("real.json", place.path().join("link.json")).expect("a link");
    assert_eq!(place.run(&["plan", "small.toml", "--out", "link.json"]).code, 0);
    assert!(place.path().join("link.json").is_symlink());
    assert!(place.read("real.json").contains("gemma4ctl.plan/1"));
    // A device of our own would need privileges; a pipe shows the same.
    let pipe = place.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).expect("the plan")
    });
    assert_eq!(place.run(&["plan", "small.toml", "--out", "pipe"]).code, 0);
    assert!(reader.join().expect("a reader").contains("gemma4ctl.plan/1"));
    assert!(std::fs::metadata(&pipe).expect("the pipe").file_type().is_fifo());
    std::fs::set_permissions(place.path().join("real.json"), PermissionsExt::from_mode(0o444)).expect("permissions");
    let refused = place.run(&["plan", "small.toml", "--out", "real.json"]);
    assert!(refused.code == 2 && refused.stderr.contains("read-only"), "{}", refused.all());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let place = Place::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output =
        place.command(&["plan", "turbo-stable", "--format", "json"]).stdout(full).output().expect("the binary");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the result"));
}

#[test]
fn small_inputs_never_take_long() {
    let place = Place::new();
    // Each level doubles the number of parents; only a bound on their number ends this.
    for level in 0..32 {
        place.write(&format!("p{level}.toml"), format!("extends = [\"p{0}\", \"p{0}\"]\n", level + 1));
    }
    place.write("p32.toml", SMALL);
    assert_eq!(place.run(&["lint", "p0.toml"]).code, 1);
    let keys: String = (0..60_000).map(|index| format!("k{index}=1\n")).collect();
    place.write("many.toml", keys);
    let outcome = place.run(&["lint", "many.toml"]);
    assert!(outcome.code == 1 && outcome.stdout.contains("more than 1000 keys"));
    place.write(
        "flag.toml",
        format!(
            "extends = [\"e2b-v6e-1\"]\n[engine]\nversion = \"0.32\"\nextra_args = [\"--{}\"]\n",
            "x".repeat(500_000)
        ),
    );
    assert_eq!(place.run(&["lint", "flag.toml", "--format", "json"]).code, 1);
}

#[test]
fn removed_flags_take_nothing_else_along() {
    let place = Place::new();
    place.write("mine.toml", "name = \"mine\"\nextends = [\"e2b-v6e-1\"]\n[engine]\nversion = \"0.30\"\nextra_args = [\"--swap-space\", \"4\", \"-O3\", \"--disable-log-requests\", \"--num-scheduler-steps=8\", \"--seed\", \"1\"]\n");
    let plan = place.run(&["plan", "mine.toml", "--format", "json"]).json();
    let argv: Vec<&str> =
        plan["engine"]["argv"].as_array().expect("argv").iter().filter_map(serde_json::Value::as_str).collect();
    assert_eq!(argv[argv.len() - 3..], ["-O3", "--seed", "1"]);
    assert_eq!(plan["engine"]["notes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn a_warm_cache_is_only_promised_for_the_same_programs() {
    let place = Place::new();
    let key = |set: &str| {
        place.run(&["plan", "31b-v6e-8", "--format", "json", "--set", set]).json()["compile_cache"]["key"].clone()
    };
    let base = key("server.port=8000");
    assert_eq!(base, key("server.port=8001"));
    for set in [
        "engine.env.MODEL_IMPL_TYPE=vllm",
        "scheduler.async_scheduling=false",
        "scheduler.max_num_seqs=128",
        "memory.hbm_utilization=0.8",
        "engine.pip=[\"jax==0.11\"]",
    ] {
        assert_ne!(base, key(set), "{set}");
    }
}

#[test]
fn values_cannot_become_code_elsewhere() {
    let place = Place::new();
    for set in [
        "secrets.hf_token={ env = \"X}$(id)\" }",
        "secrets.hf_token={ file = \"a\\nb\" }",
        "deploy.docker.name=\"a b\"",
        "name=\"a\\nExecStart=/bin/sh\"",
        "model.id=\"google/gemma-4-E2B-it\\u2028x\"",
    ] {
        let outcome = place.run(&["plan", "e2b-v6e-1", "--set", set, "--format", "json"]);
        assert_eq!(outcome.code, 1, "{set}: {}", outcome.all());
        assert!(outcome.stdout.contains("\"invalid-value\""), "{set}: {}", outcome.all());
    }
}

#[test]
fn another_reference_replaces_a_secret() {
    let place = Place::new();
    let plan = place
        .run(&["plan", "e2b-v6e-1", "--set", "secrets.hf_token={ env = \"MY_TOKEN\" }", "--format", "json"])
        .json();
    assert_eq!(plan["secrets"]["hf_token"], serde_json::json!({ "env": "MY_TOKEN" }));
}

#[test]
fn tpu7x_counts_two_devices_a_chip() {
    let place = Place::new();
    let plan = place.run(&["plan", "31b-v6e-8", "--set", "hardware.accelerator=tpu7x-4", "--format", "json"]).json();
    assert_eq!((plan["hardware"]["chips"].as_u64(), plan["hardware"]["devices"].as_u64()), (Some(4), Some(8)));
    assert_eq!(plan["memory"]["per_device"]["usable"], plan["hardware"]["usable_hbm_bytes"]);
    // 8 devices, fp8: 573,440 bytes a token on all of them together.
    assert_eq!(plan["kv_cache"]["bytes_per_token"], 573_440);
}
