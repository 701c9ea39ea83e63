//! From a value in Gemma's notation to JSON.
//!
//! Every value is a text first, which becomes what its schema allows: null, a whole number, a number, a truth value, an
//! object or a list, in this order, and else stays a string. Without a schema it stays a string too, as in vLLM.

use std::collections::BTreeSet;

use minijinja::value::{Serde, Value};

use super::schema::{Schema, Type, Types};
use crate::chat::json::{Style, dumps, escape, float};

/// Brackets within one another that are read; deeper ones are text.
const DEPTH: usize = 64;

/// A value as it came.
#[derive(Clone, Debug, Default)]
pub(super) struct Raw {
    /// Bare and quoted text in turn, bare first.
    parts: Vec<String>,
}

impl Raw {
    pub(super) fn push(&mut self, character: char) {
        match self.parts.last_mut() {
            Some(part) => part.push(character),
            None => self.parts.push(character.into()),
        }
    }

    /// A quote begins or ends.
    pub(super) fn quote(&mut self) {
        if self.parts.is_empty() {
            self.parts.push(String::new());
        }
        self.parts.push(String::new());
    }

    /// The value; `None` if there is none.
    pub(super) fn json(&self, schema: Schema<'_>) -> Option<String> {
        let mut reader = Reader { parts: &self.parts, part: 0, at: 0 };
        reader.value(schema, 0)
    }
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next<'a> {
    Bare(char),
    Quoted(&'a str),
    End,
}

struct Reader<'a> {
    parts: &'a [String],
    part: usize,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&mut self) -> Next<'a> {
        while let Some(part) = self.parts.get(self.part) {
            if self.part % 2 == 1 {
                return Next::Quoted(part);
            }
            match part.get(self.at..).and_then(|rest| rest.chars().next()) {
                Some(character) => return Next::Bare(character),
                None => self.skip_part(),
            }
        }
        Next::End
    }

    fn skip_part(&mut self) {
        self.part += 1;
        self.at = 0;
    }

    fn skip(&mut self, next: Next<'_>) {
        match next {
            Next::Bare(character) => self.at += character.len_utf8(),
            Next::Quoted(_) => self.skip_part(),
            Next::End => {}
        }
    }

    fn skip_blanks(&mut self) {
        while let Next::Bare(character) = self.peek() {
            if !character.is_whitespace() {
                break;
            }
            self.skip(Next::Bare(character));
        }
    }

    /// The next value; `None` if there is none before a comma or a bracket.
    fn value(&mut self, schema: Schema<'_>, depth: usize) -> Option<String> {
        self.skip_blanks();
        let types = schema.types();
        // Brackets in what has to be a string are text.
        let text = depth >= DEPTH || (!types.is_empty() && schema.is_text());
        match self.peek() {
            Next::Bare('{') if !text => Some(self.object(schema, depth + 1)),
            Next::Bare('[') if !text => Some(self.list(schema, depth + 1)),
            _ => self.leaf(depth > 0).map(|text| coerced(&text, types)),
        }
    }

    fn object(&mut self, schema: Schema<'_>, depth: usize) -> String {
        let mut json = "{".to_owned();
        let mut keys = BTreeSet::new();
        self.skip(Next::Bare('{'));
        loop {
            match self.peek() {
                Next::Bare(',') => self.skip(Next::Bare(',')),
                Next::Bare('}') => {
                    self.skip(Next::Bare('}'));
                    break;
                }
                // The bracket of something around it.
                Next::Bare(']') | Next::End => break,
                Next::Bare(_) | Next::Quoted(_) => {
                    let Some(key) = self.key() else { continue };
                    let value = self.value(schema.property(&key), depth);
                    // The first of two of a name counts, as outside.
                    if let Some(value) = value
                        && keys.insert(key.clone())
                    {
                        json += if keys.len() > 1 { ", \"" } else { "\"" };
                        escape(&key, false, &mut json);
                        json += "\": ";
                        json += &value;
                    }
                }
            }
        }
        json + "}"
    }

    /// A key with its colon; `None` if there is no colon before the next comma or bracket.
    fn key(&mut self) -> Option<String> {
        let mut key = String::new();
        loop {
            match self.peek() {
                Next::Bare(':') => {
                    self.skip(Next::Bare(':'));
                    return Some(key.trim().to_owned());
                }
                Next::Bare(',' | '}' | ']') | Next::End => return None,
                next => {
                    match next {
                        Next::Bare(character) => key.push(character),
                        Next::Quoted(text) => key += text,
                        Next::End => {}
                    }
                    self.skip(next);
                }
            }
        }
    }

    fn list(&mut self, schema: Schema<'_>, depth: usize) -> String {
        let mut json = "[".to_owned();
        self.skip(Next::Bare('['));
        loop {
            match self.peek() {
                Next::Bare(',') => self.skip(Next::Bare(',')),
                Next::Bare(']') => {
                    self.skip(Next::Bare(']'));
                    break;
                }
                Next::Bare('}') | Next::End => break,
                Next::Bare(_) | Next::Quoted(_) => {
                    if let Some(value) = self.value(schema.items(), depth) {
                        if json.len() > 1 {
                            json += ", ";
                        }
                        json += &value;
                    }
                }
            }
        }
        json + "]"
    }

    /// Text up to the next comma or bracket, or all of it: what is quoted as it is, blanks around the rest dropped.
    fn leaf(&mut self, within: bool) -> Option<String> {
        let (mut text, mut blanks, mut any, mut open) = (String::new(), String::new(), false, 0_usize);
        loop {
            let next = self.peek();
            match next {
                Next::End => break,
                Next::Bare(',' | '}' | ']') if within && open == 0 => break,
                Next::Bare(character) if character.is_whitespace() => {
                    if any {
                        blanks.push(character);
                    }
                }
                Next::Bare(character) => {
                    match character {
                        '{' | '[' => open += 1,
                        '}' | ']' => open = open.saturating_sub(1),
                        _ => {}
                    }
                    text += &std::mem::take(&mut blanks);
                    text.push(character);
                    any = true;
                }
                Next::Quoted(quoted) => {
                    text += &std::mem::take(&mut blanks);
                    text += quoted;
                    any = true;
                }
            }
            self.skip(next);
        }
        any.then_some(text)
    }
}

