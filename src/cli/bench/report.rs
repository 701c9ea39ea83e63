//! `bench report RUN...`.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use crate::bench::record::Run;
use crate::bench::report::{Report, csv, html, of_spike};
use crate::cli::Output;
use crate::cli::output::{note, write_atomically};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files that `bench --out` wrote, in the order in which they are shown
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// What to make of them
    #[arg(long, value_enum, default_value = "html")]
    format: Format,
    /// Where to write it; stdout without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What a report is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One page with heat maps, nothing of it from elsewhere
    Html,
    /// The comparison as a table
    Text,
    /// A line a point
    Csv,
    /// The comparison and the runs; stable
    Json,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let runs = arguments.runs.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>, _>>()?;
    let report = Report::new(&runs);
    let text = match arguments.format {
        Format::Html => html(&report)?,
        Format::Csv => csv(&report),
        Format::Text => table(&report, output.width()),
        Format::Json => {
            let spikes: Vec<_> = report.runs().map(|(_, spikes)| spikes).collect();
            let value = json!({ "comparison": report.rows(), "spikes": spikes, "runs": runs });
            serde_json::to_string_pretty(&value).context("the report cannot be written as JSON")? + "\n"
        }
    };
    match &arguments.out {
        Some(path) => {
            write_atomically(path, &text)?;
            note(&format!("wrote {}", path.display()));
        }
        None => output.push(&text),
    }
    Ok(0)
}

/// The comparison as text, one run after another: lines fit where columns of several runs do not.
pub(super) fn table(report: &Report<'_>, width: usize) -> String {
    let rows = report.rows();
    let names: Vec<&str> = report.runs().map(|(run, _)| run.name.as_str()).collect();
    let label = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let cell = |at: usize, row: &crate::bench::report::Row| match row.cells.get(at) {
        Some(cell) if cell.detail.is_empty() => cell.text.clone(),
        Some(cell) => format!("{} ({})", cell.text, cell.detail),
        None => String::new(),
    };
    let mut text = String::new();
    for (at, name) in names.iter().enumerate() {
        text.push_str(&format!("{name}\n"));
        for row in &rows {
            let value = cell(at, row);
            // A narrow terminal gets the value on a line of its own.
            if label + 4 + value.chars().count() <= width {
                text.push_str(&format!("  {:label$}  {value}\n", row.label));
            } else {
                text.push_str(&format!("  {}\n      {value}\n", row.label));
            }
        }
    }
    for (run, spikes) in report.runs() {
        for spike in spikes {
            text.push_str(&format!("slow for its shape in {}: {}\n", run.name, of_spike(spike)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::endpoint::Facts;
    use crate::bench::point::Grid;
    use crate::bench::record::Settings;

    #[test]
    fn values_that_do_not_fit_beside_their_names_stand_beneath() {
        let model = "a model with a long name".to_owned();
        let endpoint = Facts { url: String::new(), model, max_model_len: None, kv_pool: None, plan: None };
        let grid = Grid { loads: Vec::new(), contexts: Vec::new(), diagonal: false };
        let settings =
            Settings { grid, output_tokens: 1, requests_per_user: 1, seconds: 1.0, warm_up: 0, timeout: 1.0, seed: 0 };
        let runs = [Run::new("run".to_owned(), BTreeMap::new(), endpoint, settings)];
        let report = Report::new(&runs);
        assert!(
            table(&report, 80).contains("\n  Model            a model with a long name\n"),
            "{}",
            table(&report, 80)
        );
        assert!(table(&report, 40).contains("\n  Model\n      a model with a long name\n"), "{}", table(&report, 40));
    }
}
