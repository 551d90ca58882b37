"""Who does a piece of work: a function of the run, in a scope of its own, or a job, as a child run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dayjob.jobs import Job
from dayjob.run import Run
from dayjob.shapes import shape_of
from dayjob.steps import awaited


async def delegate(run: Run, to: Job | Callable[..., Any], *args: Any, name: str) -> Any:
    """What `to(run, *args)` returns; a job is given the arguments as its input, and waited for."""
    if isinstance(to, Job):
        child = await run.start(to(*args), name=name)
        return await child.result()
    return await run.step(_scoped(to), *args, name=name)


def _scoped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one that says it takes a Run: `run.step` then gives it a scope."""

    async def inside(run: Run, *args: Any) -> Any:
        return await awaited(fn(run, *args))

    inside.__annotations__["return"] = shape_of(fn).returns
    return inside
