//! Every rule's page is its test: what a page calls bad is reported, what it calls good is not, and what it calls
//! fixed is what `--fix` makes of the bad example before it.

use gemma4ctl::diagnostic::Severity;
use gemma4ctl::{lint, plan};

struct Example {
    kind: String,
    text: String,
    line: usize,
}

fn examples(page: &str) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut current: Option<Example> = None;
    for (index, line) in page.lines().enumerate() {
        match &mut current {
            None => {
                if let Some(kind) = line.strip_prefix("```toml ") {
                    current = Some(Example { kind: kind.trim().to_owned(), text: String::new(), line: index + 1 });
                }
            }
            Some(example) if line == "```" => {
                examples.push(Example { kind: example.kind.clone(), text: example.text.clone(), line: example.line });
                current = None;
            }
            Some(example) => {
                example.text.push_str(line);
                example.text.push('\n');
            }
        }
    }
    examples
}

/// Lints `text` as the file `example.toml` of a folder of its own.
fn lint_text(text: &str) -> plan::Analysis {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("example.toml");
    std::fs::write(&path, text).expect("the example");
    plan::analyze(&path.display().to_string(), &[]).expect("an analysis")
}

fn codes(analysis: &plan::Analysis) -> Vec<String> {
    analysis.loaded.diagnostics.iter().map(|finding| format!("{}: {}", finding.code, finding.message)).collect()
}

#[test]
fn pages_are_their_rules_tests() {
    let mut failures = Vec::new();
    for rule in lint::all() {
        let mut fail = |what: String| failures.push(format!("docs/rules/{}.md: {what}", rule.code));
        let page = rule.page;
        let mut lines = page.lines();
        if lines.next() != Some(&format!("# {}", rule.code)) {
            fail("the first line is not the code".to_owned());
        }
        let summary: String = rule
            .summary
            .chars()
            .take(1)
            .flat_map(char::to_uppercase)
            .chain(rule.summary.chars().skip(1))
            .chain(['.'])
            .collect();
        if lines.nth(1) != Some(&summary) {
            fail(format!("the third line is not the summary: {summary}"));
        }
        let severity = match rule.severity {
            Severity::Error => "| error |",
            Severity::Warning => "| warning |",
            Severity::Info => "| info |",
        };
        if !page.lines().any(|line| line.starts_with(severity)) {
            fail(format!("the table has no row that starts with `{severity}`"));
        }
        for heading in ["## Why", "## Source"] {
            if !page.lines().any(|line| line == heading) {
                fail(format!("there is no `{heading}`"));
            }
        }
        let examples = examples(page);
        for kind in ["bad", "good"] {
            if !examples.iter().any(|example| example.kind == kind) {
                fail(format!("there is no ```toml {kind} example"));
            }
        }
        let mut last_bad: Option<plan::Analysis> = None;
        for example in &examples {
            let analysis = lint_text(&example.text);
            let reported = analysis.loaded.diagnostics.iter().any(|finding| finding.code == rule.code);
            match example.kind.as_str() {
                "bad" => {
                    if !reported {
                        fail(format!("line {}: not reported; found {:?}", example.line, codes(&analysis)));
                    }
                    last_bad = Some(analysis);
                }
                "good" if reported => fail(format!("line {}: reported: {:?}", example.line, codes(&analysis))),
                // A good example shows a good profile, not one with other errors.
                "good" if analysis.has_errors() => {
                    fail(format!("line {}: has errors: {:?}", example.line, codes(&analysis)))
                }
                "good" => {}
                "fixed" => {
                    let Some(bad) = &last_bad else {
                        fail(format!("line {}: no bad example before it", example.line));
                        continue;
                    };
                    let (texts, count) = lint::fix::apply(&bad.loaded.sources, &bad.loaded.diagnostics);
                    let text = texts.into_values().next().unwrap_or_default();
                    if count == 0 || text != example.text {
                        fail(format!("line {}: the fix gives\n{text}", example.line));
                    }
                }
                other => fail(format!("line {}: unknown kind of example `{other}`", example.line)),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn codes_are_unique_and_name_their_files() {
    let mut seen = std::collections::BTreeSet::new();
    for rule in lint::all() {
        assert!(seen.insert(rule.code), "{} twice", rule.code);
    }
    let codes: Vec<&str> = lint::rules::RULES.iter().map(|rule| rule.code).collect();
    let mut sorted = codes.clone();
    sorted.sort_unstable();
    assert_eq!(codes, sorted, "rules are listed in the order of their codes");
    assert!(codes.len() >= 30);
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rules")).expect("docs/rules") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        let code = name.trim_end_matches(".md");
        assert!(code == "README" || seen.contains(code), "docs/rules/{name} belongs to no rule");
    }
}
