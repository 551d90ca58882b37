"""The crash lab itself: what it leaves behind."""

from __future__ import annotations

import asyncio

from dayjob import Run, job
from dayjob.runs import Kind
from dayjob.testing import CrashLab
from tests.until import until


@job
async def waits(run: Run) -> None:
    async with asyncio.timeout(10_000):
        await run.ask("ever?")


async def test_trials_that_are_left_behind_end_with_the_lab() -> None:
    before = asyncio.all_tasks()
    async with CrashLab() as lab:
        trials = [asyncio.create_task(lab.run(waits())) for _ in range(2)]

        async def all_wait() -> bool:
            runs = await lab.store.runs()
            return len(runs) == 2 and all([await lab.store.open_steps(run.id, [Kind.ASK]) for run in runs])

        await until(all_wait)
    assert all(trial.cancelled() for trial in trials)
    assert asyncio.all_tasks() == before
