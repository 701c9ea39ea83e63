//! Templates and conversations that mean harm, or are broken: errors in bounded time, never a panic.

use std::fs;

use gemma4_model::chat::{ChatError, ChatInput, ChatTemplate};
use proptest::prelude::*;
use serde_json::json;

use crate::chat::input;
use crate::data::{chain, folder, tiny};

fn hello() -> ChatInput {
    let inputs = json!({"messages": [{"role": "user", "content": "Hello"}]});
    input(inputs.as_object().expect("an object").clone(), true)
}

fn rendered(template: &str) -> Result<String, ChatError> {
    let folder = folder(&[("chat_template.jinja", template)]);
    ChatTemplate::open(folder.path())?.expect("there is one").render(&hello())
}

#[test]
fn work_and_length_are_bounded() {
    for template in [
        // Loops within loops.
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        // More than a prompt may have.
        "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}",
    ] {
        let error = rendered(template).expect_err(template);
        assert!(matches!(error, ChatError::TooLong), "{}", chain(&error));
    }
}

#[test]
fn recursion_is_bounded() {
    let lists = format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000));
    for template in [
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{% for i in [1] %}{% set y %}{{ f(x) }}{% endset %}{% endfor %}{% endmacro %}{{ f(1) }}",
        "{% for m in [messages] recursive %}{{ loop([messages]) }}{% endfor %}",
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% include 'default' %}",
        "{% extends 'default' %}",
        "{{ 'x' * 10 ** 18 }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ '%.999999999999f' | format(1) }}",
        "{{ '%(a)99999s' | format(a='x') }}",
        "{{ '%*d' | format(999999999999, 1) }}",
        "{{ '{:999999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999999) }}",
        "{{ 'a\nb' | indent(999999999999) }}",
        "{{ 'a\nb' | indent(width=999999999999) }}",
        "{{ [1] | batch(999999999999, 'x') | list }}",
        "{{ [1] | slice(999999999999) | list }}",
        "{{ range(10 ** 18) }}",
        "{{ strftime_now(1) }}",
        "{{ [] | tojson(indent={}) }}",
        "{{ [] | tojson(separators=[1]) }}",
        "{{ nothing | tojson }}",
        &lists,
    ] {
        let error = rendered(template).expect_err(&template[..template.len().min(80)]);
        assert!(matches!(error, ChatError::Syntax { .. } | ChatError::Render { .. }), "{}", chain(&error));
    }
}

#[test]
fn templates_of_any_depth_are_parsed_or_refused() {
    // As long as a template may be.
    let fill = |start: &str, part: &str, end: &str| {
        let parts = (65_535 - start.len() - end.len()) / part.len();
        format!("{start}{}{end}", part.repeat(parts))
    };
    for template in [
        fill("{{ ", "(", "1 }}"),
        fill("{{ ", "- ", "1 }}"),
        fill("{{ ", "-", "1 }}"),
        fill("{{ ", "not ", "1 }}"),
        fill("{{ 1", "+1", " }}"),
        fill("{{ 1", "~1", " }}"),
        fill("{{ 1", "**1", " }}"),
        fill("{{ 1", "<1", " }}"),
        fill("{{ 1", " and 1", " }}"),
        fill("{{ 1", "|abs", " }}"),
        fill("{{ messages", ".x", " }}"),
        fill("{{ messages", "[0]", " }}"),
        fill("{{ messages", "()", " }}"),
        fill("{{ 1", " if 1 else 1", " }}"),
        fill("{{ 1", " is defined", " }}"),
        fill("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        fill("", "{% if 1 %}", ""),
        fill("", "{% for a in b %}", ""),
        fill("{{ ", "{1:", ""),
        fill("", "{%", ""),
        fill("", "{#", ""),
    ] {
        let _ = rendered(&template);
    }
    assert!(matches!(rendered(&"x".repeat(65_536)), Err(ChatError::TemplateTooLong { .. })));
}

#[test]
fn values_deep_in_one_another_are_printed_and_dropped() {
    let template = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert_eq!(rendered(template).expect("a prompt"), "");
    let printed = rendered(&format!("{template}{{{{ ns.x }}}}")).expect("a prompt");
    assert!(printed.starts_with("[[[[[["));
}

proptest! {
    #[test]
    fn broken_templates_are_errors_or_prompts(start in 0usize..10_000, length in 0usize..40, with in "[-{}%#~|()a-z0-9' ]{0,8}") {
        let text = fs::read_to_string(tiny().join("chat_template.jinja")).expect("a file");
        let floor = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let (start, end) = (floor(start), floor(start + length));
        let _ = rendered(&format!("{}{with}{}", &text[..start], &text[end..]));
    }

    #[test]
    fn any_messages_are_errors_or_prompts(messages in prop::collection::vec(any_json(), 0..4), tools in prop::option::of(prop::collection::vec(any_json(), 0..3))) {
        let template = ChatTemplate::open(&tiny()).expect("a template").expect("there is one");
        let _ = template.render(&ChatInput { messages, tools, ..hello() });
    }
}

/// Values with the names that templates ask for.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let names =
        ["role", "content", "tool_calls", "function", "arguments", "name", "parameters", "properties", "type", "items"];
    let texts = ["user", "assistant", "tool", "system", "object", "array", "string", "text", "<|turn>", ""];
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        any::<f64>().prop_map(|value| json!(value)),
        prop::sample::select(texts.to_vec()).prop_map(|value| json!(value)),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        let fields = prop::collection::vec((prop::sample::select(names.to_vec()), inner.clone()), 0..5);
        let object =
            fields.prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(serde_json::Value::Array),
            object.prop_map(serde_json::Value::Object)
        ]
    })
}
