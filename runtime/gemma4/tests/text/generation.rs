//! Settings for generating.

use gemma4_model::generation::GenerationConfig;

use crate::data::{chain, folder};

const FILE: &str = "generation_config.json";

#[test]
fn what_a_file_says_is_read() {
    let text = r#"{"eos_token_id": [1, 106, 50], "bos_token_id": 2, "pad_token_id": 0, "do_sample": true, "temperature": 1.0,
        "top_k": 64, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.1, "max_new_tokens": 20, "transformers_version": "5"}"#;
    let expected = GenerationConfig {
        eos_token_ids: vec![1, 106, 50],
        bos_token_id: Some(2),
        pad_token_id: Some(0),
        do_sample: Some(true),
        temperature: Some(1.0),
        top_k: Some(64),
        top_p: Some(0.95),
        min_p: Some(0.0),
        repetition_penalty: Some(1.1),
        max_new_tokens: Some(20),
    };
    assert_eq!(GenerationConfig::open(folder(&[(FILE, text)]).path()).expect("settings"), expected);
}

#[test]
fn ids_come_from_the_next_file_where_one_names_none() {
    let open = |files: &[(&str, &str)]| GenerationConfig::open(folder(files).path()).expect("settings");
    assert_eq!(open(&[]), GenerationConfig::default());
    assert_eq!(open(&[(FILE, r#"{"eos_token_id": 7}"#)]).eos_token_ids, [7]);
    let model = ("config.json", r#"{"eos_token_id": [1, 106], "text_config": {"eos_token_id": 1, "bos_token_id": 2}}"#);
    assert_eq!(open(&[model]).eos_token_ids, [1, 106]);
    assert_eq!(open(&[model]).bos_token_id, Some(2));
    assert_eq!(open(&[model, (FILE, r#"{"eos_token_id": null, "top_k": 3}"#)]).eos_token_ids, [1, 106]);
    assert_eq!(open(&[model, (FILE, r#"{"eos_token_id": 9}"#)]).eos_token_ids, [9]);
    assert_eq!(open(&[("config.json", r#"{"text_config": {"eos_token_id": 1}}"#)]).eos_token_ids, [1]);
}

#[test]
fn wrong_values_are_errors_with_the_file() {
    for (text, expected) in [
        ("", "EOF"),
        ("[]", "expected an object"),
        (r#"{"eos_token_id": "<eos>"}"#, "a token id or a list of token ids"),
        (r#"{"eos_token_id": [1, -1]}"#, "a token id or a list of token ids"),
        (r#"{"top_k": 1.5}"#, "floating point"),
        (r#"{"temperature": "hot"}"#, "invalid type"),
        (r#"{"temperature": -1}"#, "`temperature` is -1; expected 0 or more"),
        (r#"{"temperature": 1e300}"#, "`temperature` is inf|number out of range"),
        (r#"{"top_p": 0}"#, "`top_p` is 0; expected more than 0 and at most 1"),
        (r#"{"min_p": 1.5}"#, "`min_p`"),
        (r#"{"repetition_penalty": 0}"#, "`repetition_penalty`"),
    ] {
        let error = GenerationConfig::open(folder(&[(FILE, text)]).path()).expect_err(text);
        let error = chain(&error);
        // A feature of serde_json that other packages of a build may ask for decides who notices.
        assert!(error.contains(FILE) && expected.split('|').any(|words| error.contains(words)), "{error}");
    }
}
