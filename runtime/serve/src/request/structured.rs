//! What the text of an answer has to be: `response_format` and `structured_outputs`.
//!
//! Invariant: a grammar that does not compile is refused with the name of its field, before anything is queued.

use gemma4_engine::constraint::{AnswerGrammar, Constraint, ConstraintError};
use gemma4_model::output::{Before, FormCalls, OutputForm};
use serde_json::{Map, Value};

use super::Take as _;
use super::take::wrong;
use crate::error::ApiError;
use crate::service::State;

/// Bytes of a schema, a regular expression, a grammar or all choices together at most.
const MAX_GRAMMAR: usize = 128 << 10;
/// Characters of a schema's name at most: OpenAI's bound.
const MAX_NAME: usize = 64;
/// vLLM's settings of its own backends, and its other kinds of grammars.
const UNSERVED: [&str; 5] = [
    "structural_tag",
    "disable_fallback",
    "disable_any_whitespace",
    "disable_additional_properties",
    "whitespace_pattern",
];

/// What the text of an answer has to be, and the field that says so.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    field: String,
    grammar: AnswerGrammar,
}

/// Takes what belongs to it.
pub(super) fn take(take: &mut Map<String, Value>) -> Result<Option<Answer>, ApiError> {
    let format = take.object("response_format")?.map(response_format).transpose()?.flatten();
    let structured = take.object("structured_outputs")?.map(structured_outputs).transpose()?;
    match (format, structured) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "structured_outputs",
            "`structured_outputs` and `response_format` both say what the answer has to be; give one of the two.",
        )),
        (format, structured) => Ok(format.or(structured)),
    }
}

fn response_format(mut format: Map<String, Value>) -> Result<Option<Answer>, ApiError> {
    const PLACE: &str = "response_format";
    let kind = format.value("type");
    let answer = match kind.as_ref().and_then(Value::as_str) {
        Some("text") => None,
        Some("json_object") => Some(Answer { field: PLACE.to_owned(), grammar: AnswerGrammar::json_object() }),
        Some("json_schema") => Some(json_schema(format.value("json_schema"))?),
        Some("structural_tag") => {
            return Err(ApiError::unsupported(format!("{PLACE}.type"), "tools have a form of their own; use `tools`"));
        }
        _ => return Err(wrong(&format!("{PLACE}.type"), "`text`, `json_object` or `json_schema`")),
    };
    nothing_left(PLACE, &format)?;
    Ok(answer)
}

fn json_schema(value: Option<Value>) -> Result<Answer, ApiError> {
    const PLACE: &str = "response_format.json_schema";
    let place = |name: &str| format!("{PLACE}.{name}");
    let mut declared = match value {
        Some(Value::Object(declared)) => declared,
        Some(_) => return Err(wrong(PLACE, "an object")),
        None => return Err(ApiError::missing(PLACE)),
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match declared.value("name") {
        Some(Value::String(name)) if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits) => {}
        Some(_) => return Err(wrong(&place("name"), &format!("a string of 1 to {MAX_NAME} letters, digits and `_-`"))),
        None => return Err(ApiError::missing(&place("name"))),
    }
    if declared.value("description").is_some_and(|text| !text.is_string()) {
        return Err(wrong(&place("description"), "a string"));
    }
    // Answers keep to the schema with and without it.
    if declared.value("strict").is_some_and(|strict| !strict.is_boolean()) {
        return Err(wrong(&place("strict"), "`true` or `false`"));
    }
    let schema = declared.value("schema").ok_or_else(|| ApiError::missing(&place("schema")))?;
    nothing_left(PLACE, &declared)?;
    json(place("schema"), schema)
}

