//! `runtime precompile PROFILE -o DIR`.

use std::path::PathBuf;

use gemma4_engine::compile::Verdict;
use gemma4_engine::masks::mask_programs;
use gemma4_engine::steps::steps;
use gemma4_engine::store::{Key, Store, StoreError};

use crate::cli::output::{note, report};
use crate::cli::{FINDINGS, Output, plan};
use crate::words::{gib, plural};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// A path, or a name looked up in ./profiles, the user's folder and the built-in profiles
    profile: String,
    /// Override a value of the profile, for example `scheduler.max_num_seqs=128`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder to fill; made for you alone if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let analysis = crate::plan::analyze(&arguments.profile, &arguments.set)?;
    let (Some(plan), Some(resolved)) = (analysis.plan(), &analysis.resolved) else {
        return plan::without_plan(&analysis, output);
    };
    if analysis.has_errors() || !plan.memory.fits {
        report(&anyhow::anyhow!(
            "{} has errors, so nothing is compiled; `gemma4ctl plan {}` shows them",
            plan.profile.name,
            arguments.profile
        ));
        return Ok(FINDINGS);
    }
    let config = &resolved.model.config;
    let compiler = super::compiler(&plan, config, "`runtime precompile` compiles with it")?;
    let devices = &compiler.target().devices;
    let store = Store::open(&arguments.output)?;
    let identity = compiler.identity()?;
    let steps = steps(&plan, config)?;
    let masks = mask_programs(&steps, config);
    let count = steps.len() + masks.len();
    let steps = steps.iter().map(|step| (&step.name, step.build(config).map(|graph| graph.module)));
    let programs = steps.chain(masks.iter().map(|mask| (&mask.name, mask.build())));
    let (mut made, mut kept) = (0, 0);
    for (index, (name, module)) in programs.enumerate() {
        let module = module?;
        let key = Key::new(&module, devices, &identity)?;
        let progress = format!("{} of {count}: {name}", index + 1);
        match store.read(name, &key) {
            Ok(Some(_)) => {
                note(&format!("{progress} is there"));
                kept += 1;
                continue;
            }
            Ok(None) => note(&format!("{progress}, compiling for {}", devices.name())),
            // What does not match is made again in its place.
            Err(error @ (StoreError::Mismatch { .. } | StoreError::Damaged { .. })) => {
                note(&format!("{progress}, compiling again: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        let (answer, executable) = compiler.compile(name, module.text(), true)?;
        if let Verdict::Exceeds { needed, available, message } = answer.verdict {
            let bytes = needed.zip(available);
            let why = bytes.map_or(message, |(needed, there)| format!("it needs {} of {}", gib(needed), gib(there)));
            report(&anyhow::anyhow!("{name} does not fit: {why}"));
            return Ok(FINDINGS);
        }
        store.write(name, &key, &executable)?;
        made += 1;
    }
    note(&format!("{} compiled, {kept} were there", plural(made, "program")));
    output.line(arguments.output.display().to_string());
    Ok(0)
}
