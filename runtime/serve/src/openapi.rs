//! The OpenAPI document.
//!
//! Answers and routes are written by hand in `openapi.json`, next to this file; the requests for text come from the table of
//! [`crate::fields`], so that the document cannot promise a field that is refused.

use serde_json::{Map, Value, json};

use crate::fields::{Endpoint, Support, fields};
use crate::options::{ApiKeys, ServeOptions};

const SKELETON: &str = include_str!("openapi.json");

/// The document of a service with these options, for a tokenizer with `vocab_size` tokens.
#[must_use]
pub fn document(options: &ServeOptions, vocab_size: usize) -> Value {
    // A test reads the skeleton.
    let mut document: Value = serde_json::from_str(SKELETON).unwrap_or_default();
    if let Some(info) = document.get_mut("info").and_then(Value::as_object_mut) {
        info.insert("version".to_owned(), options.version.clone().into());
    }
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        schemas.insert("ModelName".to_owned(), json!({"type": "string", "enum": options.model_names}));
        let last = vocab_size.saturating_sub(1);
        schemas.insert("Token".to_owned(), json!({"type": "integer", "minimum": 0, "maximum": last}));
        schemas.insert("ChatRequest".to_owned(), request(Endpoint::Chat, "messages"));
        schemas.insert("CompletionRequest".to_owned(), request(Endpoint::Completions, "prompt"));
    }
    if options.api_keys.is_empty()
        && let Some(document) = document.as_object_mut()
    {
        document.shift_remove("security");
    }
    document
}

/// The document of no service in particular, with API keys, for people and programs that read it from the repository.
#[must_use]
pub fn example() -> Value {
    let options = ServeOptions { api_keys: ApiKeys::new(["KEY"]), ..ServeOptions::new("MODEL", 1) };
    // Published Gemma 4 checkpoints have so many tokens.
    document(&options, 262_144)
}

/// The schema of a request's body.
fn request(endpoint: Endpoint, required: &str) -> Value {
    let mut properties = Map::new();
    for field in fields(endpoint) {
        let mut schema = match field.support {
            Support::Served | Support::Accepted => {
                let schema: Value = match field.name {
                    "model" => json!({"$ref": "#/components/schemas/ModelName"}),
                    _ => serde_json::from_str(field.schema).unwrap_or_default(),
                };
                if field.name == required { schema } else { json!({"anyOf": [schema, {"type": "null"}]}) }
            }
            Support::Only(values) => {
                let values = values.iter().filter_map(|text| serde_json::from_str::<Value>(text).ok());
                json!({"enum": values.chain([Value::Null]).collect::<Vec<_>>()})
            }
            Support::Refused => continue,
        };
        if let Some(schema) = schema.as_object_mut().filter(|schema| !schema.contains_key("$ref")) {
            schema.insert("description".to_owned(), field.note.into());
        }
        properties.insert(field.name.to_owned(), schema);
    }
    json!({"type": "object", "required": [required], "additionalProperties": false, "properties": properties})
}
