"""The code changes between a crash and the resume: the new code's result, and as much reuse as its path allows."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dayjob.testing import CrashLab, Death, Ended, Moment
from tests.property.programs import SIMPLE, Op, World, labelled, parts_of, played, programs, settled, walk

SIDE_BY_SIDE = 4
Program = tuple[Op, ...]


class Edit:
    """A program with one step inserted, removed, or edited, somewhere in it."""

    def __init__(self, program: Program, draw: Any) -> None:
        self.kept: set[str] = set()
        """What stands before the change, or beside it, and so is not touched by it."""
        self.program = self._edited(program, draw)

    def _edited(self, program: Program, draw: Any) -> Program:
        inner = [
            (index, number)
            for index, op in enumerate(program)
            for number, _ in enumerate(parts_of(op))
            if op[0] != "child"
        ]
        place = draw(st.sampled_from([None, *inner]))
        if place is not None:
            index, number = place
            op = program[index]
            self._keep(program[:index])
            if op[0] in ("gather", "map", "collect"):
                for other, part in enumerate(parts_of(op)):
                    if other != number:
                        self._keep(part)
            inside = self._edited(tuple(parts_of(op)[number]), draw)
            return (*program[:index], with_part(op, number, inside), *program[index + 1 :])
        how = draw(st.sampled_from(["insert", "remove", "edit"] if program else ["insert"]))
        index = draw(st.integers(0, len(program) - (how != "insert")))
        if how != "insert" and index == len(program) - 1 and _never_ends(program[-1]):
            how = "insert"  # what a race or a timeout needs to end in
        self._keep(program[:index])
        fresh = labelled([draw(st.sampled_from(SIMPLE))], itertools.count(1_000))
        return (*program[:index], *(fresh if how != "remove" else ()), *program[index + (how != "insert") :])

    def _keep(self, ops: Any) -> None:
        self.kept |= {op[1] for op in walk(ops)}


def _never_ends(op: Op) -> bool:
    return any(part[0] in ("raise", "block") or "never" in part[1] for part in walk([op]))


def with_part(op: Op, number: int, part: Program) -> Op:
    kind, label, *rest = op
    if kind in ("gather", "map", "collect", "all_fail"):
        parts = [*rest[0]]
        parts[number] = part
        return (kind, label, tuple(parts), *rest[1:])
    if kind == "vote":
        parts = [*rest[0], *rest[1]]
        parts[number] = part
        return (kind, label, tuple(parts[: len(rest[0])]), tuple(parts[len(rest[0]) :]), *rest[2:])
    if kind == "race":
        if number == 0:
            return (kind, label, part, rest[1])
        losers = [*rest[1]]
        losers[number - 1] = part
        return (kind, label, rest[0], tuple(losers))
    return (kind, label, part)


async def change_everywhere(lab: CrashLab, program: Program, edit: Edit, moment: Moment) -> None:
    calm = await played(lab, World(program))
    fresh = await played(lab, World(edit.program))
    deaths = [Death(write, moment) for write in range(1, calm.writes + 1)]
    while deaths:
        batch, deaths = deaths[:SIDE_BY_SIDE], deaths[SIDE_BY_SIDE:]
        worlds = [World(program, then=edit.program) for _ in batch]
        trials = await asyncio.gather(*map(played, [lab] * len(batch), worlds, batch))
        for world, ended in zip(worlds, trials, strict=True):
            check(calm, fresh, edit, world, ended)


def check(calm: Ended, fresh: Ended, edit: Edit, world: World, ended: Ended) -> None:
    shown = f"{ended.death}: {ended.run.reason}"
    over = ended.run.version == "v1"  # it died of its last write: nothing was left to do for the new code
    expected = calm if over else fresh
    assert (ended.status, ended.output, ended.error) == (expected.status, expected.output, expected.error), (
        shown
    )
    again = {label for label in settled(ended.durable) & edit.kept if world.after_death[label]}
    assert not again, f"{shown}: done again: {again}"


@given(data=st.data(), program=programs, moment=st.sampled_from(Moment))
def test_a_changed_job_gives_its_own_result_and_keeps_what_stands_before_the_change(
    bench: Any, data: Any, program: Program, moment: Moment
) -> None:
    edit = Edit(program, data.draw)
    bench.run(change_everywhere(bench.lab, program, edit, moment))
