//! The model that is made from a seed.

use std::fs;
use std::path::Path;

use gemma4_model::seeded::{SeededError, write};
use gemma4_model::weights::Selection;
use gemma4_model::{DType, checkpoint};
use sha2::{Digest as _, Sha256};

use crate::data::{fixture, open, target, whole};

/// What seeded_reference.py prints.
const REFERENCE: &str = "5b89ca5f8fc50f38f5ff8ab37f4843c673f886d95eaf7ab8b0900928f5fcf211";

/// The digest that the script describes, of the tensors in a folder.
fn digest(folder: &Path) -> String {
    let mut digest = Sha256::new();
    for (name, whole) in whole(folder) {
        digest.update(format!("{name}\n"));
        digest.update(whole.bytes);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).expect("a file"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_seed_gives_the_same_bytes_everywhere() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("new").join("smoke");
    write(&folder, 0).expect("written");
    assert_eq!(digest(&folder), REFERENCE);
    let other = parent.path().join("other");
    write(&other, 1).expect("written");
    assert_ne!(digest(&other), REFERENCE);
    let again = parent.path().join("again");
    write(&again, 0).expect("written");
    assert_eq!(sha256(&again.join("model.safetensors")), sha256(&folder.join("model.safetensors")));
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(parent.path()), ["again", "new", "other"], "nothing is left behind");
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&folder), expected);
}

#[test]
fn it_loads_and_its_numbers_are_of_use_in_both_types() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("smoke");
    write(&folder, 7).expect("written");
    let checkpoint = open(&folder, Selection::ALL).expect("a checkpoint");
    assert_eq!(checkpoint.config().dtype, Some(DType::F32));
    assert!(checkpoint::local(&folder).is_ok());
    let tensors = whole(&folder);
    assert_eq!(tensors.len(), checkpoint.tensors().len() + checkpoint.ignored().len());
    for tensor in checkpoint.tensors() {
        let wide = checkpoint.part(&tensor.name, &target(1, DType::F32), 0).expect("a part");
        let half = checkpoint.part(&tensor.name, &target(1, DType::Bf16), 0).expect("a part");
        let (wide, half) = (wide.bytes.as_slice(), half.bytes.as_slice());
        assert!(wide == tensors[&tensor.name].bytes);
        let mut squares = 0.0;
        for (wide, half) in wide.chunks(4).zip(half.chunks(2)) {
            let number = f32::from_le_bytes(wide.try_into().expect("four"));
            assert!(number.is_finite() && wide == [0, 0, half[0], half[1]]);
            squares += f64::from(number).powi(2);
        }
        assert!(squares > 0.0, "{}", tensor.name);
        // A linear layer keeps the variance of what enters it.
        if let &[_, width] = tensor.shape.as_slice()
            && tensor.name.contains("_proj")
        {
            let variance = squares / tensor.elements() as f64 * width as f64;
            assert!((0.9..1.1).contains(&variance), "{}: {variance}", tensor.name);
        }
    }
}

#[test]
fn the_tokenizer_is_the_one_of_the_fixtures() {
    // Which the tests of tokenizer and template run their cases on.
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("smoke");
    write(&folder, 0).expect("written");
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert_eq!(sha256(&folder.join(file)), sha256(&fixture("tiny-e2b").join(file)), "{file}");
    }
}

#[test]
fn nothing_is_written_over() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("smoke");
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("mine"), b"kept").expect("written");
    assert!(matches!(write(&folder, 0), Err(SeededError::Exists { .. })));
    assert_eq!(fs::read_dir(parent.path()).expect("a folder").count(), 1);
    let file = parent.path().join("file");
    fs::write(&file, b"").expect("written");
    assert!(matches!(write(&file, 0), Err(SeededError::Exists { .. })));
    assert!(matches!(write(&file.join("below"), 0), Err(SeededError::Write { .. })));
}
