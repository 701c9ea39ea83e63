"""Calls tools with OpenAI's Python client, of a model that thinks, says a word and calls two tools.

Usage: openai_tools.py BASE_URL MODEL. Ends with 0 and the line "done" if everything is as it should be.
"""

import json
import sys

import openai

BASE_URL, MODEL = sys.argv[1:]
client = openai.OpenAI(base_url=BASE_URL, api_key="anything", max_retries=0, _strict_response_validation=True)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "noop"}},
]
MESSAGES = [{"role": "user", "content": "Weather?"}]
REQUEST = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "tool_choice": "auto"}
WANTED = [("get_weather", {"city": 'Paris, "FR" {1}', "days": 3}), ("noop", {})]


def calls_of(message):
    assert all(call.type == "function" and call.id.startswith("chatcmpl-tool-") for call in message.tool_calls)
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]


answer = client.chat.completions.create(**REQUEST, reasoning_effort="high")
(choice,) = answer.choices
assert choice.finish_reason == "tool_calls" and choice.message.content == "One moment."
assert choice.message.reasoning_content == choice.message.reasoning == "It asks for weather."
assert calls_of(choice.message) == WANTED

# The client's own way of putting a stream together. Its helpers take strict tools only, so it is given none of them.
text, reasoning, finish, calls = "", "", None, {}
for chunk in client.chat.completions.create(**REQUEST, stream=True):
    (part,) = chunk.choices
    text += part.delta.content or ""
    reasoning += getattr(part.delta, "reasoning_content", None) or ""
    finish = part.finish_reason or finish
    for call in part.delta.tool_calls or []:
        if call.index not in calls:
            assert call.id and call.type == "function" and call.function.name
            calls[call.index] = call
        else:
            calls[call.index].function.arguments += call.function.arguments
assert (text, reasoning, finish) == ("One moment.", "It asks for weather.", "tool_calls")
assert [(call.function.name, json.loads(call.function.arguments)) for call in calls.values()] == WANTED

with client.chat.completions.stream(model=MODEL, messages=MESSAGES, extra_body={"tools": TOOLS}) as events:
    for event in events:
        pass
snapshot = events.current_completion_snapshot.choices[0]
assert snapshot.finish_reason == "tool_calls" and snapshot.message.content == "One moment."
assert calls_of(snapshot.message) == WANTED

one = client.chat.completions.create(**REQUEST, parallel_tool_calls=False).choices[0]
assert calls_of(one.message) == WANTED[:1]
none = client.chat.completions.create(**(REQUEST | {"tool_choice": "none"})).choices[0]
assert not none.message.tool_calls and none.finish_reason == "stop"

# What came goes back, as the client keeps it.
results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in choice.message.tool_calls]
again = client.chat.completions.create(**(REQUEST | {"messages": [*MESSAGES, choice.message, *results]}))
assert again.usage.prompt_tokens > answer.usage.prompt_tokens

# Forced calls: the model may not say a word in front of them, and goes on with what it has left.
forced = client.chat.completions.create(**(REQUEST | {"tool_choice": "required"})).choices[0]
assert [name for name, _ in calls_of(forced.message)] == ["get_weather", "noop"], forced
assert not forced.message.content and forced.finish_reason == "tool_calls", forced
named = {"type": "function", "function": {"name": "noop"}}
forced = client.chat.completions.create(**(REQUEST | {"tool_choice": named})).choices[0]
assert [name for name, _ in calls_of(forced.message)] == ["noop"], forced
print("done")
