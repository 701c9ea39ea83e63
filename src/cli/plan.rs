//! `plan PROFILE`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use gemma4_plan::{Plan, Proof};

use super::output::{note, write_atomically};
use super::{CHANGES, FINDINGS, Output, ResultFormat, plan_text, runtime};
use crate::lint::render::{self, Batch, Format};
use crate::plan::{Analysis, analyze, analyze_proved, diff};
use crate::prove::{self, News, ProveError};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A path, or a name looked up in ./profiles, the user's folder and the built-in profiles
    profile: String,
    /// Override a value of the profile, for example `scheduler.max_num_seqs=128`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How to print the plan
    #[arg(long, value_enum, default_value = "text")]
    format: ResultFormat,
    /// Write the plan to a file, if there is no error
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show the difference to another profile or plan file instead
    #[arg(long, value_name = "PROFILE")]
    against: Option<String>,
    /// Compile the largest programs for the accelerator, which need not be there, and say what the compiler counts
    #[arg(long, conflicts_with = "against")]
    prove: bool,
    /// With --against: exit with 3 if there are changes
    #[arg(long, requires = "against")]
    detailed_exitcode: bool,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    if arguments.out.as_deref() == Some(Path::new("-")) {
        anyhow::bail!("`--out` takes a file; the plan goes to stdout with `--format json`");
    }
    let mut analysis = analyze(&arguments.profile, &arguments.set)?;
    if arguments.prove
        && let Some(proof) = prove(&analysis)?
    {
        analysis = analyze_proved(&arguments.profile, &arguments.set, &proof)?;
    }
    let Some(mut plan) = analysis.plan() else {
        return findings_alone(&analysis, arguments.format, output);
    };
    // Made once, and only where somebody sees it: it takes longer than all of the budget.
    let wanted = arguments.out.is_some() || arguments.against.is_some() || arguments.format == ResultFormat::Json;
    let json = if wanted { to_json(&mut plan)? } else { String::new() };
    let failed = analysis.has_errors() || !plan.memory.fits;

    let mut code = if failed { FINDINGS } else { 0 };
    if let Some(against) = &arguments.against {
        let Some(other) = read_any_as(against, &[], arguments.format, output)? else { return Ok(FINDINGS) };
        let difference = diff::compare(&other, &plan);
        match arguments.format {
            ResultFormat::Json => output.line(serde_json::to_string_pretty(&difference)?),
            ResultFormat::Text => plan_text::difference(output, &other, &plan, &difference),
        }
        if arguments.detailed_exitcode && !difference.same && code == 0 {
            code = CHANGES;
        }
    } else {
        match arguments.format {
            ResultFormat::Json => output.push(&json),
            ResultFormat::Text => plan_text::plan(output, &arguments.profile, &plan),
        }
    }
    if let Some(path) = &arguments.out {
        output.finish().context("cannot write the result to stdout")?;
        if failed {
            note(&format!("{} was not written: the plan has errors", path.display()));
        } else {
            write_atomically(path, &json)?;
            note(&format!("wrote {}", path.display()));
        }
    }
    Ok(code)
}

/// Asks the compiler. `None` if there is no plan, which is said elsewhere.
fn prove(analysis: &Analysis) -> anyhow::Result<Option<Proof>> {
    let (Some(plan), Some(resolved)) = (analysis.plan(), &analysis.resolved) else { return Ok(None) };
    let config = &resolved.model.config;
    let compiler = runtime::compiler(&plan, config, "`--prove` compiles with it")?;
    match prove::prove(&plan, config, &compiler, &mut |news| tell(&news)) {
        Ok(proof) => Ok(Some(proof)),
        // The plan itself tells that it does not fit.
        Err(error @ ProveError::Nothing(_)) if !plan.memory.fits => {
            note(&format!("not proved: {error}"));
            Ok(None)
        }
        Err(error) => Err(anyhow::Error::from(error).context(format!("cannot prove {}", plan.profile.name))),
    }
}

fn tell(news: &News) {
    note(&match news {
        News::Cached(path) => format!("proved before with this compiler: {}", path.display()),
        News::NotKept(why) => format!("warning: the proof is not kept for the next time: {why}"),
        News::Compiling { name, devices } => format!("compiling {name} for {devices}"),
        News::Compiled { name, seconds } => format!("compiled {name} in {seconds:.1} s"),
    });
}

/// A profile of which no plan can be made: its findings are the result.
fn findings_alone(analysis: &Analysis, format: ResultFormat, output: &mut Output) -> anyhow::Result<u8> {
    let batch = Batch { sources: &analysis.loaded.sources, diagnostics: &analysis.loaded.diagnostics };
    let format = match format {
        ResultFormat::Text => Format::Text,
        ResultFormat::Json => Format::Json,
    };
    output.push(&render::render(format, &[batch], output.colour()));
    if format == Format::Text {
        note(&format!("{}: no plan can be made of this profile", render::tally(analysis.loaded.diagnostics.iter())));
    }
    Ok(FINDINGS)
}

/// The findings of a profile of which no plan can be made, for other verbs.
pub(super) fn without_plan(analysis: &Analysis, output: &mut Output) -> anyhow::Result<u8> {
    findings_alone(analysis, ResultFormat::Text, output)
}

/// The plan that `argument` names: a plan file if it is one, else the plan of a profile. `None` if the profile has errors
/// that leave no plan; they are the result then.
pub(super) fn read_any(argument: &str, set: &[String], output: &mut Output) -> anyhow::Result<Option<Plan>> {
    read_any_as(argument, set, ResultFormat::Text, output)
}

fn read_any_as(
    argument: &str,
    set: &[String],
    format: ResultFormat,
    output: &mut Output,
) -> anyhow::Result<Option<Plan>> {
    let path = Path::new(argument);
    if path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
        anyhow::ensure!(set.is_empty(), "`--set` changes profiles; {argument} is a plan, which is never changed");
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {argument}"))?;
        return gemma4_plan::read(&bytes).map(Some).with_context(|| format!("cannot use {argument}"));
    }
    let analysis = analyze(argument, set)?;
    let Some(mut plan) = analysis.plan() else {
        findings_alone(&analysis, format, output)?;
        return Ok(None);
    };
    to_json(&mut plan)?;
    Ok(Some(plan))
}

/// The plan's file; its checksum enters the plan.
fn to_json(plan: &mut Plan) -> anyhow::Result<String> {
    gemma4_plan::to_json(plan).context("the plan cannot be written as JSON")
}
