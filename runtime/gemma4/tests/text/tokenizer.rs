//! Ids and texts against Hugging Face's library through Python, and streams against whole texts.

use std::fs;
use std::sync::LazyLock;

use gemma4_model::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::data::{cases, chain, folder, ids, tiny};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(&tiny()).expect("a tokenizer"));

#[test]
fn ids_and_texts_are_those_of_the_fixtures() {
    let cases = cases("tokenizer_cases.json");
    assert_eq!(cases.len(), 20);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let expected = ids(&case["ids"]);
        assert_eq!(TOKENIZER.encode(text, false).expect("ids"), expected, "{text:?}");
        assert_eq!(TOKENIZER.encode(text, true).expect("ids"), expected, "{text:?}: this tokenizer adds nothing");
        for (skip, field) in [(false, "decoded"), (true, "decoded_skip_special")] {
            assert_eq!(TOKENIZER.decode(&expected, skip).expect("a text"), case[field], "{text:?}");
            assert_eq!(streamed(&expected, skip).concat(), case[field], "{text:?}");
        }
    }
}

#[test]
fn tokens_are_described() {
    assert_eq!(TOKENIZER.vocab_size(), 1024);
    assert_eq!(TOKENIZER.bos(), Some(2));
    assert!(TOKENIZER.is_special(106) && !TOKENIZER.is_special(107) && !TOKENIZER.is_special(4096));
    let all = [(106, "<turn|>", b"<turn|>".as_slice()), (107, "\n", b"\n"), (595, " ", b" ")];
    for (id, text, bytes) in all {
        assert_eq!(TOKENIZER.token_text(id).as_deref(), Some(text));
        assert_eq!(TOKENIZER.token_bytes(id).as_deref(), Some(bytes));
    }
    // The bytes of U+1F600 in the fixtures, which no token has.
    let bytes = [478, 397, 390, 366].map(|id| TOKENIZER.token_bytes(id).expect("a token"));
    assert_eq!(bytes.concat(), "\u{1f600}".as_bytes());
    assert_eq!(TOKENIZER.token_text(478).as_deref(), Some("\u{fffd}"));
    assert_eq!(TOKENIZER.token_text(4096), None);
    assert_eq!(TOKENIZER.token_bytes(u32::MAX), None);
}

/// The pieces of a stream, the last one from its end.
fn streamed(ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
    let mut stream = TOKENIZER.stream(skip_special_tokens);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    pieces.push(stream.finish());
    pieces
}

/// Ids as models may give them: everything, control tokens, bytes (ids 238 to 493), and ids that do not exist.
fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    let characters = prop::sample::select(vec!["\u{e9}", "\u{20ac}", "\u{65e5}\u{672c}", "\u{1f600}", "<0x41>"]);
    let character = characters.prop_map(|text| TOKENIZER.encode(text, false).expect("ids"));
    let one = |range: std::ops::Range<u32>| range.prop_map(|id| vec![id]);
    let part =
        prop_oneof![4 => character, 4 => one(238..494), 2 => one(494..1024), 1 => one(0..238), 1 => one(1024..2048)];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_stream_gives_the_whole_text_wherever_it_stops(ids in any_ids(), skip: bool) {
        for end in 0..=ids.len() {
            let pieces = streamed(&ids[..end], skip);
            prop_assert_eq!(pieces.concat(), TOKENIZER.decode(&ids[..end], skip).expect("a text"));
        }
        // What is out is never taken back, so no piece has a half of a character that the whole has in full.
        let mut stream = TOKENIZER.stream(skip);
        let whole = TOKENIZER.decode(&ids, skip).expect("a text");
        let mut out = String::new();
        for &id in &ids {
            out += &stream.push(id);
            prop_assert!(whole.starts_with(&out), "{whole:?} {out:?}");
        }
    }

    #[test]
    fn a_text_comes_back(text in "\\PC{0,40}") {
        // Tokenizers of this family write spaces as U+2581, which therefore comes back as a space.
        let ids = TOKENIZER.encode(&text, false).expect("ids");
        let expected = text.replace('\u{2581}', " ");
        prop_assert_eq!(&TOKENIZER.decode(&ids, false).expect("a text"), &expected);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| TOKENIZER.token_bytes(id).expect("a token")).collect();
        prop_assert_eq!(String::from_utf8(bytes).expect("a text"), expected);
    }
}

