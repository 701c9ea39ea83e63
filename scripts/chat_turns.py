#!/usr/bin/env python3
"""Time to the first token of each turn of a chat: what prefix caching keeps cheap.

    gemma4ctl apply smoke --target local --detach --yes
    python3 scripts/chat_turns.py http://127.0.0.1:8000 [--turns 10] [--words 300] [--answer 64]

Each turn sends the whole chat so far and a new message. Beside it stands the same chat with another first word, which no
cache can know: what the turn would cost without one. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import urllib.request


def ask(url: str, messages: list[dict], answer: int) -> tuple[float, str, dict]:
    """Seconds to the first piece of text, the text, and what the server counted."""
    body = {
        "model": json.load(urllib.request.urlopen(f"{url}/v1/models"))["data"][0]["id"],
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": answer,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start, first, text, usage = time.perf_counter(), None, [], {}
    with urllib.request.urlopen(request) as stream:
        for line in stream:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                piece = choice["delta"].get("content")
                if piece:
                    first = first or time.perf_counter() - start
                    text.append(piece)
    return first or float("nan"), "".join(text), usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--words", type=int, default=300, help="of each message")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    args = parser.parse_args()
    draw = random.Random(args.seed)

    def message() -> str:
        return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 7))) for _ in range(args.words))

    print("turn  prompt  cached  first token  without the cache")
    chat: list[dict] = []
    for turn in range(1, args.turns + 1):
        chat.append({"role": "user", "content": message()})
        seconds, text, usage = ask(args.url, chat, args.answer)
        unknown = [{"role": "user", "content": f"{turn} {draw.random()} {chat[0]['content']}"}, *chat[1:]]
        without, _, _ = ask(args.url, unknown, 1)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        print(f"{turn:4}  {usage['prompt_tokens']:6}  {cached:6}  {seconds * 1e3:8.0f} ms  {without * 1e3:14.0f} ms", flush=True)
        chat.append({"role": "assistant", "content": text})


main()
