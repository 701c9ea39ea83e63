//! Memory of the host that buffers can borrow.
//!
//! Invariant: the bytes stay where they are and do not change as long as a clone of this value lives, because it
//! holds a share of their owner.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Bytes with a share of what they belong to: a mapped file, a vector, anything that gives bytes.
#[derive(Clone)]
pub struct HostBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: *const u8,
    length: usize,
}

// SAFETY: bytes that are only read, and an owner that may be shared between threads.
unsafe impl Send for HostBytes {}
// SAFETY: as above.
unsafe impl Sync for HostBytes {}

impl HostBytes {
    /// Multiple of the address, in bytes, from which the CPU plugin uses memory without copying. XLA's
    /// `cpu::Align()`; measured in `tests/buffers.rs`.
    pub const ALIGNMENT: usize = 64;

    /// All bytes of an owner.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let bytes = (*owner).as_ref();
        let (start, length) = (bytes.as_ptr(), bytes.len());
        // The slice borrows from the value inside the `Arc`, which neither moves nor can be borrowed mutably while
        // this share of it exists. Hence the slice stays valid as long as `owner` is kept.
        HostBytes { owner, start, length }
    }

    /// A part of these bytes.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when it does not lie within them.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.length {
            let reason = format!("bytes {} to {} of {}", range.start, range.end, self.length);
            return Err(Error::OutOfRange { what: "a part of host memory", reason });
        }
        let start = self.start.wrapping_add(range.start);
        Ok(HostBytes { owner: Arc::clone(&self.owner), start, length: range.end - range.start })
    }

    /// Whether the CPU plugin can use the bytes in place.
    pub fn is_aligned(&self) -> bool {
        self.start.addr().is_multiple_of(Self::ALIGNMENT)
    }
}

impl std::ops::Deref for HostBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the owner gave this range, or one around it, and is alive; see `new`.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl fmt::Debug for HostBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HostBytes").field("length", &self.length).finish_non_exhaustive()
    }
}
