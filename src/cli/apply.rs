//! `apply PROFILE --target TARGET`, and what the verbs about launches share.

use std::io::IsTerminal as _;

use anyhow::{Context as _, bail};
use gemma4_plan::Plan;

use super::output::note;
use super::{FINDINGS, Output, plan, plan_text};
use crate::apply::state::{Launch, Status, Store};
use crate::apply::{self, Attempt, Decision, Found, LaunchError, Life, Place, Reason, Target, decide};
use crate::emit::{EmitError, Service};
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
    /// Return once it is ready; only `local` otherwise stays in the foreground
    #[arg(long)]
    detach: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let Some(plan) = plan::read_any(&arguments.profile, &arguments.set, output)? else { return Ok(FINDINGS) };
    let (name, mut place) = match apply::open(&plan, arguments.target) {
        Ok(found) => found,
        Err(LaunchError::Plan(EmitError::Unfit(reasons))) => {
            note(&format!("error: the plan does not fit: {reasons}"));
            return Ok(FINDINGS);
        }
        Err(LaunchError::Plan(error @ EmitError::Errors { .. })) => {
            note(&format!("error: {error}"));
            return Ok(FINDINGS);
        }
        Err(LaunchError::Plan(error)) => return Err(error.into()),
        Err(error @ LaunchError::Name(_)) => return Err(error.into()),
        Err(error) => return launch_failed(&error.into()),
    };
    let limit = ready_seconds()?;
    if arguments.target == Target::Local && !arguments.dry_run {
        // Before anything is begun: this takes a download, and the process that serves has nobody to show it to.
        super::runtime::provide_plugin(&plan)?;
        if !arguments.detach {
            apply::interrupt::catch().context("cannot catch signals")?;
        }
    }
    match launch(arguments, &plan, &name, place.as_mut(), limit, output) {
        Err(error) if error.is::<LaunchError>() => launch_failed(&error),
        result => result,
    }
}

fn launch(
    arguments: &Arguments,
    plan: &Plan,
    name: &str,
    place: &mut dyn Place,
    limit: Option<u64>,
    output: &mut Output,
) -> anyhow::Result<u8> {
    let store = Store::of_user().map_err(LaunchError::from)?;
    // What is only looked at is not kept from others.
    let lock = if arguments.dry_run { None } else { Some(store.lock(name).map_err(LaunchError::from)?) };
    let recorded = store.read(name).map_err(LaunchError::from)?;
    if let Some(before) = &recorded {
        place.recall(&before.ids)?;
    }
    let found = place.look()?;
    let decision = decide(place, plan, recorded.as_ref(), found.as_ref())?;

    let mut changes = Output::default();
    describe(&mut changes, name, decision, plan, place, recorded.as_ref(), found.as_ref());
    if let Some(before) = recorded.as_ref().and_then(|launch| store.plan(launch))
        && before.digest != plan.digest
    {
        plan_text::difference(&mut changes, &before, plan, &diff::compare(&before, plan));
    }
    if arguments.dry_run {
        output.push(&changes.take());
        return Ok(0);
    }
    note(changes.take().trim_end());
    if decision != Decision::Nothing {
        if decision != Decision::Await && !arguments.yes && !ask("Do it?")? {
            note("nothing was changed");
            return Ok(FINDINGS);
        }
        let mut launch = Launch::new(name, arguments.target.word(), plan, &place.service().base_url);
        launch.fingerprint = recorded.and_then(|launch| launch.fingerprint);
        let attempt = Attempt { plan, launch, store: &store, limit };
        apply::carry_out(attempt, decision, found.as_ref(), place, &mut note)?;
        note(&format!("{name} is ready"));
    }
    if let Some(command) = place.reach() {
        note(&format!("reach it with `{command}`"));
    }
    drop(lock);
    output.line(&place.service().base_url);
    if arguments.target == Target::Local && !arguments.detach {
        // Whoever waits for the address gets it now.
        output.finish()?;
        let ended = place.attend(&mut note);
        let _lock = store.lock(name).map_err(LaunchError::from)?;
        // Another launch of that name may have taken its place.
        if place.look()?.is_none_or(|found| found.life == Life::Ended) {
            store.remove(name).map_err(LaunchError::from)?;
        }
        ended?;
        note(&format!("{name} ended"));
    }
    Ok(0)
}

