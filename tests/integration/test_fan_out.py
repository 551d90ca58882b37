"""Parallelisation: parts side by side, votes with a quorum, and work that turns out to be larger."""

from __future__ import annotations

from typing import Any

import pytest

from dayjob import Dayjob, InputError, Limits, Run, job
from dayjob.models import ModelRequest
from dayjob.patterns import Err, Ok, fan_out, majority
from dayjob.runs import Outcome, Status
from dayjob.testing import CrashLab, Scripted
from tests.ledger import everywhere, executed, fail, work
from tests.until import until


def echo(request: ModelRequest) -> str:
    return f"About {request.messages[-1]['content']}"


async def summarise(run: Run, part: str) -> str:
    if part == "bad":
        await run.step(fail, part)
    return (await run.model(part)).text


@job
async def sections(run: Run, parts: list[str], limit: int | None = None) -> list:
    results = await fan_out(run, parts, summarise, limit=limit)
    return [result.value if isinstance(result, Ok) else str(result.error) for result in results]


async def test_results_come_in_input_order_errors_too(lab: CrashLab) -> None:
    ended = await lab.run(sections(parts=["a", "bad", "b"], limit=2), model=Scripted(echo))
    assert ended.output == ["About a", "ValueError: bad", "About b"]


async def test_nothing_to_do_gives_nothing(lab: CrashLab) -> None:
    assert (await lab.run(sections(parts=[]))).output == []


async def test_a_crash_anywhere_changes_nothing(lab: CrashLab) -> None:
    model = Scripted(echo)
    for crashed in await everywhere(lab, sections(parts=["a", "bad", "b"]), model=model):
        assert crashed.output == ["About a", "ValueError: bad", "About b"]
        assert not crashed.warnings


@job
async def ballot(run: Run, votes: list[str], quorum: int) -> Any:
    async def vote(inside: Run, answer: str) -> str:
        if answer == "never":
            return await inside.ask("Well?")
        return await inside.step(fail if answer == "bad" else work, answer)

    return await fan_out(run, votes, vote, quorum=quorum, merge=majority)


async def test_losers_are_cancelled_once_the_quorum_is_met(lab: CrashLab) -> None:
    ended = await lab.run(ballot(votes=["never", "yes", "bad", "yes"], quorum=2))
    assert ended.output == "yes done"
    rows = {step.key: step.outcome for step in ended.steps}
    assert rows["fan_out/0"] == Outcome.CANCELLED
    assert "fan_out merge" in rows


async def test_a_quorum_that_is_not_met_has_a_name(lab: CrashLab) -> None:
    ended = await lab.run(ballot(votes=["yes", "bad", "bad"], quorum=2))
    assert ended.error == "QuorumNotMet"
    assert "1 of 3 succeeded, 2 were needed; the first error: ValueError: bad" in (ended.run.reason or "")
    assert (await lab.run(ballot(votes=[], quorum=1))).error == "QuorumNotMet"


async def test_the_same_votes_count_whatever_dies(lab: CrashLab) -> None:
    for crashed in await everywhere(lab, ballot(votes=["never", "yes", "bad", "yes"], quorum=2)):
        assert crashed.output == "yes done"


@job
async def explores(run: Run, folders: dict[str, list[str]]) -> list[str]:
    async def look(inside: Run, folder: str) -> str:
        for below in folders.get(folder, []):
            await inside.more(f"{folder}/{below}")
        return await inside.step(work, folder)

    return await fan_out(run, ["a", "b"], look, merge=list, limit=2)


async def test_work_adds_to_itself_while_it_runs(lab: CrashLab) -> None:
    request = explores(folders={"a": ["1", "2"], "a/2": ["x"]})
    names = ["a", "b", "a/1", "a/2", "a/2/x"]
    assert (await lab.run(request)).output == [f"{name} done" for name in names]
    executed.clear()
    for crashed in await everywhere(lab, request):
        assert crashed.output == [f"{name} done" for name in names]
        assert not crashed.warnings


@job
async def child(run: Run, part: str) -> str:
    return await run.step(work, part)


@job
async def with_children(run: Run) -> list[str]:
    return await fan_out(run, ["a", "b"], child, merge=list)


async def test_the_work_may_be_a_job(lab: CrashLab) -> None:
    ended = await lab.run(with_children(), jobs=[child])
    assert ended.output == ["a done", "b done"]
    assert len([step for step in ended.steps if step.child]) == 2


async def test_a_limit_ends_it(lab: CrashLab) -> None:
    model = Scripted(echo)
    ended = await lab.run(sections(parts=list("abcdef")), model=model, limits=Limits(steps=3))
    assert ended.status == Status.INCOMPLETE
    assert len(model.requests) == 3


async def test_a_cancelled_run_cancels_its_branches(lab: CrashLab) -> None:
    async with Dayjob(lab.store) as app:
        handle = await app.submit(ballot(votes=["never", "never"], quorum=2))
        await until(lambda: app.actions(handle.id))
        await handle.cancel()

        async def is_over() -> bool:
            return await handle.status() == Status.CANCELLED

        await until(is_over)


@pytest.mark.parametrize("wrong", [{"quorum": 0}, {"limit": 0}], ids=str)
async def test_numbers_below_one_are_refused(lab: CrashLab, wrong: dict[str, int]) -> None:
    @job
    async def wrongly(run: Run) -> None:
        with pytest.raises(InputError, match="at least 1"):
            await fan_out(run, ["a"], summarise, **wrong)

    assert (await lab.run(wrongly())).status == Status.COMPLETED


def test_a_majority_is_the_first_of_the_most() -> None:
    assert majority(["b", "a", "a", "b"]) == "b"
    assert majority([{"x": 1, "y": 2}, 3, {"y": 2, "x": 1}]) == {"x": 1, "y": 2}
    assert majority([]) is None


def test_outcomes_compare_by_what_came() -> None:
    assert Ok(1, item="a") == Ok(1)
    assert Err(ValueError) != Ok(1)  # type: ignore[arg-type]
