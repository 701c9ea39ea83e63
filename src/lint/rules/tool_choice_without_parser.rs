//! Tools that the model may choose, with nobody to read its choice.

use super::prelude::*;

rule!("tool-choice-without-parser", Error, "automatic tool choice without a parser for tool calls");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let chat = &context.resolved.serving.chat;
    if !chat.auto_tool_choice || chat.tool_call_parser.is_some() {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("chat.auto_tool_choice"),
            "automatic tool choice without a parser: the engine refuses to start",
        )
        .help("add `tool_call_parser = \"gemma4\"` to `[chat]`"),
    );
}
