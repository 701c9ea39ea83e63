//! What a model wrote, told apart: its thoughts, its answer, its calls of tools.
//!
//! ```text
//! <|channel>thought\n THOUGHT <channel|>   TEXT   <|tool_call>call:NAME{key:value,...}<tool_call|>
//! ```
//!
//! Invariants:
//! * the parts, put together, depend on the output alone and not on the pieces that it came in;
//! * what was given out is never taken back: a part only grows;
//! * a marker is a token, never its spelling, and no marker becomes text;
//! * `arguments` of a call are a JSON object, however the output ends.
//!
//! Where a model does not keep to the form, the answers are those of vLLM 0.33 in all but this:
//! * text that only a later marker would make a thought (`text<channel|>`) is text, since it was given out already;
//! * a call whose end is missing ends where the next marker begins something else;
//! * text around calls is kept, as vLLM does in streams; blank text is dropped if there are calls and nothing else.

mod call;
mod form;
mod marker;
mod schema;
mod thought;
mod value;

pub use form::{ANSWER_GRAMMAR, Before, FormCalls, OutputForm};
pub use marker::{Marker, Markers, MissingMarker};

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use call::CallParser;
use thought::Thought;

/// What is told apart.
#[derive(Clone, Debug, Default)]
pub struct OutputOptions {
    /// Thoughts from the answer; otherwise they are text.
    pub thoughts: bool,
    /// Calls from the answer.
    pub calls: Calls,
}

/// What becomes of calls.
#[derive(Clone, Debug, Default)]
pub enum Calls {
    /// They are text.
    #[default]
    AsText,
    /// They are parsed and forgotten: nobody asked for them.
    Dropped,
    /// They are given out.
    Kept {
        /// What may be called; calls of other names are given out too, all their values as strings.
        tools: Tools,
        /// Whether more than the first is.
        parallel: bool,
    },
}

/// The tools of a request: for each name the JSON schema of its arguments. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Tools(Arc<BTreeMap<String, Value>>);

impl Tools {
    /// Of pairs of a name and a schema.
    pub fn new(tools: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self(Arc::new(tools.into_iter().collect()))
    }

    /// Names and schemas, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, schema)| (name.as_str(), schema))
    }

    /// The schema of a tool's arguments.
    #[must_use]
    pub fn schema(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

/// What follows in each part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Of the thoughts.
    pub thought: String,
    /// Of the answer.
    pub text: String,
    /// Of calls; those of one call in a row, the later ones without a name.
    pub calls: Vec<CallDelta>,
}

/// What follows in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallDelta {
    /// Which call, counted from 0.
    pub index: usize,
    /// The tool, at the beginning of a call.
    pub name: Option<String>,
    /// Of the JSON text of the arguments.
    pub arguments: String,
}

impl Delta {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.thought.is_empty() && self.text.is_empty() && self.calls.is_empty()
    }

    /// Adds what comes after this.
    pub fn append(&mut self, later: Self) {
        self.thought += &later.thought;
        self.text += &later.text;
        later.calls.into_iter().for_each(|call| self.push(call));
    }

    fn push(&mut self, call: CallDelta) {
        match self.calls.last_mut() {
            Some(last) if last.index == call.index && call.name.is_none() => last.arguments += &call.arguments,
            _ => self.calls.push(call),
        }
    }
}

/// Tells the parts of one output apart as it comes.
#[derive(Clone, Debug)]
pub struct OutputParser {
    options: OutputOptions,
    mode: Mode,
    /// Blank text before any other.
    blank: String,
    /// Whether text was given out.
    has_text: bool,
    /// Whether there was a call, given out or not.
    has_call: bool,
    /// Calls that were given out.
    calls: usize,
}

#[derive(Clone, Debug)]
enum Mode {
    Text,
    Thought(Thought),
    Call(CallParser),
}

impl OutputParser {
    /// A parser for an output that begins with its answer.
    #[must_use]
    pub fn new(options: OutputOptions) -> Self {
        Self { options, mode: Mode::Text, blank: String::new(), has_text: false, has_call: false, calls: 0 }
    }

