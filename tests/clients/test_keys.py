"""A service that wants a key."""

import os

import pytest
from openai import AuthenticationError, OpenAI
from wire import metrics


def client(url, key):
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


def test_the_key_opens(url):
    (first, *_) = client(url, os.environ["CLIENTS_KEY"]).models.list()
    assert first.id == "builtin/smoke"


@pytest.mark.parametrize("key", ["wrong", os.environ.get("CLIENTS_KEY", "none")[:-1], "Bearer"])
def test_no_other_key_does(url, key):
    with pytest.raises(AuthenticationError) as caught:
        client(url, key).completions.create(model="smoke", prompt="a", max_tokens=1)
    assert caught.value.code == "invalid_api_key" and os.environ["CLIENTS_KEY"] not in str(caught.value)


def test_probes_need_none(url):
    assert metrics(url)["vllm:num_requests_running"] == 0
