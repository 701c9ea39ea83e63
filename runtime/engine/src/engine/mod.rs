//! The engine: requests go in, tokens come out.
//!
//! Invariants:
//! * a thread of its own plans steps, runs them and samples; everybody else only takes the lock for a moment, never while a
//!   step runs;
//! * every request that was taken in gets an [`Event::End`] as its last event, unless its [`Generation`] was dropped;
//! * nobody who reads events slowly holds anything up: they wait in a queue of their own, which the prompt and `max_tokens`
//!   bound.

mod run;
mod types;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use run::Live;
pub use types::{
    End, EndReason, Event, GenerationRequest, STEP_TOKENS, Started, Statistics, SubmitError, Timings, Token,
};

use crate::runner::{Counters, Runner};
use crate::sampling::Sampler;
use crate::scheduler::{Request, RequestId, Scheduler};

/// A handle of a running engine. When all handles and generations are gone, its thread ends.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Ends the thread with the last handle.
    handle: Arc<EndOnDrop>,
}

/// What the handles and the thread share.
struct Shared {
    state: Mutex<State>,
    /// Told when there may be something to do.
    work: Condvar,
    counters: Arc<Counters>,
}

struct State {
    scheduler: Scheduler,
    /// Requests that the thread has not seen yet.
    arrivals: Vec<(RequestId, Live)>,
    /// Requests that went away since the thread looked last.
    gone: Vec<RequestId>,
    /// No request is taken in any more.
    closed: bool,
    /// The thread ends.
    ending: bool,
    /// Why no further step is run.
    failure: Option<String>,
    computed_tokens: u64,
    step_tokens: [u64; STEP_TOKENS.len() + 1],
    /// How long there was a step to plan, run or tell of.
    busy: Duration,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has not left the scheduler half changed: its calls change all or nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct EndOnDrop {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EndOnDrop {
    fn end(&self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.end();
    }
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(scheduler: Scheduler, runner: Box<dyn Runner>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            counters: runner.counters(),
            state: Mutex::new(State {
                scheduler,
                arrivals: Vec::new(),
                gone: Vec::new(),
                closed: false,
                ending: false,
                failure: None,
                computed_tokens: 0,
                step_tokens: [0; STEP_TOKENS.len() + 1],
                busy: Duration::ZERO,
            }),
            work: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("engine".to_owned()).spawn(move || run::run(&of_thread, runner))?;
        let handle = EndOnDrop { shared: Arc::clone(&shared), thread: Mutex::new(Some(thread)) };
        Ok(Self { handle: Arc::new(handle), shared })
    }

    /// Takes a request in, behind all others.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(&self, request: GenerationRequest) -> Result<Generation, SubmitError> {
        let arrived = Instant::now();
        let mut state = self.shared.lock();
        if let Some(failure) = &state.failure {
            return Err(SubmitError::Failed(failure.clone()));
        }
        if state.closed {
            return Err(SubmitError::Closed);
        }
        request.sampling.check(state.scheduler.options().vocab_size)?;
        let GenerationRequest { prompt, max_tokens, min_tokens, stop_tokens, salt, .. } = request;
        let GenerationRequest { sampling, constraint, logprobs, prompt_logprobs, .. } = request;
        // The keys of a new state are random, and differ from those of all other states.
        let seed = RandomState::new().hash_one(state.scheduler.load().totals.steps);
        let sampler = Sampler::new(sampling, seed, &prompt)
            .with_constraint(constraint)
            .with_logprobs(logprobs)
            .with_min_tokens(min_tokens, &stop_tokens);
        let wanted = Request { prompt, max_tokens, prompt_logprobs: prompt_logprobs.is_some(), stop_tokens, salt };
        let id = state.scheduler.submit(wanted)?;
        let (events, receiver) = unbounded_channel();
        state.arrivals.push((id, Live::new(sampler, prompt_logprobs, events, arrived)));
        drop(state);
        self.shared.work.notify_all();
        Ok(Generation { id, events: receiver, shared: Arc::clone(&self.shared), ended: false })
    }

    /// What it holds now and did so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let state = self.shared.lock();
        let counters = &self.shared.counters;
        Statistics {
            load: state.scheduler.load(),
            speculation: state.scheduler.speculation().cloned(),
            computed_tokens: state.computed_tokens,
            step_tokens: state.step_tokens,
            compiles_while_serving: Counters::get(&counters.compiles_while_serving),
            warm_cache_hits: Counters::get(&counters.warm_cache_hits),
            warm_cache_misses: Counters::get(&counters.warm_cache_misses),
            fast_prefill_skipped_tokens: Counters::get(&counters.fast_prefill_skipped_tokens),
            masked_steps: Counters::get(&counters.masked_steps),
            busy: state.busy,
            device: Duration::from_nanos(Counters::get(&counters.device_nanoseconds)),
        }
    }

    /// What went wrong, if no further step is run.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    /// Takes no more requests; those that are in go on.
    pub fn close(&self) {
        self.shared.lock().closed = true;
    }

    /// Ends the thread and waits for it, at most as long as a step takes. Requests that still run get no further event.
    pub fn end(&self) {
        self.close();
        self.handle.end();
        let thread = self.handle.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // If it panicked, it has told so itself.
        let _ = thread.map(JoinHandle::join);
    }

    /// Whether no request waits or runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let load = self.shared.lock().scheduler.load();
        load.running == 0 && load.waiting == 0
    }
}

/// A request that was taken in. Dropping it cancels the request: its pages are free before the next step.
pub struct Generation {
    id: RequestId,
    events: UnboundedReceiver<Event>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Generation {
    /// Names it within the engine.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.note(event)
    }

    /// As [`Self::next`], for threads that may wait. Panics within an asynchronous task.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.note(event)
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        self.ended |= !matches!(event, Some(Event::Started(_) | Event::Prompt(_) | Event::Token(_)));
        event
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut state = self.shared.lock();
        // It may have ended in the meantime.
        if state.scheduler.cancel(self.id) {
            state.gone.push(self.id);
        }
    }
}

type Events = UnboundedSender<Event>;
