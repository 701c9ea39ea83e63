//! Applies safe fixes: text edits that leave every other byte as it was.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::diagnostic::{Diagnostic, Fix, SourceId, Sources};

/// New texts by file, and how many fixes went into them. Edits that overlap are left for the next round.
pub fn apply(sources: &Sources, diagnostics: &[Diagnostic]) -> (BTreeMap<PathBuf, String>, usize) {
    let mut by_source: BTreeMap<SourceId, Vec<&Fix>> = BTreeMap::new();
    for fix in diagnostics.iter().filter_map(|diagnostic| diagnostic.fix.as_ref()) {
        if sources.get(fix.location.source).path.is_some() {
            by_source.entry(fix.location.source).or_default().push(fix);
        }
    }
    let mut texts = BTreeMap::new();
    let mut count = 0;
    for (id, mut fixes) in by_source {
        fixes.sort_by_key(|fix| (fix.location.start, fix.location.end));
        fixes.dedup();
        let source = sources.get(id);
        let mut text = String::with_capacity(source.text.len());
        let mut at = 0;
        for fix in fixes {
            let range = fix.location.range();
            if range.start < at {
                continue;
            }
            let (Some(before), Some(_)) = (source.text.get(at..range.start), source.text.get(range.clone())) else {
                continue;
            };
            text.push_str(before);
            text.push_str(&fix.replacement);
            at = range.end;
            count += 1;
        }
        text.push_str(source.text.get(at..).unwrap_or(""));
        if let Some(path) = &source.path {
            texts.insert(path.clone(), text);
        }
    }
    (texts, count)
}