fn structured_outputs(mut outputs: Map<String, Value>) -> Result<Answer, ApiError> {
    const PLACE: &str = "structured_outputs";
    let place = |name: &str| format!("{PLACE}.{name}");
    for name in UNSERVED {
        if outputs.value(name).is_some_and(|value| value != Value::Bool(false)) {
            return Err(ApiError::unsupported(
                place(name),
                "the only kinds are `json`, `json_object`, `regex`, `choice` and `grammar`",
            ));
        }
    }
    let mut answers = Vec::new();
    if let Some(schema) = outputs.value("json") {
        // vLLM takes the text of a schema too.
        let schema = match schema {
            Value::String(text) => serde_json::from_str(&text).map_err(|_| wrong(&place("json"), "a JSON schema"))?,
            schema => schema,
        };
        answers.push(json(place("json"), schema)?);
    }
    match outputs.value("json_object") {
        None | Some(Value::Bool(false)) => {}
        Some(Value::Bool(true)) => {
            answers.push(Answer { field: place("json_object"), grammar: AnswerGrammar::json_object() });
        }
        Some(_) => return Err(wrong(&place("json_object"), "`true` or `false`")),
    }
    let mut text = |name: &str| match outputs.value(name) {
        None => Ok(None),
        Some(Value::String(text)) if fits(text.len()) => Ok(Some(text)),
        Some(_) => Err(wrong(&place(name), &format!("a string of 1 to {MAX_GRAMMAR} bytes"))),
    };
    let (regex, grammar) = (text("regex")?, text("grammar")?);
    answers.extend(regex.map(|text| Answer { field: place("regex"), grammar: AnswerGrammar::Regex(text) }));
    answers.extend(grammar.map(|text| Answer { field: place("grammar"), grammar: AnswerGrammar::Lark(text) }));
    if let Some(choices) = outputs.value("choice") {
        answers.push(choice(place("choice"), choices)?);
    }
    nothing_left(PLACE, &outputs)?;
    match <[Answer; 1]>::try_from(answers) {
        Ok([answer]) => Ok(answer),
        Err(_) => Err(wrong(PLACE, "an object with one of `json`, `json_object`, `regex`, `choice` and `grammar`")),
    }
}

fn json(field: String, schema: Value) -> Result<Answer, ApiError> {
    if !schema.is_object() {
        return Err(wrong(&field, "a JSON schema that is an object"));
    }
    if !fits(schema.to_string().len()) {
        return Err(wrong(&field, &format!("a JSON schema of at most {MAX_GRAMMAR} bytes")));
    }
    Ok(Answer { field, grammar: AnswerGrammar::Json(schema) })
}

fn choice(field: String, choices: Value) -> Result<Answer, ApiError> {
    let texts = choices.as_array().and_then(|list| {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        list.iter().map(text).collect::<Option<Vec<String>>>()
    });
    match texts.filter(|texts| fits(texts.iter().map(String::len).sum())) {
        Some(texts) => Ok(Answer { field, grammar: AnswerGrammar::Choice(texts) }),
        None => Err(wrong(
            &field,
            &format!("a list of strings that are not empty, of at most {MAX_GRAMMAR} bytes together"),
        )),
    }
}

fn fits(bytes: usize) -> bool {
    (1..=MAX_GRAMMAR).contains(&bytes)
}

fn nothing_left(place: &str, object: &Map<String, Value>) -> Result<(), ApiError> {
    let left = object.iter().find(|(_, value)| !value.is_null());
    left.map_or(Ok(()), |(name, _)| Err(ApiError::unknown_field(format!("{place}.{name}"))))
}

/// What an output has to be, compiled; `None` if it may be anything. `calls` are calls that may come, and have to if there is
/// no `answer`.
pub(super) fn constraint(
    state: &State,
    before: Before,
    calls: Option<FormCalls>,
    answer: Option<Answer>,
) -> Result<Option<Constraint>, ApiError> {
    let (field, answer) = match (answer, &calls) {
        (Some(answer), _) => (answer.field, Some(answer.grammar)),
        (None, Some(_)) => ("tool_choice".to_owned(), None),
        (None, None) => return Ok(None),
    };
    let form = OutputForm { before, calls, answer: answer.is_some() };
    let is_bare = form.calls.is_none() && before == Before::Nothing;
    let around = state.markers.as_ref().filter(|_| !is_bare).map(|markers| form.lark(markers));
    let compiled = state.grammars().and_then(|grammars| grammars.compile(around, answer.as_ref()));
    compiled.map(Some).map_err(|error| match error {
        ConstraintError::NoEndToken => ApiError::unsupported(field, &error.to_string()),
        error => ApiError::invalid(&field, format!("`{field}`: {error}.")),
    })
}
