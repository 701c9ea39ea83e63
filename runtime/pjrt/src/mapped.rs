//! Files as memory.
//!
//! Invariant: a mapping is read-only and stays where it is until it is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Advice, Mmap};

use crate::error::{Error, Result};

/// A file mapped into memory, to be read by buffers without copying: see [`crate::HostBytes`].
///
/// **Hazard.** The file must stay as it is. If another process truncates it, touching what is gone ends this process
/// with `SIGBUS`; if one writes to it, programs read a mixture. Replace files by renaming a new one over them, which
/// leaves the mapping with the old one. No lock of the operating system prevents a writer that does not ask.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

/// How a part of a file will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// From front to back: read far ahead.
    Sequential,
    /// Soon: begin reading now.
    WillNeed,
    /// In no order: do not read ahead.
    Random,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let failed = |error| Error::File { action: "map", path: path.to_owned(), error };
        let file = File::open(path).map_err(failed)?;
        // SAFETY: read-only and private; that nobody else changes the file is what the type's documentation asks for,
        // as every user of mapped files has to.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Arc::new(MappedFile { path: path.to_owned(), map }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the operating system how `length` bytes from `offset` will be read. A hint: only speed depends on it.
    /// Does nothing outside of Unix.
    ///
    /// # Errors
    /// [`Error::File`] when the range does not lie in the file or the system refuses.
    pub fn advise(&self, access: Access, offset: usize, length: usize) -> Result<()> {
        let failed = |error| Error::File { action: "give advice on reading", path: self.path.clone(), error };
        if offset.checked_add(length).is_none_or(|end| end > self.map.len()) {
            return Err(failed(std::io::Error::from(std::io::ErrorKind::InvalidInput)));
        }
        let advice = match access {
            Access::Sequential => Advice::Sequential,
            Access::WillNeed => Advice::WillNeed,
            Access::Random => Advice::Random,
        };
        self.map.advise_range(advice, offset, length).map_err(failed)
    }

    /// Gives back the memory that the file takes in this process: what is looked at again is read from the file again. Does nothing
    /// outside of Linux.
    ///
    /// # Errors
    /// [`Error::File`] when the system refuses.
    pub fn release(&self) -> Result<()> {
        #[cfg(target_os = "linux")]
        {
            let failed = |error| Error::File { action: "give back the memory of", path: self.path.clone(), error };
            // SAFETY: the mapping is read-only, so that no page of it differs from the file, which stays as it is by the type's
            // documentation: whoever reads a page again finds the same bytes.
            unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.map_err(failed)?;
        }
        Ok(())
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
