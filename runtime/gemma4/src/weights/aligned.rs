//! Parts that devices can take over without a copy.
//!
//! XLA uses memory of the host in place only where it begins at a multiple of [`OWNED_ALIGNMENT`]. In published files
//! hardly any tensor does: the scalars of two bytes between them see to that. So parts that are not aligned, are cut
//! across rows or have another element type are written once into a file of their own, each at a multiple of that
//! alignment, and mapped from there: the second start reads no weight at all, and neither start holds them in anonymous
//! memory.
//!
//! Invariant: a file under a name holds exactly the parts that its key describes, or does not exist: it is written beside
//! its place, synced and renamed.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use super::bytes::{FileBytes, LocalBytes, OWNED_ALIGNMENT};
use super::error::WeightsError;
use super::load::{LoadOptions, LoadReport, Part, Progress, Target, part, report};
use super::open::Checkpoint;
use super::work::{self, Work};

/// First bytes of a file, with the key behind them.
const MAGIC: &str = "gemma4ctl.weights/1 ";
/// Where the first part begins: a page.
const START: usize = 4096;

/// Where aligned parts are kept.
pub struct AlignedStore<'a> {
    /// A folder of the user's own. It is made if it is not there.
    pub folder: &'a Path,
    /// Gives the bytes of a file, as for [`Checkpoint::open`].
    pub map: &'a (dyn Fn(&Path) -> io::Result<FileBytes> + Sync),
    /// Told while a file is written, which happens once for a checkpoint and a target.
    pub on_progress: &'a (dyn Fn(Progress) + Sync),
}

/// A part of the file, and where it lies.
struct Stored<'w, 'c> {
    work: &'w Work<'c>,
    range: Range<usize>,
}

