"""Structured output, as OpenAI's own client asks for it. The model is random, so the grammar alone makes sense."""

import json
from typing import Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, ConfigDict, Field

MODEL = "smoke"
MESSAGES = [{"role": "user", "content": "Describe a cat."}]


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Literal["black", "white", "ginger"]
    lives: int = Field(ge=0, le=9)
    tame: bool


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def settings(**more):
    return {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 200, "temperature": 1, "seed": 3, **more}


def test_a_model_of_pydantic_is_parsed(client):
    choice = client.chat.completions.parse(**settings(), response_format=Cat).choices[0]
    assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Cat)


def test_choices_and_expressions(client):
    for structured, fits in (
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[a-c]{3}"}, lambda text: len(text) == 3 and set(text) <= set("abc")),
        ({"json": {"const": [1, 2]}}, lambda text: json.loads(text) == [1, 2]),
    ):
        answer = client.chat.completions.create(**settings(), extra_body={"structured_outputs": structured})
        assert fits(answer.choices[0].message.content)


def test_a_wrong_schema_is_refused(client):
    schema = {"name": "x", "schema": {"type": "text"}}
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**settings(), response_format={"type": "json_schema", "json_schema": schema})
    assert caught.value.param == "response_format.json_schema.schema"