    /// The prompt ends with a thought that the output goes on with, and `text` is what the prompt has of it. See
    /// [`Markers::open_thought`].
    pub fn begin_in_thought(&mut self, text: &str) {
        if self.options.thoughts {
            let mut thought = Thought::default();
            // The prompt's part is no output.
            thought.push(text, &mut String::new());
            self.mode = Mode::Thought(thought);
        }
    }

    /// Whether a marker means something here. One that does not is a control token as any other.
    #[must_use]
    pub fn takes(&self, marker: Marker) -> bool {
        match marker {
            Marker::ThoughtBegin | Marker::ThoughtEnd => self.options.thoughts,
            Marker::CallBegin | Marker::CallEnd => !matches!(self.options.calls, Calls::AsText),
            Marker::Quote => matches!(self.mode, Mode::Call(_)),
        }
    }

    /// The next text.
    pub fn text(&mut self, text: &str) -> Delta {
        let mut delta = Delta::default();
        match &mut self.mode {
            Mode::Text => self.answer(text, &mut delta),
            Mode::Thought(thought) => thought.push(text, &mut delta.thought),
            Mode::Call(call) => {
                text.chars().for_each(|character| call.push(character));
                self.give_call(&mut delta);
            }
        }
        delta
    }

    /// The next marker, which the parser takes.
    pub fn marker(&mut self, marker: Marker) -> Delta {
        let mut delta = Delta::default();
        match (marker, &mut self.mode) {
            (Marker::Quote, Mode::Call(call)) => call.quote(),
            (Marker::ThoughtBegin, _) => {
                self.leave(&mut delta);
                self.mode = Mode::Thought(Thought::default());
            }
            (Marker::CallBegin, _) => {
                self.leave(&mut delta);
                self.blank.clear();
                self.has_call = true;
                self.mode = Mode::Call(CallParser::new(self.tools()));
            }
            (Marker::ThoughtEnd, Mode::Thought(_)) | (Marker::CallEnd, Mode::Call(_)) => self.leave(&mut delta),
            // The end of what never began.
            (Marker::Quote | Marker::ThoughtEnd | Marker::CallEnd, _) => {}
        }
        delta
    }

    /// The end of the output, wherever it is.
    pub fn finish(&mut self) -> Delta {
        let mut delta = Delta::default();
        match &mut self.mode {
            // A part of the word that names the channel is no thought.
            Mode::Thought(_) => self.mode = Mode::Text,
            Mode::Text | Mode::Call(_) => self.leave(&mut delta),
        }
        if !self.has_call {
            delta.text += &std::mem::take(&mut self.blank);
        }
        delta
    }

    fn answer(&mut self, text: &str, delta: &mut Delta) {
        if !self.has_text {
            self.blank += text;
            if self.blank.trim().is_empty() {
                return;
            }
            self.has_text = true;
            delta.text += &std::mem::take(&mut self.blank);
            return;
        }
        delta.text += text;
    }

    /// Ends a thought or a call; what follows is text.
    fn leave(&mut self, delta: &mut Delta) {
        match &mut self.mode {
            Mode::Text => {}
            Mode::Thought(thought) => thought.end(&mut delta.thought),
            Mode::Call(call) => {
                call.end();
                self.give_call(delta);
                if let Mode::Call(call) = &self.mode
                    && call.is_named()
                    && self.gives()
                {
                    self.calls += 1;
                }
            }
        }
        self.mode = Mode::Text;
    }

    /// Whether the call that comes now is given out.
    fn gives(&self) -> bool {
        matches!(self.options.calls, Calls::Kept { parallel, .. } if parallel || self.calls == 0)
    }

    fn give_call(&mut self, delta: &mut Delta) {
        let gives = self.gives();
        let Mode::Call(call) = &mut self.mode else { return };
        let (name, arguments) = call.take();
        if gives && (name.is_some() || !arguments.is_empty()) {
            delta.push(CallDelta { index: self.calls, name, arguments });
        }
    }

    fn tools(&self) -> Tools {
        match &self.options.calls {
            Calls::Kept { tools, .. } => tools.clone(),
            Calls::AsText | Calls::Dropped => Tools::default(),
        }
    }
}
