//! Every field of a request, in one table: what is served, what is refused, and what the documentation says.
//!
//! Invariant: a field that is not in the table, or is refused in it, never reaches a handler; so none is ignored in silence.
//! docs/api.md and the OpenAPI document are made from the same table.
//!
//! The names are all of OpenAI's two endpoints (as of its Python client 3.52) and those of vLLM that clients send.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Which endpoint a field belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// Where a field is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Both,
    Chat,
    Completions,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does what it says.
    Served,
    /// It is checked and has no effect, because it cannot have one here.
    Accepted,
    /// Only the values that ask for nothing are taken, as JSON.
    Only(&'static [&'static str]),
    /// It is refused.
    Refused,
}

/// A field of a request. `null` counts as not given, for every field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    on: On,
    /// What becomes of it.
    pub support: Support,
    /// JSON schema of its values, as JSON text; empty if it is refused.
    pub schema: &'static str,
    /// What it does, or why it is refused.
    pub note: &'static str,
}

const fn served(on: On, name: &'static str, schema: &'static str, note: &'static str) -> Field {
    Field { name, on, support: Support::Served, schema, note }
}

const fn accepted(on: On, name: &'static str, schema: &'static str, note: &'static str) -> Field {
    Field { name, on, support: Support::Accepted, schema, note }
}

