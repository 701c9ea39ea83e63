"""HTTP over a raw socket, and a reader of streams that forgives nothing.

The readers in client libraries skip what they do not know. This one refuses every byte that HTTP, the format of
server-sent events or OpenAI's chunks do not call for, so that a test fails where some client would.
"""

import asyncio
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

FINISH_REASONS = {"stop", "length", "tool_calls"}


class Refused(AssertionError):
    """Something that a strict client does not take."""


def demand(condition, what):
    if not condition:
        raise Refused(what)


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


def request_bytes(url, method, path, body=None, headers=()):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    payload = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


async def read_line(reader):
    line = await reader.readuntil(b"\r\n")
    return line[:-2]


async def read_head(reader):
    version, status, *_ = (await read_line(reader)).decode("ascii").split(" ", 2)
    demand(version == "HTTP/1.1" and len(status) == 3, f"a status line with {version} {status}")
    headers = {}
    while line := await read_line(reader):
        name, colon, value = line.decode("latin-1").partition(":")
        name = name.lower()
        demand(colon and name.strip() == name and name not in headers, f"the header {name!r}, broken or twice")
        headers[name] = value.strip()
    return int(status), headers


async def pieces(reader, headers):
    """The pieces of a body, which must be as long as its framing says, and nothing after it."""
    if headers.get("transfer-encoding") == "chunked":
        demand("content-length" not in headers, "two framings")
        while size := int(await read_line(reader), 16):
            yield await reader.readexactly(size)
            demand(await reader.readexactly(2) == b"\r\n", "a chunk longer than it says")
        demand(await read_line(reader) == b"", "trailers")
    else:
        yield await reader.readexactly(int(headers["content-length"]))
    demand(await reader.read() == b"", "bytes after the body")


async def connect(url):
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)


async def exchange(reader, writer, payload):
    """Sends a request over a connection and returns the whole answer."""
    try:
        writer.write(payload)
        await writer.drain()
        status, headers = await read_head(reader)
        return Answer(status, headers, b"".join([piece async for piece in pieces(reader, headers)]))
    finally:
        writer.close()


async def fetch(url, method, path, body=None, headers=()):
    return await exchange(*await connect(url), request_bytes(url, method, path, body, headers))


def metrics(url):
    """The gauges and counters of a service whose labels all say the same."""
    answer = asyncio.run(fetch(url, "GET", "/metrics"))
    lines = [line for line in answer.body.decode().splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0].partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def events(body):
    """The values of a stream's events, `[DONE]` last and left out."""
    text = body.decode("utf-8")
    demand(text.endswith("\n\n"), "an event without its empty line")
    found = text[:-2].split("\n\n")
    for event in found:
        demand(event.startswith("data: ") and "\n" not in event and "\r" not in event, f"an event of {event!r}")
    values = [event.removeprefix("data: ") for event in found]
    demand(values[-1] == "[DONE]" and "[DONE]" not in values[:-1], "`[DONE]` is not the last event, once")
    return [json.loads(value) for value in values[:-1]]


def of_kind(value, name, kind):
    demand(name in value, f"no `{name}` in {value}")
    # A boolean is an integer in Python, and in no protocol.
    demand(isinstance(value[name], kind) and not isinstance(value[name], bool), f"`{name}` is {value[name]!r}")
    return value[name]


@dataclass
class Choice:
    """A choice, put together from its deltas."""

    text: str = ""
    role: str | None = None
    finish: str | None = None
    tokens: tuple = ()
    reasoning: str = ""
    #: Names and arguments.
    calls: tuple = ()

    def add_call(self, call):
        """A call's first delta has id, type and name, on which strict clients insist; no later one has any of them."""
        function, begins = of_kind(call, "function", dict), call["index"] == len(self.calls)
        arguments = of_kind(function, "arguments", str)
        if begins:
            demand(of_kind(call, "id", str) and call.get("type") == "function", f"how a call begins: {call}")
            self.calls += ((of_kind(function, "name", str), arguments),)
        else:
            demand(call["index"] == len(self.calls) - 1, f"a call goes on after the next began: {call}")
            demand(set(call) == {"index", "function"} and set(function) == {"arguments"}, f"how a call goes on: {call}")
            *before, (name, so_far) = self.calls
            self.calls = (*before, (name, so_far + arguments))


