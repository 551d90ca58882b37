"""A run with a deadline: whatever it is doing when its time is up, it ends expired, once, and is undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dayjob import Call, Dayjob, InputError, Run, RunExpired, job
from dayjob.errors import UnknownAction, WrongStatus
from dayjob.runs import Status
from dayjob.testing import Clock, CrashLab, Delay, Scripted
from dayjob.worker import MAX_ATTEMPTS
from tests.ledger import executed, work
from tests.office import PatientOffice
from tests.until import until

DAY = 86_400.0
MODEL = Scripted(lambda _: Delay(600, "late"))


@pytest.fixture(params=[0, 200], ids=["warm", "evicted"])
async def office(url: str, request: pytest.FixtureRequest) -> AsyncIterator[PatientOffice]:
    clock = Clock()
    async with (
        Dayjob(f"{url}?synchronous=off", model=MODEL, jobs=[asks], worker=False, clock=clock) as app,
        app.worker(lease_seconds=400 * DAY, short_journal=request.param) as worker,
    ):
        yield PatientOffice(app, worker, clock)


def take_back(call: Call, result: Any) -> None:
    executed["pay"] -= 1


async def pay() -> str:
    executed["pay"] += 1
    return "paid"


@job
async def asks(run: Run) -> str:
    paid: list[str] = []

    def take_back_here(call: Call, result: Any) -> None:  # only who walks the job again finds this one
        executed["pay"] -= len(paid)

    await run.defer(work, "clean-up")
    paid.append(await run.step(pay, undo=take_back_here))
    await run.partial("paid")
    return await run.ask("Well?")


@job
async def sleeps(run: Run) -> None:
    await run.defer(work, "clean-up")
    await run.partial(await run.step(pay, undo=take_back))
    await run.sleep(2 * DAY)


@job
async def thinks(run: Run) -> str:
    await run.defer(work, "clean-up")
    await run.partial(await run.step(pay, undo=take_back))
    return (await run.model("Well?", max_tokens=10)).text


@job
async def has_child(run: Run) -> str:
    await run.defer(work, "clean-up")
    await run.partial(await run.step(pay, undo=take_back))
    return await (await run.start(asks())).result()


async def in_the_model(office: PatientOffice, run: str) -> None:
    before = len(MODEL.requests)
    await until(
        lambda: len(MODEL.requests) > before or office.told("step.started", lambda f: f["run"] == run)
    )
    await until(lambda: office.told("step.started", lambda f: f["run"] == run and f["kind"] == "model"))


@pytest.mark.parametrize("job", [asks, sleeps, thinks, has_child], ids=lambda job: job.name)
async def test_whatever_a_run_is_doing_it_expires_and_is_undone(office: PatientOffice, job: Any) -> None:
    handle = await office.app.submit(job(), expires=DAY)
    if job is thinks:
        await in_the_model(office, handle.id)
    else:
        await office.parked(handle.id)
    children = await office.app.runs(parent=handle.id)
    for child in children:
        await office.parked(child.id)
    await office.pass_time(DAY - 1)
    assert not (await office.app.get(handle.id)).status.is_terminal
    await office.pass_time(1)
    with pytest.raises(RunExpired, match="not over within 86400 seconds") as end:
        await handle.result(15)
    assert end.value.partial == "paid"
    assert executed["pay"] == 0
    assert executed["clean-up"] == 1 + len(children)
    assert not await office.app.attention(handle.id)
    for child in children:
        assert (await office.app.get(child.id)).status == Status.CANCELLED


async def test_a_run_that_is_over_in_time_does_not_expire(office: PatientOffice) -> None:
    handle = await office.app.submit(asks(), expires=DAY)
    await office.parked(handle.id)
    assert (await office.app.get(handle.id)).expires == office.clock.now + DAY
    await office.pass_time(DAY - 1)
    await office.app.answer(handle.id, "ask", "yes")
    assert await handle.result(10) == "yes"
    await office.pass_time(2)
    assert await handle.status() == Status.COMPLETED


async def test_a_resumed_run_has_its_time_anew(office: PatientOffice) -> None:
    @job
    async def patient(run: Run) -> str:
        await run.step(work, "before")
        return await run.ask("Well?", timeout=2 * DAY)

    handle = await office.app.submit(patient(), expires=DAY)
    await office.parked(handle.id)
    await office.pass_time(DAY)
    with pytest.raises(RunExpired):
        await handle.result(10)
    await office.app.resume(handle.id)
    await office.parked(handle.id)
    await office.pass_time(DAY - 1)
    (action,) = await office.app.actions(handle.id)
    await office.app.answer(handle.id, action.id, "yes")
    assert await handle.result(10) == "yes"
    assert executed == {"before": 1}


async def test_what_was_undone_is_not_resumed(office: PatientOffice) -> None:
    handle = await office.app.submit(asks(), expires=DAY)
    await office.parked(handle.id)
    await office.pass_time(DAY)
    with pytest.raises(RunExpired):
        await handle.result(10)
    with pytest.raises(WrongStatus, match="was undone"):
        await office.app.resume(handle.id)


async def test_the_run_that_goes_on_has_the_same_deadline(office: PatientOffice) -> None:
    @job
    async def endless(run: Run, n: int) -> None:
        await run.sleep(DAY / 4)
        await run.continue_as(endless(n=n + 1))

    handle = await office.app.submit(endless(n=1), expires=DAY)
    run = handle.id
    for _ in range(2):
        await office.parked(run)
        await office.pass_time(DAY / 4)
        run = await until(lambda run=run: _next(office.app, run))
    await office.parked(run)
    await office.pass_time(DAY / 2)
    with pytest.raises(RunExpired):
        await handle.result(10)


async def _next(app: Dayjob, run: str) -> str | None:
    return (await app.get(run)).next_run


# --- nobody works on it ---------------------------------------------------------------------------------


@pytest.fixture
async def alone(url: str) -> AsyncIterator[tuple[Dayjob, Clock]]:
    """An app without a worker: somebody else's sweeps."""
    clock = Clock()
    async with Dayjob(f"{url}?synchronous=off", worker=False, clock=clock) as app:
        yield app, clock