const fn only(on: On, name: &'static str, values: &'static [&'static str], note: &'static str) -> Field {
    Field { name, on, support: Support::Only(values), schema: "", note }
}

const fn refused(on: On, name: &'static str, note: &'static str) -> Field {
    Field { name, on, support: Support::Refused, schema: "", note }
}

const FLAG: &str = r#"{"type": "boolean"}"#;
const STRING: &str = r#"{"type": "string"}"#;
const TOKENS: &str = r#"{"type": "integer", "minimum": 1, "maximum": 2147483647}"#;
const PENALTY: &str = r#"{"type": "number", "minimum": -2, "maximum": 2}"#;
const TEXT_ONLY: &str = "only text goes in and comes out";
const OLD_TOOLS: &str = "it is the older form of `tools`";
const OLD_GRAMMAR: &str = "it is the older form of `structured_outputs`";

/// The table.
const FIELDS: &[Field] = &[
    // What goes in.
    served(On::Both, "model", STRING, "One of the names of `/v1/models`; the first if it is not given"),
    served(
        On::Chat,
        "messages",
        r##"{"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}}"##,
        "The conversation. Roles `system`, `developer`, `user`, `assistant`, `tool`; content is a string or parts of type \
         `text`. A result of a tool follows the message with its call",
    ),
    served(
        On::Completions,
        "prompt",
        r##"{"$ref": "#/components/schemas/Prompt"}"##,
        "A text, a list of texts, a list of token ids, or a list of such lists",
    ),
    served(
        On::Both,
        "add_special_tokens",
        FLAG,
        "Whether the tokenizer adds its own tokens, such as the one that begins a text. Default: `true` for completions, \
         `false` for chats, whose template writes them",
    ),
    served(
        On::Chat,
        "add_generation_prompt",
        FLAG,
        "Whether the prompt ends with the beginning of an answer. Default `true`",
    ),
    served(
        On::Chat,
        "chat_template_kwargs",
        r#"{"type": "object"}"#,
        "Variables for the chat template, such as `enable_thinking`",
    ),
    served(
        On::Chat,
        "reasoning_effort",
        r#"{"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]}"#,
        "`none` switches thinking off, every other word on: the model has no degrees of it. The same as \
         `chat_template_kwargs.enable_thinking`",
    ),
    served(
        On::Chat,
        "tools",
        r##"{"type": "array", "maxItems": 128, "items": {"$ref": "#/components/schemas/Tool"}}"##,
        "Functions that the model may call. Needs `tool_call_parser` and `auto_tool_choice` in the profile",
    ),
    served(
        On::Chat,
        "tool_choice",
        r##"{"$ref": "#/components/schemas/ToolChoice"}"##,
        "`none` keeps the tools from the model; `auto` leaves the choice to it; `required` has it call one or more; \
         `{\"type\": \"function\", \"function\": {\"name\": NAME}}` has it call that one. Default: `auto` if there are tools",
    ),
    served(
        On::Both,
        "cache_salt",
        r#"{"type": "string", "minLength": 1, "maxLength": 1024}"#,
        "Requests share cached prefixes only with requests of the same salt",
    ),
    // What comes out.
    served(
        On::Both,
        "response_format",
        r##"{"$ref": "#/components/schemas/ResponseFormat"}"##,
        "What the text has to be: `text` for anything, `json_object`, or `json_schema` with a name and a schema",
    ),
    served(
        On::Both,
        "structured_outputs",
        r##"{"$ref": "#/components/schemas/StructuredOutputs"}"##,
        "vLLM's: the same with one of `json` (a schema), `json_object`, `regex`, `choice` and `grammar` (Lark)",
    ),
    served(On::Both, "stream", FLAG, "Sends tokens as they come, as server-sent events"),
    served(
        On::Both,
        "stream_options",
        r##"{"$ref": "#/components/schemas/StreamOptions"}"##,
        "With `stream`. `include_usage`: one more chunk at the end, with the token counts",
    ),
    served(
        On::Both,
        "n",
        r#"{"type": "integer", "minimum": 1, "maximum": 128}"#,
        "Answers to each prompt. With a seed, answer `i` has the seed plus `i`",
    ),
    served(
        On::Chat,
        "max_completion_tokens",
        TOKENS,
        "Tokens to generate at most. Default: as many as the context has room for",
    ),
    served(On::Chat, "max_tokens", TOKENS, "The older name of `max_completion_tokens`; give one of the two"),
    served(
        On::Completions,
        "max_tokens",
        r#"{"type": "integer", "minimum": 0, "maximum": 2147483647}"#,
        "Tokens to generate at most. Default 16. 0 only with `echo`, and with `logprobs` for those of the prompt alone",
    ),
    served(
        On::Both,
        "min_tokens",
        r#"{"type": "integer", "minimum": 0, "maximum": 2147483647}"#,
        "Tokens to generate before anything but a grammar's end may stop the answer. Default 0",
    ),
    served(
        On::Both,
        "stop",
        r##"{"$ref": "#/components/schemas/Stop"}"##,
        "A string or up to 16 of them, of up to 256 characters, that end the answer. No part of them is shown",
    ),
    served(
        On::Both,
        "stop_token_ids",
        r##"{"type": "array", "maxItems": 128, "items": {"$ref": "#/components/schemas/Token"}}"##,
        "Tokens that end the answer, beside the checkpoint's own",
    ),
    served(On::Both, "include_stop_str_in_output", FLAG, "Shows the stop string or token that ended the answer"),
    served(
        On::Both,
        "ignore_eos",
        FLAG,
        "Goes on past the checkpoint's end tokens. Not where the answer has a grammar, which ends it",
    ),
    served(
        On::Both,
        "skip_special_tokens",
        FLAG,
        "Leaves control tokens out of the text. Default `true`. Those that parsers go by are never text",
    ),
    served(
        On::Chat,
        "parallel_tool_calls",
        FLAG,
        "Whether an answer may have more than one call; if not, those after the first are dropped. Default `true`",
    ),
    served(
        On::Chat,
        "include_reasoning",
        FLAG,
        "Whether the answer has its reasoning. Default `true`. `false` needs `reasoning_parser` in the profile",
    ),
    served(On::Both, "return_token_ids", FLAG, "Adds `token_ids` to each choice, and `prompt_token_ids`"),
    served(
        On::Completions,
        "echo",
        FLAG,
        "Begins the text with the prompt. With `logprobs`, their lists begin with the prompt's tokens, the first of which has \
         none",
    ),
    served(On::Chat, "logprobs", FLAG, "Gives the logprob of each token"),
    served(
        On::Completions,
        "logprobs",
        r#"{"type": "integer", "minimum": 0, "maximum": 20}"#,
        "Gives the logprob of each token and those of so many best ones",
    ),
    served(
        On::Chat,
        "top_logprobs",
        r#"{"type": "integer", "minimum": 0, "maximum": 20}"#,
        "With `logprobs`: and those of so many best ones",
    ),
    served(
        On::Both,
        "prompt_logprobs",
        r#"{"type": "integer", "minimum": 0, "maximum": 20}"#,
        "vLLM's: adds `prompt_logprobs`, the logprob of each token of the prompt and those of so many best ones. Not with `stream`",
    ),
    // How tokens are chosen.
    served(
        On::Both,
        "temperature",
        r#"{"type": "number", "minimum": 0, "maximum": 2}"#,
        "0 takes the best token always. Default: the checkpoint's, or 1",
    ),
    served(
        On::Both,
        "top_p",
        r#"{"type": "number", "exclusiveMinimum": 0, "maximum": 1}"#,
        "Draws from the best tokens that together have this probability. Default: the checkpoint's, or 1",
    ),
    served(
        On::Both,
        "top_k",
        r#"{"type": "integer", "minimum": -1, "maximum": 2147483647}"#,
        "Draws from so many best tokens; 0 or -1: from all. Default: the checkpoint's, or all",
    ),
    served(
        On::Both,
        "min_p",
        r#"{"type": "number", "minimum": 0, "maximum": 1}"#,
        "Draws from tokens with at least this share of the best one's probability. Default: the checkpoint's, or 0",
    ),
    served(
        On::Both,
        "seed",
        r#"{"type": "integer", "minimum": -9223372036854775808, "maximum": 9223372036854775807}"#,
        "Makes what is drawn repeatable: it depends on the seed and the position alone",
    ),
    served(On::Both, "presence_penalty", PENALTY, "Subtracted from the logits of tokens in the answer so far"),
    served(On::Both, "frequency_penalty", PENALTY, "The same, for each time that a token is in the answer"),
    served(
        On::Both,
        "repetition_penalty",
        r#"{"type": "number", "minimum": 0.01, "maximum": 100}"#,
        "Divides the logits of tokens in prompt and answer. Default: the checkpoint's, or 1",
    ),
    served(
        On::Both,
        "logit_bias",
        r##"{"$ref": "#/components/schemas/LogitBias"}"##,
        "Added to the logits of tokens, by their ids",
    ),
    // What cannot matter here.
    accepted(On::Both, "user", STRING, "The service keeps no accounts of users"),
    accepted(
        On::Chat,
        "metadata",
        r#"{"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string"}}"#,
        "Belongs to stored answers, and none is stored",
    ),
    accepted(On::Chat, "safety_identifier", STRING, "The service keeps no accounts of users"),
    accepted(
        On::Chat,
        "prompt_cache_key",
        STRING,
        "A hint for routing; there is one cache, which finds prefixes by themselves",
    ),
    only(On::Chat, "store", &["false"], "answers are not stored"),
    only(On::Chat, "service_tier", &["\"auto\"", "\"default\""], "there is one tier"),
    only(On::Chat, "modalities", &["[\"text\"]"], TEXT_ONLY),
    only(On::Chat, "function_call", &["\"none\""], "it is the older form of `tool_choice`"),
    only(On::Both, "priority", &["0"], "requests are served in the order of their arrival"),
    only(On::Both, "best_of", &["1"], "answers are not ranked; ask for `n`"),
    // OpenAI's that are not served.
    refused(On::Chat, "functions", OLD_TOOLS),
    refused(On::Chat, "audio", TEXT_ONLY),
    refused(On::Chat, "moderation", "nothing is moderated"),
    refused(On::Chat, "prediction", "predicted output is not used"),
    refused(On::Chat, "prompt_cache_options", "the cache has no options for a request"),
    refused(On::Chat, "prompt_cache_retention", "how long a prefix is kept depends on the load alone"),
    refused(On::Chat, "verbosity", "the model has no such setting"),
    refused(On::Chat, "web_search_options", "nothing is searched"),
    refused(On::Completions, "suffix", "the model does not fill gaps"),
    // vLLM's that are not served.
    refused(On::Both, "guided_json", OLD_GRAMMAR),
    refused(On::Both, "guided_regex", OLD_GRAMMAR),
    refused(On::Both, "guided_choice", OLD_GRAMMAR),
    refused(On::Both, "guided_grammar", OLD_GRAMMAR),
    refused(On::Both, "allowed_token_ids", "use `logit_bias`"),
    refused(On::Both, "bad_words", "use `logit_bias`"),
    refused(On::Both, "return_tokens_as_token_ids", "use `return_token_ids`"),
    refused(On::Both, "truncate_prompt_tokens", "a prompt is never cut"),
    refused(On::Both, "use_beam_search", "there is no beam search"),
    refused(On::Both, "length_penalty", "there is no beam search"),
    refused(On::Both, "spaces_between_special_tokens", "tokens are joined as the tokenizer says"),
    refused(On::Both, "logits_processors", "no code comes with a request"),
    refused(On::Both, "vllm_xargs", "there are no extensions"),
    refused(On::Both, "kv_transfer_params", "the KV cache stays where it is"),
    refused(On::Both, "request_id", "send it as the header `x-request-id`"),
    refused(On::Both, "prompt_embeds", "a prompt is text or tokens"),
    refused(On::Chat, "echo", "only `/v1/completions` has it"),
    refused(On::Chat, "continue_final_message", "the chat template always closes a message"),
    refused(On::Chat, "chat_template", "only the checkpoint's own template is used"),
    refused(On::Chat, "documents", "the chat template takes none"),
    refused(On::Chat, "mm_processor_kwargs", TEXT_ONLY),
];

/// The fields of an endpoint, in the order of the documentation.
pub fn fields(endpoint: Endpoint) -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(move |field| match field.on {
        On::Both => true,
        On::Chat => endpoint == Endpoint::Chat,
        On::Completions => endpoint == Endpoint::Completions,
    })
}

