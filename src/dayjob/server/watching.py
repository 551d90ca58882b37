"""Clients that wait for a run to move: told by this process's events, or by one look at the store for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dayjob.app import Dayjob
from dayjob.errors import StoreError
from dayjob.runs import Status

ENDS = ("run.parked", "run.settled")
LOOK_SECONDS = 0.1
"""So late, at most, it is seen that a run moved which another process works on."""


class Watch:
    """One who waits for a run."""

    def __init__(self, seconds: float) -> None:
        self.seen: Status | None = None
        self.moved = asyncio.Event()
        self._until = time.monotonic() + seconds

    async def moves(self, seen: Status) -> bool:
        """Waits until the run may have another status than was `seen`. False: the time is up."""
        self.seen = seen
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                await self.moved.wait()
        except TimeoutError:
            return False
        self.moved.clear()
        return True


class Watches:
    """All who wait for runs of an app."""

    def __init__(self, app: Dayjob) -> None:
        self._app = app
        self._of_run: dict[str, set[Watch]] = {}
        self._looker: asyncio.Task[None] | None = None

    @contextmanager
    def on(self, run: str, seconds: float) -> Iterator[Watch]:
        """Watches a run for up to so many seconds; what happens from now on is not missed."""
        watch = Watch(seconds)

        def note(name: str, fields: dict[str, Any]) -> None:
            if name in ENDS:
                watch.moved.set()

        unsubscribe = self._app.subscribe(note, run)
        self._of_run.setdefault(run, set()).add(watch)
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look())
        try:
            yield watch
        finally:
            unsubscribe()
            watches = self._of_run[run]
            watches.discard(watch)
            if not watches:
                del self._of_run[run]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._of_run:
                return
            with contextlib.suppress(StoreError):  # it is looked at again
                statuses = await self._app.store.statuses(list(self._of_run))
                for run, watches in self._of_run.items():
                    for watch in watches:
                        if watch.seen is not None and statuses.get(run) != watch.seen:
                            watch.moved.set()
