//! How the answers of a chat are told apart.

use gemma4_model::output::{Before, Calls, OutputOptions, OutputParser};
use serde_json::{Map, Value};

use super::Take as _;
use super::take::wrong;
use super::tools::Declared;
use crate::error::ApiError;
use crate::service::State;

/// Words of `reasoning_effort`. Gemma thinks or does not; it has no degrees of it.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
/// The template's variable that switches thinking.
const THINKING: &str = "enable_thinking";

/// How the answers of a chat are told apart.
#[derive(Clone, Debug)]
pub(crate) struct Parsing {
    options: OutputOptions,
    /// What the prompt has of a thought that the answers go on with.
    open_thought: Option<String>,
    /// Whether reasoning is shown.
    pub(crate) include_reasoning: bool,
}

impl Parsing {
    /// For answers to a prompt; `None` if they are text.
    pub(super) fn new(
        state: &State,
        declared: Option<&Declared>,
        prompt: &[u32],
        include_reasoning: bool,
    ) -> Option<Self> {
        let markers = state.markers.as_ref()?;
        let parsers = state.options.parsers;
        let calls = match declared {
            _ if !parsers.tool_calls => Calls::AsText,
            None => Calls::Dropped,
            Some(declared) => Calls::Kept { tools: declared.tools.clone(), parallel: declared.parallel },
        };
        let options = OutputOptions { thoughts: parsers.reasoning, calls };
        let open_thought = markers.open_thought(&state.tokenizer, prompt);
        Some(Self { options, open_thought, include_reasoning })
    }

    /// A parser for one of the answers.
    pub(crate) fn parser(&self) -> OutputParser {
        let mut parser = OutputParser::new(self.options.clone());
        if let Some(text) = &self.open_thought {
            parser.begin_in_thought(text);
        }
        parser
    }

    /// Whether an answer may have reasoning.
    pub(crate) const fn tells_reasoning(&self) -> bool {
        self.options.thoughts
    }
}

/// What comes before the answers of a chat that have a form: what is told apart as a thought has none. Where thinking is switched
/// off, there is to be none.
pub(super) fn before(state: &State, parsing: Option<&Parsing>, kwargs: &Map<String, Value>) -> Before {
    match parsing.filter(|parsing| parsing.tells_reasoning()) {
        None => Before::Nothing,
        Some(parsing) if parsing.open_thought.is_some() => Before::RestOfThought,
        Some(_) => {
            let switched = state.chat_template.as_ref().is_some_and(|template| template.reads(THINKING));
            let on = !switched || kwargs.get(THINKING) == Some(&Value::Bool(true));
            if on { Before::Thought } else { Before::Nothing }
        }
    }
}

/// Takes whether reasoning is shown.
pub(super) fn include_reasoning(state: &State, take: &mut Map<String, Value>) -> Result<bool, ApiError> {
    let include = take.flag("include_reasoning")?.unwrap_or(true);
    if !include && !state.options.parsers.reasoning {
        return Err(ApiError::unsupported(
            "include_reasoning",
            "the service was started without a parser of reasoning; its profile needs `reasoning_parser = \"gemma4\"` in `[chat]`",
        ));
    }
    Ok(include)
}

/// Takes `reasoning_effort`, which switches thinking as the template's own variable does.
pub(super) fn effort(
    state: &State,
    take: &mut Map<String, Value>,
    kwargs: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    const NAME: &str = "reasoning_effort";
    let Some(effort) = take.value(NAME) else { return Ok(()) };
    let word = effort.as_str().filter(|word| EFFORTS.contains(word));
    let thinks = word.ok_or_else(|| wrong(NAME, &format!("one of `{}`", EFFORTS.join("`, `"))))? != "none";
    if !state.chat_template.as_ref().is_some_and(|template| template.reads(THINKING)) {
        return Err(ApiError::unsupported(NAME, "the checkpoint's chat template does not switch thinking"));
    }
    match kwargs.get(THINKING) {
        Some(Value::Bool(given)) if *given != thinks => Err(ApiError::invalid(
            NAME,
            format!("`{NAME}` and `chat_template_kwargs.{THINKING}` contradict each other; give one of the two."),
        )),
        _ => {
            kwargs.insert(THINKING.to_owned(), thinks.into());
            Ok(())
        }
    }
}
