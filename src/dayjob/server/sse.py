"""Server-sent events, as they go out: frames, heartbeats, and an end for clients that do not read.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT_SECONDS = 15.0
SLOW_SECONDS = 30.0
"""A client that takes nothing for so long loses its stream; it may come back with the last id that it saw."""
HEARTBEAT = b": ping\n\n"


def frame(name: str, data: Mapping[str, Any], id: str | None = None) -> bytes:
    """One event. A heartbeat is a comment, since clients read every event's data as JSON."""
    head = f"id: {id}\n" if id is not None else ""
    return b"%bevent: %b\ndata: %b\n\n" % (head.encode(), name.encode(), orjson.dumps(data))


class EventStream(Response):
    """An answer whose body is frames as they come. Nothing is kept for a client but what the connection holds."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(None, 200, {"x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone: asyncio.Future[Any] = asyncio.ensure_future(_until_gone(receive))
        coming: asyncio.Future[Any] | None = None
        try:
            while not gone.done():
                coming = coming or asyncio.ensure_future(anext(self._frames))
                done, _ = await asyncio.wait(
                    {coming, gone}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if coming in done:
                    try:
                        piece = coming.result()
                    except StopAsyncIteration:
                        break
                    finally:
                        coming = None
                elif gone.done():
                    return
                else:
                    piece = HEARTBEAT
                async with asyncio.timeout(SLOW_SECONDS):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            raise ClientTooSlow from None
        finally:
            for task in (gone, coming):
                if task is not None:
                    task.cancel()
            await asyncio.gather(
                *(task for task in (gone, coming) if task is not None), return_exceptions=True
            )
            await self._frames.aclose()


class ClientTooSlow(Exception):
    """A client did not take what it had asked for."""


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
