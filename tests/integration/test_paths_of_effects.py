"""What is called again, adopted or given up when a job's path bends: after changed code, timers, cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dayjob import Dayjob, Limits, NotDone, Retry, Run, RunCancelled, job, tool
from dayjob.jobs import Job
from dayjob.runs import Outcome, Status
from dayjob.testing import CrashLab, Death
from tests.until import until

Body = Callable[[Run], Awaitable[Any]]
sent: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


@tool
async def pay(order: str) -> str:
    sent.append(order)
    return f"paid {order}"


def versions(*bodies: Body) -> list[Job]:
    return [Job(body, "changing", f"v{number}") for number, body in enumerate(bodies, 1)]


async def waits_for_someone(app: Dayjob, run: str) -> Any:
    return await until(lambda: app.actions(run))


async def test_what_was_adopted_once_is_not_adopted_again_after_a_replay(url: str) -> None:
    async def before(run: Run) -> None:
        await run.tool(pay, order="A")
        await run.event("go")

    async def after(run: Run) -> list[str]:
        booked = await run.step(_book)
        await run.sleep(0.2)
        return [booked, await run.tool(pay, order="A")]

    old, new = versions(before, after)
    async with Dayjob(url) as app:
        handle = await app.submit(old())
        await until(lambda: _is(app, handle.id, Status.WAITING))
    async with Dayjob(url, jobs=[new]) as app:
        await app.send(handle.id, "nudge")
        (asked,) = await waits_for_someone(app, handle.id)
        await app.answer(handle.id, asked.id, "continue")
        assert await app.handle(handle.id).result(20) == ["paid A", "paid A"]
    assert sent == ["A", "A"]  # the one that was adopted, and the second, which was wanted


async def _book(run: Run) -> str:
    return await run.tool(pay, order="A")


async def _is(app: Dayjob, run: str, status: Status) -> bool:
    return (await app.get(run)).status == status


async def test_a_finished_child_that_paid_is_not_started_again_unasked(url: str) -> None:
    @job
    async def payer(run: Run) -> str:
        return await run.tool(pay, order="A")

    async def before(run: Run) -> None:
        await (await run.start(payer())).result()
        await run.event("go")

    async def after(run: Run) -> None:
        await run.note("new")
        await (await run.start(payer())).result()
        await run.event("go")

    old, new = versions(before, after)
    async with Dayjob(url, jobs=[payer]) as app:
        handle = await app.submit(old())
        await until(lambda: _is(app, handle.id, Status.WAITING))
        await until(lambda: len(sent) == 1)
    async with Dayjob(url, jobs=[new, payer]) as app:
        await app.send(handle.id, "nudge")
        (asked,) = await waits_for_someone(app, handle.id)
        assert asked.kind == "change"
        assert "payer" in asked.question
    assert sent == ["A"]


async def test_what_is_sent_is_what_was_approved(url: str) -> None:
    @tool(approve=True)
    async def order(lines: dict[str, Any]) -> None:
        sent.append(dict(lines))

    @job
    async def orders(run: Run) -> None:
        lines = {"amount": 20}

        async def asks(inside: Run) -> None:
            await inside.tool(order, lines=lines)

        async def changes(inside: Run) -> None:
            await inside.event("change")
            lines["amount"] = 9999
            await inside.note("changed")

        await run.gather(asks, changes)

    async with Dayjob(url) as app:
        handle = await app.submit(orders())
        (asked,) = await waits_for_someone(app, handle.id)
        await app.send(handle.id, "change")
        await until(lambda: _noted(app, handle.id))
        await app.approve(handle.id, asked.id)
        await handle.result(20)
    assert asked.arguments == {"lines": {"amount": 20}}
    assert sent == [{"amount": 20}]


async def _noted(app: Dayjob, run: str) -> bool:
    return any(step.name == "note" for step in await app.steps(run))


async def test_what_is_begun_with_other_arguments_than_recorded_is_not_sent(lab: CrashLab) -> None:
    amounts = iter([20, 9999])

    @tool
    async def refund(amount: int) -> None:
        sent.append(amount)

    @job
    async def refunds(run: Run) -> None:
        await run.tool(refund, amount=next(amounts))

    ended = await lab.run(refunds(), death=Death(3))
    assert ended.status == Status.FAILED
    assert "not deterministic" in (ended.run.reason or "")
    assert sent == [20]
    assert ended.run.attention == 1


async def test_a_call_given_up_in_the_line_for_its_tool_is_given_up_on_replay_too(url: str) -> None:
    gate = asyncio.Event()

    @tool(concurrency=1)
    async def slow(order: str) -> str:
        sent.append(order)
        await gate.wait()
        return order

    @job
    async def holds(run: Run) -> str:
        return await run.tool(slow, order="first")

    @job
    async def gives_up(run: Run) -> str:
        try:
            async with asyncio.timeout(0.05):
                await run.tool(slow, order="second")
            path = "called"
        except TimeoutError:
            path = "gave up"
        await run.event("go")
        return path

    async with Dayjob(url) as app:
        first = await app.submit(holds())
        await until(lambda: sent == ["first"])
        handle = await app.submit(gives_up())
        await until(lambda: _is(app, handle.id, Status.WAITING))
        gate.set()
        await first.result(20)
        await app.send(handle.id, "go")
        assert await handle.result(20) == "gave up"
    assert sent == ["first"]


async def test_a_call_given_up_between_two_tries_is_given_up_on_replay_too(url: str) -> None:
    @tool(retry=Retry(attempts=3, delay=30.0))
    async def busy() -> str:
        sent.append("busy")
        raise NotDone("not now")

    @job
    async def gives_up(run: Run) -> str:
        try:
            async with asyncio.timeout(0.1):
                await run.tool(busy)
            path = "called"
        except TimeoutError:
            path = "gave up"
        await run.event("go")
        return path

    async with Dayjob(url) as app:
        handle = await app.submit(gives_up())
        await until(lambda: _is(app, handle.id, Status.WAITING))
        await app.send(handle.id, "go")
        assert await handle.result(20) == "gave up"
        steps = await app.steps(handle.id)
    assert sent == ["busy"]
    assert [step.outcome for step in steps if step.key == "busy"] == [Outcome.SUPERSEDED, Outcome.CANCELLED]


async def test_each_sending_is_a_step_of_the_budget(lab: CrashLab) -> None:
    @tool(key_lifetime=3600)
    async def put() -> None:
        sent.append("put")
        raise ConnectionResetError("lost on the way")

    @job
    async def puts(run: Run) -> None:
        await run.tool(put)

    ended = await lab.run(puts(), limits=Limits(steps=2))
    assert ended.status == Status.INCOMPLETE
    assert sent == ["put", "put"]


async def test_cancelling_a_run_that_went_on_as_another_cancels_that_one(url: str) -> None:
    @job
    async def endless(run: Run, number: int) -> None:
        if number == 2:
            await run.event("never")
        await run.continue_as(endless(number=number + 1))

    async with Dayjob(url) as app:
        handle = await app.submit(endless(number=0))
        await until(lambda: _waiting(app))
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(20)


async def _waiting(app: Dayjob) -> bool:
    return any(run.status == Status.WAITING for run in await app.runs())
