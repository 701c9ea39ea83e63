//! Outputs told apart, against what vLLM 0.33 makes of them (see make_parser_cases.py), whole and in every kind of pieces.

use std::sync::LazyLock;

use gemma4_model::output::{
    Before, CallDelta, Calls, Delta, FormCalls, Marker, Markers, OutputForm, OutputOptions, OutputParser, Tools,
};
use gemma4_model::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::data::{cases, fixtures, ids, tiny};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(&tiny()).expect("a tokenizer"));
static MARKERS: LazyLock<Markers> = LazyLock::new(|| Markers::of(&TOKENIZER).expect("markers"));
static CASES: LazyLock<Vec<Value>> = LazyLock::new(|| cases("parser_cases.json"));
static TOOLS: LazyLock<Tools> = LazyLock::new(|| {
    let text = std::fs::read_to_string(fixtures().join("parser_cases.json")).expect("a file");
    let file: Value = serde_json::from_str(&text).expect("JSON");
    tools(&file["tools"])
});

fn tools(list: &Value) -> Tools {
    let functions = list.as_array().expect("a list").iter().map(|tool| &tool["function"]);
    Tools::new(functions.map(|tool| (tool["name"].as_str().expect("a name").to_owned(), tool["parameters"].clone())))
}

/// What a parser gets.
#[derive(Clone, Debug)]
enum Step {
    Text(String),
    Marker(Marker),
}

fn kept(tools: &Tools) -> OutputOptions {
    OutputOptions { thoughts: true, calls: Calls::Kept { tools: tools.clone(), parallel: true } }
}

fn feed(parser: &mut OutputParser, steps: &[Step]) -> Delta {
    let mut whole = Delta::default();
    for step in steps {
        whole.append(match step {
            Step::Text(text) => parser.text(text),
            Step::Marker(marker) if parser.takes(*marker) => parser.marker(*marker),
            Step::Marker(_) => Delta::default(),
        });
    }
    whole.append(parser.finish());
    whole
}

fn parse(options: OutputOptions, steps: &[Step]) -> Delta {
    feed(&mut OutputParser::new(options), steps)
}

/// An output as text and markers, without its end token and other control tokens.
fn steps(ids: &[u32]) -> Vec<Step> {
    let mut decoder = TOKENIZER.stream(true);
    let mut steps = Vec::new();
    for id in ids {
        match MARKERS.get(*id) {
            Some(marker) => steps.extend([Step::Text(decoder.finish()), Step::Marker(marker)]),
            None => steps.push(Step::Text(decoder.push(*id))),
        }
    }
    steps.push(Step::Text(decoder.finish()));
    steps
}

fn output(text: &str) -> Vec<Step> {
    steps(&TOKENIZER.encode(text, false).expect("ids"))
}

fn options(case: &Value) -> OutputOptions {
    let given = !case["tools"].as_array().expect("a list").is_empty() && case["tool_choice"] != "none";
    let parallel = case["parallel_tool_calls"] == true;
    let calls = if given { Calls::Kept { tools: TOOLS.clone(), parallel } } else { Calls::Dropped };
    OutputOptions { thoughts: true, calls }
}

/// A parser for a case, with what its prompt left open.
fn parser(case: &Value) -> OutputParser {
    let mut parser = OutputParser::new(options(case));
    let prompt = TOKENIZER.encode(case["prompt"].as_str().expect("a text"), false).expect("ids");
    if let Some(text) = MARKERS.open_thought(&TOKENIZER, &prompt) {
        parser.begin_in_thought(&text);
    }
    parser
}

/// In the words of the fixtures.
fn described(case: &Value, delta: &Delta) -> Value {
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let thought = if case["include_reasoning"] == false { Value::Null } else { text(&delta.thought) };
    let calls = delta.calls.iter().map(|call| json!({"name": call.name, "arguments": call.arguments}));
    json!({"reasoning": thought, "content": text(&delta.text), "tool_calls": calls.collect::<Vec<_>>()})
}

