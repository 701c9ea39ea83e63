//! JSON as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Containers within one another that are written at most, as many as requests of JSON may have.
const DEPTH: usize = 128;
/// Columns that one level is set in at most.
const INDENT: usize = 64;

/// The arguments of `json.dumps`.
pub(crate) struct Style {
    ensure_ascii: bool,
    /// What one level is set in by; without it everything is on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// On one line, as it is without arguments; letters beyond ASCII stay as they are.
impl Default for Style {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

impl Style {
    /// `indent` is a number of columns or a text, `separators` a pair of texts; both may be none.
    pub(super) fn new(
        ensure_ascii: bool,
        indent: Option<Value>,
        separators: Option<Value>,
        sort_keys: bool,
    ) -> Result<Self, Error> {
        let wrong = |what: &'static str| Error::new(ErrorKind::InvalidOperation, what);
        let indent = match indent.filter(|indent| !indent.is_none()) {
            None => None,
            Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
                (Some(text), _) => text.to_owned(),
                // Python takes a negative number for 0.
                (None, Some(columns)) => " ".repeat(usize::try_from(columns).unwrap_or(0).min(INDENT)),
                (None, None) => return Err(wrong("tojson: `indent` must be a number or a text")),
            }),
        };
        let (item_separator, key_separator) = match separators.filter(|separators| !separators.is_none()) {
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
            Some(separators) => {
                let texts: Option<Vec<String>> =
                    separators.try_iter()?.map(|text| text.as_str().map(str::to_owned)).collect();
                let pair = texts.and_then(|texts| <[String; 2]>::try_from(texts).ok());
                pair.ok_or_else(|| wrong("tojson: `separators` must be a pair of texts"))?.into()
            }
        };
        Ok(Self { ensure_ascii, indent, item_separator, key_separator, sort_keys })
    }
}

/// A value as JSON.
pub(crate) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut writer = Writer { style, text: String::new(), depth: 0 };
    writer.value(value)?;
    Ok(writer.text)
}

struct Writer<'a> {
    style: &'a Style,
    text: String,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => self.text.push_str(&scalar(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(('[', ']'), &items, Self::value)?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let name = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => scalar(&key),
                        kind => return Err(not_json(kind)),
                    };
                    pairs.push((name, value.get_item(&key)?));
                }
                if self.style.sort_keys {
                    pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
                }
                self.container(('{', '}'), &pairs, |writer, (name, value)| {
                    writer.string(name);
                    writer.text.push_str(&writer.style.key_separator);
                    writer.value(value)
                })?;
            }
            kind => return Err(not_json(kind)),
        }
        Ok(())
    }

    fn container<T>(
        &mut self,
        (open, close): (char, char),
        items: &[T],
        write: impl Fn(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.depth == DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deeply"));
        }
        self.text.push(open);
        self.depth += 1;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.text.push_str(&self.style.item_separator);
            }
            self.line();
            write(self, item)?;
        }
        self.depth -= 1;
        if !items.is_empty() {
            self.line();
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self) {
        if let Some(indent) = &self.style.indent {
            self.text.push('\n');
            (0..self.depth).for_each(|_| self.text.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        escape(text, self.style.ensure_ascii, &mut self.text);
        self.text.push('"');
    }
}

/// Writes what stands between the quotes of a string.
pub(crate) fn escape(text: &str, ensure_ascii: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
}

/// `None`, a truth value or a number.
fn scalar(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if value.is_true() { "true" } else { "false" }.to_owned(),
        _ if value.is_integer() => value.to_string(),
        _ => f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float),
    }
}

/// A number as Python's `repr` writes it: digits where they are few, else with an exponent of two digits and a sign.
pub(crate) fn float(value: f64) -> String {
    if !value.is_finite() {
        let sign = if value < 0.0 { "-" } else { "" };
        return if value.is_nan() { "NaN".to_owned() } else { format!("{sign}Infinity") };
    }
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    match exponent.parse::<i32>() {
        // Rust's own form, which has no fraction where there is none.
        Ok(exponent) if (-4..16).contains(&exponent) => format!("{value:?}"),
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        Err(_) => text,
    }
}

fn not_json(kind: ValueKind) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: a value of type {kind} is not JSON"))
}
