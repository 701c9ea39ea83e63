//! Whole loads: complete, bounded, and ended on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gemma4_model::DType;
use gemma4_model::weights::{
    IgnoredBecause, Layout, LoadOptions, LoadReport, Selection, Strategy, Target, WeightsError,
};

use crate::data::{FIXTURES, fixture, open, opened, target};

type Parts = BTreeMap<(Vec<String>, u64), (Vec<u64>, Vec<u8>)>;

/// Loads everything and sorts it by tensors and rank.
fn load(name: &str, target: &Target, options: &LoadOptions<'_>) -> (Parts, LoadReport) {
    let parts = Mutex::new(Parts::new());
    let checkpoint = opened(name);
    let largest_done = AtomicU64::new(0);
    let outcome = checkpoint.load::<()>(target, options, |part| {
        largest_done.fetch_max(part.progress.done, Ordering::Relaxed);
        assert!(part.progress.done <= part.progress.total);
        let names: Vec<String> = part.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        for &rank in &part.ranks {
            let entry = (part.shape.clone(), part.bytes.as_slice().to_vec());
            let before = parts.lock().expect("unlocked").insert((names.clone(), rank), entry);
            assert!(before.is_none(), "{names:?} was given twice to {rank}");
        }
        ControlFlow::Continue(())
    });
    let ControlFlow::Continue(report) = outcome.expect("loads") else { panic!("nobody broke off") };
    assert_eq!(largest_done.into_inner(), report.bytes);
    (parts.into_inner().expect("unlocked"), report)
}

#[test]
fn a_load_gives_what_single_parts_give_in_every_strategy() {
    let touched = AtomicUsize::new(0);
    let advise = |piece: &[u8]| {
        touched.fetch_add(piece.len(), Ordering::Relaxed);
    };
    let strategies = [
        Strategy::Lazy,
        Strategy::Prefetch { ahead: 1000 },
        Strategy::Prefetch { ahead: u64::MAX },
        Strategy::Advise { ahead: u64::MAX, advise: &advise },
    ];
    for name in FIXTURES {
        let checkpoint = opened(name);
        for (strategy, workers, buffer_bytes) in strategies
            .into_iter()
            .zip([1, 3, 2, 8])
            .flat_map(|(strategy, workers)| [(strategy, workers, 1 << 30), (strategy, workers, 1)])
        {
            let workers = NonZeroUsize::new(workers).expect("not zero");
            let target = target(4, DType::F32);
            let options = LoadOptions { strategy, workers, buffer_bytes, ..LoadOptions::new(&[0, 1, 2, 3]) };
            let (parts, report) = load(name, &target, &options);
            assert_eq!(parts.len(), checkpoint.tensors().len() * 4);
            assert_eq!(report.borrowed_bytes, 0);
            assert_eq!(report.converted, [(DType::Bf16, checkpoint.tensors().len() as u64)]);
            for ((names, rank), (shape, bytes)) in parts {
                let part = checkpoint.part(&names[0], &target, rank).expect("a part");
                assert_eq!((names.len(), &part.shape), (1, &shape));
                assert!(part.bytes.as_slice() == bytes, "{names:?}");
            }
        }
    }
    assert!(touched.into_inner() > 0);
}

#[test]
fn some_ranks_can_be_loaded_alone() {
    let target = target(4, DType::Bf16);
    let (all, _) = load("tiny-moe", &target, &LoadOptions::new(&[0, 1, 2, 3]));
    let (some, report) = load("tiny-moe", &target, &LoadOptions::new(&[3, 1]));
    let expected: Parts = all.into_iter().filter(|((_, rank), _)| [1, 3].contains(rank)).collect();
    assert!(some == expected);
    assert!(report.borrowed_bytes > 0 && report.borrowed_bytes < report.bytes && report.converted.is_empty());
    let (none, report) = load("tiny-moe", &target, &LoadOptions::new(&[]));
    assert!(none.is_empty());
    assert_eq!(report, LoadReport::default());
}

#[test]
fn stacks_are_the_layers_one_after_another() {
    for name in FIXTURES {
        let checkpoint = opened(name);
        let target = target(2, DType::Bf16);
        let options = LoadOptions { layout: Layout::Stacked, ..LoadOptions::new(&[0, 1]) };
        let (stacks, _) = load(name, &target, &options);
        let mut seen = BTreeSet::new();
        for ((names, rank), (shape, bytes)) in &stacks {
            let parts = names.iter().map(|name| checkpoint.part(name, &target, *rank).expect("a part"));
            let parts: Vec<_> = parts.collect();
            let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes.as_slice().iter().copied()).collect();
            assert!(*bytes == joined, "{names:?}");
            let layers = parts.iter().map(|part| part.tensors[0].layer);
            assert!(layers.is_sorted_by(|one, other| one < other));
            let stacked = parts[0].tensors[0].component.is_text() && parts[0].tensors[0].layer.is_some();
            let front = if stacked { vec![names.len() as u64] } else { Vec::new() };
            assert_eq!(*shape, [front, parts[0].shape.clone()].concat());
            seen.extend(names.iter().map(|name| (name.clone(), *rank)));
        }
        assert_eq!(seen.len(), checkpoint.tensors().len() * 2);
    }
    // Four kinds: sliding and full, with and without keys and values of their own.
    let options = LoadOptions { layout: Layout::Stacked, ..LoadOptions::new(&[0]) };
    let (stacks, _) = load("tiny-e2b", &target(1, DType::Bf16), &options);
    let norms: Vec<_> = stacks.keys().filter(|(names, _)| names[0].ends_with("input_layernorm.weight")).collect();
    let mut counts: Vec<usize> = norms.iter().map(|(names, _)| names.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 4, 4]);
}

