//! Annotations of GitHub Actions (`::error file=...,line=...::message`).

use gemma4_plan::Severity;

use super::Batch;

pub(super) fn render(batches: &[Batch<'_>]) -> String {
    let mut text = String::new();
    for batch in batches {
        for diagnostic in batch.diagnostics {
            let record = batch.sources.attachable(diagnostic);
            let command = match record.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Info => "notice",
            };
            let message = match record.help {
                Some(help) => format!("{}\n{help}", record.message),
                None => record.message,
            };
            text.push_str(&format!(
                "::{command} file={},line={},col={},title={}::{}\n",
                property(&record.file),
                record.line,
                record.column,
                property(&record.code),
                data(&message)
            ));
        }
    }
    text
}

/// Escapes the text of a command, as GitHub's toolkit does.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a property of a command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
