//! `[lint] allow`: leaving a rule unsaid, with a reason.

use super::shape;
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::profile::Loaded;
use crate::profile::messages::nearest;

/// Removes what the profile allows, and reports allowances that do nothing or give no reason.
///
/// `complete` says whether the rules ran; without that an allowance cannot be called unused.
pub(super) fn apply(loaded: &mut Loaded, complete: bool) {
    let Some(lint) = loaded.profile.lint.get() else { return };
    let Some(allow) = lint.allow.get().cloned() else { return };
    let top = loaded.locate("lint.allow");
    let mut notes: Vec<Diagnostic> = Vec::new();
    for entry in &allow {
        let place: Location = entry.rule.location().or(entry.reason.location()).unwrap_or(top);
        let Some(code) = entry.rule.get() else {
            notes.push(
                shape::SUPPRESSION
                    .finding(place, "an allowance without `rule`")
                    .help("write `{ rule = \"CODE\", reason = \"WHY\" }`"),
            );
            continue;
        };
        if entry.reason.get().is_none_or(|reason| reason.trim().is_empty()) {
            notes.push(
                shape::SUPPRESSION
                    .finding(place, format!("`{code}` is allowed without a reason"))
                    .help("add `reason`, for whoever reads this next"),
            );
            continue;
        }
        let Some(rule) = super::find(code) else {
            let codes: Vec<&str> = super::all().map(|rule| rule.code).collect();
            let finding = shape::SUPPRESSION.finding(place, format!("there is no rule `{code}`"));
            notes.push(match nearest(code, &codes) {
                Some(near) => finding.help(format!("did you mean `{near}`?")),
                None => finding.help("`gemma4ctl explain --rules` lists them"),
            });
            continue;
        };
        if shape::RULES.iter().any(|shape| shape.code == rule.code) {
            notes.push(
                shape::SUPPRESSION
                    .finding(place, format!("`{code}` cannot be allowed: the profile has no meaning while it stands")),
            );
            continue;
        }
        let before = loaded.diagnostics.len();
        loaded.diagnostics.retain(|finding| finding.code != rule.code);
        if loaded.diagnostics.len() == before && complete {
            let mut note = shape::SUPPRESSION
                .finding(place, format!("`{code}` is allowed, and there is nothing to allow"))
                .help("take it out");
            note.severity = Severity::Info;
            notes.push(note);
        }
    }
    loaded.diagnostics.append(&mut notes);
}