async def test_a_run_that_never_began_ends_at_once(alone: tuple[Dayjob, Clock]) -> None:
    app, clock = alone
    thread = app.thread()
    first = await app.submit(asks(), expires=60, thread=thread)
    second = await app.submit(asks(), expires=60, thread=thread, when_busy="enqueue")
    third = await app.submit(asks(), thread=thread, when_busy="enqueue")
    late = await app.submit(asks(), expires=60, delay=100)
    clock.advance(60)
    assert set((await app.store.sweep(MAX_ATTEMPTS)).expired) == {first.id, second.id, late.id}
    for handle in (first, second, late):
        with pytest.raises(RunExpired, match="not over within 60 seconds"):
            await handle.result(10)
    record = await app.get(third.id)
    assert (record.status, record.admitted) == (Status.QUEUED, 1)
    assert (await app.store.sweep(MAX_ATTEMPTS)).expired == []


async def test_a_worker_that_comes_too_late_does_not_begin(alone: tuple[Dayjob, Clock]) -> None:
    app, clock = alone
    handle = await app.submit(asks(), expires=60)
    clock.advance(61)
    async with app.worker():
        with pytest.raises(RunExpired):
            await handle.result(10)
    assert executed == {}


async def test_a_run_that_nobody_holds_is_swept_up_and_undone_by_the_next_worker(
    alone: tuple[Dayjob, Clock],
) -> None:
    app, clock = alone
    handle = await app.submit(asks(), expires=60)
    async with app.worker() as worker:
        await PatientOffice(app, worker, clock).parked(handle.id)
    clock.advance(60)
    await app.store.sweep(MAX_ATTEMPTS)
    assert await handle.status() == Status.CANCELLING
    async with app.worker():
        with pytest.raises(RunExpired):
            await handle.result(10)
    assert executed["pay"] == 0


@pytest.mark.parametrize("expires", [-1, float("nan"), float("inf"), "1"])
async def test_a_deadline_is_seconds(alone: tuple[Dayjob, Clock], expires: Any) -> None:
    with pytest.raises(InputError, match="expires: expected seconds"):
        await alone[0].submit(asks(), expires=expires)


# --- what comes first stands ----------------------------------------------------------------------------


async def test_who_cancels_first_or_is_late_first_decides(alone: tuple[Dayjob, Clock]) -> None:
    app, clock = alone
    cancelled, expired = [await app.submit(asks(), expires=60) for _ in range(2)]
    async with app.worker() as worker:
        for handle in (cancelled, expired):
            await PatientOffice(app, worker, clock).parked(handle.id)
    await cancelled.cancel("enough")
    clock.advance(60)
    assert (await app.store.sweep(MAX_ATTEMPTS)).expired == [expired.id]
    await expired.cancel("enough")
    async with app.worker():
        ends = [await app.until_settled(handle.id, 10) for handle in (cancelled, expired)]
    assert [(end.status, end.reason) for end in ends] == [
        (Status.CANCELLED, "enough"), (Status.EXPIRED, "not over within 60 seconds"),
    ]  # fmt: skip


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_an_answer_at_the_same_moment_changes_nothing(
    alone: tuple[Dayjob, Clock], before: bool
) -> None:
    app, clock = alone
    handle = await app.submit(asks(), expires=60)
    async with app.worker() as worker:
        await PatientOffice(app, worker, clock).parked(handle.id)
    clock.advance(60)
    if before:
        await app.answer(handle.id, "ask", "yes")
    await app.store.sweep(MAX_ATTEMPTS)
    if not before:
        await app.answer(handle.id, "ask", "yes")
    async with app.worker():
        with pytest.raises(RunExpired):
            await handle.result(10)
    assert executed["pay"] == 0
    with pytest.raises(UnknownAction):
        await app.answer(handle.id, "ask", "yes")


async def test_a_run_that_completes_as_its_time_is_up_ends_once(office: PatientOffice) -> None:
    release = asyncio.Event()

    @job
    async def finishes(run: Run) -> str:
        await run.step(work, "before")
        await release.wait()
        return "done"

    handle = await office.app.submit(finishes(), expires=DAY)
    await until(lambda: executed["before"])
    office.clock.advance(DAY)
    assert (await office.app.store.sweep(MAX_ATTEMPTS)).expired == [handle.id]
    release.set()
    with pytest.raises(RunExpired):
        await handle.result(10)


async def test_a_deadline_survives_a_death_at_any_write() -> None:
    clock = Clock()

    async def outside(app: Dayjob, run: str) -> bool:
        if not (await app.get(run)).status.is_parked:
            return False
        clock.advance(DAY)
        await app.store.sweep(MAX_ATTEMPTS)
        return True

    crashed = 0
    async with CrashLab(clock=clock, lease_seconds=10_000 * DAY, patience_seconds=15) as lab:
        async for ended in lab.at_every_write(sleeps(), side_by_side=1, outside=outside, expires=DAY):
            assert (ended.status, ended.output) == (Status.EXPIRED, "paid")
            assert "not over within" in (ended.run.reason or "")
            cut_off = any("cut off: it may or may not have been undone" in said for said in ended.warnings)
            assert bool(ended.run.attention) == cut_off
            crashed += 1
    assert crashed > 10
