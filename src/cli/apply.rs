//! `apply PROFILE --target TARGET`, and what the verbs about launches share.

use std::io::IsTerminal as _;

use anyhow::{Context as _, bail};
use gemma4_plan::Plan;

use super::output::note;
use super::{FINDINGS, Output, plan, plan_text};
use crate::apply::state::{self, Launch, Status, Store};
use crate::apply::{Container, Decision, LaunchError, Reason, Target, decide, docker};
use crate::emit::{self, EmitError, Service};
use crate::plan::diff;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A profile, or a plan file
    profile: String,
    /// Where to launch it
    #[arg(long, value_enum)]
    target: Target,
    /// Override a value of the profile
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let Target::Docker = arguments.target;
    let Some(plan) = plan::read_any(&arguments.profile, &arguments.set, output)? else { return Ok(FINDINGS) };
    let service = match emit::container(&plan, "docker") {
        Ok(service) => service,
        Err(EmitError::Unfit(reasons)) => {
            note(&format!("error: the plan does not fit: {reasons}"));
            return Ok(FINDINGS);
        }
        Err(error @ EmitError::Errors { .. }) => {
            note(&format!("error: {error}"));
            return Ok(FINDINGS);
        }
        Err(error) => return Err(error.into()),
    };
    if !state::is_name(&service.name) {
        return Err(LaunchError::Name(service.name).into());
    }
    let limit = ready_seconds(service.ready_seconds)?;
    match launch(arguments, &plan, &service, limit, output) {
        Err(error) if error.is::<LaunchError>() => launch_failed(&error),
        result => result,
    }
}

fn launch(
    arguments: &Arguments,
    plan: &Plan,
    service: &Service,
    limit: u64,
    output: &mut Output,
) -> anyhow::Result<u8> {
    let store = Store::of_user().map_err(LaunchError::from)?;
    // What is only looked at is not kept from others.
    let lock = if arguments.dry_run { None } else { Some(store.lock(&service.name).map_err(LaunchError::from)?) };
    let recorded = store.read(&service.name).map_err(LaunchError::from)?;
    let container = docker::inspect(&service.name)?;
    let running = container.as_ref().is_some_and(|container| container.running);
    let answers = running && docker::answers(&service.base_url);
    let decision = decide(&service.name, plan, recorded.as_ref(), container.as_ref(), answers)?;

    let mut changes = Output::default();
    describe(&mut changes, decision, plan, service, &store, recorded.as_ref(), container.as_ref());
    if arguments.dry_run {
        output.push(&changes.take());
        return Ok(0);
    }
    note(changes.take().trim_end());
    if decision != Decision::Nothing {
        if matches!(decision, Decision::Create | Decision::Replace(_)) && !arguments.yes && !ask("Do it?")? {
            note("nothing was changed");
            return Ok(FINDINGS);
        }
        docker::carry_out(decision, container.as_ref(), plan, service, &store, limit, &mut note)?;
        note(&format!("{} is ready", service.name));
    }
    drop(lock);
    output.line(&service.base_url);
    Ok(0)
}

/// Says what is going to change.
fn describe(
    output: &mut Output,
    decision: Decision,
    plan: &Plan,
    service: &Service,
    store: &Store,
    recorded: Option<&Launch>,
    container: Option<&Container>,
) {
    let name = &service.name;
    if let Some(launch) = recorded
        && launch.status == Status::Creating
    {
        let left = if container.is_some() { "its container is there" } else { "there is no container" };
        output.line(format!("an earlier `gemma4ctl apply` of {name} was cut off; {left}"));
    }
    let digest = short(&plan.digest);
    let image = service.image.as_deref().unwrap_or_default();
    match decision {
        Decision::Nothing => output.line(format!("nothing to do: {name} runs {digest} and answers")),
        Decision::Await => output.line(format!("{name} runs {digest} already: waiting until it answers")),
        Decision::Create => output.line(format!("create  {name}: {digest}, image {image}, {}", service.base_url)),
        Decision::Replace(reason) => {
            let before = container.and_then(|container| container.digest.as_deref()).map(short).unwrap_or_default();
            let why = match reason {
                Reason::OtherPlan => format!("it runs {before}"),
                Reason::Stopped => "it stopped".to_owned(),
            };
            output.line(format!("replace {name}: {digest}, image {image}, {}; {why}", service.base_url));
        }
    }
    if let Some(before) = recorded.and_then(|launch| store.plan(launch))
        && before.digest != plan.digest
    {
        plan_text::difference(output, &before, plan, &diff::compare(&before, plan));
    }
}

/// How long to wait: what the plan says, or less.
fn ready_seconds(plan: u64) -> anyhow::Result<u64> {
    match std::env::var("GEMMA4CTL_READY_SECONDS") {
        Err(_) => Ok(plan),
        Ok(text) => {
            let seconds: u64 = text.parse().context("GEMMA4CTL_READY_SECONDS is not a number of seconds")?;
            Ok(seconds.min(plan))
        }
    }
}

/// Asks on the terminal. Without one there is nobody to ask, and that is a wrong command line.
pub(super) fn ask(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        bail!("there is no terminal to ask on; `--yes` goes ahead without asking, `--dry-run` shows what would change");
    }
    dialoguer::Confirm::new().with_prompt(question).default(false).interact().context("no answer")
}

/// Prints why a launch failed, which is not the command line's fault.
pub(super) fn launch_failed(error: &anyhow::Error) -> anyhow::Result<u8> {
    super::output::report(error);
    Ok(FINDINGS)
}

/// The first digits of a digest, enough to tell it from others.
pub(super) fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

/// The name of the launch that `argument` means: one that is recorded, else the one that its profile would have.
pub(super) fn launch_name(store: &Store, argument: &str, output: &mut Output) -> anyhow::Result<String> {
    if store.holds(argument) {
        return Ok(argument.to_owned());
    }
    let unknown = || {
        let names = store.names().unwrap_or_default();
        let known = if names.is_empty() { "there is none".to_owned() } else { format!("known: {}", names.join(", ")) };
        format!("there is no launch `{argument}` ({known})")
    };
    let Some(plan) = plan::read_any(argument, &[], output).with_context(unknown)? else { bail!(unknown()) };
    let name = Service::new(&plan).name;
    if !state::is_name(&name) {
        return Err(LaunchError::Name(name).into());
    }
    Ok(name)
}

/// What to say of a name that a profile gives and no launch has.
pub(super) fn not_launched(argument: &str, name: &str) -> anyhow::Error {
    anyhow::anyhow!("{argument} is not launched: there is no launch `{name}`")
}
