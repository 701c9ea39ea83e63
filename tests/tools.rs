//! Outputs checked with the tools that their consumers use. `.ci/install-tools` installs them; a test that misses one
//! says so on stderr, past the harness's capture, and CI counts that.

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{root, skipped, text, tool};

fn run(program: &Path, arguments: &[&str], folder: &Path) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .output()
        .expect("the tool")
}

fn profiles() -> Vec<String> {
    common::profiles().iter().map(|path| path.display().to_string()).collect()
}

/// A profile that the schema must refuse.
fn bad_profile(folder: &Path) -> String {
    let path = folder.join("bad.toml");
    std::fs::write(
        &path,
        format!("#:schema {}/schemas/profile.schema.json\n[scheduler]\nmax_num_seq = 1\n", root().display()),
    )
    .expect("a file");
    path.display().to_string()
}

#[test]
fn taplo_takes_the_shipped_profiles_and_refuses_a_typo() {
    let Some(taplo) = tool("taplo") else { return };
    let profiles = profiles();
    let mut arguments = vec!["lint"];
    arguments.extend(profiles.iter().map(String::as_str));
    let good = run(&taplo, &arguments, root());
    assert!(good.status.success(), "{}", text(&good));
    let folder = tempfile::tempdir().expect("a folder");
    let bad = run(&taplo, &["lint", &bad_profile(folder.path())], root());
    assert!(!bad.status.success() && text(&bad).contains("max_num_seq"), "{}", text(&bad));
}

#[test]
fn check_jsonschema_agrees() {
    let Some(checker) = tool("check-jsonschema") else { return };
    for schema in ["schemas/profile.schema.json", "schemas/plan.schema.json"] {
        let output = run(&checker, &["--check-metaschema", schema], root());
        assert!(output.status.success(), "{schema}: {}", text(&output));
    }
    let profiles = profiles();
    let mut arguments = vec!["-o", "json", "--schemafile", "schemas/profile.schema.json"];
    arguments.extend(profiles.iter().map(String::as_str));
    let good = run(&checker, &arguments, root());
    assert!(good.status.success(), "{}", text(&good));
    let folder = tempfile::tempdir().expect("a folder");
    let bad = run(
        &checker,
        &["-o", "json", "--schemafile", "schemas/profile.schema.json", &bad_profile(folder.path())],
        root(),
    );
    let report: serde_json::Value = serde_json::from_slice(&bad.stdout).expect("a report");
    assert!(
        report["status"] == "fail" && report["errors"].as_array().is_some_and(|errors| !errors.is_empty()),
        "{}",
        text(&bad)
    );
    // A plan too.
    let plan = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"))
        .args(["plan", "turbo-stable", "--format", "json"])
        .current_dir(root())
        .output()
        .expect("the binary");
    let path = folder.path().join("plan.json");
    std::fs::write(&path, plan.stdout).expect("a file");
    let output = run(&checker, &["--schemafile", "schemas/plan.schema.json", &path.display().to_string()], root());
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn sarif_is_valid() {
    let Some(checker) = tool("check-jsonschema") else { return };
    let schema = root().join(".tools/venv/share/sarif-schema-2.1.0.json");
    if !schema.is_file() {
        skipped("the SARIF schema is not there; `.ci/install-tools` installs it");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    bad_profile(folder.path());
    std::fs::write(folder.path().join("b\u{e4}d name.toml"), "[model]\nid = 1\n").expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"))
        .args(["lint", ".", "--format", "sarif"])
        .current_dir(folder.path())
        .output()
        .expect("the binary");
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("SARIF");
    let rules = report["runs"][0]["tool"]["driver"]["rules"].as_array().expect("rules");
    let results = report["runs"][0]["results"].as_array().expect("results");
    assert!(results.len() >= 2);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().expect("an index")).expect("an index");
        assert_eq!(rules[index]["id"], result["ruleId"], "the index leads to the rule");
        let uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].as_str().expect("a URI");
        assert!(uri.bytes().all(|byte| byte.is_ascii_graphic()), "{uri}");
    }
    let path = folder.path().join("out.sarif");
    std::fs::write(&path, &output.stdout).expect("a file");
    // The published schema has a pattern that only Python's dialect takes.
    let arguments = |path: &Path| {
        [
            "--regex-variant".to_owned(),
            "nonunicode".to_owned(),
            "--schemafile".to_owned(),
            schema.display().to_string(),
            path.display().to_string(),
        ]
    };
    let check = |path: &Path| run(&checker, &arguments(path).each_ref().map(String::as_str), root());
    let good = check(&path);
    assert!(good.status.success(), "{}", text(&good));
    let broken = folder.path().join("broken.sarif");
    std::fs::write(&broken, String::from_utf8_lossy(&output.stdout).replace("\"error\"", "\"fatal\"")).expect("a file");
    assert!(!check(&broken).status.success(), "the checker refuses what is wrong");
}

#[test]
fn the_example_workflow_is_valid_and_safe() {
    let workflow = "docs/examples/profiles.yml";
    if let Some(checker) = tool("check-jsonschema") {
        let output = run(&checker, &["--builtin-schema", "vendor.github-workflows", workflow], root());
        assert!(output.status.success(), "{}", text(&output));
    }
    if let Some(zizmor) = tool("zizmor") {
        let output = run(&zizmor, &["--offline", "--no-progress", workflow], root());
        assert!(output.status.success(), "{}", text(&output));
    }
    if let Some(yamllint) = tool("yamllint") {
        let output = run(&yamllint, &["-d", "relaxed", workflow, ".pre-commit-hooks.yaml"], root());
        assert!(output.status.success(), "{}", text(&output));
    }
}
