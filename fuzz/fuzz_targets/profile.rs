//! Any bytes as a profile: read, resolve, budget, lint, render, plan.
#![no_main]

use gemma4ctl::lint::render::{Batch, Format, render};
use gemma4ctl::{lint, plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("profile.toml");
    std::fs::write(&path, bytes).expect("a file");
    let analysis = plan::analyze(&path.display().to_string(), &[]).expect("an analysis");
    let sources = &analysis.loaded.sources;
    let diagnostics = &analysis.loaded.diagnostics;
    for format in [Format::Text, Format::Concise, Format::Json, Format::Sarif, Format::Github] {
        render(format, &[Batch { sources, diagnostics }], false);
    }
    lint::fix::apply(sources, diagnostics);
    if let Some(mut plan) = analysis.plan() {
        let text = gemma4_plan::to_json(&mut plan).expect("JSON");
        gemma4_plan::read(text.as_bytes()).expect("what was written is read");
    } else {
        assert!(analysis.has_errors(), "neither a plan nor an error");
    }
});
