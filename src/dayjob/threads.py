"""Threads of our own, which nothing waits for: what hangs in one holds up neither a worker's end nor Python's."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

MOST_THREADS = 64
_numbers = itertools.count(1)


Outcome = tuple[Any, BaseException | None]
"""A pair, since a future takes no StopIteration for an exception: who awaited it would wait for ever."""


class _Call(NamedTuple):
    function: Callable[[], Any]
    future: asyncio.Future[Outcome]


class Threads:
    """Calls functions in up to `MOST_THREADS` threads, each made when none is free. Used from one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """What the function returns or raises. A call that is given up while it waits for a thread is not made."""
        result: T = _result(await self.begin(function, *args))
        return result

    def begin(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Outcome]:
        loop = asyncio.get_running_loop()
        call = _Call(partial(contextvars.copy_context().run, function, *args), loop.create_future())
        self._calls.put(call)
        self._unfinished += 1
        if self._unfinished > len(self._threads) and len(self._threads) < MOST_THREADS:
            name = f"{self._name}-{next(_numbers)}"
            thread = threading.Thread(target=self._work, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return call.future

    def close(self) -> None:
        """Ends the threads that are free now, and the others when they are."""
        for _ in self._threads:
            self._calls.put(None)

    async def closed(self, seconds: float) -> None:
        """Waits for the threads to end, but not for those that hang."""
        deadline = time.monotonic() + seconds
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (call := self._calls.get()) is not None:
            outcome = _outcome(call)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._finish, call.future, outcome)
            del call, outcome  # else the thread would keep them until its next call

    def _finish(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        self._unfinished -= 1
        if not future.done():
            future.set_result(outcome)


def _outcome(call: _Call) -> Outcome:
    if call.future.cancelled():
        return None, None
    try:
        return call.function(), None
    except BaseException as problem:
        return None, problem


async def in_a_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread of its own: for what must be done even if every other thread hangs."""
    threads = Threads("dayjob-call")
    begun = threads.begin(function, *args)
    threads.close()
    outcome = await begun
    await threads.closed(1.0)
    result: T = _result(outcome)
    return result


def _result(outcome: Outcome) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value
