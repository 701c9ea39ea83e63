//! Findings as text for people and as documents for tools, one renderer a file.

mod concise;
mod full;
mod github;
mod json;
mod sarif;

use crate::diagnostic::{Diagnostic, Severity, Sources};

pub use json::{document, records};

/// How findings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The source with carets under the place, and what to do.
    Text,
    /// One line each.
    Concise,
    /// `{"diagnostics": [...]}`.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// Annotations of GitHub Actions.
    Github,
}

/// One file's findings and the texts they point into.
pub struct Batch<'a> {
    /// The texts.
    pub sources: &'a Sources,
    /// The findings.
    pub diagnostics: &'a [Diagnostic],
}

/// Findings of several profiles as one document.
pub fn render(format: Format, batches: &[Batch<'_>], colour: bool) -> String {
    match format {
        Format::Text => full::render(batches, colour),
        Format::Concise => concise::render(batches),
        Format::Json => json::render(batches),
        Format::Sarif => sarif::render(batches),
        Format::Github => github::render(batches),
    }
}

/// A count of findings in words, such as `1 error, 2 warnings`.
pub fn tally<'a>(diagnostics: impl Iterator<Item = &'a Diagnostic>) -> String {
    let mut counts = [0_usize; 3];
    for diagnostic in diagnostics {
        counts[match diagnostic.severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Info => 2,
        }] += 1;
    }
    let parts: Vec<String> = counts
        .iter()
        .zip(["error", "warning", "note"])
        .filter(|(count, _)| **count > 0)
        .map(|(count, word)| crate::words::plural(*count, word))
        .collect();
    if parts.is_empty() { "no findings".to_owned() } else { parts.join(", ") }
}
