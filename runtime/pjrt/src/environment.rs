//! Variables that plugins read while they are loaded.
//!
//! Invariant: the environment is only changed while no other thread can read it, since the C library gives pointers
//! into it without a lock.

use crate::error::{Error, Result};

/// Keeps XLA's log to fatal errors; what matters comes back as [`Error`].
pub const QUIET: (&str, &str) = ("TF_CPP_MIN_LOG_LEVEL", "3");

/// Let the TPU plugin compile where no TPU is to be run: it does not ask a cloud's metadata server, and does not take
/// the lock that keeps all other processes of the machine from loading it.
pub const TPU_COMPILE_ONLY: [(&str, &str); 2] = [("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")];

/// Sets those of `variables` that have no value yet; what the user has set stays. To be called first thing in `main`,
/// before any thread starts and before a plugin is loaded.
///
/// # Errors
/// [`Error::TooLate`] when a variable is missing and this process has more than one thread, or it cannot be told
/// how many it has, which is so outside of Linux.
pub fn prepare(variables: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = variables.iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if threads() != Some(1) {
        let names: Vec<_> = missing.iter().map(|(name, value)| format!("{name}={value}")).collect();
        return Err(Error::TooLate { names: names.join(", ") });
    }
    for (name, value) in missing {
        // SAFETY: this is the only thread of the process, so nobody reads the environment, and none can start while
        // this thread is here.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Number of threads of this process, as far as the system tells.
fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}
