//! Waiting for work that a device does on its own.
//!
//! Invariant: an event keeps its client alive, and is destroyed once.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::api::query;
use crate::client::ClientHandle;
use crate::error::Result;
use crate::ffi::arguments::{EventAwait, EventDestroy};
use crate::ffi::{self, Arguments as _};

/// Something that will have happened, or failed.
pub struct Event {
    raw: NonNull<ffi::Event>,
    client: Arc<ClientHandle>,
}

// SAFETY: PJRT events may be awaited and destroyed from any thread.
unsafe impl Send for Event {}
// SAFETY: asking whether it is ready changes nothing, and waiting may be done by several threads.
unsafe impl Sync for Event {}

impl Event {
    /// Takes over an event.
    ///
    /// # Safety
    /// `raw` is a live event of this client that nobody else destroys.
    pub(crate) unsafe fn new(raw: NonNull<ffi::Event>, client: &Arc<ClientHandle>) -> Self {
        Event { raw, client: Arc::clone(client) }
    }

    pub(crate) fn raw(&self) -> *mut ffi::Event {
        self.raw.as_ptr()
    }

    /// Whether it has happened or failed; does not block.
    ///
    /// # Errors
    /// [`crate::Error::MissingFunction`] and what the plugin says.
    pub fn is_ready(&self) -> Result<bool> {
        query!(self.client.api(), "look at an event", EventIsReady { event: self.raw() } => is_ready)
    }

    /// Blocks until it has happened. May be called more than once.
    ///
    /// # Errors
    /// What went wrong in the work that it stands for.
    pub fn wait(&self) -> Result<()> {
        self.wait_for("finish the work")
    }

    /// [`Event::wait`] with words for what is awaited.
    pub(crate) fn wait_for(&self, action: &'static str) -> Result<()> {
        let mut arguments = EventAwait::new();
        arguments.event = self.raw();
        // SAFETY: the event is live.
        unsafe { self.client.api().call(action, &mut arguments) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let mut arguments = EventDestroy::new();
        arguments.event = self.raw();
        // SAFETY: live until here, and not used afterwards.
        unsafe { self.client.api().free(&mut arguments) };
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Event").field("ready", &self.is_ready().ok()).finish()
    }
}
