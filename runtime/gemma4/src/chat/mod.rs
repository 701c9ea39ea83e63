//! A conversation as one prompt.
//!
//! Invariant: a template renders what Hugging Face's `apply_chat_template` renders, or fails; it is given its helpers
//! (`raise_exception`, `strftime_now`, `tojson`), the methods of Python's strings, lists and dicts, and its settings of Jinja.
//! One difference is known: numbers that Python prints with an exponent are printed in another form outside of `tojson`.
//!
//! A template is code that comes with a checkpoint. Its instructions, the depth of its calls and the length of what it
//! writes are bounded, so that no conversation keeps a server busy. What it keeps in variables is not, in size and in depth:
//! run templates from where you would also run programs from.

mod bounds;
mod environment;
mod generation_tag;
pub(crate) mod json;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde_json::Map;

use crate::files::{self, FileError};
use crate::tokenizer::config::{self, TokenizerConfig};
use environment::Raised;

const FILE: &str = "chat_template.jinja";
/// The template that is used unless another fits better.
const DEFAULT: &str = "default";
/// The template that is used for conversations with tools, where there is one of this name.
const TOOL_USE: &str = "tool_use";
/// What a template gets as arguments of its own, which others must not replace.
const ARGUMENTS: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
/// Bytes that a prompt has at most. A million tokens have about 4 MiB.
const LIMIT: usize = 64 << 20;
/// Bytes that a template has at most: the parser counts lines and columns in 16 bits. Published ones have up to 30 KiB.
const TEMPLATE: usize = u16::MAX as usize;
/// Bytes of stack to parse a template with: enough for one that is nothing but signs before a number, each of which the
/// parser goes a level deeper for. As below, memory is taken only for what is used.
const PARSER_STACK: usize = 256 << 20;
/// Bytes of stack to render with: calls and values may lie deeper in one another than a server's thread has room for.
const STACK: usize = 64 << 20;

/// The chat template of a checkpoint.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The file, for errors.
    path: PathBuf,
    /// `bos_token` and its like.
    tokens: BTreeMap<String, String>,
}

/// What is to be said so far, as in a request to OpenAI's interface.
#[derive(Clone, Debug)]
pub struct ChatInput {
    /// The messages. Arguments of tool calls have to be objects, not text.
    pub messages: Vec<serde_json::Value>,
    /// The tools that may be called.
    pub tools: Option<Vec<serde_json::Value>>,
    /// Whether the prompt ends where an answer begins.
    pub add_generation_prompt: bool,
    /// More for the template, for example `enable_thinking`.
    pub kwargs: Map<String, serde_json::Value>,
    /// What `strftime_now` takes for now, read in UTC.
    pub now: SystemTime,
}

/// A template that cannot be used, or a conversation that it does not take.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `chat_template` in `tokenizer_config.json` is neither a text nor a list of named texts with one named `default`.
    #[error(
        "{}: `chat_template` must be a text, or a list of objects with `name` and `template` of which one is named `{DEFAULT}`",
        path.display()
    )]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The template is not valid.
    #[error("{}: the chat template is not valid{}", path.display(), at(source))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<minijinja::Error>,
    },
    /// The template is longer than any published one.
    #[error("{}: the chat template has {bytes} bytes, more than the {TEMPLATE} that are accepted", path.display())]
    TemplateTooLong {
        /// The file.
        path: PathBuf,
        /// How long it is.
        bytes: usize,
    },
    /// The template refuses the conversation with `raise_exception`: its author's words for whoever wrote the messages.
    #[error("{message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template does not work for this conversation; mostly a message lacks what the template asks for.
    #[error("{}: the chat template cannot render these messages{}", path.display(), at(source))]
    Render {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<minijinja::Error>,
    },
    /// The template takes too long or writes too much for this conversation.
    #[error("the conversation is too long for the chat template; send fewer messages")]
    TooLong,
    /// An argument for the template that is not for the caller to give.
    #[error("`{name}` cannot be set for the chat template; it is given by the request itself")]
    Reserved {
        /// Its name.
        name: &'static str,
    },
    /// A thread to render in could not be started.
    #[error("a thread to render the chat template in could not be started")]
    Thread(#[source] io::Error),
}

/// The line of an error, to put behind a sentence.
fn at(error: &minijinja::Error) -> String {
    error.line().map(|line| format!(" (line {line})")).unwrap_or_default()
}

