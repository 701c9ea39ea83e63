//! What a checkpoint that does not fit is told.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gemma4_model::DType;
use gemma4_model::checkpoint::CheckpointError;
use gemma4_model::weights::{Checkpoint, FileBytes, IgnoredBecause, LoadOptions, Problems, Selection, WeightsError};
use safetensors::Dtype;

use crate::data::{Whole, edited, fixture, open, read, target, whole, write};

const PREFIX: &str = "model.language_model.";

fn problems(folder: &Path) -> (Problems, String) {
    match open(folder, Selection::ALL) {
        Err(error @ WeightsError::Mismatch { .. }) => {
            let message = error.to_string();
            let WeightsError::Mismatch { problems, .. } = error else { unreachable!() };
            (*problems, message)
        }
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn everything_that_does_not_fit_is_in_one_error() {
    let norm = format!("{PREFIX}norm.weight");
    let layer = format!("{PREFIX}layers.0.");
    let folder = edited("tiny-e2b", |tensors| {
        tensors.remove(&norm).expect("it was there");
        tensors.get_mut(&format!("{layer}self_attn.q_proj.weight")).expect("there").shape = vec![64, 32, 2];
        let scalar = tensors.get_mut(&format!("{layer}layer_scalar")).expect("there");
        (scalar.dtype, scalar.bytes) = (Dtype::I32, vec![0; 4]);
        let extra = Whole { dtype: Dtype::U8, shape: vec![3], bytes: vec![0; 3] };
        tensors.insert("extra".to_owned(), extra.clone());
        tensors.insert("model.vision_tower.extra".to_owned(), extra);
    });
    let (problems, message) = problems(folder.path());
    assert_eq!(problems.count(), 5);
    assert_eq!(problems.missing, [norm]);
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines[0].ends_with(
        "5 tensors do not fit config.json, so the model would not be the one it says; \
         fetch the files again, or the config.json that belongs to them"
    ));
    assert_eq!(
        lines[1..],
        [
            "  missing: `model.language_model.norm.weight`",
            "  wrong shape: `model.language_model.layers.0.self_attn.q_proj.weight` in model.safetensors is [64, 32, 2] \
             instead of [64, 64]",
            "  element type that weights cannot have: `model.language_model.layers.0.layer_scalar` in model.safetensors \
             is int32",
            "  not part of this model: `extra` in model.safetensors, `model.vision_tower.extra` in model.safetensors",
        ]
    );
}

#[test]
fn long_lists_are_cut() {
    let folder = edited("tiny-e2b", |tensors| {
        tensors.retain(|name, _| !name.contains("layernorm"));
        let extra = Whole { dtype: Dtype::U8, shape: vec![], bytes: vec![0] };
        tensors.extend((0..3).map(|index| (format!("extra.{index}"), extra.clone())));
    });
    let (problems, message) = problems(folder.path());
    assert_eq!((problems.missing.len(), problems.unexpected.len()), (40, 3));
    assert_eq!(message.matches('`').count(), 40, "twenty names");
    assert!(message.contains(", and 20 more"));
    assert!(message.ends_with("\n  not part of this model: 3 tensors"));
}

#[test]
fn tensors_in_two_files_are_all_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = fixture("tiny-dense");
    for entry in std::fs::read_dir(&source).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
    }
    let second = folder.path().join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&second).expect("read");
    let views = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
    let mut tensors = whole(&source);
    let twice = [format!("{PREFIX}embed_tokens.weight"), format!("{PREFIX}layers.0.layer_scalar")];
    tensors.retain(|name, _| views.tensor(name).is_ok() || twice.contains(name));
    write(&second, &tensors);
    let (problems, message) = problems(folder.path());
    let names: Vec<&String> = problems.doubly_given.iter().map(|(name, _)| name).collect();
    assert_eq!(names, [&twice[0], &twice[1]]);
    assert!(message.ends_with(
        "\n  given twice: `model.language_model.embed_tokens.weight` in model-00001-of-00002.safetensors and \
         model-00002-of-00002.safetensors, `model.language_model.layers.0.layer_scalar` in \
         model-00001-of-00002.safetensors and model-00002-of-00002.safetensors"
    ));
}

