//! SARIF 2.1.0, as code-scanning services read it.

use std::collections::BTreeMap;

use gemma4_plan::Severity;
use serde_sarif::sarif;

use super::Batch;
use crate::diagnostic::{Diagnostic, Sources};
use crate::lint;

pub(super) fn render(batches: &[Batch<'_>]) -> String {
    // Only rules that were met are described, each under its index.
    let mut indices: BTreeMap<&str, i64> = BTreeMap::new();
    for diagnostic in batches.iter().flat_map(|batch| batch.diagnostics) {
        indices.entry(diagnostic.code).or_insert(0);
    }
    for (index, value) in indices.values_mut().enumerate() {
        *value = i64::try_from(index).unwrap_or(i64::MAX);
    }
    let rules: Vec<sarif::ReportingDescriptor> = indices.keys().map(|code| descriptor(code)).collect();
    let results: Vec<sarif::Result> = batches
        .iter()
        .flat_map(|batch| {
            batch
                .diagnostics
                .iter()
                .map(|diagnostic| result(batch.sources, diagnostic, indices.get(diagnostic.code).copied().unwrap_or(0)))
        })
        .collect();
    let driver =
        sarif::ToolComponent::builder().name("gemma4ctl").version(env!("CARGO_PKG_VERSION")).rules(rules).build();
    let run = sarif::Run::builder()
        .tool(sarif::Tool::builder().driver(driver).build())
        .column_kind(serde_json::json!("unicodeCodePoints"))
        .results(results)
        .build();
    let document = sarif::Sarif::builder()
        .version(serde_json::json!("2.1.0"))
        .schema("https://json.schemastore.org/sarif-2.1.0.json")
        .runs(vec![run])
        .build();
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn message(text: impl Into<String>) -> sarif::MultiformatMessageString {
    sarif::MultiformatMessageString::builder().text(text.into()).build()
}

fn descriptor(code: &str) -> sarif::ReportingDescriptor {
    let (summary, page) = lint::find(code).map_or(("", ""), |rule| (rule.summary, rule.page));
    let markdown = sarif::MultiformatMessageString::builder().text(summary).markdown(page).build();
    sarif::ReportingDescriptor::builder().id(code).short_description(message(summary)).help(markdown).build()
}

fn result(sources: &Sources, diagnostic: &Diagnostic, rule_index: i64) -> sarif::Result {
    let record = sources.attachable(diagnostic);
    let level = match record.severity {
        Severity::Error => sarif::ResultLevel::Error,
        Severity::Warning => sarif::ResultLevel::Warning,
        Severity::Info => sarif::ResultLevel::Note,
    };
    let text = match &record.help {
        Some(help) => format!("{}. {help}.", record.message),
        None => format!("{}.", record.message),
    };
    let region =
        sarif::Region::builder().start_line(i64::from(record.line)).start_column(i64::from(record.column)).build();
    let place = sarif::PhysicalLocation::builder()
        .artifact_location(sarif::ArtifactLocation::builder().uri(uri(&record.file)).build())
        .region(region)
        .build();
    sarif::Result::builder()
        .rule_id(diagnostic.code)
        .rule_index(rule_index)
        .level(level)
        .message(sarif::Message::builder().text(text).build())
        .locations(vec![sarif::Location::builder().physical_location(place).build()])
        .build()
}

/// A file name as a URI reference: forward slashes, everything unusual percent-encoded.
fn uri(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.replace('\\', "/").trim_start_matches("./").bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
