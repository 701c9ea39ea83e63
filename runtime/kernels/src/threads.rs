//! The threads that all operators share.
//!
//! Invariant: an operator is cut into pieces that may run in any order and on any thread; it is done when [`share`] returns.
//! The caller works too, so an operator gets on even while all helpers are busy with those of other devices, and no more
//! threads compute than there are cores: XLA's thread is the caller, and its device waits.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// The helpers: one fewer than cores. `None` where there is one core, or threads cannot be made.
fn helpers() -> Option<&'static ThreadPool> {
    static HELPERS: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let helpers = HELPERS.get_or_init(|| {
        let count = std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1);
        let builder = ThreadPoolBuilder::new().num_threads(count).thread_name(|number| format!("kernel-{number}"));
        if count == 0 { None } else { builder.build().ok() }
    });
    helpers.as_ref()
}

/// Runs `piece(0)`, `piece(1)` and so on up to `pieces`, on several threads.
pub(crate) fn share(pieces: usize, piece: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= pieces {
                return;
            }
            piece(number);
        }
    };
    match helpers() {
        Some(helpers) if pieces > 1 => helpers.in_place_scope(|scope| {
            for _ in 0..helpers.current_num_threads().min(pieces - 1) {
                scope.spawn(|_| work());
            }
            work();
        }),
        _ => work(),
    }
}

/// A slice whose parts several threads fill.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, whose parts `part` hands to threads; its callers vouch that no two overlap.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), length: slice.len(), _slice: std::marker::PhantomData }
    }

    /// The `length` elements from `first` on; none if there are not as many.
    ///
    /// # Safety
    /// Nobody else has any of these elements while the part is there.
    #[expect(clippy::mut_from_ref, reason = "callers vouch that parts do not overlap")]
    pub(crate) unsafe fn part(&self, first: usize, length: usize) -> &mut [T] {
        if first.checked_add(length).is_none_or(|end| end > self.length) {
            return &mut [];
        }
        // SAFETY: within the slice that this was made from, which is borrowed during `'a`; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }
}
