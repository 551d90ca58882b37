"""Whatever the job, and wherever its worker dies: the same result, and nothing that was done is done again."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dayjob.testing import CrashLab, Death, Ended, Moment
from tests.property.programs import World, played, programs, settled, tries

SIDE_BY_SIDE = 4


async def crash_everywhere(lab: CrashLab, program: Any, moment: Moment) -> None:
    calm = await played(lab, World(program))
    deaths = [Death(write, moment) for write in range(1, calm.writes + 1)]
    while deaths:
        batch, deaths = deaths[:SIDE_BY_SIDE], deaths[SIDE_BY_SIDE:]
        worlds = [World(program) for _ in batch]
        for world, ended in zip(
            worlds, await asyncio.gather(*map(played, [lab] * len(batch), worlds, batch)), strict=True
        ):
            check(calm, world, ended)


def check(calm: Ended, world: World, ended: Ended) -> None:
    shown = f"{ended.death}: {ended.run.reason}"
    assert (ended.status, ended.output, ended.error) == (calm.status, calm.output, calm.error), shown
    assert not [warning for warning in ended.warnings if "not deterministic" in warning], shown
    again = {label for label in settled(ended.durable) if world.after_death[label]}
    assert not again, f"{shown}: done again: {again}"
    ran = world.before_death + world.after_death
    for label, times in tries(ended.steps).items():
        assert times <= ran[label] <= times + 1, f"{shown}: {label} ran {ran[label]} times, {times} rows"


@given(program=programs, moment=st.sampled_from(Moment))
def test_a_crash_at_any_write_changes_nothing(bench: Any, program: Any, moment: Moment) -> None:
    bench.run(crash_everywhere(bench.lab, program, moment))
