//! The index of a checkpoint in several files, `{"weight_map": {tensor: file}}`.
//!
//! Invariant: every file it names is a plain name within the same folder, and every tensor is listed once.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

/// Tensors by file, both in the order of their names.
pub(super) type TensorsByFile = BTreeMap<String, Vec<String>>;

/// Why the bytes are not an index.
pub(super) enum IndexError {
    /// Not the JSON that the format asks for, or a tensor listed twice.
    Json(serde_json::Error),
    /// A file that is not a plain name.
    FileName(String),
}

/// Reads the bytes of an index.
pub(super) fn parse(bytes: &[u8]) -> Result<TensorsByFile, IndexError> {
    let Index { weight_map: WeightMap(files) } = serde_json::from_slice(bytes).map_err(IndexError::Json)?;
    let mut by_file = TensorsByFile::new();
    for (tensor, file) in files {
        if !is_plain_name(&file) {
            return Err(IndexError::FileName(file));
        }
        by_file.entry(file).or_default().push(tensor);
    }
    Ok(by_file)
}

/// A name without folders. Backslashes and colons count as separators everywhere, so that an index means the same on
/// every system.
fn is_plain_name(file: &str) -> bool {
    !matches!(file, "" | "." | "..") && !file.contains(['/', '\\', ':', '\0'])
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// A map that refuses a second entry for the same tensor, where serde's own would let it win unseen.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;
        impl<'de> Visitor<'de> for Files {
            type Value = WeightMap;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of file names by tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut files = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if files.contains_key(&tensor) {
                        return Err(A::Error::custom(format_args!("tensor `{tensor}` is listed twice")));
                    }
                    files.insert(tensor, file);
                }
                Ok(WeightMap(files))
            }
        }
        deserializer.deserialize_map(Files)
    }
}
