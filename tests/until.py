"""Waiting in tests: for a condition, with a deadline, never for luck."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

from dayjob import Dayjob


async def until(condition: Callable[[], Any], seconds: float = 15.0, what: str = "") -> Any:
    """The first true value of a condition, sync or async. Raises AssertionError when it stays false."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what or condition}"
        await asyncio.sleep(0.005)


async def is_finished(app: Dayjob, run: str, key: str) -> bool:
    return any(step.key == key and step.outcome for step in await app.steps(run))


async def turns(count: int = 50) -> None:
    """Lets whatever is ready to run do so, that many times."""
    for _ in range(count):
        await asyncio.sleep(0)
