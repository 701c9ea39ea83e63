"""Tools and reasoning of a service whose profile asks for their parsers, with a model that writes what its biases say.

The model is random, so that it never calls anything by itself; what it would have to write is in the tests of the service.
"""

import asyncio

import pytest
from openai import OpenAI
from wire import ask, fetch

MODEL = "smoke"
#: Markers, and the tokens that end an answer.
CALL, CALL_END, THOUGHT, THOUGHT_END = "48", "49", "100", "101"
NEVER = dict.fromkeys([CALL, CALL_END, THOUGHT, THOUGHT_END, "1", "50", "106"], -100)
USER = {"role": "user", "content": "Name a colour."}
TOOLS = [{"type": "function", "function": {"name": "paint", "parameters": {"type": "object", "properties": {}}}}]
AFTER_A_CALL = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "paint", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def request(**more):
    common = {"model": MODEL, "messages": [USER], "max_completion_tokens": 12, "temperature": 0, "logit_bias": NEVER}
    return common | more


def chat(client, **more):
    return client.chat.completions.create(**request(**more))


def test_the_service_says_what_it_tells_apart(url):
    info = asyncio.run(fetch(url, "GET", "/server_info")).json()
    assert info["chat"] == {"tool_calls": True, "auto_tool_choice": True, "reasoning": True}


def test_tools_are_in_the_prompt(client):
    plain, tools = chat(client), chat(client, tools=TOOLS)
    assert tools.usage.prompt_tokens > plain.usage.prompt_tokens
    assert chat(client, tools=TOOLS, tool_choice="none").usage.prompt_tokens == plain.usage.prompt_tokens
    message = tools.choices[0].message
    assert message.content and message.reasoning_content is None and not message.tool_calls


def test_a_thought_goes_on_after_a_result(client):
    more = {"messages": AFTER_A_CALL, "tools": TOOLS, "reasoning_effort": "high"}
    message = chat(client, **more).choices[0].message
    assert message.reasoning_content == message.reasoning and message.reasoning and message.content is None
    thought = ""
    for part in chat(client, **more, stream=True):
        delta = part.choices[0].delta
        thought += getattr(delta, "reasoning_content", None) or ""
        assert not delta.content
    assert thought == message.reasoning
    # Without thinking the same goes into the answer.
    message = chat(client, **(more | {"reasoning_effort": "none"})).choices[0].message
    assert message.content and message.reasoning is None


@pytest.mark.parametrize("marker", [CALL, CALL_END, THOUGHT, THOUGHT_END])
def test_no_marker_is_text(client, marker):
    choice = chat(client, tools=TOOLS, logit_bias={marker: 100}, extra_body={"skip_special_tokens": False}).choices[0]
    assert choice.message.content is None and not choice.message.tool_calls and choice.finish_reason == "length"


def test_streams_say_the_same(url):
    for more in ({}, {"messages": AFTER_A_CALL, "reasoning_effort": "high"}, {"logit_bias": {CALL: 3, THOUGHT: 3}}):
        body = request(tools=TOOLS, **more)
        whole, streamed = (asyncio.run(ask(url, body | {"stream": stream})) for stream in (False, True))
        assert whole == streamed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_call_can_be_forced(client, choice):
    answer = chat(client, tools=TOOLS, tool_choice=choice, logit_bias={}, max_completion_tokens=24).choices[0]
    assert answer.message.content is None and answer.message.tool_calls[0].function.name == "paint"
