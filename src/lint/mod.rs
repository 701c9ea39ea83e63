//! The linter: what would hurt, said before it does.
//!
//! A rule is one file in `rules/` and one page in docs/rules/. The page is what a user reads and also the rule's test:
//! its `bad` examples must be reported, its `good` ones must not.

pub mod fix;
pub mod render;
mod rule;
pub mod rules;
mod shape;
mod suppress;

pub use rule::{Context, Rule};

use crate::budget::{Budget, Impossible};
use crate::diagnostic::{Diagnostic, SourceKind, has_errors};
use crate::profile::Loaded;
use crate::resolve::Resolved;

/// Every code that a finding can have: those of the rules, then those of reading a profile.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    rules::RULES.iter().chain(shape::RULES)
}

/// The rule with this code.
pub fn find(code: &str) -> Option<&'static Rule> {
    all().find(|rule| rule.code == code)
}

/// Runs all rules, applies suppressions, and sorts the findings by place.
pub fn run(loaded: &mut Loaded, resolved: Option<&Resolved>, budget: Option<&Result<Budget, Impossible>>) {
    let mut findings = Vec::new();
    if let Some(resolved) = resolved {
        let context = Context { loaded, resolved, budget: budget.and_then(|budget| budget.as_ref().ok()) };
        for rule in rules::RULES {
            (rule.check)(&context, &mut findings);
        }
        if let Some(Err(impossible)) = budget
            && !has_errors(&findings)
            && !has_errors(&loaded.diagnostics)
        {
            findings.push(
                shape::CANNOT_SHARD
                    .finding(loaded.locate(impossible.key), impossible.message.clone())
                    .help("choose another tensor parallel size"),
            );
        }
    }
    loaded.diagnostics.append(&mut findings);
    name_the_child(loaded);
    suppress::apply(loaded, resolved.is_some());
    let mut diagnostics: Vec<Diagnostic> = std::mem::take(&mut loaded.diagnostics);
    // The profile's own text first, then its parents; within a text from top to bottom.
    let main = loaded.main;
    diagnostics.sort_by_key(|finding| {
        (
            finding.location.source != main,
            finding.location.source,
            finding.location.start,
            std::cmp::Reverse(finding.severity),
            finding.code,
        )
    });
    diagnostics.dedup();
    loaded.diagnostics = diagnostics;
}

/// A finding in a parent says for which profile it was made: a line of a parent is right for one child and wrong for
/// another.
fn name_the_child(loaded: &mut Loaded) {
    let place = loaded.node("extends").map_or(loaded.top(), |node| node.location);
    let note = format!("extended by `{}`", loaded.name);
    for finding in &mut loaded.diagnostics {
        if loaded.sources.get(finding.location.source).kind == SourceKind::Parent && finding.related.is_empty() {
            finding.related.push((place, note.clone()));
        }
    }
}