/// Says what is going to change.
fn describe(
    output: &mut Output,
    name: &str,
    decision: Decision,
    plan: &Plan,
    place: &dyn Place,
    recorded: Option<&Launch>,
    found: Option<&Found>,
) {
    let subject = place.subject();
    if let Some(launch) = recorded
        && launch.status == Status::Creating
    {
        let left = if found.is_some() { "is there" } else { "is not there" };
        output.line(format!("an earlier `gemma4ctl apply` of {name} was cut off; {subject} {left}"));
    }
    let digest = short(&plan.digest);
    let Service { image, base_url, .. } = place.service();
    let image = image.as_ref().map(|image| format!(", image {image}")).unwrap_or_default();
    let before = found.and_then(|found| found.digest.as_deref()).map(short).unwrap_or_default();
    let why = |reason| match reason {
        Reason::OtherPlan => format!("it runs {before}"),
        Reason::OtherSettings => "it was started with other settings of `[deploy]`, or by another gemma4ctl".to_owned(),
        Reason::Stopped => {
            format!("it stopped ({})", found.map(|found| found.state.as_str()).unwrap_or_default())
        }
    };
    match decision {
        Decision::Nothing => output.line(format!("nothing to do: {name} runs {digest} and answers")),
        Decision::Await => output.line(format!("{name} runs {digest} already: waiting until it answers")),
        Decision::Create => output.line(format!("create  {name}: {digest}{image}, {base_url}, {subject}")),
        Decision::Replace(reason) => {
            output.line(format!("replace {name}: {digest}{image}, {base_url}; {}", why(reason)));
            output.line(format!("        {subject} is deleted and made anew"));
        }
        Decision::Update(reason) => {
            output.line(format!("update  {name}: {digest}{image}, {base_url}; {}", why(reason)));
            output.line(format!("        {subject} stays"));
        }
    }
}

/// How long to wait at most, if less than the plan says.
fn ready_seconds() -> anyhow::Result<Option<u64>> {
    match std::env::var("GEMMA4CTL_READY_SECONDS") {
        Err(_) => Ok(None),
        Ok(text) => {
            let seconds = text.parse().context("GEMMA4CTL_READY_SECONDS is not a number of seconds")?;
            Ok(Some(seconds))
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

/// The name of the launch that `argument` means: one that is recorded, else one that its profile would have.
pub(super) fn launch_name(store: &Store, argument: &str, output: &mut Output) -> anyhow::Result<String> {
    let recorded = |names: &[&str]| -> Vec<String> {
        let mut all: Vec<String> =
            names.iter().flat_map(|name| Target::ALL.map(|target| target.launch_name(name))).collect();
        all.sort();
        all.dedup();
        all.retain(|name| store.holds(name));
        all
    };
    if store.holds(argument) {
        return Ok(argument.to_owned());
    }
    let one_of = |found: Vec<String>| match <[String; 1]>::try_from(found) {
        Ok([name]) => Ok(Some(name)),
        Err(found) if found.is_empty() => Ok(None),
        Err(found) => Err(anyhow::anyhow!("{argument} is launched more than once; say which: {}", found.join(", "))),
    };
    if let Some(name) = one_of(recorded(&[argument]))? {
        return Ok(name);
    }
    let unknown = || {
        let names = store.names().unwrap_or_default();
        let known = if names.is_empty() { "there is none".to_owned() } else { format!("known: {}", names.join(", ")) };
        format!("there is no launch `{argument}` ({known})")
    };
    let Some(plan) = plan::read_any(argument, &[], output).with_context(unknown)? else { bail!(unknown()) };
    let service = Service::new(&plan);
    let names = crate::emit::names(&plan);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match one_of(recorded(&names))? {
        Some(name) => Ok(name),
        None if crate::apply::state::is_name(&service.name) => Ok(service.name),
        None => Err(LaunchError::Name(service.name).into()),
    }
}

/// What to say of a name that a profile gives and no launch has.
pub(super) fn not_launched(argument: &str, name: &str) -> anyhow::Error {
    anyhow::anyhow!("{argument} is not launched: there is no launch `{name}`")
}