impl ChatTemplate {
    /// Opens `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`; `None` if a checkpoint has neither.
    ///
    /// # Errors
    /// [`ChatError`], always with the file.
    pub fn open(folder: &Path) -> Result<Option<Self>, ChatError> {
        let config = TokenizerConfig::open(folder)?;
        let path = folder.join(FILE);
        let (path, templates) = match (files::read_text(&path)?, &config.chat_template) {
            (Some(text), _) => (path, vec![(DEFAULT, text)]),
            (None, None | Some(serde_json::Value::Null)) => return Ok(None),
            (None, Some(value)) => {
                let path = folder.join(config::FILE);
                let named = named(value).filter(|named| named.iter().any(|(name, _)| *name == DEFAULT));
                (path.clone(), named.ok_or(ChatError::Form { path })?)
            }
        };
        let tokens = config.tokens();
        // Deeply nested templates are parsed recursively.
        on_own_stack(PARSER_STACK, || {
            let invalid = |source| ChatError::Syntax { path: path.clone(), source: Box::new(source) };
            let mut environment = environment::new().map_err(invalid)?;
            for (name, text) in templates {
                if text.len() > TEMPLATE {
                    return Err(ChatError::TemplateTooLong { path: path.clone(), bytes: text.len() });
                }
                let text = generation_tag::replace(&text);
                environment.add_template_owned(name.to_owned(), text).map_err(invalid)?;
            }
            Ok(Some(Self { environment, path: path.clone(), tokens }))
        })?
    }

    /// The prompt of a conversation. What the checkpoint begins a prompt with is part of it, so that it is encoded without more
    /// special tokens.
    ///
    /// # Errors
    /// [`ChatError::Refused`], [`ChatError::Render`], [`ChatError::TooLong`] and [`ChatError::Reserved`] lie with the
    /// conversation; [`ChatError::Thread`] with the machine.
    pub fn render(&self, input: &ChatInput) -> Result<String, ChatError> {
        if let Some(name) = ARGUMENTS.into_iter().find(|&name| input.kwargs.contains_key(name)) {
            return Err(ChatError::Reserved { name });
        }
        on_own_stack(STACK, || {
            let mut prompt = Bounded(Vec::new());
            let name = match (&input.tools, self.environment.get_template(TOOL_USE)) {
                (Some(_), Ok(_)) => TOOL_USE,
                _ => DEFAULT,
            };
            let template = self.environment.get_template(name).map_err(|error| self.failed(error))?;
            template.render_captured_to(self.context(input), &mut prompt).map_err(|error| self.failed(error))?;
            // A template writes text and nothing else.
            Ok(String::from_utf8_lossy(&prompt.0).into_owned())
        })?
    }

    /// Whether a template asks for an argument of that name, such as `enable_thinking`.
    #[must_use]
    pub fn reads(&self, name: &str) -> bool {
        self.environment.templates().any(|(_, template)| template.undeclared_variables(false).contains(name))
    }

    fn context(&self, input: &ChatInput) -> Value {
        let tokens = self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let now = input.now;
        let helpers = [
            // Templates ask whether there are documents.
            ("documents", Value::from(())),
            ("strftime_now", Value::from_function(move |format: &str| environment::strftime(now, format))),
        ];
        let kwargs = input.kwargs.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        let arguments = [
            ("messages", Value::from(Serde(&input.messages))),
            ("tools", Value::from(Serde(&input.tools))),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
        ];
        // The later of two of one name holds.
        let all: BTreeMap<&str, Value> = tokens.chain(helpers).chain(kwargs).chain(arguments).collect();
        all.into()
    }

    fn failed(&self, error: minijinja::Error) -> ChatError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(this) = cause {
            if let Some(Raised(message)) = this.downcast_ref() {
                return ChatError::Refused { message: message.clone() };
            }
            let kind = this.downcast_ref().map(minijinja::Error::kind);
            if matches!(kind, Some(ErrorKind::OutOfFuel | ErrorKind::WriteFailure)) {
                return ChatError::TooLong;
            }
            cause = this.source();
        }
        ChatError::Render { path: self.path.clone(), source: Box::new(error) }
    }
}

/// The templates of `tokenizer_config.json` with their names.
fn named(value: &serde_json::Value) -> Option<Vec<(&str, String)>> {
    if let Some(text) = value.as_str() {
        return Some(vec![(DEFAULT, text.to_owned())]);
    }
    let field = |entry: &'_ serde_json::Value, name: &str| entry.get(name)?.as_str().map(str::to_owned);
    let entries = value.as_array()?.iter();
    entries.map(|entry| Some((entry.get("name")?.as_str()?, field(entry, "template")?))).collect()
}

/// Runs something on a stack of that many bytes.
fn on_own_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Result<T, ChatError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("chat-template".to_owned()).stack_size(bytes);
        let worker = worker.spawn_scoped(scope, work).map_err(ChatError::Thread)?;
        Ok(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// A prompt that takes no more than [`LIMIT`] bytes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
