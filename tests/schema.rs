//! The schemas: up to date, named by every shipped profile, and in agreement with the typed reader.

mod common;

use gemma4ctl::profile::{self, schema};

use common::{profiles, root};

#[test]
fn committed_schemas_are_up_to_date() {
    for (file, schema) in [("profile", schema::schema()), ("plan", gemma4_plan::schema())] {
        let text = std::fs::read_to_string(root().join(format!("schemas/{file}.schema.json"))).expect("the schema");
        let committed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(committed, schema, "schemas/{file}.schema.json is stale: run `cargo xtask generate`");
    }
}

#[test]
fn every_shipped_profile_names_the_schema_and_is_built_in() {
    let mut names = Vec::new();
    for path in profiles() {
        let text = std::fs::read_to_string(&path).expect("the profile");
        let first = text.lines().next().unwrap_or("");
        let named =
            first.strip_prefix("#:schema ").unwrap_or_else(|| panic!("{} does not name its schema", path.display()));
        let schema = path.parent().expect("a folder").join(named);
        assert!(schema.is_file(), "{} names {named}, which is not there", path.display());
        let name = path.strip_prefix(root().join("profiles")).expect("below profiles").with_extension("");
        names.push(name.display().to_string());
    }
    let mut builtin: Vec<String> = profile::BUILTIN.iter().map(|builtin| builtin.name.to_owned()).collect();
    builtin.sort();
    names.sort();
    assert_eq!(names, builtin, "src/profile/builtin.rs lists the folder profiles/");
}

#[test]
fn every_shipped_profile_matches_the_schema() {
    for path in profiles() {
        let loaded = profile::load(&path.display().to_string(), &[]).expect("a profile");
        let findings = schema::validate(&loaded).expect("a valid schema");
        assert!(findings.is_empty(), "{}: {findings:?}", path.display());
    }
}

/// Profiles that are wrong in one way each. The schema must find what the typed reader finds, in the same words.
const WRONG: [&str; 22] = [
    "[scheduler]\nmax_num_seq = 4",
    "[schduler]\nmax_num_seqs = 4",
    "[scheduler]\nmax_num_seqs = \"many\"",
    "[scheduler]\nmax_num_seqs = 0",
    "[scheduler]\nmax_num_seqs = -1",
    "[scheduler]\nmax_num_seqs = 1.5",
    "[scheduler]\nmax_model_len = \"16 K\"",
    "[scheduler]\nprefix_caching = \"yes\"",
    "[memory]\nhbm_utilization = 1.5",
    "[memory]\nhbm_utilization = 0",
    "[memory]\nkv_cache_dtype = \"fp9\"",
    "[memory]\nkv_cache_dtype = 8",
    "[memory]\nweights_measured = \"lots\"",
    "[hardware]\nmemory = \"8 parsecs\"",
    "[hardware]\nmemory = 8",
    "[engine]\nkind = \"vllm\"",
    "[engine]\npip = \"transformers\"",
    "[engine]\nenv = { A = [1] }",
    "[server]\nport = 70000",
    "[deploy.gcloud]\nmax_run_duration = \"four hours\"",
    "model = \"google/gemma-4-E2B-it\"",
    "[lint]\nallow = [{ rul = \"x\" }]",
];

fn load_text(text: &str) -> profile::Loaded {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("example.toml");
    std::fs::write(&path, text).expect("the profile");
    profile::load(&path.display().to_string(), &[]).expect("a profile")
}

#[test]
fn the_schema_says_what_the_typed_reader_says() {
    for text in WRONG {
        let loaded = load_text(text);
        let typed: Vec<String> = loaded
            .diagnostics
            .iter()
            .filter(|finding| finding.code != "missing-key")
            .map(|finding| format!("{} {}", finding.code, finding.message))
            .collect();
        assert!(!typed.is_empty(), "the typed reader takes {text:?}");
        let by_schema: Vec<String> = schema::validate(&loaded)
            .expect("a valid schema")
            .iter()
            .map(|finding| format!("{} {}", finding.code, finding.message))
            .collect();
        assert_eq!(by_schema, typed, "{text:?}");
    }
}

#[test]
fn a_plan_matches_its_schema() {
    let schema = gemma4_plan::schema();
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    for (name, _) in profile::list() {
        let analysis = gemma4ctl::plan::analyze(&name, &[]).expect("an analysis");
        let Some(plan) = analysis.plan() else { continue };
        let json = serde_json::to_value(&plan).expect("JSON");
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn the_seeded_model_is_the_one_that_the_smoke_profile_plans() {
    let planned = gemma4ctl::catalog::model("builtin/smoke", None).expect("a catalog").expect("the smoke model");
    let made = gemma4_model::Config::from_json(gemma4_model::seeded::CONFIG.as_bytes()).expect("a configuration");
    assert_eq!(planned.config, made);
}
