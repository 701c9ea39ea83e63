//! The text of MLIR attributes. Invariant: the same numbers always give the same bytes.

use std::fmt::Display;

/// The attributes of an operation, in the order in which they are printed.
pub(crate) type Attributes = Vec<(&'static str, String)>;

/// `1, 2, 3`
pub(crate) fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `array<i64: 1, 2>`, or `array<i64>` when empty.
pub(crate) fn array<T: Display>(items: &[T]) -> String {
    if items.is_empty() { "array<i64>".to_owned() } else { format!("array<i64: {}>", list(items)) }
}

/// `1 : i64`
pub(crate) fn integer<T: Display>(value: T) -> String {
    format!("{value} : i64")
}

/// `name = [1, 2]` fields of a StableHLO struct attribute, leaving out empty lists, which is their default.
pub(crate) fn fields(fields: &[(&str, &[usize])]) -> Vec<String> {
    fields
        .iter()
        .filter(|(_, items)| !items.is_empty())
        .map(|(name, items)| format!("{name} = [{}]", list(items)))
        .collect()
}

/// A string in quotes, escaped as MLIR reads it: two hexadecimal digits after a backslash.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'"' && byte != b'\\' => quoted.push(char::from(byte)),
            _ => quoted.push_str(&format!("\\{byte:02X}")),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether a name can stand unquoted as an MLIR identifier.
pub(crate) fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.'))
}
