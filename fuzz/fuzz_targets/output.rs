//! Any output of a model, told apart whole and by characters: the same parts, and arguments that are JSON objects.
#![no_main]

use gemma4_model::output::{Calls, Delta, Marker, OutputOptions, OutputParser, Tools};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

/// A byte that stands for a marker; all others are text.
fn marker(byte: u8) -> Option<Marker> {
    Some(match byte {
        1 => Marker::ThoughtBegin,
        2 => Marker::ThoughtEnd,
        3 => Marker::CallBegin,
        4 => Marker::CallEnd,
        5 => Marker::Quote,
        _ => return None,
    })
}

fn parse(options: &OutputOptions, bytes: &[u8], by_character: bool) -> Delta {
    let mut parser = OutputParser::new(options.clone());
    let mut whole = Delta::default();
    for part in bytes.split_inclusive(|byte| marker(*byte).is_some()) {
        let last = part.last().copied().and_then(marker);
        let text = if last.is_some() { &part[..part.len() - 1] } else { part };
        let text = String::from_utf8_lossy(text);
        if by_character {
            text.chars().for_each(|character| whole.append(parser.text(&character.to_string())));
        } else {
            whole.append(parser.text(&text));
        }
        if let Some(marker) = last.filter(|marker| parser.takes(*marker)) {
            whole.append(parser.marker(marker));
        }
    }
    whole.append(parser.finish());
    whole
}

fuzz_target!(|bytes: &[u8]| {
    let schema = json!({"properties": {
        "a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "boolean"},
        "d": {"type": "object", "properties": {"a": {"type": ["number", "null"]}}},
        "e": {"type": "array", "items": {"$ref": "#"}},
    }});
    let tools = Tools::new([("f".to_owned(), schema)]);
    let options = OutputOptions { thoughts: true, calls: Calls::Kept { tools, parallel: true } };
    let whole = parse(&options, bytes, false);
    assert_eq!(parse(&options, bytes, true), whole);
    for call in &whole.calls {
        assert!(serde_json::from_str::<Map<String, Value>>(&call.arguments).is_ok(), "{}", call.arguments);
    }
});
