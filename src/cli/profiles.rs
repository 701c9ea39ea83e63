//! `profiles`.

use super::{Output, ResultFormat};
use crate::profile;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How to print the list
    #[arg(long, value_enum, default_value = "text")]
    format: ResultFormat,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let mut rows = Vec::new();
    for (name, place) in profile::list() {
        let (summary, problem) = match profile::load(&name, &[]) {
            Ok(loaded) => (
                loaded.profile.summary.get().cloned().unwrap_or_default(),
                crate::diagnostic::has_errors(&loaded.diagnostics),
            ),
            Err(error) => (error.to_string(), true),
        };
        rows.push((name, place, summary, problem));
    }
    if arguments.format == ResultFormat::Json {
        let list: Vec<serde_json::Value> =
            rows.into_iter().map(|(name, place, summary, problem)| serde_json::json!({ "name": name, "source": place, "summary": summary, "has_errors": problem })).collect();
        output.line(serde_json::to_string_pretty(&serde_json::json!({ "profiles": list }))?);
        return Ok(0);
    }
    let widest = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    for (name, _, summary, problem) in rows {
        let mark = if problem { " (has errors, see `gemma4ctl lint`)" } else { "" };
        output.line(format!("{name:widest$}  {summary}{mark}").trim_end());
    }
    Ok(0)
}
