"""What a resumed run gives back: outcomes, joins, cancellations, and what is fatal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from dayjob import Dayjob, Run, RunFailed, StepError, job
from dayjob.runs import Kind, Outcome, Status, StepRecord
from dayjob.testing import CrashLab, Death, Moment
from tests.ledger import after_death, everywhere, executed, fail, work


@pytest.fixture
async def app(url: str) -> AsyncIterator[Dayjob]:
    async with Dayjob(f"{url}?synchronous=off") as app:
        yield app


async def never(name: str) -> str:
    executed[name] += 1
    await asyncio.get_running_loop().create_future()
    return "never"


async def cancel_itself(name: str) -> str:
    executed[name] += 1
    raise asyncio.CancelledError


def row(steps: Any, key: str) -> StepRecord:
    return next(step for step in steps if step.key == key and step.outcome != Outcome.SUPERSEDED)


# --- the four outcomes -------------------------------------------------------------------------------


@job
async def four_outcomes(run: Run) -> list:
    value = await run.step(work, "value")
    try:
        error = await run.step(fail, "error")
    except StepError as problem:
        error = [problem.type, problem.message, problem.retryable]
    try:
        async with asyncio.timeout(0.02):
            cancelled = await run.step(never, "cancelled")
    except TimeoutError:
        cancelled = "timed out"
    return [value, error, cancelled, await run.step(work, "last")]


async def test_value_error_and_cancelled_replay_as_they_were(lab: CrashLab) -> None:
    calm = await lab.run(four_outcomes())
    assert calm.output == ["value done", ["ValueError", "error", False], "timed out", "last done"]
    outcomes = {step.key: step.outcome for step in calm.steps}
    assert outcomes == {"work": "value", "fail": "error", "never": "cancelled", "work#2": "value"}
    crashes = await everywhere(lab, four_outcomes())
    assert len(crashes) == 3 * calm.writes
    assert all(crash.output == calm.output for crash in crashes)


async def test_a_users_timeout_is_spent_again_on_replay(lab: CrashLab) -> None:
    @job
    async def waits(run: Run) -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(0.05):
                await run.step(never, "never")
        except TimeoutError:
            spent.append(loop.time() - started)
        return len(await run.step(work, "after"))

    spent: list[float] = []
    calm = await lab.run(waits())
    spent.clear()
    crashed = await lab.run(waits(), death=Death(calm.writes))  # it dies of its settle
    assert row(crashed.durable, "never").outcome == Outcome.CANCELLED
    assert len(spent) == 2
    assert min(spent) >= 0.05
    assert executed["never"] == 2  # one in each run: the recorded cancellation starts no body


async def test_a_cancellation_while_a_row_is_being_committed_is_written_over_it(lab: CrashLab) -> None:
    """The body blocks the loop past the timeout, which then rings while the row is on its way."""

    @job
    async def cut(run: Run) -> str:
        try:
            async with asyncio.timeout(0.25):
                await run.step(block_the_loop, 0.3)
        except TimeoutError:
            return await run.step(work, "after the timeout")
        return "in time"

    calm = await lab.run(cut())
    assert calm.output == "after the timeout done"
    assert row(calm.steps, "block_the_loop").outcome == Outcome.CANCELLED
    found = set()
    for crashed in await everywhere(lab, cut()):
        recorded = next((step.outcome for step in crashed.durable if step.name == "block_the_loop"), None)
        found.add(recorded)
        in_time = recorded == Outcome.VALUE  # durable before it was written over: then so it was
        assert crashed.output == ("in time" if in_time else "after the timeout done"), crashed.death
    assert {
        None,
        Outcome.CANCELLED,
    } <= found  # the value alone is durable only if its flush did not take both


async def block_the_loop(seconds: float) -> str:
    """Returns just before the timeout that the blocked loop has not yet seen."""
    time.sleep(seconds)  # noqa: ASYNC251 - the loop must not run meanwhile
    return "done"


async def test_a_body_that_raises_cancelled_error_by_itself_is_an_error(lab: CrashLab) -> None:
    @job
    async def odd(run: Run) -> list:
        try:
            await run.step(cancel_itself, "body")
        except StepError as error:
            caught = error.type
        try:
            await run.step(scope_that_cancels_itself)
        except StepError as error:
            return [caught, error.type]
        return []

    async def scope_that_cancels_itself(run: Run) -> None:
        raise asyncio.CancelledError

    calm = await lab.run(odd())
    assert calm.output == ["CancelledError", "CancelledError"]
    assert row(calm.steps, "cancel_itself").outcome == Outcome.ERROR
    assert all(crash.output == calm.output for crash in await everywhere(lab, odd()))


async def test_a_job_that_raises_cancelled_error_by_itself_fails(lab: CrashLab) -> None:
    @job
    async def odd(run: Run) -> None:
        raise asyncio.CancelledError

    ended = await lab.run(odd())
    assert (ended.status, ended.error) == (Status.FAILED, "CancelledError")


async def test_wait_for_moves_a_call_into_a_task_and_replays(lab: CrashLab) -> None:
    @job
    async def waits(run: Run) -> list:
        first = await asyncio.wait_for(run.step(work, "first"), 10)
        with suppress(TimeoutError):
            await asyncio.wait_for(run.step(never, "second"), 0.02)
        return [first, await asyncio.wait_for(run.step(work, "third"), 10)]

    calm = await lab.run(waits())
    assert calm.output == ["first done", "third done"]
    assert all(crash.output == calm.output for crash in await everywhere(lab, waits()))


# --- two calls at once --------------------------------------------------------------------------------


@job
async def two_at_once(run: Run) -> list:
    await run.step(work, "before")
    return await asyncio.gather(run.step(work, "one"), run.step(work, "two"))


async def test_two_calls_at_once_in_one_scope_are_fatal_live_and_on_replay(lab: CrashLab) -> None:
    calm = await lab.run(two_at_once())
    assert calm.status == Status.FAILED
    assert "two calls at once in one scope" in str(calm.run.reason)
    for crashed in await everywhere(lab, two_at_once()):
        assert crashed.status == Status.FAILED, crashed.death
        assert "two calls at once" in str(crashed.run.reason)


async def test_two_calls_at_once_are_fatal_when_both_are_recorded(lab: CrashLab) -> None:
    """Recorded by code that awaited them in turn; the newer code calls them at once."""

    async def in_turn(run: Run) -> list:
        return [await run.step(work, "one"), await run.step(work, "two"), await run.step(work, "three")]

    async def at_once(run: Run) -> list:
        both = await asyncio.gather(run.step(work, "one"), run.step(work, "two"))
        return [*both, await run.step(work, "three")]

    for version in ("1", "2"):  # by key, and matched
        ended = await lab.run(
            job(name=f"calls{version}", version="1")(in_turn)(),
            then=[job(name=f"calls{version}", version=version)(at_once)],
            death=Death(4),
        )
        assert [step.key for step in ended.durable] == ["work", "work#2"]
        assert ended.status == Status.FAILED
        assert "two calls at once" in str(ended.run.reason)


# --- joins --------------------------------------------------------------------------------------------


async def test_equal_map_keys_are_an_error_naming_the_key(lab: CrashLab) -> None:
    @job
    async def doubled(run: Run) -> list:
        return await run.map(lambda r, item: r.step(work, item), ["a", "b", "a"], key=str)

    ended = await lab.run(doubled())
    assert ended.status == Status.FAILED
    assert "'a' stands for more than one item" in str(ended.run.reason)
    assert not executed


async def test_keys_of_map_are_escaped(lab: CrashLab) -> None:
    @job
    async def keyed(run: Run) -> list:
        return await run.map(lambda r, item: r.step(work, item), ["a/b", "a#2", "a%2Fb"], key=str)

    calm = await lab.run(keyed())
    assert calm.output == ["a/b done", "a#2 done", "a%2Fb done"]
    assert {"map/a%2Fb", "map/a%232", "map/a%252Fb"} <= {step.key for step in calm.steps}
    assert all(crash.output == calm.output for crash in await everywhere(lab, keyed()))


@job
async def tied_race(run: Run) -> str:
    winner = await run.race(*(lambda r, name=name: r.step(work, name) for name in ("a", "b", "c")))
    await run.step(work, f"after {winner}")
    return winner


async def test_a_race_whose_winner_was_durable_is_not_run_again(lab: CrashLab) -> None:
    decided = 0
    for crashed in await everywhere(lab, tied_race()):
        branches = [step for step in crashed.durable if step.kind == Kind.SCOPE and step.outcome == "value"]
        if branches:
            decided += 1
            first = min(branches, key=lambda step: step.seq or 0)
            assert f'"{crashed.output}"'.encode() == first.value, crashed.death
    assert decided >= 6


async def test_no_branch_is_restarted_of_a_race_that_was_won_before_the_crash(lab: CrashLab) -> None:
    """The winner's row is durable and the join's is not: the decision stands all the same."""

    @job
    async def slow_loser(run: Run) -> str:
        return await run.race(lambda r: r.step(never, "loser"), lambda r: r.step(work, "winner"))

    seen = 0
    for moment in Moment:
        for write in range(1, 9):
            crashed, again = await after_death(lab, slow_loser(), Death(write, moment))
            assert crashed.output == "winner done"
            won = any(step.key == "race/1" and step.outcome for step in crashed.durable)
            if crashed.death is not None and won:
                seen += 1
                assert not again, crashed.death
    assert seen >= 3


async def test_a_race_of_failures_raises_the_last_error_after_any_crash(lab: CrashLab) -> None:
    @job
    async def all_fail(run: Run) -> str:
        try:
            return await run.race(lambda r: r.step(fail, "a"), late_failure)
        except StepError as error:
            return error.message

    async def late_failure(run: Run) -> None:
        await run.sleep(0.02)
        await run.step(fail, "last")

    calm = await lab.run(all_fail())
    assert calm.output == "last"
    assert all(crash.output == "last" for crash in await everywhere(lab, all_fail()))


async def test_the_first_error_of_a_gather_cancels_the_others_and_is_raised(lab: CrashLab) -> None:
    @job
    async def gathers(run: Run) -> str:
        try:
            await run.gather(lambda r: r.step(never, "cut off"), lambda r: r.step(fail, "first"))
        except StepError as error:
            return f"{error.type} {error.message}"
        return "no error"

    calm = await lab.run(gathers())
    assert calm.output == "ValueError first"
    assert row(calm.steps, "gather/0").outcome == Outcome.CANCELLED
    assert all(crash.output == calm.output for crash in await everywhere(lab, gathers()))


# --- determinism --------------------------------------------------------------------------------------


async def test_another_input_than_the_recorded_one_is_warned_of_by_step(lab: CrashLab) -> None:
    @job
    async def not_deterministic(run: Run) -> str:
        calls.append(1)
        await run.step(work, "step", len(calls))
        return await run.step(work, "last")

    calls: list[int] = []
    crashed = await lab.run(not_deterministic(), death=Death(3))
    assert crashed.output == "last done"
    assert executed["step"] == 1
    assert [warning for warning in crashed.warnings if warning.startswith("work: its input differs")]


async def test_values_of_time_and_chance_are_the_same_on_replay(lab: CrashLab) -> None:
    @job
    async def chance(run: Run) -> list:
        seen = [await run.now(), await run.random(), await run.uuid()]
        passes.append(seen)
        await run.step(work, "step")
        return seen

    passes: list[list] = []
    crashed = await lab.run(chance(), death=Death(5, Moment.UNHEARD))
    assert crashed.death
    assert len(passes) == 2
    assert passes[0] == passes[1] == crashed.output


# --- resume -------------------------------------------------------------------------------------------


async def test_resuming_supersedes_the_error_that_ended_the_run_and_not_those_it_caught(app: Dayjob) -> None:
    @job
    async def heals(run: Run) -> list:
        try:
            await run.step(fail, "caught")
        except StepError as error:
            caught = error.message
        good = await run.step(work, "good")
        return [caught, good, await run.step(fails_once, "bad")]

    handle = await app.submit(heals())
    with pytest.raises(RunFailed, match="ValueError: bad"):
        await handle.result(10)
    resumed = await app.resume(handle.id)
    assert await resumed.result(10) == ["caught", "good done", "bad done"]
    assert executed == {"caught": 1, "good": 1, "bad": 2}
    outcomes = [(step.key, step.outcome) for step in await app.steps(handle.id)]
    assert ("fails_once", "superseded") in outcomes
    assert ("fails_once", "value") in outcomes


async def fails_once(name: str) -> str:
    executed[name] += 1
    if executed[name] == 1:
        raise ValueError(name)
    return f"{name} done"


async def test_siblings_that_were_cut_off_run_again_on_resume_and_finished_ones_do_not(app: Dayjob) -> None:
    @job
    async def gathers(run: Run) -> list:
        return await run.gather(lambda r: r.step(work, "finished"), after_the_first, cut_off_once)

    async def after_the_first(run: Run) -> str:
        while not executed["cut off"]:
            await asyncio.sleep(0)
        return await run.step(fails_once, "bad")

    async def cut_off_once(run: Run) -> str:
        executed["cut off"] += 1
        if executed["cut off"] == 1:
            await run.step(never, "never")
        return await run.step(work, "second time")

    handle = await app.submit(gathers())
    with pytest.raises(RunFailed, match="ValueError: bad"):
        await handle.result(10)
    assert await (await app.resume(handle.id)).result(10) == ["finished done", "bad done", "second time done"]
    assert (executed["finished"], executed["bad"], executed["cut off"]) == (1, 2, 2)


async def test_resume_from_a_step_does_it_and_all_that_follows_again(app: Dayjob) -> None:
    @job
    async def three(run: Run) -> list:
        return [await run.step(work, name, name="step") for name in ("a", "b", "c")]

    handle = await app.submit(three())
    await handle.result(10)
    await (await app.resume(handle.id, from_step="step#2")).result(10)
    assert executed == {"a": 1, "b": 2, "c": 2}


async def test_resume_changed_does_again_what_has_other_code_and_what_follows(app: Dayjob) -> None:
    def made(text: str) -> Any:
        async def body(name: str) -> str:
            executed[name] += 1
            return name + "!" if text == "new" else name

        async def other(name: str) -> str:
            executed[name] += 1
            return name + "?"

        return body if text == "old" else other

    body = [made("old")]

    @job
    async def three(run: Run) -> list:
        first = await run.step(work, "first")
        middle = await run.step(body[0], "middle", name="middle")
        return [first, middle, await run.step(work, "last")]

    handle = await app.submit(three())
    assert await handle.result(10) == ["first done", "middle", "last done"]
    body[0] = made("new")
    assert await (await app.resume(handle.id, changed=True)).result(10) == [
        "first done",
        "middle?",
        "last done",
    ]
    assert executed == {"first": 1, "middle": 2, "last": 2}
