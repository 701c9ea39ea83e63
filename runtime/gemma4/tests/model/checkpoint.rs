//! Headers of safetensors files, and folders of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use gemma4_model::DType;
use gemma4_model::checkpoint::{CheckpointError, HeaderError, Selection, header_of, local, read_header};
use serde_json::{Value, json};

use crate::data::{FIXTURES, Fixture};

/// A file with this header and as many zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn a_header_is_read_in_the_order_of_its_data() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},
        "a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}"#;
    let file = file(header, 26);
    let tensors = header_of(&file).expect("a header");
    let start = 8 + header.len() as u64;
    assert_eq!(tensors.len(), 2);
    assert_eq!((tensors[0].name.as_str(), tensors[0].dtype), ("a", DType::Bf16));
    assert_eq!((tensors[0].shape.as_slice(), tensors[0].offset), (&[][..], start));
    assert_eq!((tensors[1].shape.as_slice(), tensors[1].bytes), (&[2, 3][..], 24));
    assert_eq!(tensors[1].offset, start + 2);
}

/// The error of a header over `data` bytes.
fn refused(header: &str, data: usize) -> String {
    match header_of(&file(header, data)) {
        Err(error) => error.to_string(),
        Ok(tensors) => panic!("accepted: {tensors:?}"),
    }
}

#[test]
fn hostile_headers_are_refused() {
    let one = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    let size = "which do not enclose the bytes of its shape";
    assert!(refused(&one("[2]", 0, 4), 4).ends_with(size));
    assert!(refused(&one("[2]", 8, 0), 8).ends_with(size));
    assert!(refused(&one("[4294967296,4294967296,4]", 0, 8), 8).ends_with(size));
    assert!(refused(&one("[2]", 0, u64::MAX), 8).ends_with(size));
    let layout = "the data of `t` begin at 4, where 0 was expected";
    assert_eq!(refused(&one("[2]", 4, 12), 12), layout);
    let layout = "the data of `the end of the file` begin at 12, where 8 was expected";
    assert_eq!(refused(&one("[2]", 0, 8), 12), layout);
    let two = r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                  "t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_eq!(refused(two, 2), "tensor `t` is listed twice");
    let dtype = one("[2]", 0, 8).replace("F32", "F33");
    assert_eq!(refused(&dtype, 8), "tensor `t` has the unknown element type `F33`");
    let json = "the header is not that of a safetensors file";
    for text in ["", "[]", "null", "{", r#"{"t":1}"#, r#"{"t":{"dtype":"F32"}}"#] {
        assert_eq!(refused(text, 0), json);
    }
    assert_eq!(refused(&one("[-1]", 0, 8), 8), json);
    assert_eq!(refused(&one(&format!("{:?}", [1; 17]), 0, 4), 4), json);
}

#[test]
fn announced_lengths_are_not_believed() {
    assert!(matches!(header_of(&[1, 2, 3]), Err(HeaderError::Truncated { file: 3, needed: 8 })));
    let long = u64::MAX.to_le_bytes();
    assert!(matches!(header_of(&long), Err(HeaderError::TooLong { bytes: u64::MAX })));
    let long = 1000_u64.to_le_bytes();
    assert!(matches!(header_of(&long), Err(HeaderError::Truncated { file: 8, needed: 1008 })));
    // The file system says more than there is to read.
    let error = read_header(&long[..], 1 << 40);
    assert!(matches!(error, Err(HeaderError::Truncated { file: 8, needed: 1008 })));
    assert!(matches!(read_header(&[][..], 100), Err(HeaderError::Read(_))));
}

/// A fresh folder for one test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("removed");
    }
    fs::create_dir_all(&path).expect("created");
    path
}

type List<'a> = Vec<(&'a String, &'a (String, Vec<u64>))>;

/// Writes a file with the header of these tensors and a hole for their data.
fn write(path: &Path, tensors: &List<'_>) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, (dtype, shape)) in tensors {
        let begin = end;
        end += shape.iter().product::<u64>() * 2;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
        header.insert((*name).clone(), entry);
    }
    let bytes = file(&Value::Object(header).to_string(), 0);
    let mut file = fs::File::create(path).expect("created");
    file.write_all(&bytes).expect("written");
    file.set_len(bytes.len() as u64 + end).expect("extended");
}

fn list(fixture: &Fixture) -> BTreeMap<String, (String, Vec<u64>)> {
    serde_json::from_str(fixture.tensors).expect("a tensor list")
}

#[test]
fn a_folder_with_one_file() {
    for fixture in &FIXTURES {
        let folder = folder(&format!("single-{}", fixture.name));
        fs::write(folder.join("config.json"), fixture.published).expect("written");
        let tensors = list(fixture);
        write(&folder.join("model.safetensors"), &tensors.iter().collect());
        let checkpoint = local(&folder).expect("a checkpoint");
        assert_eq!(checkpoint.config_bytes, fixture.published);
        assert_eq!(checkpoint.matching(Selection::ALL).problems.count(), 0);
        let found = checkpoint.sorted_tensors();
        assert!(found.iter().map(|t| &t.name).eq(tensors.keys()));
    }
}

/// A folder with two files and an index in which `edit` has changed something.
fn sharded(name: &str, edit: impl FnOnce(&mut Value)) -> PathBuf {
    let fixture = &FIXTURES[2];
    let folder = folder(name);
    fs::write(folder.join("config.json"), fixture.per_layer).expect("written");
    let tensors = list(fixture);
    let (first, second): (List<'_>, List<'_>) = tensors.iter().partition(|(name, _)| name.contains(".layers.1"));
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-1.safetensors", first), ("model-2.safetensors", second)] {
        write(&folder.join(file), &part);
        map.extend(part.iter().map(|(name, _)| ((*name).clone(), json!(file))));
    }
    let mut index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    edit(&mut index);
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("written");
    folder
}

