"""The audit log: who changed what, and who was refused. Written in batches, so that no request waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from dayjob.app import Dayjob
from dayjob.errors import StoreError
from dayjob.kept import AuditRecord

BATCH_SECONDS = 0.25
MOST_WAITING = 10_000
MOST_STRANGERS = 20
"""Of those who came without a key so many are written in a batch: knocking must not fill the disk."""
STRANGER = "unknown"
logger = logging.getLogger("dayjob.server")


class Audit:
    """Takes entries at once, and writes them soon; all of them when it is flushed."""

    def __init__(self, app: Dayjob) -> None:
        self._app = app
        self._waiting: list[tuple[str, AuditRecord]] = []
        self._strangers = 0
        self._dropped = 0
        self._writing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def note(self, project: str, entry: AuditRecord) -> None:
        strange = entry.who == STRANGER
        if len(self._waiting) >= MOST_WAITING or (strange and self._strangers >= MOST_STRANGERS):
            self._dropped += 1
            return
        self._strangers += strange
        self._waiting.append((project, entry))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon())

    async def flush(self) -> None:
        """Writes what is waiting. What a failing store does not take is lost, and the log says so."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        if not await self._write():
            logger.error("%d entries of the audit log could not be written", len(self._waiting))

    async def _write_soon(self) -> None:
        while self._waiting:
            await asyncio.sleep(BATCH_SECONDS)
            await asyncio.shield(self._write())

    async def _write(self) -> bool:
        """Whether the store took what was waiting; else it waits on."""
        async with self._turn:
            return await self._write_batch()

    async def _write_batch(self) -> bool:
        batch, self._waiting, self._strangers = self._waiting, [], 0
        by_project: dict[str, list[AuditRecord]] = defaultdict(list)
        for project, entry in batch:
            by_project[project].append(entry)
        try:
            for project in list(by_project):
                await self._app.store.record(project, by_project[project])
                del by_project[project]
        except StoreError:
            left = [(project, entry) for project, entries in by_project.items() for entry in entries]
            self._waiting = left + self._waiting
            return False
        if self._dropped:
            logger.warning("%d entries of the audit log were dropped: too many at once", self._dropped)
            self._dropped = 0
        return True
