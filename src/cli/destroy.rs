//! `destroy NAME`.

use super::apply::{ask, launch_failed, launch_name, not_launched};
use super::output::note;
use super::{FINDINGS, Output};
use crate::apply::state::Store;
use crate::apply::{self, LaunchError};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Name of a launch, or its profile; a queued resource only by its own name
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
    let launch = store.read(name).ok().flatten();
    let recorded = store.holds(name);
    let place = apply::reopen(store, name, launch.as_ref())?;
    let found = match &place {
        Some(place) => place.look()?,
        None => None,
    };
    let ours = found.as_ref().is_some_and(|found| found.digest.is_some());
    if !ours && !recorded {
        return Err(not_launched(&arguments.name, name));
    }
    if let Some(guard) = place.as_ref().and_then(|place| place.guard())
        && ours
        && arguments.name != guard
        && arguments.name != name
    {
        let subject = place.as_ref().map(|place| place.subject()).unwrap_or_default();
        return Err(LaunchError::Kept {
            what: format!("{subject} holds capacity that may take hours to get again, and stays"),
            help: format!(
                "`gemma4ctl destroy {guard}` deletes it, by its own name; `gemma4ctl apply` hands it another plan and keeps the capacity"
            ),
        }
        .into());
    }
    match &place {
        Some(place) => place.deletions(found.as_ref())?.iter().for_each(|line| note(line)),
        None => note(&format!("keep what may run: the record of {name} cannot be read, so it is not known where")),
    }
    if recorded {
        note(&format!("delete the record of the launch {name}"));
    }
    if !arguments.yes && !ask("Do it?")? {
        note("nothing was changed");
        return Ok(FINDINGS);
    }
    if let Some(place) = &place {
        place.delete(found.as_ref(), &mut note)?;
    }
    store.remove(name).map_err(LaunchError::from)?;
    note(&format!("{name} is gone"));
    Ok(0)
}
