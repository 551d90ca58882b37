"""A model endpoint that says words at a fixed cadence, the first too, each with the moment at which it was sent.

    python bench/endpoint.py PORT WORDS CADENCE_MS

It speaks the Chat Completions stream. Moments are of the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    said = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "paced", "choices": [choice]}
    return b"data: " + json.dumps({**said, **more}).encode() + b"\n\n"


class Paced:
    """The endpoint as an ASGI app."""

    def __init__(self, words: int, cadence: float) -> None:
        self.words = words
        self.cadence = cadence

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun = time.monotonic()
        for number in range(self.words):
            await asyncio.sleep(max(begun + (number + 1) * self.cadence - time.monotonic(), 0))
            await self._say(send, chunk({"role": "assistant", "content": f"{time.monotonic():.6f} "}))
        usage = {"prompt_tokens": 10, "completion_tokens": self.words, "total_tokens": 10 + self.words}
        await self._say(send, chunk({}, "stop", usage=usage) + b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    async def _say(self, send: Callable[[Any], Awaitable[None]], body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})


if __name__ == "__main__":
    port, words, cadence = (float(each) for each in sys.argv[1:])
    uvicorn.run(Paced(int(words), cadence / 1000), host="127.0.0.1", port=int(port), log_level="error")