#[test]
fn another_prefix_is_named() {
    let folder = edited("tiny-e2b", |tensors| {
        *tensors =
            std::mem::take(tensors).into_iter().map(|(name, whole)| (name.replace(PREFIX, "model."), whole)).collect();
    });
    let (problems, message) = problems(folder.path());
    assert_eq!(problems.other_prefix, Some(["model.", PREFIX]));
    assert!(message.contains("names begin with `model.`, where this kind of config.json has `model.language_model.`"));
}

#[test]
fn a_text_only_checkpoint_has_the_short_prefix() {
    let folder = edited("tiny-e2b", |tensors| {
        *tensors =
            std::mem::take(tensors).into_iter().map(|(name, whole)| (name.replace(PREFIX, "model."), whole)).collect();
    });
    let path = folder.path().join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    let mut text = config["text_config"].clone();
    text["architectures"] = serde_json::json!(["Gemma4ForCausalLM"]);
    std::fs::write(&path, text.to_string()).expect("written");
    let checkpoint = open(folder.path(), Selection::ALL).expect("a checkpoint");
    assert!(checkpoint.tensors().all(|tensor| tensor.name.starts_with("model.")));
    assert_eq!(checkpoint.tensors().len() + checkpoint.ignored().len(), whole(folder.path()).len());
}

#[test]
fn a_head_beside_a_tied_embedding_is_ignored_and_borrowed_keys_may_be_absent() {
    let folder = edited("tiny-e2b", |tensors| {
        let embedding = tensors[&format!("{PREFIX}embed_tokens.weight")].clone();
        tensors.insert("lm_head.weight".to_owned(), embedding);
        tensors.remove(&format!("{PREFIX}layers.7.self_attn.k_proj.weight")).expect("it was there");
    });
    let checkpoint = open(folder.path(), Selection::ALL).expect("a checkpoint");
    let head = checkpoint.ignored().iter().find(|ignored| ignored.name == "lm_head.weight").expect("ignored");
    assert_eq!((head.because, head.bytes), (IgnoredBecause::TiedHead, 1024 * 64 * 2));
    assert_eq!(checkpoint.ignored().len(), 15);
}

#[test]
fn quantized_checkpoints_are_refused() {
    let folder = edited("tiny-e2b", |_| {});
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    config["quantization_config"] = serde_json::json!({"quant_method": "awq"});
    std::fs::write(&path, config.to_string()).expect("written");
    let error = open(folder.path(), Selection::ALL).err().expect("refused");
    assert!(matches!(&error, WeightsError::Quantized { method, .. } if method == "awq"));
}

#[test]
fn a_map_that_fails_names_its_file() {
    let refuse = |_: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    let error = Checkpoint::open(&fixture("tiny-e2b"), Selection::ALL, refuse).err().expect("refused");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(matches!(error, WeightsError::Checkpoint(CheckpointError::Read { .. })));
}

/// Bytes that shrink after the header was read, as those of a file that is truncated meanwhile.
struct Shrinking(Vec<u8>, std::sync::atomic::AtomicBool);

impl AsRef<[u8]> for Shrinking {
    fn as_ref(&self) -> &[u8] {
        let first = !self.1.swap(true, std::sync::atomic::Ordering::Relaxed);
        if first { &self.0 } else { &self.0[..100] }
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let map = |path: &Path| -> io::Result<FileBytes> {
        Ok(Arc::new(Shrinking(std::fs::read(path)?, std::sync::atomic::AtomicBool::new(false))))
    };
    let checkpoint = Checkpoint::open(&fixture("tiny-e2b"), Selection::ALL, map).expect("opens");
    for dtype in [DType::Bf16, DType::F32] {
        let never = |_: gemma4_model::weights::Part<'_>| -> std::ops::ControlFlow<()> { panic!("a part was produced") };
        let outcome = checkpoint.load(&target(1, dtype), &LoadOptions::new(&[0]), never);
        assert!(matches!(outcome, Err(WeightsError::Changed { .. })));
    }
    assert!(read(Path::new("/nonexistent")).is_err());
}