/// What is right where vLLM leaks a marker, loses a call, or says two things of which neither or the whole one is right.
fn ours(name: &str) -> Option<Value> {
    let call = |name: &str, arguments: &str| json!({"name": name, "arguments": arguments});
    Some(match name {
        // Control tokens are never text; without parsers it is the same.
        "escape token in plain text" => json!({"reasoning": null, "content": "say hi now", "tool_calls": []}),
        // A marker that begins a call cannot be a part of another one's arguments.
        "close token missing between calls" => json!({
            "reasoning": null,
            "content": null,
            "tool_calls": [call("noop", "{}"), call("get_weather", "{\"city\": \"B\"}")],
        }),
        _ => return None,
    })
}

#[test]
fn parts_are_those_of_vllm() {
    assert_eq!(CASES.len(), 72);
    let (mut wrong, mut changed) = (Vec::new(), 0);
    for case in CASES.iter() {
        let name = case["name"].as_str().expect("a name");
        let found = described(case, &feed(&mut parser(case), &steps(&ids(&case["ids"]))));
        let observed = |value: &Value| {
            let mut value = value.clone();
            value.as_object_mut().expect("an object").shift_remove("finish_reason");
            value
        };
        let (whole, streamed) = (observed(&case["complete"]), observed(&case["streamed"]["1"]));
        // Where the two differ the streamed one is right: it has the prompt's state, keeps text around calls, takes nothing
        // back, and shows no part of a channel's name.
        let wanted = ours(name).unwrap_or_else(|| streamed.clone());
        changed += usize::from(wanted != whole);
        if found != wanted {
            wrong.push(format!("{name}\n  wanted {wanted}\n  found  {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(changed, 13, "eleven in which vLLM says two things, and two of ours");
}

/// Outputs that broke parsers, by the issue of vLLM's that reported them.
#[test]
fn known_bugs_of_others_are_none_here() {
    let weather = "<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>,days:3}<tool_call|>";
    let wanted = ("get_weather", "{\"city\": \"Paris\", \"days\": 3}");
    // 42875: a piece that holds a whole call.
    assert_eq!(calls(&parse(kept(&TOOLS), &output(weather))), [wanted]);
    // 53431: a call without its word.
    let bare = weather.replace("call:get", ":get");
    assert_eq!(calls(&parse(kept(&TOOLS), &output(&bare))), [wanted]);
    // 44522: quotes in lists, next to one another and around nothing.
    let quotes = "<|tool_call>call:get_weather{tags:[<|\"|><|\"|>,<|\"|>a<|\"|>],city:<|\"|><|\"|>}<tool_call|>";
    let parsed = parse(kept(&TOOLS), &output(quotes));
    assert_eq!(calls(&parsed), [("get_weather", "{\"tags\": [\"\", \"a\"], \"city\": \"\"}")]);
    // 39885: thinking goes on after the result of a tool, in a channel that the prompt began.
    let mut parser = OutputParser::new(kept(&TOOLS));
    let prompt = "<|tool_response>response:noop{value:1}<tool_response|><|channel>thought\n";
    let open = MARKERS.open_thought(&TOKENIZER, &TOKENIZER.encode(prompt, false).expect("ids")).expect("a thought");
    parser.begin_in_thought(&open);
    let parsed = feed(&mut parser, &output(&format!("so it is<channel|>Look: {weather}")));
    assert_eq!((parsed.thought.as_str(), parsed.text.as_str(), calls(&parsed)), ("so it is", "Look: ", vec![wanted]));
    // 42696: what begins a call has its name, and nothing else has one.
    let mut parser = OutputParser::new(kept(&TOOLS));
    let deltas = output(weather).into_iter().flat_map(|step| match step {
        Step::Text(text) => parser.text(&text).calls,
        Step::Marker(marker) => parser.marker(marker).calls,
    });
    let deltas: Vec<CallDelta> = deltas.collect();
    assert!(deltas.len() > 3, "a call comes in pieces: {deltas:?}");
    assert!(deltas.iter().enumerate().all(|(at, call)| call.index == 0 && call.name.is_some() == (at == 0)));
}

fn calls(delta: &Delta) -> Vec<(&str, &str)> {
    delta.calls.iter().map(|call| (call.name.as_deref().expect("a name"), call.arguments.as_str())).collect()
}

#[test]
fn broken_calls_end_well() {
    let arguments = |text: &str| {
        let parsed = parse(kept(&TOOLS), &output(text));
        assert_eq!((parsed.thought.as_str(), parsed.text.as_str()), ("", ""), "{text}");
        parsed.calls.into_iter().map(|call| call.arguments).collect::<Vec<_>>()
    };
    let weather = |body: &str| arguments(&format!("<|tool_call>call:get_weather{{{body}<tool_call|>"));
    assert_eq!(weather("days:1,days:2}"), ["{\"days\": 1}"], "the first of two counts");
    assert_eq!(weather("city:<|\"|>a<|\"|>,city:<|\"|>b<|\"|>}"), ["{\"city\": \"a\"}"]);
    assert_eq!(weather("days:,city:<|\"|>a<|\"|>}"), ["{\"city\": \"a\"}"], "no value, no argument");
    assert_eq!(weather("city}"), ["{}"]);
    assert_eq!(weather("city:<|\"|>a<|\"|>}} more"), ["{\"city\": \"a\"}"], "what follows the arguments is none");
    assert_eq!(weather("city:<|\"|>a<|\"|> b <|\"|>c<|\"|> }"), ["{\"city\": \"a b c\"}"]);
    assert_eq!(weather("opt:{lat:1.5,name:[<|\"|>x<|\"|>}"), ["{\"opt\": {\"lat\": 1.5, \"name\": \"[x}\"}}"]);
    assert_eq!(weather("tags:[<|\"|>a<|\"|>,,<|\"|>b<|\"|>]}"), ["{\"tags\": [\"a\", \"b\"]}"]);
    assert_eq!(weather("ratio:inf,days:007}"), ["{\"ratio\": \"inf\", \"days\": 7}"]);
    assert_eq!(weather("ratio:1e999}"), ["{\"ratio\": \"1e999\"}"], "no number of JSON's");
    assert_eq!(weather("days:123456789012345678901234567890}"), ["{\"days\": 123456789012345678901234567890}"]);
    assert_eq!(weather("opt:<|\"|>{\"lat\": 1}<|\"|>}"), ["{\"opt\": {\"lat\": 1}}"], "JSON in a string");
    assert_eq!(weather("city:<|\"|>\u{1}\u{2028}<|\"|>}"), ["{\"city\": \"\\u0001\u{2028}\"}"]);
    for nothing in
        ["<|tool_call>", "<|tool_call>cal", "<|tool_call>call:", "<|tool_call>{a:1}<tool_call|>", "<tool_call|>"]
    {
        assert_eq!(arguments(nothing), Vec::<String>::new(), "{nothing}");
    }
    assert_eq!(arguments("<|tool_call>I should call it<tool_call|>"), Vec::<String>::new(), "words are no name");
    // As deep as anybody likes.
    let deep = weather(&format!("untyped:{}", "[{a:".repeat(5000)));
    assert!(serde_json::from_str::<Value>(&deep[0]).is_ok());
}

#[test]
fn schemas_decide_what_a_value_is() {
    let parameters = json!({
        "$defs": {
            "place": {"type": "object", "properties": {"x": {"type": "number"}, "next": {"$ref": "#/$defs/place"}}},
            "loop": {"$ref": "#/$defs/loop"},
        },
        "properties": {
            "place": {"$ref": "#/$defs/place"},
            "loop": {"$ref": "#/$defs/loop"},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "maybe": {"type": "integer", "nullable": true},
            "big": {"type": "STRING"},
            "choice": {"enum": [1, 2, null]},
            "word": {"enum": ["1", "2"]},
            "places": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/place"}}, {"type": "null"}]},
        },
    });
    let tools = Tools::new([("f".to_owned(), parameters)]);
    for (body, wanted) in [
        ("place:{next:{x:2},x:1.0}", r#"{"place": {"next": {"x": 2}, "x": 1.0}}"#),
        ("loop:1", r#"{"loop": "1"}"#),
        ("map:{a:1,b:x}", r#"{"map": {"a": 1, "b": "x"}}"#),
        ("maybe:null", r#"{"maybe": null}"#),
        ("big:null", r#"{"big": "null"}"#),
        ("choice:2", r#"{"choice": 2}"#),
        ("word:2", r#"{"word": "2"}"#),
        ("places:[{x:1},{x:2}]", r#"{"places": [{"x": 1}, {"x": 2}]}"#),
    ] {
        let parsed = parse(kept(&tools), &output(&format!("<|tool_call>call:f{{{body}}}<tool_call|>")));
        assert_eq!(calls(&parsed), [("f", wanted)]);
    }
}

#[test]
fn what_is_not_told_apart_is_text() {
    let text = "<|channel>thought\na<channel|>b<|tool_call>call:noop{}<tool_call|>c";
    let parsed = |thoughts, calls| parse(OutputOptions { thoughts, calls }, &output(text));
    let all = parsed(false, Calls::AsText);
    assert_eq!((all.text.as_str(), all.thought.as_str(), all.calls.len()), ("thought\nabcall:noop{}c", "", 0));
    let thoughts = parsed(true, Calls::AsText);
    assert_eq!((thoughts.text.as_str(), thoughts.thought.as_str()), ("bcall:noop{}c", "a"));
    let dropped = parsed(false, Calls::Dropped);
    assert_eq!((dropped.text.as_str(), dropped.calls.len()), ("thought\nabc", 0));
}

#[test]
fn a_prompt_leaves_a_thought_open_only_at_its_end() {
    let open = |prompt: &str| MARKERS.open_thought(&TOKENIZER, &TOKENIZER.encode(prompt, false).expect("ids"));
    assert_eq!(open("<|turn>model\n<|channel>thought\n").as_deref(), Some("thought\n"));
    assert_eq!(open("<|turn>model\n<|channel>").as_deref(), Some(""));
    assert_eq!(open("<|turn>model\n<|channel>thought\n<channel|>"), None);
    // A user who writes a marker opens nothing.
    assert_eq!(open("<|turn>user\n<|channel>thought\n<turn|>\n<|turn>model\n"), None);
    assert_eq!(open("plain"), None);
    assert_eq!(open(""), None);
}

#[test]
fn a_grammar_of_a_form_has_tokens_by_their_ids() {
    let calls = FormCalls { tools: TOOLS.clone(), parallel: true };
    let forced = OutputForm { before: Before::Thought, calls: Some(calls.clone()), answer: false };
    insta::assert_snapshot!(forced.lark(&MARKERS), @r#"
    start: thought? call+
    thought: <[100]> "thought\n" /(.|\n)*/ <[101]>
    call: <[48]> "call:" ("files.read-all_2" | "get_weather" | "noop") object <[49]>
    object: "{" (pair ("," pair)*)? "}"
    pair: /[^{}\[\],:]+/ ":" value
    value: <[52]> /(.|\n)*/ <[52]> | object | list | /[^{}\[\],:]+/
    list: "[" (value ("," value)*)? "]"
    "#);
    let one = FormCalls { parallel: false, ..calls };
    let one = OutputForm { before: Before::Nothing, calls: Some(one), answer: false };
    assert!(one.lark(&MARKERS).starts_with("start: call\ncall: "));
    let open = OutputForm { before: Before::RestOfThought, answer: true, ..forced };
    assert!(open.lark(&MARKERS).starts_with("start: /(.|\\n)*/ <[101]> (call+ | @answer)\ncall: "));
    let answer = OutputForm { calls: None, ..open };
    assert_eq!(answer.lark(&MARKERS), "start: /(.|\\n)*/ <[101]> @answer\n");
}

/// The same steps with their text cut at these places, and text that follows text put together now and then.
fn cut(steps: &[Step], cuts: &[usize]) -> Vec<Step> {
    let mut cuts = cuts.iter().copied().cycle();
    let mut pieces: Vec<Step> = Vec::new();
    for step in steps {
        let Step::Text(text) = step else {
            pieces.push(step.clone());
            continue;
        };
        let mut rest = text.as_str();
        loop {
            let length = cuts.next().unwrap_or(1);
            if let (0, Some(Step::Text(last))) = (length, pieces.last_mut()) {
                last.push_str(rest);
                break;
            }
            let (at, _) = rest.char_indices().nth(length.max(1)).unwrap_or((rest.len(), ' '));
            let (piece, after) = rest.split_at(at);
            pieces.push(Step::Text(piece.to_owned()));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }
    pieces
}

fn step() -> impl Strategy<Value = Step> {
    let marker = prop::sample::select(vec![
        Marker::ThoughtBegin,
        Marker::ThoughtEnd,
        Marker::CallBegin,
        Marker::CallEnd,
        Marker::Quote,
        Marker::Quote,
        Marker::Quote,
    ]);
    let words = prop::sample::select(vec![
        "thought\n",
        "call:",
        "get_weather{",
        "city:",
        "days:",
        "opt:{",
        "tags:[",
        "untyped:",
        "either:",
        "noop(",
        ",",
        "}",
        "]",
        ")",
        "{",
        "[",
        "1",
        "2.50",
        "-3",
        "true",
        "null",
        " ",
        "\n",
        "é",
        "\"",
        "\\",
        "text",
    ]);
    prop_oneof![
        2 => marker.prop_map(Step::Marker),
        5 => words.prop_map(|word| Step::Text(word.to_owned())),
        1 => "[a-z{}:,\\[\\]() \"\\\\]{0,6}".prop_map(Step::Text),
    ]
}

proptest! {
    #[test]
    fn cases_are_the_same_in_any_pieces(which in 0..72_usize, cuts in prop::collection::vec(0..9_usize, 1..12)) {
        let case = &CASES[which];
        let steps = steps(&ids(&case["ids"]));
        let whole = feed(&mut parser(case), &steps);
        prop_assert_eq!(feed(&mut parser(case), &cut(&steps, &cuts)), whole.clone());
        // By character, and all at once.
        prop_assert_eq!(feed(&mut parser(case), &cut(&steps, &[1])), whole.clone());
        prop_assert_eq!(feed(&mut parser(case), &cut(&steps, &[0])), whole);
    }

    #[test]
    fn any_output_is_the_same_in_any_pieces(
        steps in prop::collection::vec(step(), 0..40),
        cuts in prop::collection::vec(0..5_usize, 1..12),
        thoughts: bool,
        parallel: bool,
    ) {
        let options = OutputOptions { thoughts, calls: Calls::Kept { tools: TOOLS.clone(), parallel } };
        let whole = parse(options.clone(), &steps);
        prop_assert_eq!(&parse(options.clone(), &cut(&steps, &cuts)), &whole);
        prop_assert_eq!(&parse(options, &cut(&steps, &[1])), &whole);
        for (index, call) in whole.calls.iter().enumerate() {
            prop_assert_eq!(call.index, index);
            prop_assert!(call.name.as_ref().is_some_and(|name| !name.is_empty()));
            let arguments: Result<serde_json::Map<String, Value>, _> = serde_json::from_str(&call.arguments);
            prop_assert!(arguments.is_ok(), "{}: {:?}", call.arguments, arguments);
        }
        prop_assert!(parallel || whole.calls.len() <= 1);
    }

    /// What the template writes of a call is what the parser reads: a string stays as it is, whatever is in it.
    #[test]
    fn strings_survive(text in "\\PC{0,40}", lines in "[ \n\t\"\\\\{}\\[\\]:,<|>]{0,20}") {
        let text = text + &lines;
        let steps = [
            Step::Marker(Marker::CallBegin),
            Step::Text("call:get_weather{city:".to_owned()),
            Step::Marker(Marker::Quote),
            Step::Text(text.clone()),
            Step::Marker(Marker::Quote),
            Step::Text("}".to_owned()),
            Step::Marker(Marker::CallEnd),
        ];
        let parsed = parse(kept(&TOOLS), &steps);
        let arguments: Value = serde_json::from_str(&parsed.calls[0].arguments).expect("JSON");
        prop_assert_eq!(arguments, json!({"city": text}));
    }
}
