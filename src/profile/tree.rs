//! TOML text to a tree in which every key and value knows its place.

use std::borrow::Cow;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Location, SourceId, Sources};

/// A value and where it was written.
#[derive(Debug, Clone)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where the value is written; for a table, its header or braces.
    pub location: Location,
    /// Where its key is written.
    pub key_location: Location,
    /// The text of a `--set` argument, used as it is where a string is wanted.
    pub raw: Option<Arc<str>>,
    /// The value of a layer below that this one took the place of.
    pub replaced: Option<Box<Node>>,
}

/// A TOML value.
#[derive(Debug, Clone)]
pub enum Value {
    /// Text.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// A date or time, which no profile key takes.
    Datetime,
    /// A list.
    Array(Vec<Node>),
    /// Keys and values in the order they were written.
    Table(Table),
}

impl Value {
    /// The kind, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "a boolean",
            Value::Datetime => "a date or time",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }
}

/// Keys and values in the order they were written.
#[derive(Debug, Clone, Default)]
pub struct Table {
    entries: Vec<(String, Node)>,
}

impl Table {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// The value of `key`, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// Sets `key`, in its old place if it was there.
    pub fn insert(&mut self, key: String, node: Node) {
        match self.get_mut(&key) {
            Some(old) => *old = node,
            None => self.entries.push((key, node)),
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Node> {
        let index = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.remove(index).1)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.entries.iter().map(|(key, node)| (key.as_str(), node))
    }

    /// All entries, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Node)> {
        self.entries.iter_mut().map(|(key, node)| (key.as_str(), node))
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lays `upper` over this table: tables are merged key by key, everything else is replaced.
    ///
    /// A reference to a secret is one value although it is written as a table: another kind of reference replaces it.
    /// `lint.allow` is the one list that grows: a child does not silently drop what its parent suppressed.
    pub fn overlay(&mut self, upper: Table) {
        self.overlay_at(upper, 0, "");
    }

    fn overlay_at(&mut self, upper: Table, depth: u32, section: &str) {
        for (key, node) in upper.entries {
            match (self.get_mut(&key), node) {
                (
                    Some(Node { value: Value::Table(lower), location, key_location, .. }),
                    Node { value: Value::Table(table), location: upper_location, key_location: upper_key, .. },
                ) if section != "secrets" => {
                    lower.overlay_at(table, depth + 1, &key);
                    *location = upper_location;
                    *key_location = upper_key;
                }
                (Some(Node { value: Value::Array(lower), .. }), Node { value: Value::Array(items), .. })
                    if depth == 1 && section == "lint" && key == "allow" =>
                {
                    lower.extend(items);
                }
                (Some(lower), mut node) => {
                    let old = std::mem::replace(
                        lower,
                        Node {
                            value: Value::Boolean(false),
                            location: node.location,
                            key_location: node.key_location,
                            raw: None,
                            replaced: None,
                        },
                    );
                    node.replaced = Some(Box::new(old));
                    *lower = node;
                }
                (None, node) => self.insert(key, node),
            }
        }
    }
}

/// Syntax errors of one file that are reported; what follows is mostly echo.
const MAX_SYNTAX_ERRORS: usize = 20;

/// Keys that one table may have. No profile comes near; without a bound a file of a million keys would take minutes.
const MAX_KEYS: usize = 1000;

/// Parses `text` as the source `id`. Syntax errors become findings; what could be read is returned all the same.
pub fn parse(id: SourceId, text: &str, diagnostics: &mut Vec<Diagnostic>) -> Table {
    if text.trim_start().starts_with('{') {
        let start = text.len() - text.trim_start().len();
        let finding = Diagnostic::error(
            "toml-syntax",
            Location::new(id, &(start..start + 1)),
            "this is JSON; a profile is a TOML file",
        );
        diagnostics.push(finding.help("a plan file is named where a plan is wanted: `gemma4ctl emit PLAN.json`, `plan PROFILE --against PLAN.json`"));
        return Table::default();
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
        let span = error.span().unwrap_or(0..text.len().min(1));
        let mut message = error.message().trim().replace('\n', ", ");
        if message.is_empty() {
            message = "not valid TOML".to_owned();
        }
        diagnostics.push(
            Diagnostic::error("toml-syntax", Location::new(id, &span), format!("not valid TOML: {message}"))
                .help("see https://toml.io/en/v1.0.0 for the syntax; strings need quotes, keys need a value"),
        );
    }
    convert_table(id, table.into_inner(), diagnostics)
}

/// Parses the right-hand side of `--set key=value`: a TOML value, or else plain text.
pub fn parse_value(id: SourceId, text: &str, span: std::ops::Range<usize>, diagnostics: &mut Vec<Diagnostic>) -> Node {
    let location = Location::new(id, &span);
    let value = match DeValue::parse(text) {
        Ok(value) => convert(id, value.into_inner(), location, diagnostics),
        Err(_) => Value::String(text.to_owned()),
    };
    // Locations inside the value are relative to it; the whole argument is the only honest place.
    let mut node = Node { value, location, key_location: location, raw: Some(text.into()), replaced: None };
    relocate(&mut node, location);
    node
}

fn relocate(node: &mut Node, location: Location) {
    node.location = location;
    node.key_location = location;
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| relocate(item, location)),
        Value::Table(table) => table.iter_mut().for_each(|(_, item)| relocate(item, location)),
        _ => {}
    }
}

