//! All that does not fit between a checkpoint and its configuration, told at once.

use std::fmt::{self, Display};

use crate::DType;

/// At most this many tensors are named in a message; the rest are counted.
const NAMED: usize = 20;
/// Prefixes of the language model's tensors that are in use somewhere.
const KNOWN_PREFIXES: [&str; 4] = ["model.language_model.", "language_model.model.", "model.", "language_model."];
const EMBEDDING: &str = "embed_tokens.weight";

/// A tensor as a file gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name.
    pub name: String,
    /// Name of the file, without its folder.
    pub file: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
}

/// Everything that does not fit, in groups. [`fmt::Display`] writes one line a group and names at most 20 tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Tensors that the model reads and no file has, in the order of the model.
    pub missing: Vec<String>,
    /// Tensors with another shape than the one that is expected, which stands beside.
    pub misshapen: Vec<(Found, Vec<u64>)>,
    /// Tensors whose element type is none of [`STORED_TYPES`](super::STORED_TYPES).
    pub wrong_type: Vec<Found>,
    /// Tensors that two files have, and the names of both files.
    pub doubly_given: Vec<(String, [String; 2])>,
    /// Tensors that the configuration knows nothing of, by name.
    pub unexpected: Vec<Found>,
    /// The prefix that the language model's tensors have in place of the expected one, where that is the trouble.
    pub other_prefix: Option<[&'static str; 2]>,
}

impl Problems {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        let Self { missing, misshapen, wrong_type, doubly_given, unexpected, other_prefix: _ } = self;
        missing.len() + misshapen.len() + wrong_type.len() + doubly_given.len() + unexpected.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The prefix found and the one expected, if the token embedding is there under another prefix.
    pub(super) fn find_other_prefix(&self, expected: &'static str) -> Option<[&'static str; 2]> {
        let missing = format!("{expected}{EMBEDDING}");
        if !self.missing.contains(&missing) {
            return None;
        }
        let is_there = |prefix: &&str| self.unexpected.iter().any(|found| found.name == format!("{prefix}{EMBEDDING}"));
        KNOWN_PREFIXES.into_iter().find(is_there).map(|found| [found, expected])
    }
}

impl Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some([found, expected]) = self.other_prefix {
            write!(formatter, "\n  names begin with `{found}`, where this kind of config.json has `{expected}`")?;
        }
        let mut left = NAMED;
        let missing = self.missing.iter().map(|name| format!("`{name}`"));
        group(formatter, &mut left, "missing", missing)?;
        let misshapen = self.misshapen.iter().map(|(found, expected)| {
            format!("`{}` in {} is {:?} instead of {expected:?}", found.name, found.file, found.shape)
        });
        group(formatter, &mut left, "wrong shape", misshapen)?;
        let wrong_type = self.wrong_type.iter();
        let wrong_type = wrong_type.map(|found| format!("`{}` in {} is {}", found.name, found.file, found.dtype));
        group(formatter, &mut left, "element type that weights cannot have", wrong_type)?;
        let doubly_given = self.doubly_given.iter();
        let doubly_given = doubly_given.map(|(name, [one, other])| format!("`{name}` in {one} and {other}"));
        group(formatter, &mut left, "given twice", doubly_given)?;
        let unexpected = self.unexpected.iter();
        let unexpected = unexpected.map(|found| format!("`{}` in {}", found.name, found.file));
        group(formatter, &mut left, "not part of this model", unexpected)
    }
}

/// Writes one group, as far as names are left.
fn group(
    formatter: &mut fmt::Formatter<'_>,
    left: &mut usize,
    heading: &str,
    entries: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    let count = entries.len();
    if count == 0 {
        return Ok(());
    }
    let named: Vec<String> = entries.take(*left).collect();
    *left -= named.len();
    let more = count - named.len();
    write!(formatter, "\n  {heading}: ")?;
    match (named.len(), more) {
        (0, more) => write!(formatter, "{more} tensors"),
        (_, 0) => write!(formatter, "{}", named.join(", ")),
        (_, more) => write!(formatter, "{}, and {more} more", named.join(", ")),
    }
}
