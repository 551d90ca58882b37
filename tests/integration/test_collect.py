"""`run.collect`: branches that are all heard out, that become more while they run, and what is done after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from dayjob import Dayjob, Limits, Run, StepError, job
from dayjob.collection import Err, Ok
from dayjob.jobs import Job
from dayjob.runs import Kind, Outcome, Status
from dayjob.testing import CrashLab, Death, Moment
from tests.ledger import after_death, everywhere, executed, fail, work
from tests.until import until


async def halve(run: Run, size: int) -> int:
    """A piece of work that turns out to be larger: its other half is work beside it."""
    await run.step(work, f"look at {size}")
    if size > 1:
        await run.more(size // 2)
        await run.more(size - size // 2)
        await run.step(work, f"half of {size}")
    return size


def told(outcomes: list[Ok | Err]) -> list[Any]:
    return [one.value if isinstance(one, Ok) else one.error.type for one in outcomes]


@job
async def grows(run: Run, sizes: list[int], limit: int | None = None) -> list:
    outcomes = await run.collect(halve, sizes, limit=limit)
    await run.step(work, "end")
    return [told(outcomes), [one.item for one in outcomes]]


async def done_once(lab: CrashLab, request: Any, calm: Any, **how: Any) -> None:
    executed.clear()
    for crashed in await everywhere(lab, request, **how):
        assert (crashed.output, crashed.error) == (calm.output, calm.error), crashed.death
        assert not crashed.warnings, crashed.warnings
        rows = [step for step in crashed.steps if step.outcome != Outcome.SUPERSEDED]
        assert len({row.key for row in rows}) == len(rows)
        keys = {row.key for row in rows if row.kind != Kind.VALUE}
        assert keys == {row.key for row in calm.steps if row.kind != Kind.VALUE}, crashed.death


@pytest.mark.parametrize("limit", [None, 1])
async def test_added_branches_stand_behind_the_others_by_who_added_them(
    lab: CrashLab, limit: int | None
) -> None:
    ended = await lab.run(grows(sizes=[1, 4, 2], limit=limit))
    assert ended.output == [[1, 4, 2, 2, 1, 1, 2, 1, 1, 1, 1]] * 2
    assert executed["look at 1"] == 7


async def test_a_crash_changes_nothing_of_what_was_added(lab: CrashLab) -> None:
    request = grows(sizes=[3, 1])
    await done_once(lab, request, await lab.run(request))


async def test_keys_need_not_be_text(lab: CrashLab) -> None:
    @job
    async def numbered(run: Run) -> list:
        outcomes = await run.collect(halve, [3], key=lambda size: size, limit=1)
        return [one.item for one in outcomes]

    ended = await lab.run(numbered())
    assert ended.output == [3, 1, 2], ended.run.reason
    assert "collect/3" in {step.key for step in ended.steps}


@job
async def adds_what_does_not_fit(run: Run) -> list:
    async def branch(inside: Run, size: int) -> int:
        if size == 1:
            await inside.step(work, "before")
            await inside.more("another")
        return size

    outcomes = await run.collect(branch, [1, 2])
    await run.step(work, "end")
    return told(outcomes)


async def test_an_item_of_the_wrong_type_fails_who_added_it_whatever_dies(lab: CrashLab) -> None:
    request = adds_what_does_not_fit()
    calm = await lab.run(request)
    assert calm.output == ["InvalidResult", 2]
    await done_once(lab, request, calm)


@job
async def votes(run: Run) -> list:
    async def vote(inside: Run, number: int) -> str:
        for _ in range(number):
            await inside.step(work, f"think {number}")
        return await inside.step(fail if number == 0 else work, f"vote {number}")

    outcomes = await run.collect(vote, [9, 0, 1, 2, 3], quorum=2)
    return told(outcomes)


async def test_a_quorum_cancels_who_still_runs(lab: CrashLab) -> None:
    ended = await lab.run(votes())
    assert ended.output == ["Cancelled", "ValueError", "vote 1 done", "vote 2 done", "Cancelled"]
    rows = {step.key: step.outcome for step in ended.steps}
    assert rows["collect/0"] == rows["collect/4"] == Outcome.CANCELLED
    assert executed["vote 9"] == 0


async def test_a_quorum_stands_whatever_dies(lab: CrashLab) -> None:
    for crashed in await everywhere(lab, votes()):
        assert sorted(crashed.output).count("Cancelled") == 2
        assert not crashed.warnings


@dataclass
class Errand:
    name: str
    needs: list[str]


@job
async def one_leads_to_another(run: Run) -> list:
    heard: list[str] = []
    waiting = [Errand("c", ["a"]), Errand("d", ["b", "c"]), Errand("e", ["a"])]

    async def go(inside: Run, errand: Errand) -> str:
        return await inside.step(fail if errand.name == "e" else work, errand.name)

    async def after(inside: Run, outcome: Ok | Err) -> None:
        heard.append(outcome.item.name)
        await inside.step(work, f"after {outcome.item.name}")
        for errand in [errand for errand in waiting if set(errand.needs) <= set(heard)]:
            waiting.remove(errand)
            await inside.more(errand)

    outcomes = await run.collect(
        go, [Errand("a", []), Errand("b", [])], key=lambda errand: errand.name, after=after
    )
    return [[one.item.name for one in outcomes], told(outcomes)]


async def test_what_comes_after_a_branch_may_add_others(lab: CrashLab) -> None:
    ended = await lab.run(one_leads_to_another())
    names, values = ended.output
    assert names[:2] == ["a", "b"]
    assert sorted(names[2:]) == ["c", "d", "e"]
    assert dict(zip(names, values, strict=True))["e"] == "ValueError"
    assert {step.key for step in ended.steps} >= {"collect/#after/work", "collect/c/work", "collect/d#more"}
    assert all(executed[f"after {name}"] == 1 for name in "abcde")


async def test_the_order_of_what_comes_after_stands_whatever_dies(lab: CrashLab) -> None:
    for crashed in await everywhere(lab, one_leads_to_another()):
        assert crashed.status == Status.COMPLETED, crashed.run.reason
        assert not crashed.warnings, crashed.warnings
        assert sorted(crashed.output[0]) == ["a", "b", "c", "d", "e"]


@job
async def many(run: Run, items: int) -> int:
    heard: list[int] = []

    async def branch(inside: Run, n: int) -> int:
        return n

    async def after(inside: Run, outcome: Ok | Err) -> None:
        heard.append(outcome.item)

    await run.collect(branch, range(items), after=after)
    return len(heard)


async def test_ten_thousand_items_end_while_somebody_waits(lab: CrashLab) -> None:
    assert (await lab.run(many(items=10_000))).output == 10_000


@job
async def gives_up(run: Run) -> str:
    async def after(inside: Run, outcome: Ok | Err) -> None:
        raise ValueError("enough")

    try:
        await run.collect(lambda inside, name: inside.step(work, name), ["a", "b"], after=after)
    except StepError as error:
        await run.step(work, "caught")
        return str(error)
    return "not reached"


async def test_an_error_after_a_branch_ends_the_collection(lab: CrashLab) -> None:
    request = gives_up()
    assert (await lab.run(request)).output == "ValueError: enough"
    for crashed in await everywhere(lab, request):
        assert crashed.output == "ValueError: enough"


@job
async def asks_while_it_grows(run: Run) -> list:
    async def branch(inside: Run, n: int) -> int:
        if n < 2:
            await inside.more(n + 1)
        return n + await inside.ask(f"How many, {n}?", returns=int)

    async def after(inside: Run, outcome: Ok | Err) -> None:
        await inside.ask(f"Fine, {outcome.item}?", name="fine")

    return told(await run.collect(branch, [0], after=after))


async def test_it_leaves_memory_while_all_of_it_waits(lab: CrashLab) -> None:
    async def answers(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions[:1]:
            await app.answer(run, action.id, "yes" if "fine" in action.id else 10)
        return bool(actions)

    request = asks_while_it_grows()
    calm = await lab.run(request, outside=answers)
    assert calm.output == [10, 11, 12]
    await done_once(lab, request, calm, outside=answers)


async def test_a_limit_ends_it(lab: CrashLab) -> None:
    ended = await lab.run(grows(sizes=[4]), limits=Limits(steps=3))
    assert ended.status == Status.INCOMPLETE


async def test_cancelling_the_run_cancels_its_branches() -> None:
    async with CrashLab() as lab, Dayjob(lab.store) as app:
        handle = await app.submit(asks_while_it_grows())
        await until(lambda: app.actions(handle.id))
        await handle.cancel()

        async def over() -> bool:
            return (await handle.status()) == Status.CANCELLED

        await until(over)


async def test_an_empty_collection_is_empty(lab: CrashLab) -> None:
    assert (await lab.run(grows(sizes=[]))).output == [[], []]


@job
async def adds_nowhere(run: Run) -> None:
    await run.more(1)


async def test_more_outside_a_collection_is_refused(lab: CrashLab) -> None:
    ended = await lab.run(adds_nowhere())
    assert "only a branch of run.collect" in (ended.run.reason or "")


@job
async def adds_from_inside(run: Run) -> list:
    async def inner(deep: Run) -> None:
        await deep.more(1)

    async def branch(inside: Run, how: str) -> None:
        await (inside.step(inner) if how == "step" else inside.gather(inner))

    outcomes = await run.collect(branch, ["step", "gather"])
    return [str(one.error) for one in outcomes if isinstance(one, Err)]


async def test_more_in_a_scope_inside_a_branch_is_refused(lab: CrashLab) -> None:
    ended = await lab.run(adds_from_inside())
    assert ["not a scope inside it" in told for told in ended.output] == [True, True]


@pytest.mark.parametrize("old", [grows, one_leads_to_another, votes], ids=lambda job: job.name)
async def test_newer_code_that_does_the_same_reuses_all_of_it(lab: CrashLab, old: Any) -> None:
    first, second = (job(name=old.name, version=version)(old.fn) for version in ("1", "2"))
    request = first(sizes=[3, 1]) if old is grows else first()
    for write in range(3, 40, 2):
        crashed = await lab.run(request, death=Death(write), then=[second])
        if crashed.death is None:
            break
        assert crashed.status == Status.COMPLETED, crashed.run.reason
        done = {(step.key, step.attempt) for step in crashed.durable if step.kind == Kind.CALL}
        now = {(step.key, step.attempt) for step in crashed.steps if step.outcome != Outcome.SUPERSEDED}
        assert done <= now, crashed.death
        calls = [step.key for step in crashed.steps if step.kind == Kind.CALL]
        assert len(set(calls)) == len(calls), crashed.death


def growing(version: str) -> Job:
    async def grows_once(run: Run) -> list:
        async def branch(inside: Run, n: int) -> int:
            await inside.step(work, f"begin {n}")
            if n == 0:
                await inside.more(2)
                await inside.step(work, f"{version} of {n}")
            for each in range(5 * n):
                await inside.step(work, f"go on {each}")
            return n

        return told(await run.collect(branch, [0, 1]))

    return Job(grows_once, "grows_once", version)


async def test_what_was_added_outlives_a_change_of_the_code_and_the_next_crash(lab: CrashLab) -> None:
    old, new = growing("v1"), growing("v2")
    for first in range(4, 8):
        for second in range(3, 8):
            deaths = (Death(first), Death(second))
            assert (await lab.run(old(), death=deaths, then=[new])).output == [0, 1, 2], deaths


def shifted(version: str) -> Job:
    async def shifts(run: Run) -> list:
        async def branch(inside: Run, n: int) -> int:
            if n < 3:
                await inside.more(n + 1)
            if n == 0 and version == "v2":
                await inside.step(work, "what is new")
            await inside.step(work, f"work {n}")
            return n

        return told(await run.collect(branch, [0], limit=1))

    return Job(shifts, "shifts", version)


async def test_a_branch_that_takes_another_path_leaves_the_others_what_they_added(lab: CrashLab) -> None:
    old, new = shifted("v1"), shifted("v2")
    for write in range(4, (await lab.run(old())).writes):
        ended, again = await after_death(lab, old(), Death(write, Moment.UNHEARD), then=[new])
        assert ended.output == [0, 1, 2, 3], ended.run.reason
        kept = {orjson.loads(step.input or b"[0]")[0] for step in ended.durable if step.kind == Kind.CALL}
        if ended.run.version == "v2":
            assert not set(again) & (kept - {"work 0"}), (write, again)


def heard_in_turn(version: str) -> Job:
    async def hears(run: Run) -> None:
        async def branch(inside: Run, n: int) -> None:
            await inside.step(work, f"begin {n}")
            if n == 0 and version == "v2":
                await inside.step(work, "what is new")

        async def after(inside: Run, outcome: Ok | Err) -> None:
            for each in range(3):
                await inside.step(work, f"after {outcome.item}: {each}")

        await run.collect(branch, [0, 1], after=after)

    return Job(hears, "hears", version)


async def test_newer_code_hears_in_the_same_order_after_the_next_crash(lab: CrashLab) -> None:
    old, new = heard_in_turn("v1"), heard_in_turn("v2")
    for first in range(6, 9):
        for second in range(3, 9):
            ended = await lab.run(old(), death=(Death(first), Death(second)), then=[new])
            assert not ended.warnings, (first, second, ended.warnings)


def adds_later(version: str) -> Job:
    """The new code comes to what it adds only once it has heard of a branch that ended behind that."""

    async def adds(run: Run) -> None:
        async def branch(inside: Run, name: str) -> None:
            if name == "adder":
                if version == "v2":
                    for each in range(9):
                        await inside.step(work, f"what is new {each}")
                await inside.more("added")
            for each in range({"added": 1, "other": 4, "adder": 9}[name]):
                await inside.step(work, f"{name} {each}")

        await run.collect(branch, ["other", "adder"], key=str, after=hears)

    return Job(adds, "adds_later", version)


def adds_after(version: str) -> Job:
    async def adds(run: Run) -> None:
        async def branch(inside: Run, name: str) -> None:
            if name == "first" and version == "v2":
                await inside.step(work, "what is new")
            await inside.step(work, name)

        async def after(inside: Run, outcome: Ok | Err) -> None:
            if outcome.item == "first":
                await inside.more("second")
                await inside.more("third")
            await hears(inside, outcome)

        await run.collect(branch, ["first"], key=str, after=after)

    return Job(adds, "adds_after", version)


async def hears(run: Run, outcome: Ok | Err) -> None:
    for each in range(2):
        await run.step(work, f"after {outcome.item}: {each}")


@pytest.mark.parametrize("adds", [adds_later, adds_after])
async def test_what_newer_code_adds_late_is_heard_as_late_after_the_next_crash(
    lab: CrashLab, adds: Any
) -> None:
    old, new = adds("v1"), adds("v2")
    for first in (11, 16, 18):
        for second in (11, 12, 14, 15, 16, 17):
            ended = await lab.run(old(), death=(Death(first), Death(second)), then=[new])
            assert ended.status == Status.COMPLETED, ended.run.reason
            assert not ended.warnings, (first, second, ended.warnings)


def outvoted(version: str) -> Job:
    async def outvotes(run: Run) -> None:
        async def branch(inside: Run, name: str) -> None:
            if name == "loser":
                for each in range(99):
                    await inside.step(work, f"{name} {each}")
            await inside.more("loser")
            await inside.gather(*[lambda deep: deep.step(work, name)] * 3)

        await run.collect(branch, ["winner"], quorum=1)
        await run.step(work, "once")
        await run.step(work, "end", version)

    return Job(outvotes, "outvotes", version)


async def test_newer_code_does_not_begin_again_with_an_added_branch_that_had_lost(lab: CrashLab) -> None:
    old, new = outvoted("v1"), outvoted("v2")
    last = (await lab.run(old())).writes
    for write in range(last - 2, last):
        ended, again = await after_death(lab, old(), Death(write), then=[new])
        done = {step.name for step in ended.durable if step.kind == Kind.JOIN}
        assert "collect" in done, "the test has to kill later"
        assert set(again) <= {"once", "end"}, (write, again)
        once = [step for step in ended.steps if step.key == "work"]
        assert [step.outcome for step in once] == [Outcome.VALUE], write
