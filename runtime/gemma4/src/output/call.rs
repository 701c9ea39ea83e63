//! A call that comes character by character: `call:NAME{key:value,...}`.
//!
//! A value that can only be a string is given out as it comes; any other one when it is complete, since its schema may make
//! a number or a truth value of it.

use std::collections::BTreeSet;

use super::Tools;
use super::schema::Schema;
use super::value::Raw;
use crate::chat::json::escape;

/// What comes before the name.
const WORD: &str = "call:";

/// A call that is being written.
#[derive(Clone, Debug)]
pub(super) struct CallParser {
    tools: Tools,
    name: String,
    stage: Stage,
    /// What closes the arguments, and what is counted with it.
    brackets: (char, char),
    /// Arguments that were given out. The first of two of a name counts.
    keys: BTreeSet<String>,
    /// Whether the next character is between quotes.
    quoted: bool,
    /// What is to be given out.
    new_name: Option<String>,
    new_arguments: String,
}

#[derive(Clone, Debug)]
enum Stage {
    Name,
    Key(String),
    /// Before a value; its key.
    Before(String),
    /// A string that is given out as it comes, with the blanks that are dropped if nothing follows.
    Text(String),
    /// A value that is not complete; its key, and how deep in brackets it is.
    Value(String, Raw, usize),
    /// Whatever follows means nothing.
    Over,
}

impl CallParser {
    pub(super) fn new(tools: Tools) -> Self {
        Self {
            tools,
            name: String::new(),
            stage: Stage::Name,
            brackets: ('{', '}'),
            keys: BTreeSet::new(),
            quoted: false,
            new_name: None,
            new_arguments: String::new(),
        }
    }

    /// Takes what is to be given out: the name, once, and a piece of the arguments.
    pub(super) fn take(&mut self) -> (Option<String>, String) {
        (self.new_name.take(), std::mem::take(&mut self.new_arguments))
    }

    /// Whether it has a name, without which there is nothing to call.
    pub(super) fn is_named(&self) -> bool {
        !matches!(self.stage, Stage::Name) && !self.name.is_empty()
    }

    pub(super) fn quote(&mut self) {
        self.quoted = !self.quoted;
        match &mut self.stage {
            Stage::Before(key) => {
                let key = std::mem::take(key);
                if self.schema_of(&key).is_some_and(Schema::is_text) {
                    self.key(&key);
                    self.new_arguments.push('"');
                    self.stage = Stage::Text(String::new());
                } else {
                    let mut raw = Raw::default();
                    raw.quote();
                    self.stage = Stage::Value(key, raw, 0);
                }
            }
            Stage::Value(_, raw, _) => raw.quote(),
            Stage::Name | Stage::Key(_) | Stage::Text(_) | Stage::Over => {}
        }
    }

    pub(super) fn push(&mut self, character: char) {
        let (open, close) = self.brackets;
        let quoted = self.quoted;
        match &mut self.stage {
            Stage::Over => {}
            Stage::Name if matches!(character, '{' | '(') => {
                self.brackets = if character == '{' { ('{', '}') } else { ('(', ')') };
                self.begin();
            }
            Stage::Name => self.name.push(character),
            Stage::Key(key) => match character {
                ':' if !quoted => {
                    let key = key.trim().to_owned();
                    self.stage = Stage::Before(key);
                }
                ',' if !quoted => key.clear(),
                _ if !quoted && character == close => self.close(),
                _ => key.push(character),
            },
            Stage::Before(key) if !character.is_whitespace() => {
                let key = std::mem::take(key);
                self.stage = Stage::Value(key, Raw::default(), 0);
                self.push(character);
            }
            Stage::Before(_) => {}
            Stage::Text(blanks) => {
                let ends = character == ',' || character == close;
                if quoted || !(ends || character.is_whitespace()) {
                    blanks.push(character);
                    escape(blanks, false, &mut self.new_arguments);
                    blanks.clear();
                } else if ends {
                    self.next(character == close);
                } else {
                    blanks.push(character);
                }
            }
            Stage::Value(_, raw, _) if quoted => raw.push(character),
            Stage::Value(_, _, 0) if character == ',' => self.next(false),
            Stage::Value(_, _, 0) if character == close => self.next(true),
            Stage::Value(_, raw, depth) => {
                raw.push(character);
                if matches!(character, '{' | '[') || character == open {
                    *depth += 1;
                } else if matches!(character, '}' | ']') || character == close {
                    *depth = depth.saturating_sub(1);
                }
            }
        }
    }

    /// Nothing follows: what is open is closed.
    pub(super) fn end(&mut self) {
        match &self.stage {
            Stage::Name => {
                let name = named(&self.name);
                // Without a bracket, words are no name, nor is what may still become `call:`.
                let whole =
                    !name.is_empty() && !name.contains(char::is_whitespace) && !WORD.starts_with(self.name.trim());
                if whole {
                    self.begin();
                    self.close();
                } else {
                    self.stage = Stage::Over;
                    self.name.clear();
                }
            }
            Stage::Key(_) | Stage::Before(_) => self.close(),
            Stage::Text(_) | Stage::Value(..) => self.next(true),
            Stage::Over => {}
        }
    }

    /// The name is complete.
    fn begin(&mut self) {
        self.name = named(&self.name).to_owned();
        if self.name.is_empty() {
            self.stage = Stage::Over;
            return;
        }
        self.stage = Stage::Key(String::new());
        self.new_name = Some(self.name.clone());
        self.new_arguments.push('{');
        self.quoted = false;
    }

    /// A value is complete; `last`: and so are the arguments.
    fn next(&mut self, last: bool) {
        match std::mem::replace(&mut self.stage, Stage::Key(String::new())) {
            Stage::Text(_) => self.new_arguments.push('"'),
            Stage::Value(key, raw, _) => {
                let json = self.schema_of(&key).and_then(|schema| raw.json(schema));
                if let Some(json) = json {
                    self.key(&key);
                    self.new_arguments += &json;
                }
            }
            Stage::Name | Stage::Key(_) | Stage::Before(_) | Stage::Over => {}
        }
        if last {
            self.close();
        }
    }

    fn close(&mut self) {
        self.new_arguments.push('}');
        self.stage = Stage::Over;
    }

    /// Writes a key, of which there is none yet.
    fn key(&mut self, key: &str) {
        if !self.keys.is_empty() {
            self.new_arguments += ", ";
        }
        self.new_arguments.push('"');
        escape(key, false, &mut self.new_arguments);
        self.new_arguments += "\": ";
        self.keys.insert(key.to_owned());
    }

    /// What is known of an argument; `None` if it was given already.
    fn schema_of(&self, key: &str) -> Option<Schema<'_>> {
        let schema = self.tools.schema(&self.name).map_or(Schema::ANY, Schema::new);
        (!self.keys.contains(key)).then(|| schema.property(key))
    }
}

/// The name in what comes before the arguments.
fn named(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix(WORD).or_else(|| text.strip_prefix(':')).unwrap_or(text).trim()
}
