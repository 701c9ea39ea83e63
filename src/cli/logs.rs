//! `logs NAME`.

use anyhow::bail;

use super::apply::{launch_failed, launch_name, not_launched};
use super::{FINDINGS, Output};
use crate::apply;
use crate::apply::state::Store;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Name of a launch, or its profile
    name: String,
    /// Go on printing what comes
    #[arg(long, short)]
    follow: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let store = Store::of_user()?;
    // Findings of a profile would stand among the log.
    let name = launch_name(&store, &arguments.name, &mut Output::default())?;
    if !store.holds(&name) {
        return Err(not_launched(&arguments.name, &name));
    }
    let launch = store.read(&name).ok().flatten();
    let logs = match apply::reopen(&store, &name, launch.as_ref()) {
        Ok(Some(place)) => place.logs(arguments.follow),
        Ok(None) => bail!("the record of {name} cannot be read, so it is not known where its logs are"),
        Err(error) => Err(error),
    };
    match logs {
        Ok(status) => Ok(if status.success() { 0 } else { FINDINGS }),
        Err(error) => launch_failed(&error.into()),
    }
}
