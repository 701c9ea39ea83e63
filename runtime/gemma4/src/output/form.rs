//! What an output looks like that a request gives a form to.

use std::fmt::Write as _;

use super::{Marker, Markers, Tools};

/// The name by which a grammar of [`OutputForm::lark`] refers to the one of the answer's text.
pub const ANSWER_GRAMMAR: &str = "answer";

/// The form that a request asks for, whatever the model would do.
///
/// The parser needs none of this: it reads such an output as any other. It is for whoever chooses the tokens.
#[derive(Clone, Debug)]
pub struct OutputForm {
    /// What comes first.
    pub before: Before,
    /// Calls that may come then; one of them has to, unless there may be an answer instead.
    pub calls: Option<FormCalls>,
    /// Whether an answer may come then, by a grammar of its own.
    pub answer: bool,
}

/// Calls of an output with a form.
#[derive(Clone, Debug)]
pub struct FormCalls {
    /// Those that may be called: one of them, or all.
    pub tools: Tools,
    /// Whether more than one call may come.
    pub parallel: bool,
}

/// What comes before the answer or the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// A thought, or nothing.
    Thought,
    /// The rest of a thought that the prompt began: see [`Markers::open_thought`].
    RestOfThought,
}

impl OutputForm {
    /// The grammar of the output without its end token, in the Lark dialect of llguidance: `<[48]>` is a token by its id,
    /// `/regex/` matches text, never a control token, and `@answer` is the grammar of [`ANSWER_GRAMMAR`].
    ///
    /// It fixes the form and the names of calls: their values are any that the notation has, since the parser makes them fit
    /// their schemas.
    #[must_use]
    pub fn lark(&self, markers: &Markers) -> String {
        let id = |marker| markers.id(marker);
        let (begin, end) = (id(Marker::ThoughtBegin), id(Marker::ThoughtEnd));
        let before = match self.before {
            Before::Nothing => String::new(),
            Before::Thought => "thought? ".to_owned(),
            Before::RestOfThought => format!("/(.|\\n)*/ <[{end}]> "),
        };
        let calls = self.calls.as_ref().map(|calls| if calls.parallel { "call+" } else { "call" });
        let answer = self.answer.then(|| format!("@{ANSWER_GRAMMAR}"));
        let parts: Vec<&str> = calls.into_iter().chain(answer.as_deref()).collect();
        let mut grammar = match parts.as_slice() {
            [one] => format!("start: {before}{one}\n"),
            several => format!("start: {before}({})\n", several.join(" | ")),
        };
        if self.before == Before::Thought {
            let _ = writeln!(grammar, "thought: <[{begin}]> \"thought\\n\" /(.|\\n)*/ <[{end}]>");
        }
        if let Some(calls) = &self.calls {
            grammar += &calls.lark(markers);
        }
        grammar
    }
}

impl FormCalls {
    /// The rules of one call.
    fn lark(&self, markers: &Markers) -> String {
        let id = |marker| markers.id(marker);
        // A name is a string of JSON, and so are strings of the grammar.
        let names = self.tools.iter().map(|(name, _)| serde_json::Value::from(name).to_string());
        let names = names.collect::<Vec<_>>().join(" | ");
        let (begin, end, quote) = (id(Marker::CallBegin), id(Marker::CallEnd), id(Marker::Quote));
        format!(
            "call: <[{begin}]> \"call:\" ({names}) object <[{end}]>\n\
             object: \"{{\" (pair (\",\" pair)*)? \"}}\"\n\
             pair: /[^{{}}\\[\\],:]+/ \":\" value\n\
             value: <[{quote}]> /(.|\\n)*/ <[{quote}]> | object | list | /[^{{}}\\[\\],:]+/\n\
             list: \"[\" (value (\",\" value)*)? \"]\"\n"
        )
    }
}
