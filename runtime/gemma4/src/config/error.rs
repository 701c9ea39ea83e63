//! What can be wrong with a configuration, always with the path of the field.

use super::AttentionKind;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON, or a field that is read has another type than a `config.json` gives it.
    #[error("cannot be read as the config.json of a Gemma 4 model")]
    Json(#[source] serde_json::Error),
    /// A field that decides a shape is absent or null.
    #[error("`{field}` is missing")]
    Missing {
        /// Path of the field, for example `text_config.hidden_size`.
        field: String,
    },
    /// A dimension is zero.
    #[error("`{field}` is 0")]
    Zero {
        /// Path of the field.
        field: String,
    },
    /// A dimension is larger than any sensible model has (see [`super::limits`]).
    #[error("`{field}` is {value}, more than the {limit} that are accepted")]
    TooLarge {
        /// Path of the field.
        field: String,
        /// The value found.
        value: u64,
        /// The largest accepted value.
        limit: u64,
    },
    /// One value has to divide another and does not.
    #[error("`{field}` is {value}, which is not a multiple of {divisor} ({divisor_name})")]
    NotDivisible {
        /// Path of the field.
        field: String,
        /// The value found.
        value: u64,
        /// What it must be a multiple of.
        divisor: u64,
        /// What the divisor is, for example `num_key_value_heads`.
        divisor_name: &'static str,
    },
    /// A floating-point value outside the range that makes sense.
    #[error("`{field}` is {value}; expected {expected}")]
    OutOfRange {
        /// Path of the field.
        field: String,
        /// The value found.
        value: f64,
        /// The accepted range, in words.
        expected: &'static str,
    },
    /// Two fields say different things.
    #[error("`{field}` contradicts another field: {reason}")]
    Contradiction {
        /// Path of the field.
        field: String,
        /// The two statements.
        reason: String,
    },
    /// A value that stands for something this crate has no shapes for.
    #[error("`{field}` is `{value}`; supported: {supported}")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// The value found.
        value: String,
        /// What is supported, in words.
        supported: &'static str,
    },
    /// A layer is to borrow keys and values, and no earlier layer of its kind owns any.
    #[error("layer {layer} shares keys and values, but no {kind} layer before the shared ones owns any")]
    NoDonor {
        /// Index of the borrowing layer.
        layer: usize,
        /// Its attention kind.
        kind: AttentionKind,
    },
}
