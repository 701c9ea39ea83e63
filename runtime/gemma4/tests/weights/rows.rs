//! Tables that stay in their files.

use std::ops::ControlFlow;
use std::sync::Mutex;

use gemma4_model::DType;
use gemma4_model::tensors::Role;
use gemma4_model::weights::{LoadOptions, Selection, WeightsError};

use crate::data::{edited, fixture, open, opened, target, whole};

const TABLE: &str = "model.language_model.embed_tokens_per_layer.weight";

#[test]
fn rows_are_those_of_the_table_and_zeros_where_there_are_none() {
    let table = &whole(&fixture("tiny-e2b"))[TABLE];
    let (rows, width) = (table.shape[0], table.shape[1]);
    let last = i32::try_from(rows).expect("a small table") - 1;
    let ids = [3, last, 0, -1, 3, last + 1, i32::MIN, i32::MAX];
    let stored = |id: i32| match usize::try_from(id).ok().filter(|row| *row < rows) {
        Some(row) => table.bytes[row * width * 2..(row + 1) * width * 2].to_vec(),
        None => vec![0; width * 2],
    };
    let expected: Vec<u8> = ids.into_iter().flat_map(stored).collect();
    let mut found = vec![7; 3];
    let checkpoint = opened("tiny-e2b");
    let narrow = checkpoint.row_table(Role::PerLayerTable, DType::Bf16).expect("a table");
    narrow.gather(&ids, &mut found);
    assert!(found == expected && narrow.row_bytes() == width * 2);
    let wide = checkpoint.row_table(Role::PerLayerTable, DType::F32).expect("a table");
    wide.gather(&ids, &mut found);
    // A number of 16 bits is the upper half of the same number of 32.
    let expected: Vec<u8> = expected.chunks_exact(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
    assert!(found == expected && wide.row_bytes() == width * 4);
    wide.gather(&[], &mut found);
    assert!(found.is_empty());
}

#[test]
fn what_is_no_table_is_refused() {
    let none = opened("tiny-dense").row_table(Role::PerLayerTable, DType::F32);
    assert!(matches!(none, Err(WeightsError::UnknownTensor { .. })));
    let vector = opened("tiny-e2b").row_table(Role::FinalNorm, DType::F32);
    assert!(matches!(vector, Err(WeightsError::UnknownTensor { .. })));
    let narrow = opened("tiny-e2b").row_table(Role::PerLayerTable, DType::I8);
    assert!(matches!(narrow, Err(WeightsError::Conversion { .. })));
    let folder = edited("tiny-e2b", |tensors| {
        let table = tensors.get_mut(TABLE).expect("a table");
        table.shape[0] -= 1;
        table.bytes.truncate(table.shape[0] * table.shape[1] * 2);
    });
    assert!(matches!(open(folder.path(), Selection::ALL), Err(WeightsError::Mismatch { .. })));
}

#[test]
fn a_load_without_a_role_gives_all_the_others() {
    let checkpoint = opened("tiny-e2b");
    let load = |without| {
        let names: Mutex<Vec<String>> = Mutex::default();
        let options = LoadOptions { without, ..LoadOptions::new(&[0]) };
        let outcome = checkpoint.load::<()>(&target(1, DType::Bf16), &options, |part| {
            names.lock().expect("unlocked").extend(part.tensors.iter().map(|tensor| tensor.name.clone()));
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(report) = outcome.expect("loads") else { panic!("nobody broke off") };
        let mut names = names.into_inner().expect("unlocked");
        names.sort_unstable();
        (names, report.bytes)
    };
    let (mut all, bytes) = load(&[]);
    let (rest, fewer) = load(&[Role::PerLayerTable]);
    let table = &whole(&fixture("tiny-e2b"))[TABLE];
    assert_eq!(bytes - fewer, table.bytes.len() as u64);
    all.retain(|name| name != TABLE);
    assert_eq!(rest, all);
}
