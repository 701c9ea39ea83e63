//! A parser that the bundled engine does not have.

use super::prelude::*;

rule!("parser-unsupported", Error, "a parser of tool calls or reasoning that the bundled engine does not have");

/// Its only one, of either kind.
const PARSER: &str = "gemma4";

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    if context.on_vllm() {
        return;
    }
    let chat = &context.resolved.serving.chat;
    let parsers = [
        ("chat.tool_call_parser", &chat.tool_call_parser, "tool calls"),
        ("chat.reasoning_parser", &chat.reasoning_parser, "reasoning"),
    ];
    for (key, parser, what) in parsers {
        if let Some(parser) = parser.as_deref().filter(|name| *name != PARSER) {
            let message = format!("the bundled engine reads {what} in Gemma 4's own form only, not as `{parser}`");
            findings.push(RULE.finding(context.at(key), message).help(format!("write `{PARSER}`, or take the key out")));
        }
    }
}
