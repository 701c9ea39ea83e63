"""The service, as OpenAI's own client sees it."""

import time

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from wire import metrics

MODEL = "smoke"
PROMPT = "The quick brown fox"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def client(url):
    # A retry would hide what went wrong.
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def complete(client, **more):
    return client.completions.create(**{"model": MODEL, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, **more})


def chat(client, **more):
    settings = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 16, "temperature": 0, **more}
    return client.chat.completions.create(**settings)


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert names == ["builtin/smoke", MODEL]
    for name in names:
        assert client.models.retrieve(name).id == name
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_a_completion(client):
    answer = complete(client)
    assert answer.object == "text_completion" and answer.model == MODEL and answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert choice.finish_reason in ("length", "stop") and choice.text
    usage = answer.usage
    assert usage.completion_tokens == 16 or choice.finish_reason == "stop"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens > 0


def test_a_chat(client):
    answer = chat(client)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and not choice.message.tool_calls
    assert answer.usage.completion_tokens <= 16


def test_streams_say_the_same(client):
    whole = complete(client).choices[0].text
    parts = list(complete(client, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole and len(parts) > 1
    whole = chat(client).choices[0].message.content
    parts = list(chat(client, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole and len(parts) > 1
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason in ("stop", "length")


def test_usage_in_streams(client):
    for call in (complete, chat):
        whole = call(client).usage
        *parts, last = call(client, stream=True, stream_options={"include_usage": True})
        assert all(part.usage is None for part in parts) and last.choices == []
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (
            whole.prompt_tokens,
            whole.completion_tokens,
            whole.total_tokens,
        )


def test_n(client):
    answer = chat(client, n=4, temperature=1, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1, "answers with seeds of their own differ"
    streamed = [""] * 4
    for part in chat(client, n=4, temperature=1, seed=7, stream=True):
        for choice in part.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    several = complete(client, prompt=[PROMPT, "Another one"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == complete(client).choices[0].text


def test_seeds_repeat(client):
    def drawn(seed):
        return complete(client, temperature=1.5, seed=seed).choices[0].text

    first = drawn(11)
    assert first == drawn(11)
    assert len({first, drawn(12), drawn(13)}) > 1


def test_stop_strings(client):
    whole = complete(client, max_tokens=24).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    answer = complete(client, max_tokens=24, stop=stop).choices[0]
    assert answer.finish_reason == "stop" and answer.text == whole[: whole.index(stop)]
    parts = complete(client, max_tokens=24, stop=["never in there \N{SNOWMAN}", stop], stream=True)
    assert "".join(part.choices[0].text for part in parts) == answer.text
    shown = complete(client, max_tokens=24, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert shown.choices[0].text == answer.text + stop


def test_stop_tokens(client):
    ids = complete(client, extra_body={"return_token_ids": True}).choices[0].token_ids
    stopped = complete(client, extra_body={"return_token_ids": True, "stop_token_ids": [ids[3]]}).choices[0]
    assert stopped.finish_reason == "stop" and stopped.stop_reason == ids[3]
    assert stopped.token_ids == ids[: ids.index(ids[3]) + 1]


def test_logprobs_of_chats(client):
    answer = chat(client, logprobs=True, top_logprobs=5).choices[0]
    assert len(answer.logprobs.content) <= 16
    for token in answer.logprobs.content:
        best = [other.logprob for other in token.top_logprobs]
        assert len(best) == 5 and best == sorted(best, reverse=True) and max(best) <= 0
        assert token.logprob == best[0] and token.token == token.top_logprobs[0].token, "greedy takes the best"
    bytes_of = bytes(byte for token in answer.logprobs.content for byte in token.bytes or [])
    assert answer.message.content in bytes_of.decode(errors="replace")
    parts = list(chat(client, logprobs=True, top_logprobs=5, stream=True))
    streamed = [token for part in parts for token in (part.choices[0].logprobs.content if part.choices else [])]
    assert streamed == answer.logprobs.content


def test_logprobs_of_completions(client):
    logprobs = complete(client, logprobs=3).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    for token, logprob, best in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert logprob <= 0 and best[token] >= logprob and len(best) <= 4


def test_token_ids(client):
    asked = {"return_token_ids": True}
    by_text = complete(client, extra_body=asked).choices[0]
    assert len(by_text.token_ids) <= 16
    by_ids = complete(client, prompt=by_text.prompt_token_ids, extra_body=asked).choices[0]
    assert (by_ids.text, by_ids.token_ids, by_ids.prompt_token_ids) == (
        by_text.text,
        by_text.token_ids,
        by_text.prompt_token_ids,
    )
    both = complete(client, prompt=[by_text.prompt_token_ids, by_text.prompt_token_ids[:3]], extra_body=asked)
    assert both.choices[0].token_ids == by_text.token_ids and len(both.choices) == 2
    answer = chat(client, extra_body=asked)
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    assert len(answer.choices[0].token_ids) == answer.usage.completion_tokens


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("temperature", {"temperature": 3}),
        ("n", {"n": 0}),
        ("top_p", {"top_p": 0}),
        ("stop", {"stop": ["x"] * 17}),
        ("logit_bias", {"logit_bias": {"x": 1}}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("reasoning_effort", {"reasoning_effort": "fairly high"}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("colour", {"extra_body": {"colour": "red"}}),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ],
)
def test_errors_name_the_field(client, field, more):
    with pytest.raises(BadRequestError) as caught:
        chat(client, **more)
    error = caught.value
    assert error.status_code == 400 and error.param == field and field.partition("[")[0] in error.message
    assert error.type == "invalid_request_error" and error.code


def test_a_wrong_model(client):
    for call in (complete, chat):
        with pytest.raises(NotFoundError) as caught:
            call(client, model="gpt-4")
        assert caught.value.param == "model" and caught.value.code == "model_not_found"


def test_a_prompt_beyond_the_context(client):
    with pytest.raises(BadRequestError) as caught:
        complete(client, prompt=[5] * 100_000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"


def wait_until_idle(url):
    limit = time.monotonic() + 60
    while True:
        found = metrics(url)
        load = [found[f"vllm:{name}"] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]
        if load == [0, 0, 0]:
            return found
        assert time.monotonic() < limit, f"running, waiting and pages are {load}"
        time.sleep(0.05)


def test_a_client_that_goes_away_frees_its_pages(client, url):
    before = wait_until_idle(url)
    longest = client.models.retrieve(MODEL).max_model_len
    # More requests than places, so that some go away while they run and some while they wait; each would run for long.
    streams = [
        chat(client, max_completion_tokens=longest // 2, n=3, stream=True, extra_body={"ignore_eos": True})
        for _ in range(6)
    ]
    for stream in streams[:2]:
        next(iter(stream))
    busy = metrics(url)
    assert busy["vllm:num_requests_running"] > 0 and busy["vllm:num_requests_waiting"] > 0
    assert busy["vllm:kv_cache_usage_perc"] > 0
    for stream in streams:
        stream.close()
    after = wait_until_idle(url)
    made = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
    assert made < 18 * (longest // 2), "the work ended with its clients"
    assert complete(client).choices[0].text
