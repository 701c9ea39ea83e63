//! One line a finding: `file:line:column: severity[code] message`.

use super::Batch;

pub(super) fn render(batches: &[Batch<'_>]) -> String {
    let mut text = String::new();
    for batch in batches {
        for diagnostic in batch.diagnostics {
            let record = batch.sources.record(diagnostic);
            let help = record.help.map(|help| format!(" ({help})")).unwrap_or_default();
            text.push_str(&format!(
                "{}:{}:{}: {}[{}] {}{help}\n",
                record.file,
                record.line,
                record.column,
                record.severity.as_str(),
                record.code,
                record.message
            ));
        }
    }
    text
}
