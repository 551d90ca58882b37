"""A model that a test dictates to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dayjob.models import ModelReply, ModelRequest, Usage


class Dictated:
    """A model that says a word each time it is told to; None ends its answer."""

    name = "dictated"

    def __init__(self) -> None:
        self.words: asyncio.Queue[str | None] = asyncio.Queue()

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        said = ""
        while (word := await self.words.get()) is not None:
            on_text(word)
            said += word
        return ModelReply(said, (), Usage(1, 1, 0), 0.0, "stop")

    async def close(self) -> None:
        pass

    def say(self, *words: str | None) -> None:
        for word in words:
            self.words.put_nowait(word)
