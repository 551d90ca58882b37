"""A small HTTP server that speaks Chat Completions as a test tells it to: the far end of the wire.

    async with Wire(says("Hello there")) as wire:
        model = OpenAI("gpt-test", base_url=wire.url, api_key="sk-test")

It answers one request after the other from its script, and repeats the last answer. It keeps the
requests, and counts those whose connection the client closed before the answer was complete.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

PATIENCE_SECONDS = 20.0
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
}


@dataclass(frozen=True)
class Answer:
    """What goes over the wire: a status, headers, pieces of a body, and how it ends.

    `end` is "close" (complete), "hang" (complete never comes, the connection stays open) or "cut" (the
    connection breaks off). `seconds_between` is the cadence of the pieces.
    """

    pieces: tuple[bytes, ...] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    end: Literal["close", "hang", "cut"] = "close"
    seconds_between: float = 0.0


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: Any


Script = Answer | Callable[[Request], Answer]


class Wire:
    """The server; `url` is the base URL to give to a client, ending in /v1."""

    def __init__(self, *script: Script) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._arrived = asyncio.Semaphore(0)
        self._hung_up = asyncio.Semaphore(0)
        self._script = script
        self.open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self.open:
            connection.cancel()
        await asyncio.gather(*self.open, return_exceptions=True)
        await self._server.wait_closed()

    async def client_hung_up(self) -> None:
        """Waits until a client has closed its connection before the answer was complete."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._hung_up.acquire()

    async def request_arrived(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._arrived.acquire()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self.open.add(connection)
        connection.add_done_callback(self.open.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for request in _requests(reader):
                self.requests.append(request)
                self._arrived.release()
                script = self._script[min(len(self.requests), len(self._script)) - 1]
                answer = script if isinstance(script, Answer) else script(request)
                if not await self._send(answer, reader, writer):
                    break
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _send(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Sends the answer; false when the connection is of no more use."""
        sending = asyncio.create_task(_send(answer, writer))
        closing = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({sending, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._hung_up.release()
                return False
            return sending.result() and answer.end == "close"
        finally:
            for task in (sending, closing):
                task.cancel()
            await asyncio.gather(sending, closing, return_exceptions=True)


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[Request]:
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        yield Request(first.split()[1], headers, json.loads(body) if body else None)


async def _send(answer: Answer, writer: asyncio.StreamWriter) -> bool:
    headers = {
        "content-type": "text/event-stream",
        "transfer-encoding": "chunked",
        **answer.headers,
    }
    head = f"HTTP/1.1 {answer.status} Told\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    try:
        writer.write(head.encode() + b"\r\n")
        await writer.drain()
        for piece in answer.pieces:
            await asyncio.sleep(answer.seconds_between)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        if answer.end == "hang":
            await asyncio.Event().wait()
        if answer.end == "cut":
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    except ConnectionError:
        return False
    return True


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chunk(delta: Mapping[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of the stream; without a delta it has no choices, like the one with the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-test-1",
            "choices": choices,
            **more,
        }
    )


def says(
    *texts: str,
    finish: str = "stop",
    usage: Mapping[str, Any] | None = USAGE,
    end: Literal["close", "hang", "cut"] = "close",
    seconds_between: float = 0.0,
    **more: Any,
) -> Answer:
    """A complete stream that says the texts, each as one delta; `more` stands in every chunk."""
    return stream(
        chunk({"role": "assistant", "content": ""}, **more),
        *(chunk({"content": text}, **more) for text in texts),
        chunk({}, finish, **more),
        *([] if usage is None else [chunk(usage=usage, **more)]),
        end=end,
        seconds_between=seconds_between,
    )


def calls(name: str, *arguments: str, call_id: str | None = "call_1") -> Answer:
    """A complete stream with one tool call, whose arguments come in pieces."""
    opening = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    return stream(
        chunk({"role": "assistant", "content": None, "tool_calls": [opening]}),
        *(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in arguments),
        chunk({}, "tool_calls"),
        chunk(usage=USAGE),
    )


def stream(
    *events: bytes,
    end: Literal["close", "hang", "cut"] = "close",
    seconds_between: float = 0.0,
) -> Answer:
    """Events and, when the stream is complete, the [DONE] that ends it."""
    done = (event("[DONE]"),) if end == "close" else ()
    return Answer((*events, *done), end=end, seconds_between=seconds_between)


def fails(status: int, error: Any = None, **headers: str) -> Answer:
    """An error with its JSON body (a str is sent as it is); `retry_after="2"` is a header."""
    body = error if isinstance(error, str) else json.dumps({"error": error})
    kind = "text/html" if isinstance(error, str) else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer((body.encode(),), status=status, headers={"content-type": kind, **named})


def hangs() -> Answer:
    """Headers, and then nothing."""
    return Answer(end="hang")


def garbage(body: str, content_type: str = "text/event-stream") -> Answer:
    return Answer((body.encode(),), headers={"content-type": content_type})
