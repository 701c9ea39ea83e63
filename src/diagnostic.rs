//! Findings and the texts they point into.
//!
//! A [`Diagnostic`] holds a byte range of a [`Sources`] entry; line and column are computed only when it is shown.
//! Texts are shown through [`Sources::shown`], which masks what was found to be a secret, so that no renderer can
//! print one.

use std::ops::Range;

pub use gemma4_plan::Severity;

/// Index of a text in [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub(crate) u32);

/// A byte range in one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The text.
    pub source: SourceId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Location {
    /// The range `span` of `source`; positions past 4 GiB are clamped (profiles are limited to far less).
    pub fn new(source: SourceId, span: &Range<usize>) -> Self {
        let clamp = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Location { source, start: clamp(span.start), end: clamp(span.end.max(span.start)) }
    }

    /// The byte range.
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What kind of text a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// The profile that was asked for.
    Profile,
    /// A profile that it extends.
    Parent,
    /// A `--set` argument.
    Set,
}

/// One text that findings point into.
#[derive(Debug, Clone)]
pub struct SourceText {
    /// Name shown to people: a path, `builtin:` and a name, or `--set`.
    pub name: String,
    /// What it is.
    pub kind: SourceKind,
    /// The text.
    pub text: String,
    /// Whether it is a file that `--fix` may write.
    pub path: Option<std::path::PathBuf>,
    masks: Vec<Range<usize>>,
    /// Where each line begins.
    lines: Vec<usize>,
}

/// All texts of one run.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    entries: Vec<SourceText>,
}

impl Sources {
    /// Adds a text.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        kind: SourceKind,
        text: String,
        path: Option<std::path::PathBuf>,
    ) -> SourceId {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        self.entries.push(SourceText { name: name.into(), kind, text, path, masks: Vec::new(), lines });
        SourceId(u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX))
    }

    /// The text with this id.
    pub fn get(&self, id: SourceId) -> &SourceText {
        &self.entries[id.0 as usize]
    }

    /// All texts, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, &SourceText)> {
        self.entries.iter().enumerate().map(|(index, entry)| (SourceId(index as u32), entry))
    }

    /// Masks a range wherever this text is shown from now on.
    pub fn mask(&mut self, location: Location) {
        if let Some(entry) = self.entries.get_mut(location.source.0 as usize) {
            entry.masks.push(location.range());
        }
    }

    /// The text as it may be shown: masked ranges are written as asterisks of the same byte length.
    pub fn shown(&self, id: SourceId) -> std::borrow::Cow<'_, str> {
        let entry = self.get(id);
        if entry.masks.is_empty() {
            return entry.text.as_str().into();
        }
        let mut bytes = entry.text.clone().into_bytes();
        for range in &entry.masks {
            let end = range.end.min(bytes.len());
            for byte in &mut bytes[range.start.min(end)..end] {
                if *byte != b'\n' {
                    *byte = b'*';
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned().into()
    }

    /// Line and column, both from 1, the column in characters.
    pub fn line_column(&self, location: Location) -> (u32, u32) {
        let SourceText { text, lines, .. } = self.get(location.source);
        let mut start = (location.start as usize).min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line = lines.partition_point(|&begin| begin <= start);
        let begin = lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = text.get(begin..start).map_or(0, |before| before.chars().count()) + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    /// The finding for tools that attach it to a file of the user: one in a built-in parent moves to the place of the
    /// user's own profile that led there.
    pub fn attachable(&self, diagnostic: &Diagnostic) -> gemma4_plan::Diagnostic {
        let of_user = |location: &Location| self.get(location.source).path.is_some();
        let place = diagnostic.related.iter().map(|(location, _)| location).find(|location| of_user(location));
        match place {
            Some(place) if !of_user(&diagnostic.location) => {
                self.record(&Diagnostic { location: *place, ..diagnostic.clone() })
            }
            _ => self.record(diagnostic),
        }
    }

    /// The finding as it stands in JSON.
    pub fn record(&self, diagnostic: &Diagnostic) -> gemma4_plan::Diagnostic {
        let (line, column) = self.line_column(diagnostic.location);
        gemma4_plan::Diagnostic {
            code: diagnostic.code.to_owned(),
            severity: diagnostic.severity,
            message: diagnostic.message.clone(),
            file: self.get(diagnostic.location.source).name.clone(),
            line,
            column,
            help: diagnostic.help.clone(),
        }
    }
}

/// A change of the text that mends a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// What is replaced.
    pub location: Location,
    /// By what.
    pub replacement: String,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Code of the rule.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, one sentence without a full stop.
    pub message: String,
    /// Where.
    pub location: Location,
    /// What to do.
    pub help: Option<String>,
    /// Other places that matter, each with a note.
    pub related: Vec<(Location, String)>,
    /// A safe change that mends it: it keeps the meaning that the author intended, and all other bytes.
    pub fix: Option<Fix>,
}

impl Diagnostic {
    /// An error.
    pub fn error(code: &'static str, location: Location, message: impl Into<String>) -> Self {
        Self::new(code, Severity::Error, location, message)
    }

    /// A finding of any severity.
    pub fn new(code: &'static str, severity: Severity, location: Location, message: impl Into<String>) -> Self {
        Diagnostic { code, severity, message: message.into(), location, help: None, related: Vec::new(), fix: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn related(mut self, location: Location, note: impl Into<String>) -> Self {
        self.related.push((location, note.into()));
        self
    }

    /// Adds a safe change that mends it.
    #[must_use]
    pub fn fix(mut self, location: Location, replacement: impl Into<String>) -> Self {
        self.fix = Some(Fix { location, replacement: replacement.into() });
        self
    }
}

/// Whether any finding is an error.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
}
