//! What the workers and the reader ahead of them wait for.
//!
//! Invariant: buffers that are reserved at a time stay within the limit, except that a single one may be larger than it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    /// Bytes of buffers that are reserved.
    buffered: u64,
    /// Bytes of files that are dealt with.
    done: u64,
    stopped: bool,
}

/// Shared by all threads of one load.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// Waits until a buffer of this size may be made; `None` if the load has stopped.
    pub(super) fn reserve(&self, bytes: u64, limit: u64) -> Option<Reservation<'_>> {
        let must_wait = |state: &State| state.buffered > 0 && state.buffered.saturating_add(bytes) > limit;
        let mut state = self.wait_while(must_wait)?;
        state.buffered = state.buffered.saturating_add(bytes);
        Some(Reservation { gate: self, bytes })
    }

    /// Waits until no more than `ahead` of the `read` bytes are not yet dealt with, and says how many bytes are; `None` if
    /// the load has stopped.
    pub(super) fn wait_for_room_ahead(&self, read: u64, ahead: u64) -> Option<u64> {
        let state = self.wait_while(|state| read.saturating_sub(state.done) > ahead)?;
        Some(state.done)
    }

    /// Says that bytes of files are dealt with.
    pub(super) fn add_done(&self, bytes: u64) {
        let mut state = self.lock();
        state.done = state.done.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// Ends all waiting.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Whether [`Self::stop`] was called.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    fn wait_while(&self, must_wait: impl Fn(&State) -> bool) -> Option<MutexGuard<'_, State>> {
        let waiting = |state: &mut State| !state.stopped && must_wait(state);
        // The numbers stay right when a thread panics, since it does so outside of the lock.
        let state = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        (!state.stopped).then_some(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for a buffer, given back when dropped.
pub(super) struct Reservation<'a> {
    gate: &'a Gate,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.buffered = state.buffered.saturating_sub(self.bytes);
        drop(state);
        self.gate.changed.notify_all();
    }
}

/// Stops the load when dropped, also when a thread panics: nobody may wait for what will not come.
pub(super) struct StopOnDrop<'a>(pub(super) &'a Gate);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
