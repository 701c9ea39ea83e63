//! Bytes of a part: a range of a file, or a buffer of its own.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::Arc;

/// The bytes of a whole file, for example a memory map. Must always give the same bytes.
pub type FileBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Buffers made here begin at a multiple of this many bytes: what XLA's CPU client asks of memory that it takes over
/// without a copy.
pub const OWNED_ALIGNMENT: usize = 64;

/// The bytes of one part. Owns what it shows, so it can be kept as long as a device buffer needs it.
#[derive(Clone)]
pub struct LocalBytes(Repr);

#[derive(Clone)]
enum Repr {
    Borrowed { file: FileBytes, range: Range<usize> },
    Owned(Arc<Buffer>),
}

impl LocalBytes {
    /// `None` if the file does not have these bytes.
    pub(super) fn borrowed(file: &FileBytes, range: Range<usize>) -> Option<Self> {
        file.as_ref().as_ref().get(range.clone())?;
        Some(Self(Repr::Borrowed { file: Arc::clone(file), range }))
    }

    pub(super) fn owned(buffer: Buffer) -> Self {
        Self(Repr::Owned(Arc::new(buffer)))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            // Checked when it was made.
            Repr::Borrowed { file, range } => file.as_ref().as_ref().get(range.clone()).unwrap_or_default(),
            Repr::Owned(buffer) => buffer.as_slice(),
        }
    }

    /// Whether the bytes are those of the file, so that holding them costs no memory of their own.
    #[must_use]
    pub const fn is_borrowed(&self) -> bool {
        matches!(self.0, Repr::Borrowed { .. })
    }

    /// The largest power of two that the address is a multiple of. At least [`OWNED_ALIGNMENT`] for buffers made here;
    /// whatever the file has otherwise (safetensors files promise nothing, and most writers keep to multiples of 8).
    #[must_use]
    pub fn alignment(&self) -> usize {
        let address = self.as_slice().as_ptr().addr();
        1_usize.checked_shl(address.trailing_zeros()).unwrap_or(1)
    }
}

impl AsRef<[u8]> for LocalBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// A buffer that grows to a length known before, and whose content begins at a multiple of [`OWNED_ALIGNMENT`].
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Reserves the whole length, so that nothing moves later.
    pub(super) fn with_capacity(length: usize) -> Result<Self, TryReserveError> {
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(length.saturating_add(OWNED_ALIGNMENT))?;
        // The function may refuse to say; the content then begins where the memory does.
        let start = Some(bytes.as_ptr().align_offset(OWNED_ALIGNMENT)).filter(|&start| start < OWNED_ALIGNMENT);
        let start = start.unwrap_or(0);
        bytes.resize(start, 0);
        Ok(Self { bytes, start })
    }

    /// Where to append the content.
    pub(super) fn content(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}
