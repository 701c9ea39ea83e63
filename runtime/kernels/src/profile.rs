//! What operators cost, for who measures: time, bytes and arithmetic of each kind and shape.
//!
//! Counting is off until [`start`]; then each call is timed from its beginning to its end, on the thread of its device. [`bounds`]
//! says what there is to compare with.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gemma4_pjrt::custom_call::{Call, Handler};

pub use crate::bounds::{Bounds, bounds};

/// What one call has to do, whatever computes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// The operator and its shapes.
    pub name: String,
    /// Bytes that are read or written at least once.
    pub bytes: f64,
    /// Multiplications and additions of its products.
    pub operations: f64,
}

/// What all calls of one operator with the same shapes took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// How many there were.
    pub calls: u64,
    /// Their time together.
    pub time: Duration,
    /// [`Work::bytes`] of all.
    pub bytes: f64,
    /// [`Work::operations`] of all.
    pub operations: f64,
}

static ON: AtomicBool = AtomicBool::new(false);
static COSTS: Mutex<BTreeMap<String, Cost>> = Mutex::new(BTreeMap::new());

fn costs() -> MutexGuard<'static, BTreeMap<String, Cost>> {
    COSTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts from now on.
pub fn start() {
    costs().clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops counting. Returns what was counted, by the names of [`Work`].
pub fn stop() -> BTreeMap<String, Cost> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut *costs())
}

/// A handler that can say what a call of it has to do.
pub(crate) trait Counted: Handler {
    /// Looks at shapes and indices only. Calls that do not fit may get any answer.
    fn work(call: &Call<'_>) -> Work;
}

/// The same handler, counted while counting is on.
pub(crate) struct Timed<H>(PhantomData<H>);

impl<H: Counted> Handler for Timed<H> {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        if !ON.load(Ordering::Relaxed) {
            return H::call(call);
        }
        let work = H::work(call);
        let start = Instant::now();
        let result = H::call(call);
        let time = start.elapsed();
        let mut costs = costs();
        let cost = costs.entry(work.name).or_default();
        cost.calls += 1;
        cost.time += time;
        cost.bytes += work.bytes;
        cost.operations += work.operations;
        result
    }
}
