"""Images that clients uploaded, shown to models: as data, in the request that goes out, and nowhere else.

What is kept of a prompt is the reference. So each call reads the files again, and a file that was deleted
meanwhile is not shown any more.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dayjob.models import Message, Model, ModelReply, ModelRequest, Priced, Usage
from dayjob.run import Run
from dayjob.server.files import KIND
from dayjob.server.settings import MEGABYTE
from dayjob.stores import Store

MOST_IMAGE_BYTES = 20 * MEGABYTE
MOST_BYTES_OF_A_REQUEST = 50 * MEGABYTE
HEAD_BYTES = 12
FORMATS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
"""By how a file begins: what it is. Its name, and what its client says of it, count for nothing."""
NOT_THERE = "there is no such file"
NO_IMAGE = "it is no PNG, JPEG, GIF or WebP image"
TOO_LARGE = f"it is larger than {MOST_IMAGE_BYTES:,} bytes"
TOO_MANY = f"with it, the images of this request are larger than {MOST_BYTES_OF_A_REQUEST:,} bytes"
NOT_SHOWN = "[The image {id} is not shown: {why}.]"


class Unseen(Exception):
    """An image that cannot be shown, and why."""


def seeing(folder: Path) -> Callable[[Run, Model], Model]:
    """Makes a run's model one that sees the images among the files in this folder."""
    return lambda run, model: Seeing(model, run.journal.store, run.keeper.record.project, folder)


class Seeing:
    """A model, given each `image_file` part of a message as an image; one that cannot be shown, as a text about it."""

    def __init__(self, model: Model, store: Store, project: str, folder: Path) -> None:
        self._model = model
        self._store = store
        self._project = project
        self._folder = folder

    @property
    def name(self) -> str:
        return self._model.name

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        shown = replace(request, messages=await self._shown(request.messages))
        return await self._model.reply(shown, on_text)

    def price(self, request: ModelRequest, usage: Usage) -> float | None:
        return self._model.price(request, usage) if isinstance(self._model, Priced) else None

    async def close(self) -> None:
        """It is the worker's to close."""

    async def _shown(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, with their images; the newest ones, where there is no room for all."""
        if not any(_is_reference(part) for message in messages for part in _parts(message)):
            return list(messages)
        room, shown = MOST_BYTES_OF_A_REQUEST, []
        for message in reversed(messages):
            parts = []
            for part in reversed(list(_parts(message))):
                if _is_reference(part):
                    part, size = await self._part(message, part["image_file"], room)
                    room -= size
                parts.append(part)
            shown.append({**message, "content": parts[::-1]} if parts else message)
        return shown[::-1]

    async def _part(
        self, message: Message, wanted: Mapping[str, Any], room: int
    ) -> tuple[dict[str, Any], int]:
        """An image as a part of a message, and its bytes."""
        id = wanted["file_id"]
        try:
            if message["role"] != "user":
                raise Unseen("models are shown images by users only")
            kind, data = await self._image(id, room)
        except Unseen as problem:
            return {"type": "text", "text": NOT_SHOWN.format(id=id, why=problem)}, 0
        url = f"data:{kind};base64,{await asyncio.to_thread(_encoded, data)}"
        detail = wanted.get("detail") or "auto"
        return {"type": "image_url", "image_url": {"url": url, "detail": detail}}, len(data)

    async def _image(self, id: str, room: int) -> tuple[str, bytes]:
        if await self._store.object(self._project, KIND, id) is None:
            raise Unseen(NOT_THERE)
        return await asyncio.to_thread(_read, self._folder / id, room)


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    content = message.get("content")
    yield from content if isinstance(content, list) else ()


def _is_reference(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "image_file"


def _read(path: Path, room: int) -> tuple[str, bytes]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        kind = _kind_of(file.read(HEAD_BYTES))
        if path.stat().st_size > MOST_IMAGE_BYTES:
            raise Unseen(TOO_LARGE)
        if path.stat().st_size > room:
            raise Unseen(TOO_MANY)
        file.seek(0)
        return kind, file.read()
    raise Unseen(NOT_THERE)


def _kind_of(head: bytes) -> str:
    if head.startswith(b"RIFF") and head[8:] == b"WEBP":
        return "image/webp"
    for start, kind in FORMATS.items():
        if head.startswith(start):
            return kind
    raise Unseen(NO_IMAGE)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