#[test]
fn a_stream_can_be_used_again() {
    let mut stream = TOKENIZER.stream(false);
    assert_eq!(stream.push(478), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    assert_eq!(stream.finish(), "");
    assert_eq!(stream.push(107), "\n");
}

/// `tokenizer.json` of the fixtures with one field replaced, beside a `tokenizer_config.json`.
fn opened(field: &str, value: Value, config: &str) -> Result<Tokenizer, TokenizerError> {
    let mut tokenizer: Value =
        serde_json::from_str(&fs::read_to_string(tiny().join("tokenizer.json")).expect("a file")).expect("JSON");
    tokenizer[field] = value;
    let folder = folder(&[("tokenizer.json", &tokenizer.to_string()), ("tokenizer_config.json", config)]);
    Tokenizer::open(folder.path())
}

#[test]
fn the_first_token_is_added_once_where_the_files_ask_for_it() {
    let template = json!({
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
    });
    let asks = r#"{"bos_token": {"content": "<bos>", "lstrip": false}, "add_bos_token": true}"#;
    for (processor, config, adds) in [
        (Value::Null, asks, true),
        (template.clone(), asks, true),
        (template, r#"{"bos_token": "<bos>"}"#, true),
        (Value::Null, r#"{"bos_token": "<bos>"}"#, false),
    ] {
        let tokenizer = opened("post_processor", processor, config).expect("a tokenizer");
        let bare = tokenizer.encode("Hi", false).expect("ids");
        let expected = if adds { [vec![2], bare.clone()].concat() } else { bare };
        assert_eq!(tokenizer.encode("Hi", true).expect("ids"), expected, "{config}");
    }
}

#[test]
fn nothing_is_cut_off_or_filled_up() {
    let truncation = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = opened("truncation", truncation, "{}").expect("a tokenizer");
    assert_eq!(tokenizer.encode("Hello world", false).expect("ids").len(), 9);
    assert_eq!(tokenizer.bos(), None);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_file() {
    let empty = folder(&[]);
    let broken = folder(&[("tokenizer.json", "{")]);
    let missing = Tokenizer::open(empty.path()).err().expect("an error");
    let no_json = Tokenizer::open(broken.path()).err().expect("an error");
    let no_config = opened("decoder", Value::Null, "[").err().expect("an error");
    assert!(matches!(no_config, TokenizerError::Unsupported { field: "decoder", .. }));
    let errors = [
        (missing, "tokenizer.json: cannot be opened as a tokenizer; fetch the file again"),
        (no_json, "tokenizer.json: cannot be opened as a tokenizer; fetch the file again"),
        (no_config, "tokenizer.json: `decoder` is not supported: there is none"),
        (
            opened("decoder", json!({"type": "WordPiece", "prefix": "#", "cleanup": true}), "{}")
                .err()
                .expect("an error"),
            "unknown variant `WordPiece`",
        ),
        (
            opened("decoder", json!({"type": "Fuse"}), "{}").err().expect("an error"),
            "does not end with ByteFallback and Fuse",
        ),
        (opened("version", json!("1.0"), "[").err().expect("an error"), "tokenizer_config.json: is not what the file"),
        (
            opened("version", json!("1.0"), r#"{"bos_token": "<s>"}"#).err().expect("an error"),
            "tokenizer_config.json: `bos_token` is \"<s>\", which tokenizer.json does not have",
        ),
        (
            opened("version", json!("1.0"), r#"{"clean_up_tokenization_spaces": true}"#).err().expect("an error"),
            "tokenizer_config.json: `clean_up_tokenization_spaces` is not supported",
        ),
    ];
    for (error, expected) in errors {
        let text = chain(&error);
        assert!(text.contains(expected), "{text}");
    }
}
