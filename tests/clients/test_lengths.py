"""Prompts of every length, and nothing compiled on their way."""

import asyncio
import random

from wire import ask, fetch, metrics

AT_ONCE = 8

# Below this, every length; of those above, some, and so many of the longest.
EVERY = 1024
SOME = 64
LONGEST = 16


def test_no_length_needs_a_program_that_is_not_there(url):
    models = asyncio.run(fetch(url, "GET", "/v1/models")).json()
    longest = models["data"][0]["max_model_len"]
    generator = random.Random(longest)
    # Every length would take hours where the context is long: there every one near the sizes of steps and blocks, the
    # longest, and some in between.
    lengths = list(range(1, min(longest, EVERY)))
    between = range(EVERY, longest - LONGEST)
    lengths += [*generator.sample(between, min(SOME, len(between))), *range(max(EVERY, longest - LONGEST), longest)]
    generator.shuffle(lengths)
    before = metrics(url)

    async def client(turn):
        for length in lengths[turn::AT_ONCE]:
            request = {
                "prompt": [generator.randint(5, 250) for _ in range(length)],
                "max_tokens": min(4, longest - length),
                "temperature": 0,
                # Nothing comes from the cache.
                "cache_salt": f"{length}",
                "return_token_ids": True,
                "ignore_eos": True,
            }
            (choice,) = await ask(url, request)
            assert len(choice.tokens) == request["max_tokens"], f"a prompt of {length} tokens"

    async def clients():
        await asyncio.gather(*(client(turn) for turn in range(AT_ONCE)))

    asyncio.run(clients())
    after = metrics(url)
    assert after["vllm:prompt_tokens_total"] - before["vllm:prompt_tokens_total"] == sum(lengths)
    assert after["vllm:prefix_cache_hits_total"] == before["vllm:prefix_cache_hits_total"]
    assert after["gemma4ctl:compiles_while_serving_total"] == before["gemma4ctl:compiles_while_serving_total"] == 0
