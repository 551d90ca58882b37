"""The least that a server before a model endpoint can do: it tells its words as events, and keeps nothing.

    python bench/passthrough.py PORT ENDPOINT

It is made of the libraries that `dayjob serve` is made of, uvicorn and aiohttp, and nothing else: no check, no
store, no run. What it adds to a stream is the limit for a server of these.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import uvicorn

RUN = {
    "id": "run_1", "object": "thread.run", "created_at": 1, "thread_id": "thread_1", "assistant_id": "asst_1",
    "status": "queued", "instructions": "", "model": "paced", "tools": [], "metadata": {}, "usage": None,
}  # fmt: skip
STEP = {
    "id": "step_1", "object": "thread.run.step", "created_at": 1, "run_id": "run_1", "thread_id": "thread_1",
    "assistant_id": "asst_1", "type": "message_creation", "status": "in_progress",
    "step_details": {"type": "message_creation", "message_creation": {"message_id": "msg_1"}},
}  # fmt: skip
MESSAGE = {
    "id": "msg_1", "object": "thread.message", "created_at": 1, "thread_id": "thread_1", "role": "assistant",
    "status": "in_progress", "content": [], "metadata": {},
}  # fmt: skip
BEGUN = [("thread.run.created", RUN), ("thread.run.queued", RUN), ("thread.run.in_progress", RUN)]
SPEAKING = [
    ("thread.run.step.created", STEP), ("thread.run.step.in_progress", STEP),
    ("thread.message.created", MESSAGE), ("thread.message.in_progress", MESSAGE),
]  # fmt: skip


def frames(*events: tuple[str, dict[str, Any]]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data)) for name, data in events)


def word(said: str) -> tuple[str, dict[str, Any]]:
    text = {"index": 0, "type": "text", "text": {"value": said}}
    return "thread.message.delta", {
        "id": "msg_1", "object": "thread.message.delta", "delta": {"content": [text]},
    }  # fmt: skip


class PassThrough:
    """The server as an ASGI app."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._client: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        said = frames(*BEGUN)
        before = SPEAKING
        await send({"type": "http.response.body", "body": said, "more_body": True})
        async for each in self._words():
            await send({"type": "http.response.body", "body": frames(*before, word(each)), "more_body": True})
            before = []
        said = frames(("thread.run.completed", RUN)) + b"event: done\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": said})

    async def _words(self) -> AsyncIterator[str]:
        body = {"model": "paced", "stream": True, "messages": [{"role": "user", "content": "Speak."}]}
        self._client = self._client or aiohttp.ClientSession()
        async with self._client.post(f"{self._endpoint}/v1/chat/completions", json=body) as response:
            rest = b""
            async for piece in response.content.iter_any():
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    if event != b"data: [DONE]":
                        (choice,) = orjson.loads(event.removeprefix(b"data: "))["choices"]
                        if said := choice["delta"].get("content"):
                            yield said


if __name__ == "__main__":
    port, endpoint = sys.argv[1:]
    uvicorn.run(PassThrough(endpoint), host="127.0.0.1", port=int(port), log_level="error")