#[test]
fn a_callback_can_end_the_load() {
    let checkpoint = opened("tiny-mm");
    for strategy in [Strategy::Lazy, Strategy::Prefetch { ahead: 1 }] {
        let calls = AtomicUsize::new(0);
        let workers = NonZeroUsize::new(4).expect("not zero");
        let options = LoadOptions { strategy, workers, buffer_bytes: 1, ..LoadOptions::new(&[0, 1]) };
        let outcome = checkpoint.load(&target(2, DType::F32), &options, |_| {
            if calls.fetch_add(1, Ordering::Relaxed) == 5 {
                ControlFlow::Break("enough")
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(outcome.expect("no error"), ControlFlow::Break("enough"));
        assert!(calls.into_inner() < 20, "stops soon");
    }
}

#[test]
fn a_panic_in_the_callback_ends_the_load() {
    let checkpoint = opened("tiny-e2b");
    let options = LoadOptions { strategy: Strategy::Prefetch { ahead: 1 }, buffer_bytes: 1, ..LoadOptions::new(&[0]) };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = checkpoint.load::<()>(&target(1, DType::F32), &options, |_| panic!("the callback's own"));
    }));
    assert!(caught.is_err());
}

/// Counts how many bytes of buffers are alive in the callback at once.
#[test]
fn buffers_stay_within_their_limit() {
    let checkpoint = opened("tiny-moe");
    let largest = checkpoint.tensors().map(|tensor| tensor.elements() * 4).max().expect("tensors");
    let (alive, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let workers = NonZeroUsize::new(8).expect("not zero");
    let options = LoadOptions { workers, buffer_bytes: largest, ..LoadOptions::new(&[0]) };
    let outcome = checkpoint.load::<()>(&target(1, DType::F32), &options, |part| {
        let bytes = part.bytes.as_slice().len() as u64;
        most.fetch_max(alive.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_micros(200));
        alive.fetch_sub(bytes, Ordering::SeqCst);
        ControlFlow::Continue(())
    });
    assert!(matches!(outcome, Ok(ControlFlow::Continue(_))));
    assert!(most.into_inner() <= largest);
}

#[test]
fn ignored_tensors_are_counted() {
    let count = |name: &str, selection, because| {
        let checkpoint = open(&fixture(name), selection).expect("a checkpoint");
        checkpoint.ignored().iter().filter(|ignored| ignored.because == because).count()
    };
    // Five borrowing layers with k_proj, v_proj and k_norm each.
    assert_eq!(count("tiny-e2b", Selection::ALL, IgnoredBecause::BorrowedKeysAndValues), 15);
    assert_eq!(count("tiny-dense", Selection::ALL, IgnoredBecause::BorrowedKeysAndValues), 0);
    assert_eq!(count("tiny-mm", Selection::ALL, IgnoredBecause::NotSelected), 0);
    let text = count("tiny-mm", Selection::default(), IgnoredBecause::NotSelected);
    let audio = count("tiny-mm", Selection { vision: true, audio: false }, IgnoredBecause::NotSelected);
    let vision = count("tiny-mm", Selection { vision: false, audio: true }, IgnoredBecause::NotSelected);
    assert!(vision > 0 && audio > 0 && vision + audio == text);
    let checkpoint = open(&fixture("tiny-mm"), Selection::default()).expect("a checkpoint");
    assert!(checkpoint.tensors().all(|tensor| tensor.component.is_text()));
}

#[test]
fn ranks_and_types_that_do_not_suit_are_refused() {
    let checkpoint = opened("tiny-e2b");
    let never = |_: gemma4_model::weights::Part<'_>| -> ControlFlow<()> { panic!("a part was produced") };
    for ranks in [&[2][..], &[0, 0]] {
        let outcome = checkpoint.load(&target(2, DType::Bf16), &LoadOptions::new(ranks), never);
        assert!(matches!(outcome, Err(WeightsError::Rank { devices: 2, .. })));
    }
    let outcome = checkpoint.load(&target(3, DType::Bf16), &LoadOptions::new(&[0]), never);
    assert!(matches!(outcome, Err(WeightsError::Sharding(_))));
    for dtype in [DType::F16, DType::F8E4M3, DType::I4] {
        let outcome = checkpoint.load(&target(1, dtype), &LoadOptions::new(&[0]), never);
        assert!(matches!(outcome, Err(WeightsError::Conversion { from: DType::Bf16, .. })));
    }
    let outcome = checkpoint.part("nothing", &target(1, DType::Bf16), 0);
    assert!(matches!(outcome, Err(WeightsError::UnknownTensor { .. })));
    let outcome = checkpoint.part("model.language_model.norm.weight", &target(1, DType::Bf16), 1);
    assert!(matches!(outcome, Err(WeightsError::Rank { rank: 1, devices: 1 })));
}