/// Takes a request's fields that are served; everything else is gone or has led to a refusal.
pub(crate) fn check(endpoint: Endpoint, body: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let mut served = Map::new();
    for (name, value) in body {
        let field = fields(endpoint).find(|field| field.name == name).ok_or_else(|| ApiError::unknown_field(&name))?;
        if value.is_null() {
            continue;
        }
        match field.support {
            Support::Served => {
                served.insert(name, value);
            }
            Support::Accepted => field.check_type(&value)?,
            Support::Only(values) => {
                let allowed = |text: &&str| serde_json::from_str::<Value>(text).is_ok_and(|allowed| allowed == value);
                if !values.iter().any(allowed) {
                    let why = format!("{}; the only value is {}", field.note, values.join(" or "));
                    return Err(ApiError::unsupported(name, &why));
                }
            }
            Support::Refused => return Err(ApiError::unsupported(name, field.note)),
        }
    }
    Ok(served)
}

impl Field {
    /// Fields without effect are a string or a map of a few strings.
    fn check_type(&self, value: &Value) -> Result<(), ApiError> {
        let fits = match value {
            Value::String(_) => self.schema == STRING,
            Value::Object(map) => self.schema != STRING && map.len() <= 16 && map.values().all(Value::is_string),
            _ => false,
        };
        let wanted = if self.schema == STRING { "a string" } else { "up to 16 strings by name" };
        if fits { Ok(()) } else { Err(ApiError::invalid(self.name, format!("`{}` must be {wanted}.", self.name))) }
    }
}
