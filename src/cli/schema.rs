//! `schema [profile|plan]`, and `schema profile --check FILES`.

use std::path::PathBuf;

use anyhow::bail;

use super::{FINDINGS, Output};
use crate::lint::render::{self, Batch, Format};
use crate::profile;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which schema
    #[arg(value_enum, default_value = "profile")]
    which: Which,
    /// Check profiles against the schema instead of printing it
    #[arg(long, value_name = "FILE", num_args = 1..)]
    check: Vec<PathBuf>,
    /// How to print what `--check` finds
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Of a profile
    Profile,
    /// Of a plan file
    Plan,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    if !arguments.check.is_empty() {
        if arguments.which == Which::Plan {
            bail!("`--check` takes profiles; a plan file is checked whenever it is read");
        }
        return check(arguments, output);
    }
    let schema = match arguments.which {
        Which::Profile => profile::schema::schema(),
        Which::Plan => gemma4_plan::schema(),
    };
    output.line(serde_json::to_string_pretty(&schema)?);
    Ok(0)
}

fn check(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let mut results = Vec::new();
    for path in &arguments.check {
        let loaded = profile::load(&path.display().to_string(), &[])?;
        let mut findings = profile::schema::validate(&loaded)?;
        findings.extend(loaded.diagnostics.iter().filter(|finding| finding.code == "toml-syntax").cloned());
        results.push((loaded, findings));
    }
    let batches: Vec<Batch<'_>> =
        results.iter().map(|(loaded, findings)| Batch { sources: &loaded.sources, diagnostics: findings }).collect();
    output.push(&render::render(arguments.format, &batches, output.colour()));
    let bad = results.iter().any(|(_, findings)| !findings.is_empty());
    Ok(if bad && arguments.format != Format::Sarif { FINDINGS } else { 0 })
}
