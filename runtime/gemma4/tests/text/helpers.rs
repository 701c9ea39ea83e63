//! Small templates against Jinja itself, set up as transformers sets it up: see helpers_reference.py.

use std::time::{Duration, SystemTime};

use gemma4_model::chat::{ChatInput, ChatTemplate};
use serde_json::Value;

use crate::chat::input;
use crate::data::{chain, folder};

#[test]
fn templates_render_as_in_python() {
    let mut file: Value = serde_json::from_str(include_str!("helpers.json")).expect("JSON");
    let context = file["context"].as_object().expect("an object").clone();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    let input = ChatInput { now, ..input(context, false) };
    let cases: Vec<Value> = serde_json::from_value(file["cases"].take()).expect("cases");
    assert_eq!(cases.len(), 41);
    let mut wrong = Vec::new();
    for case in cases {
        let text = case["template"].as_str().expect("a text");
        let folder = folder(&[("chat_template.jinja", text)]);
        let opened = ChatTemplate::open(folder.path()).map(|template| template.expect("there is one"));
        let prompt = opened.and_then(|template| template.render(&input)).unwrap_or_else(|error| chain(&error));
        if case["prompt"] != prompt.as_str() {
            wrong.push(format!("{text:?}\n  {:?}\n  {prompt:?}", case["prompt"].as_str().expect("a text")));
        }
    }
    assert!(wrong.is_empty(), "{} differ, template, Python's and ours:\n{}", wrong.len(), wrong.join("\n"));
}
