"""Steps that write down when they are done, and runs whose workers die: what is done again is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dayjob.jobs import Request
from dayjob.testing import CrashLab, Death, Ended

executed: Counter[str] = Counter()
"""How often each step was done, in the test that runs: it is cleared before each."""


async def work(name: str, seen: Any = None) -> str:
    executed[name] += 1
    return f"{name} done"


async def fail(name: str) -> str:
    executed[name] += 1
    raise ValueError(name)


async def everywhere(lab: CrashLab, request: Request, **how: Any) -> list[Ended]:
    """How a run ends whose worker dies, at each of its writes in turn."""
    crashes = [ended async for ended in lab.at_every_write(request, **how)]
    assert len(crashes) > 6
    return crashes


async def after_death(
    lab: CrashLab, request: Request, death: Death, **how: Any
) -> tuple[Ended, Counter[str]]:
    """How a run ends whose worker dies, and what was done after that death."""
    executed.clear()
    before: Counter[str] = Counter()
    ended = await lab.run(request, death=death, on_death=lambda: before.update(executed), **how)
    return ended, executed - before
