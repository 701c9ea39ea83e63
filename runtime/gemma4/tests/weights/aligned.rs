//! Parts from the file of aligned ones are those of the checkpoint, and the file is only ever whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use gemma4_model::DType;
use gemma4_model::quantization::{Content, Quantization};
use gemma4_model::weights::{
    AlignedStore, Checkpoint, FileBytes, Layout, LoadOptions, OWNED_ALIGNMENT, Target, WeightsError,
};
use gemma4_pjrt::mapped::MappedFile;

use crate::data::{FIXTURES, opened, target};

/// A memory map, which begins at a page.
fn mapped(path: &Path) -> io::Result<FileBytes> {
    let file: Arc<MappedFile> = MappedFile::open(path).map_err(io::Error::other)?;
    Ok(file)
}

type Parts = BTreeMap<(Vec<String>, Content, Vec<u64>), Vec<u8>>;

fn plain(checkpoint: &Checkpoint, target: &Target, options: &LoadOptions<'_>) -> Parts {
    let parts = Mutex::new(Parts::new());
    let outcome = checkpoint.load::<()>(target, options, |part| {
        let names = part.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        parts
            .lock()
            .expect("unlocked")
            .insert((names, part.content, part.ranks.clone()), part.bytes.as_slice().to_vec());
        ControlFlow::Continue(())
    });
    assert!(outcome.expect("loads").is_continue());
    parts.into_inner().expect("unlocked")
}

/// The parts, and how many bytes were written to get them.
fn aligned(checkpoint: &Checkpoint, target: &Target, options: &LoadOptions<'_>, folder: &Path) -> (Parts, u64) {
    let (parts, written) = (Mutex::new(Parts::new()), AtomicU64::new(0));
    let on_progress = |progress: gemma4_model::weights::Progress| {
        written.fetch_max(progress.done, Ordering::Relaxed);
    };
    let store = AlignedStore { folder, map: &mapped, on_progress: &on_progress };
    let outcome = checkpoint.load_aligned::<()>(target, options, &store, |part| {
        assert!(part.bytes.is_borrowed());
        assert!(part.bytes.alignment() >= OWNED_ALIGNMENT || part.bytes.as_slice().is_empty());
        let names = part.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let before = parts
            .lock()
            .expect("unlocked")
            .insert((names, part.content, part.ranks.clone()), part.bytes.as_slice().to_vec());
        assert!(before.is_none(), "a part was given twice");
        assert!(part.progress.done <= part.progress.total);
        ControlFlow::Continue(())
    });
    let report = outcome.expect("loads").continue_value().expect("nobody breaks off");
    assert_eq!(report.borrowed_bytes, report.bytes);
    (parts.into_inner().expect("unlocked"), written.into_inner())
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.into_iter().next().expect("a file")
}

#[test]
fn aligned_parts_are_those_of_the_checkpoint() {
    for name in FIXTURES {
        let checkpoint = opened(name);
        let (int8, int4) = (Some(Quantization::Int8), Some(Quantization::Int4));
        for (devices, dtype, quantization, layout) in [
            (1, DType::Bf16, None, Layout::PerLayer),
            (2, DType::F32, None, Layout::PerLayer),
            (4, DType::Bf16, None, Layout::Stacked),
            (2, DType::Bf16, int8, Layout::PerLayer),
            (4, DType::Bf16, int8, Layout::Stacked),
            (2, DType::Bf16, int4, Layout::PerLayer),
            (4, DType::F32, int4, Layout::Stacked),
        ] {
            let ranks: Vec<u64> = (0..devices).collect();
            let target = Target { quantization, ..target(devices, dtype) };
            let options = LoadOptions { layout, ..LoadOptions::new(&ranks) };
            let expected = plain(&checkpoint, &target, &options);
            let folder = tempfile::tempdir().expect("a folder");
            let (found, written) = aligned(&checkpoint, &target, &options, folder.path());
            assert!(found == expected, "{name}, {devices} devices");
            assert!(written > 0, "hardly any tensor of a published file is aligned");
            // The second time nothing is written.
            let (again, written) = aligned(&checkpoint, &target, &options, folder.path());
            assert!(again == expected && written == 0, "{name}, {devices} devices");
            only_file(folder.path());
        }
    }
}

#[test]
fn a_file_that_is_not_whole_is_replaced() {
    let checkpoint = opened("tiny-e2b");
    let (target, options) = (target(1, DType::Bf16), LoadOptions::new(&[0]));
    let expected = plain(&checkpoint, &target, &options);
    let folder = tempfile::tempdir().expect("a folder");
    aligned(&checkpoint, &target, &options, folder.path());
    let path = only_file(folder.path());
    let whole = fs::read(&path).expect("the file");
    for broken in [Vec::new(), whole[..whole.len() / 2].to_vec(), vec![0; whole.len()]] {
        fs::write(&path, broken).expect("written");
        let (found, written) = aligned(&checkpoint, &target, &options, folder.path());
        assert!(found == expected && written > 0);
        assert!(fs::read(only_file(folder.path())).expect("the file") == whole);
    }
}

#[test]
fn another_target_has_another_file() {
    let checkpoint = opened("tiny-e2b");
    let folder = tempfile::tempdir().expect("a folder");
    for (devices, dtype) in [(1, DType::Bf16), (1, DType::F32), (2, DType::Bf16)] {
        let ranks: Vec<u64> = (0..devices).collect();
        aligned(&checkpoint, &target(devices, dtype), &LoadOptions::new(&ranks), folder.path());
    }
    for quantization in Quantization::ALL {
        let quantized = Target { quantization: Some(quantization), ..target(1, DType::Bf16) };
        aligned(&checkpoint, &quantized, &LoadOptions::new(&[0]), folder.path());
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 5);
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let checkpoint = opened("tiny-e2b");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("written");
    let store = AlignedStore { folder: &file.join("below"), map: &mapped, on_progress: &|_| {} };
    let (target, options) = (target(1, DType::Bf16), LoadOptions::new(&[0]));
    let error = checkpoint.load_aligned::<()>(&target, &options, &store, |_| ControlFlow::Continue(()));
    let error = error.expect_err("a refusal");
    assert!(matches!(error, WeightsError::Store { .. }) && error.to_string().contains("below"), "{error}");
    // Breaking off gives the value.
    let store = AlignedStore { folder: folder.path(), map: &mapped, on_progress: &|_| {} };
    let broken = checkpoint.load_aligned(&target, &options, &store, |_| ControlFlow::Break(7)).expect("loads");
    assert_eq!(broken.break_value(), Some(7));
}
