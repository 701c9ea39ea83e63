"""Many requests at once on the real engine: none is lost, none changes another one's text, and memory stays."""

import asyncio
import random
from pathlib import Path

from wire import ask, choices_of, connect, exchange, fetch, metrics, path_of, request_bytes

WORDS = "one two three four five six seven eight nine ten".split()


def words(random, count):
    return " ".join(random.choice(WORDS) for _ in range(count))


def mixed(seed, count):
    """Greedy requests of all kinds and lengths, some with a prefix that others have."""
    generator = random.Random(seed)
    shared = words(generator, 40)
    for number in range(count):
        prompt = words(generator, generator.randint(1, 60))
        if number % 3 == 0:
            prompt = f"{shared} {prompt}"
        request = {"temperature": 0, "max_tokens": generator.randint(1, 24), "return_token_ids": True}
        request["stream"] = generator.random() < 0.5
        if number % 2:
            request["prompt"] = prompt
        else:
            request["messages"] = [{"role": "user", "content": prompt}]
        if number % 5 == 0:
            request["n"] = 2
        if number % 7 == 0:
            request["logprobs"] = True if "messages" in request else 3
        yield request


def test_requests_together_say_what_they_say_alone(url, slow):
    async def run(seed):
        requests = list(mixed(seed, 32))
        alone = [await ask(url, request) for request in requests]
        together = await asyncio.gather(*(ask(url, request) for request in requests))
        for request, one, other in zip(requests, alone, together, strict=True):
            assert one == other, request

    for seed in range(8 if slow else 1):
        asyncio.run(run(seed))


CLIENTS = 2048

# What a wave may add to the memory of the process once there were two, in bytes. The first ones grow its queue, its tables
# of connections and the arenas of its allocator, which keep what was freed and fill in another order each time: over six
# waves 252, 265, 269, 272, 272 and 273 MiB were seen. This allows 8 KiB a request, less than the buffers of one
# connection, so that a connection, request or answer that is kept shows.
MORE_MEMORY = CLIENTS * 8192


def resident(pid):
    """Bytes of memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def wave(url, requests, expected):
    """Sends all requests over connections of their own, all open before the first is sent."""
    connections = await asyncio.gather(*(connect(url) for _ in requests))
    exchanges = [
        exchange(*connection, request_bytes(url, "POST", path_of(request), request))
        for connection, request in zip(connections, requests, strict=True)
    ]
    answers = asyncio.gather(*exchanges)
    most = 0
    while not answers.done():
        answer = await fetch(url, "GET", "/metrics")
        for line in answer.body.decode().splitlines():
            if line.startswith("vllm:num_requests_waiting"):
                most = max(most, float(line.split()[-1]))
        await asyncio.sleep(0.05)
    for request, answer, wanted in zip(requests, await answers, expected, strict=True):
        assert choices_of(answer, request) == wanted, request
    return most


def test_2048_clients_at_once(url, pid):
    generator = random.Random(2048)
    kinds = []
    for number in range(64):
        request = {"temperature": 0, "max_tokens": 1 + number % 8, "return_token_ids": True, "stream": number % 2 == 0}
        prompt = words(generator, generator.randint(1, 12))
        # Each kind once as a chat and once as a completion, streamed and not.
        kinds.append({**request, "prompt": prompt} if number // 2 % 2 else
                     {**request, "messages": [{"role": "user", "content": prompt}]})

    async def alone():
        return [await ask(url, request) for request in kinds]

    expected = asyncio.run(alone())
    order = list(range(len(kinds))) * (CLIENTS // len(kinds))
    generator.shuffle(order)
    before = metrics(url)
    held = []
    for _ in range(3):
        most = asyncio.run(wave(url, [kinds[at] for at in order], [expected[at] for at in order]))
        assert most > CLIENTS / 2, f"at most {most} requests waited: they did not come together"
        held.append(resident(pid))
    after = metrics(url)
    served = "vllm:request_generation_tokens_count"
    assert after[served] - before[served] == 3 * CLIENTS
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0
    print(f"memory after the waves: {[bytes >> 20 for bytes in held]} MiB")
    assert held[2] - held[1] <= MORE_MEMORY, f"{held[1]} bytes became {held[2]}"
