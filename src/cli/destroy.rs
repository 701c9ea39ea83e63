//! `destroy NAME`.

use super::apply::{ask, launch_failed, launch_name, not_launched};
use super::output::note;
use super::{FINDINGS, Output};
use crate::apply::state::Store;
use crate::apply::{LaunchError, docker};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Name of a launch, or its profile
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let store = Store::of_user()?;
    let name = launch_name(&store, &arguments.name, output)?;
    match destroy(arguments, &store, &name) {
        Err(error) if error.is::<LaunchError>() => launch_failed(&error),
        result => result,
    }
}

fn destroy(arguments: &Arguments, store: &Store, name: &str) -> anyhow::Result<u8> {
    let _lock = store.lock(name).map_err(LaunchError::from)?;
    let container = docker::inspect(name)?;
    let (ours, foreign) = match container {
        Some(container) if container.digest.is_some() => (Some(container), false),
        other => (None, other.is_some()),
    };
    let recorded = store.holds(name);
    if ours.is_none() && !recorded {
        return Err(not_launched(&arguments.name, name));
    }
    if ours.is_some() {
        note(&format!("delete the container {name}"));
    }
    if foreign {
        note(&format!("keep the container {name}: gemma4ctl did not start it"));
    }
    if recorded {
        note(&format!("delete the record of the launch {name}"));
    }
    if !arguments.yes && !ask("Do it?")? {
        note("nothing was changed");
        return Ok(FINDINGS);
    }
    if let Some(container) = ours {
        docker::remove(&container)?;
    }
    store.remove(name).map_err(LaunchError::from)?;
    note(&format!("{name} is gone"));
    Ok(0)
}
