"""Server-sent events: a stream that a client may leave at any point, and come back to.

It holds nothing for a client that does not read: the next event is made when the last one was taken. One
that takes nothing for a while is let go of by `listening`, as is one that is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from dayjob.errors import DayjobError
from dayjob.values import json_of

HEARTBEAT = b": still here\n\n"
"""A comment: clients read the data of every event as JSON."""
logger = logging.getLogger("dayjob.server")


def frame(name: str, data: Mapping[str, Any], id: str | None = None) -> bytes:
    """An event, as it goes over the wire."""
    head = b"" if id is None else b"id: %b\n" % id.encode()
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), json_of(data, str))


class EventStream(Response):
    """Answers with what a generator gives, until it ends or the client is gone; closes it in any case.

    `last_words` are what is said when the server stops.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        headers: Mapping[str, str] | None = None,
        last_words: bytes = b"",
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._chunks = chunks
        self._last_words = last_words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["last_words"] = self._last_words
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            await self._chunks.aclose()
        if not writing.cancelled() and (problem := writing.exception()):
            raise problem

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except DayjobError as problem:  # the client comes back, and is told by then
            logger.warning("a stream broke off: %s", problem)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