def stream_of(chunks, chat, usage=False):
    """The choices of a stream by their index, and its usage."""
    demand(chunks, "no chunks")
    choices, totals, identity = {}, None, None
    for chunk in chunks:
        kind = "chat.completion.chunk" if chat else "text_completion"
        demand(of_kind(chunk, "object", str) == kind, f"the object {chunk['object']}")
        same = tuple(of_kind(chunk, name, of) for name, of in [("id", str), ("created", int), ("model", str)])
        demand(same[0].startswith("chatcmpl-" if chat else "cmpl-") and same[2], f"the id or model of {same}")
        demand(identity in (None, same), f"another id, time or model: {same}")
        identity = same
        demand(totals is None, "a chunk after the one with the usage")
        parts = of_kind(chunk, "choices", list)
        demand(("usage" in chunk) == usage, f"usage: {chunk}")
        if chunk.get("usage") is not None:
            demand(not parts, "usage beside choices")
            totals = chunk["usage"]
            demand(
                of_kind(totals, "prompt_tokens", int) + of_kind(totals, "completion_tokens", int)
                == of_kind(totals, "total_tokens", int),
                f"a usage of {totals}",
            )
            continue
        demand(parts, "a chunk without choices")
        for part in parts:
            index = of_kind(part, "index", int)
            first = index not in choices
            choice = choices.setdefault(index, Choice())
            demand(choice.finish is None, f"choice {index} goes on after its end")
            demand("finish_reason" in part, f"no `finish_reason` in {part}")
            choice.finish = part["finish_reason"]
            demand(choice.finish in FINISH_REASONS | {None}, f"the finish reason {choice.finish!r}")
            if chat:
                delta = of_kind(part, "delta", dict)
                demand(("role" in delta) == first, f"the role comes once, first: {part}")
                if first:
                    choice.role = delta["role"]
                    demand(choice.role == "assistant", f"the role {choice.role!r}")
                if "content" in delta:
                    choice.text += of_kind(delta, "content", str)
                demand(delta.get("reasoning") == delta.get("reasoning_content"), f"two names of one thing: {delta}")
                choice.reasoning += delta.get("reasoning", "")
                for call in delta.get("tool_calls", ()):
                    choice.add_call(call)
            else:
                choice.text += of_kind(part, "text", str)
            choice.tokens += tuple(part.get("token_ids", ()))
    demand(sorted(choices) == list(range(len(choices))), f"choices {sorted(choices)}")
    demand(all(choice.finish for choice in choices.values()), "a choice without an end")
    demand((totals is not None) == usage, "no usage at the end")
    return [choices[index] for index in sorted(choices)], totals


def choices_of(answer, request):
    """The choices that answer a request, streamed or not."""
    demand(answer.status == 200, f"{answer.status}: {answer.body[:300]}")
    kind = answer.headers["content-type"].partition(";")[0]
    chat = "messages" in request
    if request.get("stream"):
        demand(kind == "text/event-stream", f"a stream of type {kind}")
        usage = (request.get("stream_options") or {}).get("include_usage", False)
        return stream_of(events(answer.body), chat, usage)[0]
    demand(kind == "application/json", f"an answer of type {kind}")
    body = answer.json()
    demand(body["object"] == ("chat.completion" if chat else "text_completion"), f"the object {body['object']}")
    choices = []
    for index, choice in enumerate(body["choices"]):
        demand(choice["index"] == index and choice["finish_reason"] in FINISH_REASONS, f"the choice {choice}")
        message = choice["message"] if chat else {"content": choice["text"]}
        found = Choice(message["content"] or "", message.get("role"), choice["finish_reason"])
        found.tokens = tuple(choice.get("token_ids", ()))
        found.reasoning = message.get("reasoning") or ""
        functions = [call["function"] for call in message.get("tool_calls", ())]
        found.calls = tuple((function["name"], function["arguments"]) for function in functions)
        choices.append(found)
    return choices


def path_of(request):
    return "/v1/chat/completions" if "messages" in request else "/v1/completions"


async def ask(url, request):
    """Sends a request for text and returns its choices."""
    return choices_of(await fetch(url, "POST", path_of(request), request), request)
