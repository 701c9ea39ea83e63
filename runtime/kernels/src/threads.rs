//! The threads that all operators share.
//!
//! Invariant: an operator is cut into pieces that may run in any order and on any thread; it is done when [`share`] returns.
//! The caller works too, so an operator gets on even while all helpers are busy with those of other devices, and no more
//! threads compute than there are cores: XLA's thread is the caller, and its device waits.
//!
//! A step has some hundred operators, of which many take less time than waking a thread does. So a helper that has nothing to
//! do looks around for a while before it sleeps; pools that are made for longer work sleep at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a helper looks for work before it sleeps: longer than what lies between two operators of a step.
const PATIENCE: Duration = Duration::from_micros(300);

/// An operator under way.
struct Job {
    /// Runs one piece.
    piece: *const (dyn Fn(usize) + Sync),
    pieces: usize,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    /// Helpers at work on it; changes from 0 only while the job is listed.
    helpers: AtomicUsize,
    /// A helper's piece has panicked.
    failed: AtomicBool,
}

impl Job {
    /// Takes pieces until none is left.
    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.pieces {
                return;
            }
            // SAFETY: `share` waits for all who work on the job, and the function lives until then.
            unsafe { (*self.piece)(number) };
        }
    }

    fn is_open(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.pieces
    }
}

/// A job that lies on the stack of the caller of [`share`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Listed(*const Job);

// SAFETY: `share` takes its job off the list and waits for its helpers before the job ends; all of it may be shared.
unsafe impl Send for Listed {}

#[derive(Default)]
struct Pool {
    listed: Mutex<Vec<Listed>>,
    /// Grows with each job, so that helpers who look around need not lock.
    posted: AtomicUsize,
    /// Helpers who sleep, or are about to.
    sleeping: AtomicUsize,
    wake: Condvar,
}

impl Pool {
    fn list(&self) -> MutexGuard<'_, Vec<Listed>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a helper does for good.
    fn help(&self) -> ! {
        loop {
            let seen = self.posted.load(Ordering::Acquire);
            if let Some(Listed(job)) = self.join() {
                // SAFETY: `join` counted this helper in while the job was listed; it stays until the helper is counted out.
                let job = unsafe { &*job };
                if catch_unwind(AssertUnwindSafe(|| job.work())).is_err() {
                    job.failed.store(true, Ordering::Relaxed);
                }
                // Nothing of the job may be touched after this.
                job.helpers.fetch_sub(1, Ordering::Release);
                continue;
            }
            self.wait(seen);
        }
    }

    /// A job with pieces left, of which this thread now is a helper.
    fn join(&self) -> Option<Listed> {
        let listed = self.list();
        // SAFETY: a job is there while it is listed, and the list is locked.
        let open = listed.iter().find(|job| unsafe { &*job.0 }.is_open())?;
        // SAFETY: as above.
        unsafe { &*open.0 }.helpers.fetch_add(1, Ordering::Relaxed);
        Some(*open)
    }

    /// Returns once there may be more jobs than at `seen`.
    fn wait(&self, seen: usize) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            for _ in 0..64 {
                if self.posted.load(Ordering::Acquire) != seen {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let mut listed = self.list();
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while self.posted.load(Ordering::SeqCst) == seen {
            listed = self.wake.wait(listed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    /// Offers a job to the helpers and does it together with them.
    fn run(&self, job: &Job) {
        let listed = Listed(job);
        self.list().push(listed);
        self.posted.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            // With the list locked, so that nobody is between looking and sleeping.
            let _list = self.list();
            self.wake.notify_all();
        }
        let done = catch_unwind(AssertUnwindSafe(|| job.work()));
        self.list().retain(|other| *other != listed);
        // Helpers are in their last piece.
        let mut rounds = 0_u32;
        while job.helpers.load(Ordering::Acquire) > 0 {
            rounds += 1;
            if rounds.is_multiple_of(1024) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        assert!(!job.failed.load(Ordering::Relaxed), "a piece of an operator panicked on another thread");
    }
}

/// The helpers, and how many: one fewer than cores. `None` where there is one core, or threads cannot be made.
fn pool() -> Option<(&'static Pool, usize)> {
    static POOL: OnceLock<Option<(&'static Pool, usize)>> = OnceLock::new();
    *POOL.get_or_init(|| {
        let count = std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1);
        let pool: &'static Pool = Box::leak(Box::default());
        let named = |number: usize| std::thread::Builder::new().name(format!("kernel-{number}"));
        let started = (0..count).filter(|number| named(*number).spawn(|| pool.help()).is_ok()).count();
        (started > 0).then_some((pool, started))
    })
}

/// How many threads [`share`] runs on at most.
pub(crate) fn count() -> usize {
    pool().map_or(1, |(_, helpers)| helpers + 1)
}

/// Runs `piece(0)`, `piece(1)` and so on up to `pieces`, on several threads. A panic of a piece is one of the caller.
pub(crate) fn share(pieces: usize, piece: impl Fn(usize) + Sync) {
    match pool() {
        Some((pool, _)) if pieces > 1 => {
            let piece: &(dyn Fn(usize) + Sync) = &piece;
            // SAFETY: of two pointers to the same, the second forgets for how long it is valid; `Job::work` keeps to it.
            let piece = unsafe {
                std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                    piece,
                )
            };
            let (next, helpers) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(&Job { piece, pieces, next, helpers, failed: AtomicBool::new(false) });
        }
        _ => (0..pieces).for_each(piece),
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