fn convert_table(id: SourceId, table: DeTable<'_>, diagnostics: &mut Vec<Diagnostic>) -> Table {
    let mut entries: Vec<(String, Node)> = table
        .into_iter()
        // The parser goes on after a syntax error with a key of no length, which nobody wrote.
        .filter(|(key, _)| !key.span().is_empty())
        .map(|(key, value)| {
            let key_location = Location::new(id, &key.span());
            let location = Location::new(id, &value.span());
            let value = convert(id, value.into_inner(), location, diagnostics);
            (key.into_inner().into_owned(), Node { value, location, key_location, raw: None, replaced: None })
        })
        .collect();
    entries.sort_by_key(|(_, node)| node.key_location.start);
    if let Some((_, node)) = entries.get(MAX_KEYS) {
        let message = format!("a table with more than {MAX_KEYS} keys");
        diagnostics.push(Diagnostic::error("toml-syntax", node.key_location, message).help("is this the right file?"));
        entries.clear();
    }
    Table { entries }
}

fn convert(id: SourceId, value: DeValue<'_>, location: Location, diagnostics: &mut Vec<Diagnostic>) -> Value {
    match value {
        DeValue::String(text) => Value::String(Cow::into_owned(text)),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                diagnostics.push(
                    Diagnostic::error(
                        "invalid-value",
                        location,
                        "the number is too large: it does not fit into 64 bits",
                    )
                    .help("write a number between -9223372036854775808 and 9223372036854775807"),
                );
                Value::Integer(0)
            }
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::Array(
            items
                .into_iter()
                .map(|item: Spanned<DeValue<'_>>| {
                    let location = Location::new(id, &item.span());
                    Node {
                        value: convert(id, item.into_inner(), location, diagnostics),
                        location,
                        key_location: location,
                        raw: None,
                        replaced: None,
                    }
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(id, table, diagnostics)),
    }
}

/// The longest profile that is read, in bytes. A profile is a page or two; a larger file is a mistake.
pub const MAX_PROFILE_BYTES: usize = 1 << 20;

/// Adds the bytes of a profile to `sources`, and says what keeps them from being TOML at all.
///
/// What cannot be text is shown with replacement characters, so that a finding can still point into it.
pub fn add_bytes(
    sources: &mut Sources,
    name: &str,
    kind: crate::diagnostic::SourceKind,
    bytes: Vec<u8>,
    path: Option<std::path::PathBuf>,
    diagnostics: &mut Vec<Diagnostic>,
) -> SourceId {
    if bytes.len() > MAX_PROFILE_BYTES {
        let id = sources.add(name, kind, String::new(), path);
        diagnostics.push(
            Diagnostic::error(
                "toml-syntax",
                Location::new(id, &(0..0)),
                format!("the file has more than the {MAX_PROFILE_BYTES} bytes that a profile may have"),
            )
            .help("is this the right file?"),
        );
        return id;
    }
    match String::from_utf8(bytes) {
        Ok(text) => sources.add(name, kind, text, path),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let id = sources.add(name, kind, text, None);
            diagnostics.push(
                Diagnostic::error("toml-syntax", Location::new(id, &(valid..valid)), "the file is not UTF-8 text")
                    .help("save it as UTF-8; TOML allows no other encoding"),
            );
            id
        }
    }
}
