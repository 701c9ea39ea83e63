//! The source with carets under the place, in the manner of rustc.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use gemma4_plan::Severity;

use super::Batch;
use crate::diagnostic::{Diagnostic, Location, Sources};

/// Findings of one profile that are drawn.
const MAX_SHOWN: usize = 100;

/// Narrowest and widest output, columns.
const WIDTH: std::ops::RangeInclusive<usize> = 40..=140;

pub(super) fn render(batches: &[Batch<'_>], colour: bool) -> String {
    let width = terminal_size::terminal_size()
        .map_or(100, |(width, _)| usize::from(width.0))
        .clamp(*WIDTH.start(), *WIDTH.end());
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() }.term_width(width);
    let mut text = String::new();
    for batch in batches {
        for diagnostic in batch.diagnostics.iter().take(MAX_SHOWN) {
            text.push_str(&renderer.render(&[group(batch.sources, diagnostic)]));
            text.push_str("\n\n");
        }
        if batch.diagnostics.len() > MAX_SHOWN {
            text.push_str(&format!(
                "... and {} more; `--format concise` shows all\n\n",
                batch.diagnostics.len() - MAX_SHOWN
            ));
        }
    }
    text
}

fn group<'a>(sources: &'a Sources, diagnostic: &'a Diagnostic) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Info => Level::INFO,
    };
    let snippet = |location: Location, kind: AnnotationKind, label: Option<&'a str>| {
        let shown = sources.shown(location.source);
        let span = char_span(&shown, location);
        let mut annotation = kind.span(span);
        if let Some(label) = label {
            annotation = annotation.label(label);
        }
        Snippet::source(shown.into_owned()).path(sources.get(location.source).name.as_str()).annotation(annotation)
    };
    let mut group = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code).element(snippet(
        diagnostic.location,
        AnnotationKind::Primary,
        None,
    ));
    for (location, note) in &diagnostic.related {
        group = group.element(snippet(*location, AnnotationKind::Context, Some(note)));
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    group
}

/// The byte range of a location, moved to character borders (a masked or unreadable text may differ from the original).
fn char_span(text: &str, location: Location) -> std::ops::Range<usize> {
    let mut range = location.range();
    range.start = range.start.min(text.len());
    range.end = range.end.clamp(range.start, text.len());
    while !text.is_char_boundary(range.start) {
        range.start -= 1;
    }
    while !text.is_char_boundary(range.end) {
        range.end += 1;
    }
    // A caret under a whole section would hide what it is about.
    if let Some(line_end) = text[range.clone()].find('\n') {
        range.end = range.start + line_end;
    }
    range
}
