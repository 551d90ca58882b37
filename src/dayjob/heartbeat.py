"""A thread that says "this worker lives", watches the event loop, and looks for changes by other processes."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Protocol

from dayjob.errors import DayjobError
from dayjob.stores import Beat, Store
from dayjob.threads import in_a_thread

BEAT_SECONDS = 3.0
LEASE_SECONDS = 15.0
POLL_SECONDS = 0.02
PULSE_SECONDS = 0.25
BLOCKED_SECONDS = 1.0
GIVE_UP_SECONDS = 300.0

logger = logging.getLogger("dayjob")


class Beating(Protocol):
    """The worker, as its heartbeat sees it. All but `acknowledged` are called on the event loop."""

    def acknowledged(self, beat: Beat) -> None: ...
    def beaten(self, beat: Beat) -> None: ...
    def changed(self, claimable: bool, held: Mapping[str, tuple[int, int]]) -> None: ...
    def blocked(self, seconds: float, step: str | None, stack: str) -> None: ...
    def step_in(self, task: asyncio.Task[object] | None) -> str | None: ...


class Heartbeat:
    """Beats every 3 s from its own connection; a loop that is blocked for 300 s stops the heart."""

    def __init__(
        self,
        store: Store,
        worker: Beating,
        worker_id: Callable[[], str],
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self._store = store
        self._worker = worker
        self._worker_id = worker_id
        self._beat_seconds = beat_seconds
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self._pulse = time.monotonic()
        self._reported = False
        self._thread = threading.Thread(target=self._run, name="dayjob-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    async def stopped(self) -> None:
        await in_a_thread(self._thread.join, 10)

    def _run(self) -> None:
        next_beat = next_pulse = time.monotonic()
        while not self._stop.wait(POLL_SECONDS):
            now = time.monotonic()
            try:
                if now >= next_pulse:
                    next_pulse = now + PULSE_SECONDS
                    self._watch(now)
                if now >= next_beat and now - self._pulse < GIVE_UP_SECONDS:
                    next_beat = now + self._beat_seconds
                    beat = self._store.beat(self._worker_id())
                    self._worker.acknowledged(beat)
                    self._loop.call_soon_threadsafe(self._worker.beaten, beat)
                change = self._store.changed(self._worker_id())
                if change is not None:
                    claimable, held = change
                    self._loop.call_soon_threadsafe(self._worker.changed, claimable, held)
            except DayjobError as problem:
                logger.warning("heartbeat: %s", problem)
                self._stop.wait(PULSE_SECONDS)
            except RuntimeError:  # the loop is closed
                return

    def _watch(self, now: float) -> None:
        """Reports, once, a loop that has not run for a second, and what it is in."""
        late = now - self._pulse
        if late < BLOCKED_SECONDS:
            self._reported = False
        elif not self._reported:
            self._reported = True
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001
            stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
            step = self._worker.step_in(asyncio.current_task(self._loop))
            if step is not None:
                logger.warning(
                    "the event loop has been blocked for %.1f s in step %s:\n%s", late, step, stack
                )
            self._loop.call_soon_threadsafe(self._worker.blocked, late, step, stack)
        self._loop.call_soon_threadsafe(self._feel)

    def _feel(self) -> None:
        self._pulse = time.monotonic()
