//! `emit PROFILE --target TARGET`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::output::{make_executable, note, write_atomically};
use super::{FINDINGS, Output, plan};
use crate::emit::{EmitError, Target, Templates, emit};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A profile, or a plan file
    profile: String,
    /// What to make files for
    #[arg(long, value_enum)]
    target: Target,
    /// Write the files into this folder instead of printing them
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    /// Override a value of the profile
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Make the files although the plan does not fit or has errors
    #[arg(long)]
    allow_unfit: bool,
    /// A folder of templates that win over your own and the built-in ones
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    if let Some(folder) = &arguments.templates
        && !folder.is_dir()
    {
        bail!("there is no folder of templates {}", folder.display());
    }
    let Some(plan) = plan::read_any(&arguments.profile, &arguments.set, output)? else { return Ok(FINDINGS) };
    let templates = Templates::with_user_folder(arguments.templates.clone());
    let artifacts = match emit(&plan, arguments.target, &templates, arguments.allow_unfit) {
        Ok(artifacts) => artifacts,
        Err(error @ (EmitError::Unfit(_) | EmitError::Errors { .. })) => {
            note(&format!("error: {error}"));
            return Ok(FINDINGS);
        }
        Err(error) => return Err(error.into()),
    };
    for line in &plan.engine.notes {
        note(&format!("note: {line}"));
    }
    match &arguments.out_dir {
        Some(folder) => {
            write_all(folder, &artifacts)?;
            for artifact in &artifacts {
                note(&format!("wrote {}", folder.join(&artifact.name).display()));
            }
        }
        None => {
            for artifact in &artifacts {
                if artifacts.len() > 1 {
                    output.line(format!("==> {} <==", artifact.name));
                }
                output.push(&artifact.text);
            }
        }
    }
    Ok(0)
}

/// Writes all files or, as far as can be known beforehand, none.
fn write_all(folder: &Path, artifacts: &[crate::emit::Artifact]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for artifact in artifacts {
        let path = folder.join(&artifact.name);
        if path.is_dir() {
            bail!("{} is a folder", path.display());
        }
    }
    for artifact in artifacts {
        let path = folder.join(&artifact.name);
        write_atomically(&path, &artifact.text)?;
        if artifact.executable {
            make_executable(&path)?;
        }
    }
    Ok(())
}
