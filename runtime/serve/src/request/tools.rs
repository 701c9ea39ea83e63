//! `tools` and what a request wants done with them.

use gemma4_model::output::{FormCalls, Tools};
use serde_json::{Map, Value};

use super::Take as _;
use super::take::wrong;
use crate::error::ApiError;
use crate::service::State;

/// Tools at most: OpenAI's bound.
const MAX_TOOLS: usize = 128;
/// Characters of a tool's name at most: OpenAI's bound.
const MAX_NAME: usize = 64;

/// The tools of a request that the model may call.
#[derive(Debug)]
pub(super) struct Declared {
    /// As the template reads them.
    pub(super) values: Vec<Value>,
    /// As the parser reads them.
    pub(super) tools: Tools,
    pub(super) parallel: bool,
    pub(super) choice: ToolChoice,
}

/// What a request wants done with its tools.
#[derive(Debug)]
pub(super) enum ToolChoice {
    /// The model calls some or none.
    Auto,
    /// The model calls one or more.
    Required,
    /// The model calls this one.
    Named(String),
}

impl Declared {
    /// The calls of an output with a form: those that have to come, or those that may instead of an answer with a form.
    pub(super) fn calls(self, has_answer: bool) -> Option<FormCalls> {
        let Self { tools, parallel, choice, .. } = self;
        match choice {
            ToolChoice::Auto if !has_answer => None,
            ToolChoice::Auto | ToolChoice::Required => Some(FormCalls { tools, parallel }),
            ToolChoice::Named(name) => {
                let schema = tools.schema(&name).cloned().unwrap_or_default();
                Some(FormCalls { tools: Tools::new([(name, schema)]), parallel: false })
            }
        }
    }
}

/// Takes what belongs to tools. None are left with the choice `none`: they are kept from the prompt as well, since a call
/// that the model made all the same would not be shown.
pub(super) fn take(state: &State, take: &mut Map<String, Value>) -> Result<Option<Declared>, ApiError> {
    let declared = declared(take)?;
    let choice = take.value("tool_choice");
    let parallel = take.flag("parallel_tool_calls")?.unwrap_or(true);
    let given = choice.is_some();
    let choice = match choice {
        None => ToolChoice::Auto,
        Some(Value::String(word)) if word == "auto" => ToolChoice::Auto,
        Some(Value::String(word)) if word == "none" => return Ok(None),
        Some(Value::String(word)) if word == "required" => ToolChoice::Required,
        Some(Value::Object(choice)) if name_of(&choice).is_some() => {
            ToolChoice::Named(name_of(&choice).unwrap_or_default().to_owned())
        }
        Some(Value::Object(choice)) if choice.get("type").is_some_and(|kind| kind == "allowed_tools") => {
            return Err(ApiError::unsupported("tool_choice", "send the tools that are allowed and no others"));
        }
        Some(_) => return Err(wrong("tool_choice", "`none`, `auto`, `required` or the name of a function")),
    };
    let Some((values, tools)) = declared else {
        if given {
            return Err(ApiError::invalid("tool_choice", "`tool_choice` needs `tools`."));
        }
        return Ok(None);
    };
    let parsers = state.options.parsers;
    match &choice {
        ToolChoice::Named(name) if tools.schema(name).is_none() => {
            return Err(wrong("tool_choice", "the name of one of `tools`"));
        }
        ToolChoice::Auto if !(parsers.tool_calls && parsers.auto_tool_choice) => {
            return Err(ApiError::unsupported(
                if given { "tool_choice" } else { "tools" },
                "the service was started without automatic tool choice; its profile needs `tool_call_parser = \"gemma4\"` and \
                 `auto_tool_choice = true` in `[chat]`",
            ));
        }
        ToolChoice::Required | ToolChoice::Named(_) if !parsers.tool_calls => {
            return Err(ApiError::unsupported(
                "tool_choice",
                "the service was started without a parser of calls; its profile needs `tool_call_parser = \"gemma4\"` in \
                 `[chat]`",
            ));
        }
        _ => {}
    }
    Ok(Some(Declared { values, tools, parallel, choice }))
}

/// Takes the tools themselves.
pub(super) fn declared(take: &mut Map<String, Value>) -> Result<Option<(Vec<Value>, Tools)>, ApiError> {
    let Some(values) = take.list("tools")?.filter(|tools| !tools.is_empty()) else { return Ok(None) };
    if values.len() > MAX_TOOLS {
        return Err(wrong("tools", &format!("at most {MAX_TOOLS} tools")));
    }
    let mut functions: Vec<(String, Value)> = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        let (name, parameters) = function(&format!("tools[{index}]"), value)?;
        if functions.iter().any(|(other, _)| *other == name) {
            return Err(wrong(&format!("tools[{index}].function.name"), "different from the other tools' names"));
        }
        functions.push((name, parameters));
    }
    Ok(Some((values, Tools::new(functions))))
}

fn function(place: &str, value: &Value) -> Result<(String, Value), ApiError> {
    let Value::Object(tool) = value else { return Err(wrong(place, "an object")) };
    if let Some(name) = tool.keys().find(|name| !matches!(name.as_str(), "type" | "function")) {
        return Err(ApiError::unknown_field(format!("{place}.{name}")));
    }
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong(&format!("{place}.type"), "`function`"));
    }
    let place = format!("{place}.function");
    let Some(Value::Object(function)) = tool.get("function") else { return Err(wrong(&place, "an object")) };
    for (name, value) in function {
        let place = format!("{place}.{name}");
        match (name.as_str(), value) {
            ("name", _) | ("description", Value::String(_)) | ("parameters", Value::Object(_)) => {}
            ("description" | "parameters" | "strict", Value::Null) | ("strict", Value::Bool(false)) => {}
            ("description", _) => return Err(wrong(&place, "a string")),
            ("parameters", _) => return Err(wrong(&place, "a JSON schema")),
            ("strict", Value::Bool(true)) => {
                return Err(ApiError::unsupported(
                    place,
                    "arguments are in the model's own notation, which no schema constrains; leave it out",
                ));
            }
            ("strict", _) => return Err(wrong(&place, "`true` or `false`")),
            _ => return Err(ApiError::unknown_field(place)),
        }
    }
    let name = function.get("name").and_then(Value::as_str).filter(|name| is_name(name));
    let wanted = format!("a string of 1 to {MAX_NAME} letters, digits and `_.:/-`");
    let name = name.ok_or_else(|| wrong(&format!("{place}.name"), &wanted))?;
    Ok((name.to_owned(), function.get("parameters").cloned().unwrap_or_default()))
}

/// A name that the model's notation has room for.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'/' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits)
}

/// The function that a choice names.
fn name_of(choice: &Map<String, Value>) -> Option<&str> {
    let named = choice.get("type").is_some_and(|kind| kind == "function");
    choice.get("function").filter(|_| named)?.get("name")?.as_str()
}