#[test]
fn a_folder_with_an_index() {
    let folder = sharded("sharded", |_| {});
    let checkpoint = local(&folder).expect("a checkpoint");
    assert_eq!(checkpoint.shards.len(), 2);
    assert_eq!(checkpoint.matching(Selection::ALL).problems.count(), 0);
    assert_eq!(checkpoint.sorted_tensors().len(), list(&FIXTURES[2]).len());
}

#[test]
fn a_hostile_index_is_refused() {
    let norm = "model.language_model.norm.weight";
    let outside = ["../model-1.safetensors", "/etc/passwd", "", "..", "a\\b", "C:x"];
    for (case, name) in outside.into_iter().enumerate() {
        let folder = sharded(&format!("outside-{case}"), |index| {
            index["weight_map"][norm] = json!(name);
        });
        let error = local(&folder);
        assert!(matches!(error, Err(CheckpointError::ShardName { .. })), "{name}: {error:?}");
    }
    let folder = sharded("absent-file", |index| index["weight_map"][norm] = json!("no.safetensors"));
    assert!(matches!(local(&folder), Err(CheckpointError::Read { .. })));
    let folder = sharded("wrong-file", |index| {
        index["weight_map"][norm] = json!("model-1.safetensors");
    });
    let error = local(&folder).expect_err("the tensor is in the other file");
    assert!(matches!(&error, CheckpointError::NotInShard { tensor, .. } if tensor == norm));
    let folder = sharded("twice", |_| {});
    let second = fs::read(folder.join("model-2.safetensors")).expect("read");
    fs::write(folder.join("model-3.safetensors"), second).expect("written");
    let path = folder.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("an index");
    index["weight_map"][norm] = json!("model-3.safetensors");
    fs::write(&path, index.to_string()).expect("written");
    assert!(matches!(local(&folder), Err(CheckpointError::InTwoShards { .. })));
    let folder = sharded("listed-twice", |_| {});
    let path = folder.join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).expect("read");
    let again = format!(r#"{{"weight_map":{{"{norm}":"model-1.safetensors","#);
    let text = text.replacen(r#"{"metadata":{"total_size":1},"weight_map":{"#, &again, 1);
    fs::write(&path, text).expect("written");
    let error = local(&folder).expect_err("listed twice");
    assert!(matches!(&error, CheckpointError::Index { source, .. } if source.to_string().contains(norm)), "{error:?}");
    let folder = sharded("left-out", |_| {});
    fs::copy(folder.join("model-2.safetensors"), folder.join("other.safetensors")).expect("copied");
    assert_eq!(local(&folder).expect("other files do not count").unread, ["other.safetensors"]);
    fs::copy(folder.join("model-2.safetensors"), folder.join("model-00003-of-00003.safetensors")).expect("copied");
    let error = local(&folder).expect_err("a part that the index leaves out");
    assert!(matches!(&error, CheckpointError::NotInIndex { file, .. } if file == "model-00003-of-00003.safetensors"));
    let folder = sharded("no-map", |index| *index = json!({"weight_map": [1]}));
    assert!(matches!(local(&folder), Err(CheckpointError::Index { .. })));
}

#[test]
fn folders_without_a_checkpoint_are_named() {
    let folder = folder("empty");
    let error = local(&folder).expect_err("nothing is there");
    assert!(matches!(&error, CheckpointError::Read { path, .. } if path.ends_with("config.json")));
    fs::write(folder.join("config.json"), b"{}").expect("written");
    assert!(matches!(local(&folder), Err(CheckpointError::Config { .. })));
    fs::write(folder.join("config.json"), FIXTURES[0].published).expect("written");
    assert!(matches!(local(&folder), Err(CheckpointError::NoWeights { .. })));
    fs::write(folder.join("model.safetensors"), b"short").expect("written");
    assert!(matches!(local(&folder), Err(CheckpointError::Header { .. })));
}

#[test]
fn differences_between_files_and_configuration_are_listed() {
    let fixture = &FIXTURES[0];
    let folder = folder("differences");
    fs::write(folder.join("config.json"), fixture.published).expect("written");
    let mut tensors = list(fixture);
    let prefix = "model.language_model.";
    tensors.remove(&format!("{prefix}norm.weight"));
    // Nothing reads the keys of layer 5, so they may be absent.
    tensors.remove(&format!("{prefix}layers.5.self_attn.k_proj.weight"));
    let name = format!("{prefix}embed_tokens.weight");
    tensors.insert(name.clone(), ("BF16".to_owned(), vec![1024, 65]));
    tensors.insert("extra".to_owned(), ("BF16".to_owned(), vec![]));
    write(&folder.join("model.safetensors"), &tensors.iter().collect());
    let problems = local(&folder).expect("a checkpoint").matching(Selection::ALL).problems;
    let shapes: Vec<_> =
        problems.misshapen.iter().map(|(found, expected)| (&found.name, &found.shape, expected)).collect();
    assert_eq!(shapes, [(&name, &vec![1024, 65], &vec![1024, 64])]);
    assert_eq!(problems.missing, [format!("{prefix}norm.weight")]);
    assert!(problems.unexpected.iter().map(|found| &found.name).eq(["extra"]));
    assert_eq!(problems.count(), 3);
}
