//! Prompts against those of transformers, through the template that is bundled with the fixtures.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use gemma4_model::chat::{ChatError, ChatInput, ChatTemplate};
use gemma4_model::generation::GenerationConfig;
use gemma4_model::seeded;
use gemma4_model::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::data::{cases, chain, fixtures, folder, ids, tiny};

/// A conversation from the object that transformers' `apply_chat_template` gets.
pub(crate) fn input(mut inputs: Map<String, Value>, add_generation_prompt: bool) -> ChatInput {
    let list = |value| serde_json::from_value(value).expect("a list");
    ChatInput {
        messages: list(inputs.shift_remove("messages").expect("messages")),
        tools: inputs.shift_remove("tools").filter(|tools| !tools.is_null()).map(list),
        add_generation_prompt,
        kwargs: inputs,
        now: SystemTime::UNIX_EPOCH,
    }
}

fn hello() -> ChatInput {
    let inputs = json!({"messages": [{"role": "user", "content": "Hello"}]});
    input(inputs.as_object().expect("an object").clone(), true)
}

#[test]
fn prompts_and_ids_are_those_of_transformers() {
    let tokenizer = Tokenizer::open(&tiny()).expect("a tokenizer");
    let text = fs::read_to_string(fixtures().join("gemma4_chat_template.jinja")).expect("a file");
    let config = fs::read_to_string(tiny().join("tokenizer_config.json")).expect("a file");
    let template = |empty_thought: bool| {
        let text = text.replace("@@EMPTY_THOUGHT@@", &empty_thought.to_string());
        let folder = folder(&[("chat_template.jinja", &text), ("tokenizer_config.json", &config)]);
        ChatTemplate::open(folder.path()).expect("a template").expect("there is one")
    };
    let templates = [template(false), template(true)];
    let cases = cases("chat_cases.json");
    assert_eq!(cases.len(), 60);
    for case in cases {
        let template = &templates[usize::from(case["empty_thought"] == true)];
        let inputs = case["inputs"].as_object().expect("an object").clone();
        let prompt = template.render(&input(inputs, case["add_generation_prompt"] == true)).expect("a prompt");
        assert_eq!(prompt, case["prompt"], "{}", case["name"]);
        assert_eq!(tokenizer.encode(&prompt, false).expect("ids"), ids(&case["ids"]), "{}", case["name"]);
    }
}

#[test]
fn the_seeded_model_opens() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("smoke");
    seeded::write(&folder, 0).expect("written");
    let tokenizer = Tokenizer::open(&folder).expect("a tokenizer");
    let template = ChatTemplate::open(&folder).expect("a template").expect("there is one");
    let prompt = template.render(&hello()).expect("a prompt");
    assert_eq!(prompt, "<bos><|turn>user\nHello<turn|>\n<|turn>model\n");
    assert_eq!(tokenizer.encode(&prompt, false).expect("ids").first().copied(), tokenizer.bos());
    let config = GenerationConfig::open(&folder).expect("settings");
    let ends: Vec<_> = config.eos_token_ids.iter().filter_map(|&id| tokenizer.token_text(id)).collect();
    assert_eq!(ends, ["<eos>", "<turn|>", "<|tool_response>"]);
}

/// What a template makes of a greeting, in a folder with this `tokenizer_config.json` too.
fn rendered(files: &[(&str, &str)], input: &ChatInput) -> Result<String, ChatError> {
    ChatTemplate::open(folder(files).path())?.expect("there is one").render(input)
}

#[test]
fn a_template_is_found_where_transformers_finds_it() {
    let text = ("chat_template.jinja", "file");
    let single = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    let named = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}"#,
    );
    let with_tools = ChatInput { tools: Some(Vec::new()), ..hello() };
    assert_eq!(rendered(&[text, single], &hello()).expect("a prompt"), "file");
    assert_eq!(rendered(&[single], &with_tools).expect("a prompt"), "config");
    assert_eq!(rendered(&[named], &hello()).expect("a prompt"), "plain");
    assert_eq!(rendered(&[named], &with_tools).expect("a prompt"), "tools");
    for none in
        [&[][..], &[("tokenizer_config.json", "{}")], &[("tokenizer_config.json", r#"{"chat_template": null}"#)]]
    {
        assert!(ChatTemplate::open(folder(none).path()).expect("no error").is_none());
    }
    for wrong in ["1", "[]", "{}", r#"[{"name": "rag", "template": ""}]"#, r#"[{"name": "default"}]"#] {
        let config = format!(r#"{{"chat_template": {wrong}}}"#);
        let error = ChatTemplate::open(folder(&[("tokenizer_config.json", &config)]).path()).expect_err("an error");
        assert!(
            matches!(&error, ChatError::Form { path } if path.ends_with("tokenizer_config.json")),
            "{wrong}: {error}"
        );
    }
}

#[test]
fn errors_say_what_to_do() {
    let template =
        |text: &str, input: &ChatInput| rendered(&[("chat_template.jinja", text)], input).expect_err("an error");
    let refused = template(
        "{%- macro no(m) -%}{{ raise_exception('no ' ~ m.role) }}{%- endmacro -%}{{ no(messages[0]) }}",
        &hello(),
    );
    assert!(matches!(&refused, ChatError::Refused { message } if message == "no user"), "{refused}");
    let syntax = chain(&template("one\n{% if %}", &hello()));
    assert!(syntax.contains("chat_template.jinja: the chat template is not valid (line 2): syntax error"), "{syntax}");
    let missing = chain(&template("{{ messages[0].content.parts.text }}", &hello()));
    assert!(
        missing.contains("chat_template.jinja: the chat template cannot render these messages (line 1)"),
        "{missing}"
    );
    for name in ["messages", "tools", "add_generation_prompt"] {
        let kwargs = Map::from_iter([(name.to_owned(), Value::Null)]);
        let error = template("", &ChatInput { kwargs, ..hello() });
        assert!(matches!(error, ChatError::Reserved { name: found } if found == name));
    }
    let bytes = folder(&[]);
    fs::write(bytes.path().join("chat_template.jinja"), b"\xff").expect("written");
    let error = ChatTemplate::open(Path::new(bytes.path())).expect_err("an error");
    assert!(matches!(error, ChatError::File(_)), "{error}");
}

#[test]
fn templates_see_tokens_and_arguments() {
    let config =
        r#"{"bos_token": "<b>", "eos_token": {"content": "<e>"}, "extra_special_tokens": {"image_token": "<i>"}}"#;
    let text =
        "{{ bos_token ~ eos_token ~ image_token ~ pad_token }} {{ tools is none }} {{ documents is none }} {{ depth }}";
    let kwargs = Map::from_iter([("depth".to_owned(), json!(2)), ("eos_token".to_owned(), json!("."))]);
    let files = [("chat_template.jinja", text), ("tokenizer_config.json", config)];
    let prompt = rendered(&files, &ChatInput { kwargs, ..hello() }).expect("a prompt");
    assert_eq!(prompt, "<b>.<i> True True 2");
}
