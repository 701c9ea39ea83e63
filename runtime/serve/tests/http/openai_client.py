"""Drives a service with OpenAI's Python client, which checks every answer against its types.

Usage: openai_client.py BASE_URL MODEL. Ends with 0 and the line "done" if everything is as it should be.
"""

import asyncio
import sys

import openai

BASE_URL, MODEL = sys.argv[1:]
CLIENT = {"base_url": BASE_URL, "api_key": "anything", "max_retries": 0, "_strict_response_validation": True}
client = openai.OpenAI(**CLIENT)
MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "the answer"}]

assert [model.id for model in client.models.list()] == [MODEL]
assert client.models.retrieve(MODEL).id == MODEL

chat = client.chat.completions.create(
    model=MODEL, messages=MESSAGES, max_completion_tokens=12, n=2, logprobs=True, top_logprobs=2, seed=1, user="somebody"
)
assert len(chat.choices) == 2 and chat.usage.completion_tokens == 24
for choice in chat.choices:
    assert choice.message.role == "assistant" and choice.finish_reason == "length"
    assert len(choice.logprobs.content) == 12 and len(choice.logprobs.content[0].top_logprobs) == 2

text, usage, chunks = "", None, 0
stream = client.chat.completions.create(
    model=MODEL, messages=MESSAGES, max_completion_tokens=12, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    chunks += 1
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
assert text == chat.choices[0].message.content and usage.completion_tokens == 12 and chunks > 3

with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_completion_tokens=12) as events:
    for event in events:
        pass
    assert events.current_completion_snapshot.choices[0].message.content == text

completion = client.completions.create(model=MODEL, prompt=["the", "so"], max_tokens=8, echo=True, stop=["\n"])
assert completion.choices[0].text.startswith("the") and completion.choices[1].index == 1
whole = client.completions.create(model=MODEL, prompt=[600], max_tokens=20, logprobs=2)
assert len(whole.choices[0].logprobs.tokens) == 20
# The client's own type has no `null` for a chunk before the last; OpenAI's service and vLLM send it all the same.
lenient = client.with_options(_extra_kwargs={"_strict_response_validation": False})
pieces = lenient.completions.create(model=MODEL, prompt=[600], max_tokens=20, stream=True)
assert "".join(choice.text for piece in pieces for choice in piece.choices) == whole.choices[0].text
# Nor for the logprob of a prompt's first token, which has none.
scored = lenient.completions.create(
    model=MODEL, prompt=[600, 601, 602], max_tokens=0, echo=True, logprobs=1, extra_body={"prompt_logprobs": 2}
).choices[0]
assert scored.logprobs.token_logprobs[0] is None and all(logprob < 0 for logprob in scored.logprobs.token_logprobs[1:])
assert [len(entries or {}) > 0 for entries in scored.prompt_logprobs] == [False, True, True]
extra = client.completions.create(model=MODEL, prompt=[600], max_tokens=3, extra_body={"return_token_ids": True})
assert len(extra.choices[0].token_ids) == 3

raw = client.completions.with_raw_response.create(model=MODEL, prompt="a", extra_headers={"x-request-id": "my-id"})
assert raw.headers["x-request-id"] == "my-id" and raw.parse().id == "cmpl-my-id"


def refused(kind, param, **arguments):
    try:
        client.chat.completions.create(**({"model": MODEL, "messages": MESSAGES} | arguments))
    except kind as error:
        assert error.param == param, error
        assert error.code and error.type
    else:
        raise AssertionError(f"not refused: {arguments}")


refused(openai.BadRequestError, "temperature", temperature=3)
refused(openai.BadRequestError, "tools", tools=[{"type": "function", "function": {"name": "f"}}])
nameless = {"type": "json_schema", "json_schema": {}}
refused(openai.BadRequestError, "response_format.json_schema.name", response_format=nameless)
refused(openai.BadRequestError, "reasoning_effort", reasoning_effort="fairly high")
refused(openai.NotFoundError, "model", model="gpt-4")


async def at_once():
    async with openai.AsyncOpenAI(**CLIENT) as many:
        async def one(index):
            answer = await many.completions.create(model=MODEL, prompt=[500 + index], max_tokens=10)
            assert answer.usage.completion_tokens == 10

        await asyncio.gather(*(one(index) for index in range(100)))


asyncio.run(at_once())
print("done")
