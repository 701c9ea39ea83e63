"""Streams, read byte by byte."""

import asyncio
import copy
import json

import pytest
from wire import Refused, ask, events, fetch, stream_of

CHAT = {"messages": [{"role": "user", "content": "Count: one, two"}], "max_tokens": 12, "stream": True}
TEXT = {"prompt": "Count: one, two", "max_tokens": 12, "stream": True}


def body(url, request, path):
    answer = asyncio.run(fetch(url, "POST", path, request))
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    return answer.body


@pytest.mark.parametrize("extra", [{}, {"n": 3}, {"stream_options": {"include_usage": True}}, {"logprobs": True}])
def test_chats(url, extra):
    asyncio.run(ask(url, {**CHAT, **extra}))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3},
        {"stream_options": {"include_usage": True}},
        {"logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 2, "n": 2},
        {"prompt": ["a", "b"]},
    ],
)
def test_completions(url, extra):
    asyncio.run(ask(url, {**TEXT, **extra}))


def test_a_stream_says_what_the_whole_answer_says(url):
    for request in (CHAT, TEXT):
        request = {**request, "temperature": 0, "n": 2, "return_token_ids": True}
        streamed = asyncio.run(ask(url, request))
        whole = asyncio.run(ask(url, {**request, "stream": False}))
        assert streamed == whole


def without(*path):
    def change(chunks):
        holder = chunks[0]
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]

    return change


BREAKS = {
    "no id": without("id"),
    "no object": without("object"),
    "no time": without("created"),
    "no model": without("model"),
    "no choices": without("choices"),
    "no index": without("choices", 0, "index"),
    "no role": without("choices", 0, "delta", "role"),
    "no finish reason": without("choices", 0, "finish_reason"),
    "another id": lambda chunks: chunks[-1].update(id="chatcmpl-other"),
    "another object": lambda chunks: chunks[0].update(object="chat.completion"),
    "a role twice": lambda chunks: chunks[-1]["choices"][0]["delta"].update(role="assistant"),
    "no end": lambda chunks: chunks.pop(),
    "more after the end": lambda chunks: chunks.append(copy.deepcopy(chunks[-1])),
    "an error": lambda chunks: chunks.insert(1, {"error": {"message": "no"}}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_reader_refuses(url, name):
    chunks = events(body(url, CHAT, "/v1/chat/completions"))
    stream_of(chunks, chat=True)
    BREAKS[name](chunks)
    with pytest.raises(Refused):
        stream_of(chunks, chat=True)


def test_the_reader_refuses_other_framings():
    good = b'data: {"a": 1}\n\ndata: [DONE]\n\n'
    assert events(good) == [{"a": 1}]
    for bad in [
        good.replace(b"data: [DONE]\n\n", b""),
        good + b"data: {}\n\n",
        good[:-1],
        b": a comment\n\n" + good,
        good.replace(b"data: {", b"data:{"),
        good.replace(b"\n\ndata: [", b"\n\n\ndata: ["),
        b"data: [DONE]\n\n" + good,
    ]:
        with pytest.raises(Refused):
            events(bad)
    with pytest.raises(json.JSONDecodeError):
        events(b"data: {\n\ndata: [DONE]\n\n")
