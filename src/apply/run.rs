//! Carries out what was decided, and waits until the service is ready.

use std::time::{Duration, Instant};

use gemma4_plan::Plan;

use super::state::{Launch, Status, Store};
use super::{Decision, Found, LaunchError, Place, Progress, Say};

/// How often the same thing is said again while nothing changes.
const REPEAT: Duration = Duration::from_secs(30);

/// What is carried out, and where it is recorded.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its record.
    pub launch: Launch,
    /// Where records are.
    pub store: &'a Store,
    /// Seconds to wait at most, if less than the plan says.
    pub limit: Option<u64>,
}

/// Does what was decided and waits until the service answers.
///
/// # Errors
/// If it did not come to be; the record says so then.
pub fn carry_out(
    attempt: Attempt<'_>,
    decision: Decision,
    found: Option<&Found>,
    place: &mut dyn Place,
    say: Say<'_>,
) -> Result<(), LaunchError> {
    let Attempt { plan, mut launch, store, limit } = attempt;
    if decision == Decision::Nothing {
        return Ok(());
    }
    // Whatever can fail beforehand fails before anything is changed.
    place.prepare(decision, found)?;
    let mut json = plan.clone();
    let json = gemma4_plan::to_json(&mut json)
        .map_err(|error| LaunchError::Tool { command: "gemma4ctl plan".to_owned(), message: error.to_string() })?;
    launch.ids = place.ids();
    store.write(&launch, Some(&json))?;
    if decision != Decision::Await
        && let Err(error) = place.act(decision, found, say)
    {
        return Err(fail(store, launch, error));
    }
    launch.ids = place.ids();
    launch.fingerprint = Some(place.fingerprint());
    store.write(&launch, None)?;
    match wait(&launch.name, place, limit, say) {
        Ok(()) => {
            launch.status = Status::Running;
            // A plan may leave the port to the system.
            launch.base_url.clone_from(&place.service().base_url);
            launch.ids = place.ids();
            store.write(&launch, None)?;
            Ok(())
        }
        Err(error) => Err(fail(store, launch, error)),
    }
}

/// Records that `launch` failed. The error that made it fail is the one to tell.
fn fail(store: &Store, mut launch: Launch, error: LaunchError) -> LaunchError {
    launch.status = Status::Failed;
    match store.write(&launch, None) {
        Ok(()) => error,
        Err(worse) => LaunchError::Tool {
            command: format!("gemma4ctl apply {}", launch.profile),
            message: format!("{error}; moreover {worse}"),
        },
    }
}

/// Waits until /health and one completion answer.
fn wait(name: &str, place: &mut dyn Place, limit: Option<u64>, say: Say<'_>) -> Result<(), LaunchError> {
    let begin = Instant::now();
    let (mut phase_began, mut current) = (begin, None);
    let (mut spoken, mut said) = (begin, String::new());
    let mut left = Duration::from_secs(limit.unwrap_or(u64::MAX / 4));
    loop {
        let (phase, allowed, text) = match place.progress(left, say)? {
            Progress::Ready => return Ok(()),
            Progress::Waiting { phase, limit: allowed, text } => (phase, allowed, text),
        };
        let allowed = Duration::from_secs(limit.map_or(allowed, |limit| limit.min(allowed)));
        if current != Some(phase) {
            current = Some(phase);
            phase_began = Instant::now();
            say(&format!("waiting for {phase} (up to {} s)", allowed.as_secs()));
        }
        let waited = phase_began.elapsed();
        if text != said || spoken.elapsed() >= REPEAT {
            say(&format!("{} s: {text}", waited.as_secs()));
            spoken = Instant::now();
            said.clone_from(&text);
        }
        left = allowed.saturating_sub(waited);
        if left.is_zero() {
            return Err(LaunchError::NotReady { name: name.to_owned(), seconds: allowed.as_secs(), last: text });
        }
        std::thread::sleep(place.pause(waited).min(left));
        left = allowed.saturating_sub(phase_began.elapsed()).max(Duration::from_secs(1));
    }
}