/// A text as what its types allow.
fn coerced(text: &str, types: Types) -> String {
    let plain = text.trim();
    let wants = |kind: Type| types.has(kind);
    let may_be_text = types.is_empty() || wants(Type::String);
    if plain.eq_ignore_ascii_case("null") && (wants(Type::Null) || !may_be_text) {
        return "null".to_owned();
    }
    if (wants(Type::Integer) || wants(Type::Number))
        && let Some(integer) = integer(plain)
    {
        return integer;
    }
    if (wants(Type::Number) || (wants(Type::Integer) && !may_be_text))
        && let Some(number) = number(plain)
    {
        return number;
    }
    if wants(Type::Boolean) && (plain.eq_ignore_ascii_case("true") || plain.eq_ignore_ascii_case("false")) {
        return plain.to_ascii_lowercase();
    }
    if let Some(json) = container(plain, types) {
        return json;
    }
    let mut json = "\"".to_owned();
    escape(text, false, &mut json);
    json + "\""
}

/// A whole number without needless signs and zeros, of any length.
fn integer(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match digits.trim_start_matches('0') {
        "" => Some("0".to_owned()),
        digits => Some(format!("{sign}{digits}")),
    }
}

/// A number with a fraction or an exponent. Rust also reads words, such as `inf`, which JSON does not have.
fn number(text: &str) -> Option<String> {
    let spelled = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    let value: f64 = text.parse().ok().filter(|_| spelled)?;
    value.is_finite().then(|| float(value))
}

/// JSON in a string, where an object or a list is wanted.
fn container(text: &str, types: Types) -> Option<String> {
    let wanted = match text.bytes().next()? {
        b'{' => Type::Object,
        b'[' => Type::Array,
        _ => return None,
    };
    if !types.has(wanted) {
        return None;
    }
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    dumps(&Value::from(Serde(value)), &Style::default()).ok()
}
