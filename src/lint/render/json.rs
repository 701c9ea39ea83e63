//! `{"diagnostics": [...]}` with stable fields.

use gemma4_plan::Diagnostic;

use super::Batch;

pub(super) fn render(batches: &[Batch<'_>]) -> String {
    let mut text = serde_json::to_string_pretty(&document(&records(batches))).unwrap_or_default();
    text.push('\n');
    text
}

/// The findings as they stand in JSON.
pub fn records(batches: &[Batch<'_>]) -> Vec<Diagnostic> {
    batches
        .iter()
        .flat_map(|batch| batch.diagnostics.iter().map(|diagnostic| batch.sources.record(diagnostic)))
        .collect()
}

/// The document.
pub fn document(records: &[Diagnostic]) -> serde_json::Value {
    serde_json::json!({ "diagnostics": records })
}