impl Checkpoint {
    /// As [`Self::load`], with every part in memory that a device can take over without a copy. Parts that lie like that
    /// in the checkpoint's files are handed out as they are, all others come from a file in `store`, which is written
    /// first if it is not there yet.
    ///
    /// # Errors
    /// As [`Self::load`]; [`WeightsError::Store`] if the file cannot be written or mapped.
    pub fn load_aligned<B: Send>(
        &self,
        target: &Target,
        options: &LoadOptions<'_>,
        store: &AlignedStore<'_>,
        on_part: impl Fn(Part<'_>) -> ControlFlow<B> + Sync,
    ) -> Result<ControlFlow<B, LoadReport>, WeightsError> {
        let works = work::list(self, target, options)?;
        let mut total = report(&works);
        let (direct, rest): (Vec<Work<'_>>, Vec<Work<'_>>) = works.into_iter().partition(|work| work.is_aligned(self));
        let (stored, length) = places(&rest);
        let mut done: u64 = 0;
        if !stored.is_empty() {
            let key = self.key(target, options, &stored)?;
            let path = store.folder.join(format!("{key}.weights"));
            let file = match open(store, &path, &key, length)? {
                Some(file) => file,
                None => {
                    self.write(&rest, &stored, length, (&path, &key), options, store)?;
                    let gone = || WeightsError::store("read", &path, io::ErrorKind::InvalidData.into());
                    open(store, &path, &key, length)?.ok_or_else(gone)?
                }
            };
            for Stored { work, range } in &stored {
                done = done.saturating_add(work.bytes());
                let progress = Progress { done, total: total.bytes };
                let gone = || WeightsError::store("read", &path, io::ErrorKind::UnexpectedEof.into());
                let bytes = LocalBytes::borrowed(&file, range.clone()).ok_or_else(gone)?;
                if let ControlFlow::Break(value) = on_part(part(work, bytes, progress)) {
                    return Ok(ControlFlow::Break(value));
                }
            }
        }
        total.borrowed_bytes = total.bytes;
        let outcome = self.run(&direct, options, (done, total.bytes), on_part)?;
        Ok(match outcome {
            ControlFlow::Break(value) => ControlFlow::Break(value),
            ControlFlow::Continue(()) => ControlFlow::Continue(total),
        })
    }

    /// What the file's content follows from: the files of the checkpoint by their headers, lengths and times of change,
    /// the target, and which parts there are.
    fn key(
        &self,
        target: &Target,
        options: &LoadOptions<'_>,
        stored: &[Stored<'_, '_>],
    ) -> Result<String, WeightsError> {
        let mut hasher = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(bytes.len().to_le_bytes());
            hasher.update(bytes);
        };
        add(MAGIC.as_bytes());
        add(self.config_bytes());
        for (path, bytes) in self.files() {
            let metadata = fs::metadata(path).map_err(|error| WeightsError::store("read", path, error))?;
            let changed = metadata.modified().map_err(|error| WeightsError::store("read", path, error))?;
            add(format!("{path:?} {} {changed:?}", metadata.len()).as_bytes());
            let bytes = bytes.as_ref().as_ref();
            let header = bytes.get(..8).and_then(|length| length.try_into().ok()).map(u64::from_le_bytes);
            let end = header.and_then(|length| usize::try_from(length).ok()).unwrap_or(0).saturating_add(8);
            add(bytes.get(..end).unwrap_or_default());
        }
        add(format!("{target:?} {:?} {:?}", options.ranks, options.layout).as_bytes());
        for Stored { work, range } in stored {
            let names = work.members.iter().map(|member| member.matched.tensor.name.as_str());
            let content = work.array.content;
            add(format!("{:?} {content:?} {:?} {range:?}", names.collect::<Vec<_>>(), work.ranks).as_bytes());
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn write(
        &self,
        rest: &[Work<'_>],
        stored: &[Stored<'_, '_>],
        length: usize,
        (path, key): (&Path, &str),
        options: &LoadOptions<'_>,
        store: &AlignedStore<'_>,
    ) -> Result<(), WeightsError> {
        let failed = |error| WeightsError::store("write", path, error);
        fs::create_dir_all(store.folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(store.folder).map_err(failed)?;
        let mut head = format!("{MAGIC}{key}\n").into_bytes();
        head.resize(START, 0);
        file.write_all(&head).map_err(failed)?;
        file.as_file().set_len(length as u64).map_err(failed)?;
        let output: Mutex<&File> = Mutex::new(file.as_file());
        let bytes = rest.iter().fold(0, |sum: u64, work| sum.saturating_add(work.bytes()));
        let outcome = self.run(rest, options, (0, bytes), |part| {
            (store.on_progress)(part.progress);
            let name = part.tensors.first().map(|tensor| tensor.name.as_str());
            let same = |stored: &&Stored<'_, '_>| {
                stored.work.members.first().map(|member| member.matched.tensor.name.as_str()) == name
                    && stored.work.ranks == part.ranks
                    && stored.work.array.content == part.content
            };
            let Some(place) = stored.iter().find(same) else { return ControlFlow::Continue(()) };
            let mut output = output.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let at = SeekFrom::Start(place.range.start as u64);
            match output.seek(at).and_then(|_| output.write_all(part.bytes.as_slice())) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            }
        })?;
        if let ControlFlow::Break(error) = outcome {
            return Err(failed(error));
        }
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Where the parts lie in the file, and how long that is.
fn places<'w, 'c>(works: &'w [Work<'c>]) -> (Vec<Stored<'w, 'c>>, usize) {
    let mut end = START;
    let stored = works.iter().map(|work| {
        let start = end.next_multiple_of(OWNED_ALIGNMENT);
        end = start.saturating_add(usize::try_from(work.bytes()).unwrap_or(usize::MAX));
        Stored { work, range: start..end }
    });
    (stored.collect(), end)
}

/// The file, if it is there and whole. Another file under that name is none: it is replaced.
fn open(store: &AlignedStore<'_>, path: &Path, key: &str, length: usize) -> Result<Option<FileBytes>, WeightsError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(WeightsError::store("read", path, error)),
        Ok(_) => {}
    }
    let file = (store.map)(path).map_err(|error| WeightsError::store("map", path, error))?;
    let bytes = file.as_ref().as_ref();
    let head = format!("{MAGIC}{key}\n");
    Ok((bytes.len() == length && bytes.starts_with(head.as_bytes())).then_some(file))
}

impl WeightsError {
    fn store(what: &'static str, path: &Path, error: io::Error) -> Self {
        WeightsError::Store { what, path: PathBuf::from(path), error }
    }
}
