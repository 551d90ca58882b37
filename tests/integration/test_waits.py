"""What a run waits for: people, events, time, children; how it leaves memory, and how it ends."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dayjob import (
    Dayjob,
    Incomplete,
    InputError,
    Limits,
    Run,
    RunCancelled,
    RunExpired,
    RunFailed,
    RunIncomplete,
    StepError,
    job,
)
from dayjob.errors import ThreadBusy, UnknownAction, WrongStatus
from dayjob.runs import Kind, Outcome, Status
from dayjob.stores import Entry
from dayjob.stores.sqlite_reads import load
from dayjob.testing import Clock, CrashLab, Death, Moment, MortalStore, Scripted
from tests.ledger import after_death, everywhere, executed, fail, work
from tests.office import PatientOffice
from tests.until import until

YEAR = 365 * 86_400.0


@pytest.fixture
async def office(url: str) -> AsyncIterator[PatientOffice]:
    clock = Clock()
    async with (
        Dayjob(f"{url}?synchronous=off", worker=False, clock=clock) as app,
        app.worker(lease_seconds=10 * YEAR) as worker,
    ):
        yield PatientOffice(app, worker, clock)


async def answers(app: Dayjob, run: str) -> bool:
    """Answers every question with its own text."""
    acted = False
    for id in [run, *(child.id for child in await app.runs(parent=run))]:
        for action in await app.actions(id):
            await app.answer(id, action.id, f"{action.question} yes")
            acted = True
    return acted


# --- people ---------------------------------------------------------------------------------------------


@job
async def asks(run: Run) -> list:
    await run.step(work, "before")
    answer = await run.ask("Really?")
    return [answer, await run.step(work, "after")]


async def test_an_answered_question_survives_a_crash_at_any_write(lab: CrashLab) -> None:
    for crashed in await everywhere(lab, asks(), outside=answers):
        assert crashed.output == ["Really? yes", "after done"], crashed.death


async def test_a_question_past_its_deadline_expires_the_run(office: PatientOffice) -> None:
    @job
    async def impatient(run: Run) -> str:
        await run.partial("half")
        return await run.ask("now?", timeout=60)

    handle = await office.app.submit(impatient())
    assert await office.parked(handle.id) == Status.REQUIRES_ACTION
    await office.pass_time(59)
    assert await office.parked(handle.id) == Status.REQUIRES_ACTION
    await office.pass_time(2)
    with pytest.raises(RunExpired, match="no answer to 'ask' in time") as expired:
        await handle.result(10)
    assert expired.value.partial == "half"


async def test_a_question_past_its_deadline_takes_its_default(office: PatientOffice) -> None:
    @job
    async def patient(run: Run) -> int:
        return await run.ask("how many?", returns=int, timeout=60, default=7)

    handle = await office.app.submit(patient())
    await office.parked(handle.id)
    with pytest.raises(InputError, match="is not of type 'integer'"):
        await office.app.answer(handle.id, "ask", "many")
    await office.pass_time(61)
    assert await handle.result(10) == 7


async def test_a_sleep_until_a_time_that_is_over_does_not_wait(office: PatientOffice) -> None:
    @job
    async def late(run: Run) -> str:
        await run.sleep(-3)
        return "here"

    assert await (await office.app.submit(late())).result(10) == "here"


async def test_a_question_of_infinite_patience_has_no_deadline(office: PatientOffice) -> None:
    @job
    async def patient(run: Run) -> str:
        return await run.ask("when?", timeout=float("inf"))

    handle = await office.app.submit(patient())
    await office.parked(handle.id)
    (action,) = await office.app.actions()
    assert action.due is None


async def test_a_reason_that_reads_like_another_ends_the_wait_for_the_result(office: PatientOffice) -> None:
    handle = await office.app.submit(asks())
    await office.parked(handle.id)
    await handle.cancel("continued as planned")
    with pytest.raises(RunCancelled, match="continued as planned"):
        await handle.result(10)
    early = await office.app.submit(asks(), delay=60)
    await early.cancel("continued as planned")
    with pytest.raises(RunCancelled, match="continued as planned"):
        await early.result(10)


# --- events ---------------------------------------------------------------------------------------------


@job
async def receives(run: Run) -> list:
    first = await run.event("order")
    await run.step(work, first)
    return [first, await run.event("order"), await run.event("other")]


async def test_events_are_received_in_order_each_once_sent_before_and_after_the_wait(
    office: PatientOffice,
) -> None:
    handle = await office.app.submit(receives(), delay=5)
    await office.app.send(handle.id, "order", "one")
    await office.app.send(handle.id, "order", "two")
    await office.pass_time(6)
    await office.parked(handle.id)
    await office.app.send(handle.id, "other", {"three": 3})
    assert await handle.result(10) == ["one", "two", {"three": 3}]
    with pytest.raises(WrongStatus, match="is over"):
        await office.app.send(handle.id, "order", "late")


async def test_events_are_received_once_whatever_dies(lab: CrashLab) -> None:
    def sends() -> Any:
        waiting = [("order", "one"), ("order", "two"), ("other", "three")]

        async def outside(app: Dayjob, run: str) -> bool:
            opened = await app.store.open_steps(run, [Kind.EVENT])
            if not opened or not waiting:
                return False
            await app.send(run, *waiting.pop(0))
            return True

        return outside

    for write in range(1, 16):
        for moment in Moment:
            ended = await lab.run(receives(), death=Death(write, moment), outside=sends())
            assert ended.output == ["one", "two", "three"], (write, moment)


async def test_an_event_that_does_not_come_in_time_is_an_error_that_can_be_caught(
    office: PatientOffice,
) -> None:
    @job
    async def waits(run: Run) -> str:
        try:
            return await run.event("order", timeout=30)
        except StepError as error:
            return error.type

    handle = await office.app.submit(waits())
    await office.parked(handle.id)
    await office.pass_time(31)
    assert await handle.result(10) == "Timeout"


async def test_an_event_with_a_timeout_of_0_gives_what_was_sent_before_and_waits_for_nothing(
    url: str,
) -> None:
    app = Dayjob(url)

    @job
    async def looks(run: Run) -> list:
        none = await run.event("order", timeout=0, default="nothing yet")

        async def send() -> None:
            await app.send(run.id, "order", "one")

        await run.step(send)
        return [none, *[await run.event("order", timeout=0, default="no more") for _ in range(2)]]

    async with app:
        handle = await app.submit(looks())
        assert await handle.result(10) == ["nothing yet", "one", "no more"]


async def test_what_an_event_with_a_timeout_of_0_gave_stands_whatever_dies(lab: CrashLab) -> None:
    seen: list[str] = []

    @job
    async def looks(run: Run) -> list:
        first = await run.event("order", timeout=0, default="none")
        await run.ask("Was it sent?")
        return [first, await run.event("order", timeout=0, default="none")]

    async def outside(app: Dayjob, run: str) -> bool:
        for action in await app.actions(run):
            if run not in seen:
                seen.append(run)
                await app.send(run, "order", "one")
            await app.answer(run, action.id, "yes")
            return True
        return False

    async for ended in lab.at_every_write(looks(), outside=outside):
        assert ended.output == ["none", "one"], ended.death


async def test_a_wait_is_written_as_open_even_if_its_answer_is_there_before_the_writer(lab: CrashLab) -> None:
    """Else a crash between the two writes would leave the answer in the journal, and in the inbox too."""

    class Keeping(MortalStore):
        def put(self, entry: Entry) -> None:
            entries.append(entry)
            super().put(entry)

    @job
    async def receives_one(run: Run) -> str:
        return await run.event("order")

    entries: list[Entry] = []
    async with Dayjob(Keeping(lab.store), worker=False) as app:
        handle = await app.submit(receives_one())
        await app.send(handle.id, "order", "one")
        async with app.worker():
            assert await handle.result(10) == "one"
    assert [row.outcome for entry in entries for row in entry.insert] == [None]
    assert [entry.consumed is not None for entry in entries if entry.update] == [True]


# --- time and memory ------------------------------------------------------------------------------------


async def test_a_long_sleep_leaves_memory_and_ends_on_time(office: PatientOffice) -> None:
    left: list[str] = []

    @job
    async def sleeps(run: Run) -> str:
        try:
            await run.sleep(YEAR)
            return "awake"
        finally:
            left.append("memory")

    handle = await office.app.submit(sleeps())
    assert await office.parked(handle.id) == Status.WAITING
    await until(lambda: left)
    assert handle.id not in office.worker.warm
    await office.pass_time(YEAR + 1)
    assert await handle.result(10) == "awake"
    assert left == ["memory", "memory"]


async def test_a_call_on_a_closed_handle_never_returns_and_never_raises(office: PatientOffice) -> None:
    after: list[str] = []

    @job
    async def clings(run: Run) -> str:
        while True:
            try:
                return await run.ask("well?")
            except BaseException:  # as a careless job does
                after.append("caught")

    handle = await office.app.submit(clings())
    await office.parked(handle.id)
    await until(lambda: after)
    await office.app.answer(handle.id, "ask", "fine")
    assert await handle.result(10) == "fine"
    assert after == ["caught"]


@pytest.mark.parametrize("holds", ["timeout", "group"])
async def test_an_open_timeout_or_task_group_keeps_the_run_warm(office: PatientOffice, holds: str) -> None:
    left: list[str] = []

    @job
    async def warm(run: Run) -> str:
        try:
            async with asyncio.timeout(1_000) if holds == "timeout" else asyncio.TaskGroup():
                return await run.ask("well?")
        finally:
            left.append("left")

    handle = await office.app.submit(warm())
    await office.parked(handle.id)
    await until(lambda: handle.id in office.worker.warm)
    assert not left
    await office.app.answer(handle.id, "ask", "fine")
    assert await handle.result(10) == "fine"
    assert left == ["left"]  # it went on where it was


async def test_a_parked_run_whose_own_timer_is_lost_with_its_worker_is_gone_on_with(lab: CrashLab) -> None:
    """The user's timeout lives in memory only: another worker has to spend it again."""

    @job
    async def limited(run: Run) -> str:
        try:
            async with asyncio.timeout(0.05):
                return await run.ask("never answered?")
        except TimeoutError:
            return await run.step(work, "timed out")

    for crashed in await everywhere(lab, limited()):
        assert crashed.output == "timed out done", crashed.death


# --- children -------------------------------------------------------------------------------------------


@job
async def child_job(run: Run, name: str) -> str:
    await run.step(work, name)
    answer = await run.ask(f"{name}?")
    if name == "bad":
        await run.step(fail, name)
    return answer


@job
async def parent_job(run: Run, name: str) -> str:
    child = await run.start(child_job(name))
    try:
        return await child.result()
    except StepError as error:
        return f"{error.type} {error.message.partition(': ')[2]}"


@pytest.mark.parametrize(
    ("name", "result"), [("good", "good? yes"), ("bad", "RunFailed step 'fail': ValueError: bad")]
)
async def test_a_childs_result_or_failure_reaches_its_parent_whatever_dies(
    lab: CrashLab, name: str, result: str
) -> None:
    for crashed in await everywhere(lab, parent_job(name), jobs=[child_job], outside=answers):
        assert crashed.output == result, crashed.death
        assert len(await lab.store.runs(parent=crashed.run.id)) == 1


async def test_cancelling_a_parent_cancels_its_children(office: PatientOffice) -> None:
    await office.worker.add_job(child_job)
    handle = await office.app.submit(parent_job("good"))
    (action,) = await until(office.app.actions)
    await handle.cancel()
    with pytest.raises(RunCancelled):
        await handle.result(10)
    with pytest.raises(RunCancelled):
        await office.app.handle(action.run).result(10)


async def test_a_childs_result_that_was_given_up_can_be_asked_for_again(lab: CrashLab) -> None:
    @job
    async def asks_twice(run: Run) -> list:
        child = await run.start(child_job("good"))
        try:
            async with asyncio.timeout(0.02):
                return [await child.result()]
        except TimeoutError:
            await run.step(work, "in between")
        return ["gave up", await child.result()]

    async def answers_late(app: Dayjob, run: str) -> bool:
        steps = await app.steps(run)
        if not any(step.name == "work" and step.outcome for step in steps):
            return False
        return await answers(app, run)

    for crashed in await everywhere(lab, asks_twice(), jobs=[child_job], outside=answers_late):
        assert crashed.output == ["gave up", "good? yes"], crashed.death


async def test_continue_as_goes_on_in_a_fresh_run_that_takes_the_place_of_the_first(lab: CrashLab) -> None:
    @job
    async def counts(run: Run, n: int) -> int:
        await run.step(work, f"n{n}")
        if n < 3:
            await run.continue_as(counts(n + 1))
        return n

    for crashed in await everywhere(lab, counts(1)):
        assert crashed.output == 3, crashed.death
        assert len(crashed.steps) == 1


async def test_a_parent_waits_for_the_last_of_the_runs_that_its_child_goes_on_as(lab: CrashLab) -> None:
    @job
    async def counts(run: Run, n: int) -> int:
        if n < 3:
            await run.continue_as(counts(n + 1))
        return n

    @job
    async def waits(run: Run) -> int:
        return await (await run.start(counts(1))).result()

    for crashed in await everywhere(lab, waits(), jobs=[counts]):
        assert crashed.output == 3, crashed.death


# --- the end --------------------------------------------------------------------------------------------


@job
async def defers(run: Run, ending: str) -> str:
    await run.defer(work, "first")
    await run.defer(fail, "second")
    await run.defer(work, "third")
    if ending == "failed":
        await run.step(fail, "job")
    if ending == "cancelled":
        await run.ask("cancel me")
    return ending


async def cancels(app: Dayjob, run: str) -> bool:
    if not await app.actions(run):
        return False
    await app.cancel(run)
    return True


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_what_was_deferred_is_done_once_last_first_however_the_run_ends(
    lab: CrashLab, ending: str
) -> None:
    calm = await lab.run(defers(ending), outside=cancels)
    assert calm.status == ending
    order = [step.input for step in calm.steps if step.scope == "#defer"]
    assert order == [b'["third"]', b'["second"]', b'["first"]']
    for crashed in await everywhere(lab, defers(ending), outside=cancels):
        assert crashed.status == ending, crashed.death
        assert [step.input for step in crashed.steps if step.scope == "#defer"] == order, crashed.death


async def test_a_cancel_in_the_middle_of_a_replay_forgets_nothing_that_was_deferred(lab: CrashLab) -> None:
    going_on, halfway = asyncio.Event(), asyncio.Event()
    going_on.set()

    @job
    async def pauses(run: Run) -> None:
        await run.defer(work, "first")
        halfway.set()
        await going_on.wait()
        await run.defer(work, "second")
        await run.ask("cancel me")

    def die() -> None:
        going_on.clear()
        halfway.clear()

    async def cancels_halfway(app: Dayjob, run: str) -> bool:
        if going_on.is_set() or not halfway.is_set():
            return False
        await app.cancel(run)
        asyncio.get_running_loop().call_later(0.1, going_on.set)
        return True

    crashed = await lab.run(pauses(), death=Death(4), on_death=die, outside=cancels_halfway)
    assert crashed.status == "cancelled"
    assert [step.input for step in crashed.steps if step.scope == "#defer"] == [b'["second"]', b'["first"]']


async def test_what_was_deferred_and_is_replayed_stops_nothing_by_itself(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dayjob.execution.REPLAY_SECONDS", 0.05)

    async def long() -> str:
        await asyncio.sleep(0.3)
        return "done"

    @job
    async def defers_twice(run: Run) -> str:
        await run.defer(work, "first")
        await run.defer(work, "second")
        await run.event("go on")
        return await run.step(long)

    async with Dayjob(url, jobs=[defers_twice]) as app:
        handle = await app.submit(defers_twice())
        await until(lambda: _is(app, handle.id, Status.WAITING))
    async with Dayjob(url, jobs=[defers_twice]) as app:
        await app.send(handle.id, "go on")
        assert await app.handle(handle.id).result(5) == "done"


@pytest.mark.parametrize("by", ["cancel", "limit"])
@pytest.mark.parametrize("defers_again", [True, False])
async def test_a_stop_in_a_replay_lets_nothing_more_be_done_but_what_was_deferred(
    url: str, by: str, defers_again: bool
) -> None:
    going_on, halfway, is_changed = asyncio.Event(), asyncio.Event(), False

    @job
    async def changes(run: Run) -> None:
        await run.defer(work, "first")
        if is_changed:
            halfway.set()
            await going_on.wait()
        if defers_again or not is_changed:
            await run.defer(work, "second")
        await run.event("go on")
        await run.step(work, "for real")

    limits = Limits(seconds=1.5) if by == "limit" else None
    async with Dayjob(url, jobs=[changes]) as app:
        handle = await app.submit(changes(), limits=limits)
        await until(lambda: _is(app, handle.id, Status.WAITING))
        await app.send(handle.id, "nothing that it waits for")
    is_changed = True
    async with Dayjob(url, jobs=[changes], worker=False) as app:
        await app.send(handle.id, "go on")
        async with app.worker():
            await asyncio.wait_for(halfway.wait(), 5)
            if by == "cancel":
                await app.cancel(handle.id)
            else:
                await asyncio.sleep(1.5)
            asyncio.get_running_loop().call_later(0.1, going_on.set)
            ended = await app.until_settled(handle.id, 5)
        assert ended.status == ("cancelled" if by == "cancel" else "incomplete")
        steps = await app.steps(handle.id)
    done = [b'["second"]', b'["first"]'] if defers_again else [b'["first"]']
    assert [step.input for step in steps if step.name == "work"] == done


async def _is(app: Dayjob, run: str, status: Status) -> bool:
    return (await app.get(run)).status == status


async def test_a_deferred_function_that_was_done_is_not_done_again_after_a_crash(lab: CrashLab) -> None:
    calm = await lab.run(defers("failed"))
    for moment in Moment:
        for write in range(1, calm.writes + 1):
            crashed, again = await after_death(lab, defers("failed"), Death(write, moment))
            done = {step.input for step in crashed.durable if step.scope == "#defer" and step.outcome}
            for name in ("first", "third"):
                assert again[name] == (f'["{name}"]'.encode() not in done), (crashed.death, name)


async def test_the_partial_output_stays_when_a_run_fails(office: PatientOffice) -> None:
    @job
    async def half(run: Run) -> None:
        await run.partial({"done": 1})
        await run.partial({"done": 2})
        await run.step(fail, "rest")

    handle = await office.app.submit(half())
    with pytest.raises(RunFailed, match="ValueError: rest") as failed:
        await handle.result(10)
    assert failed.value.partial == {"done": 2}


# --- threads --------------------------------------------------------------------------------------------


async def test_a_thread_has_one_active_run_and_others_are_refused_or_wait_their_turn(
    office: PatientOffice,
) -> None:
    thread = office.app.thread()
    first = await office.app.submit(asks(), thread=thread)
    with pytest.raises(ThreadBusy, match=first.id):
        await office.app.submit(asks(), thread=thread)
    second = await office.app.submit(asks(), thread=thread, when_busy="enqueue")
    third = await office.app.submit(asks(), thread=thread, when_busy="enqueue")
    for handle, later in ((first, (second, third)), (second, (third,)), (third, ())):
        await office.parked(handle.id)
        assert [await run.status() for run in later] == [Status.QUEUED] * len(later)
        await office.app.answer(handle.id, "ask", "yes")
        assert await handle.result(10) == ["yes", "after done"]


async def test_a_runs_messages_are_in_its_thread_once_whatever_dies(lab: CrashLab) -> None:
    @job
    async def chats(run: Run) -> list:
        assert run.thread is not None
        said = [message["content"] for message in await run.thread.messages()]
        reply = await run.model("hello")
        await run.thread.append(reply.text)
        return [*said, reply.text]

    model = Scripted(lambda request: "hi there")
    for write in range(1, 8):
        async with Dayjob(lab.store, worker=False) as app:
            thread = app.thread()
            await thread.append("hello")
            crashed = await lab.run(
                chats(), death=Death(write, Moment.UNHEARD), model=model, thread=thread.id
            )
            assert crashed.output == ["hello", "hi there"]
            assert [message["content"] for message in await thread.messages()] == ["hello", "hi there"]


# --- runs that kill ---------------------------------------------------------------------------------------


async def test_takeovers_without_progress_are_counted_and_the_third_is_poison(lab: CrashLab) -> None:
    attempts: list[int] = []

    @job
    async def kills(run: Run) -> str:
        attempts.append(run.attempt)
        return await run.step(work, "step")

    poisoned = await lab.run(kills(), death=[Death(2)] * 3)
    assert poisoned.status == Status.FAILED
    assert poisoned.error == "Poison"
    assert "3 workers died" in str(poisoned.run.reason)
    assert attempts == [1, 2, 3]


async def test_progress_resets_the_count_of_takeovers(lab: CrashLab) -> None:
    @job
    async def slow(run: Run) -> list:
        return [await run.step(work, f"s{n}") for n in range(6)]

    survived = await lab.run(slow(), death=[Death(2, Moment.UNHEARD)] * 6)
    assert survived.status == Status.COMPLETED
    assert sum(executed.values()) == 6
    assert [step.outcome for step in survived.steps] == [Outcome.VALUE] * 6


async def test_what_a_finished_scope_deferred_is_done_though_the_run_left_memory(
    office: PatientOffice,
) -> None:
    cleaned: list[str] = []

    async def clean(what: str) -> None:
        cleaned.append(what)

    async def scoped(run: Run) -> str:
        await run.defer(clean, "scope")
        return await run.step(work, "inside")

    async def branch(run: Run) -> None:
        await run.defer(clean, "branch")

    @job
    async def defers(run: Run) -> str:
        await run.step(scoped)
        await run.gather(branch)
        await run.sleep(60)
        return "done"

    handle = await office.app.submit(defers())
    await office.parked(handle.id)
    assert executed["inside"] == 1
    await office.pass_time(61)
    assert await handle.result(20) == "done"
    assert cleaned == ["branch", "scope"]
    assert executed["inside"] == 1


async def test_a_deferred_function_may_wait_for_people_and_children(office: PatientOffice) -> None:
    heard: list[object] = []

    @job
    async def child(run: Run) -> int:
        return 5

    async def clean(run: Run) -> None:
        heard.append(await (await run.start(child())).result())
        heard.append(await run.ask("Really?", bool))

    @job
    async def defers(run: Run) -> None:
        await run.defer(clean)
        raise ValueError("no")

    handle = await office.app.submit(defers())
    (asked,) = await until(lambda: office.app.actions(handle.id))
    await office.app.answer(handle.id, asked.id, True)
    with pytest.raises(RunFailed, match="no"):
        await handle.result(20)
    assert heard == [5, True]


async def test_a_cancelled_endless_job_has_no_successor(office: PatientOffice) -> None:
    async def clean() -> None:
        executed["clean"] += 1

    @job
    async def endless(run: Run) -> None:
        await run.defer(clean)
        await run.step(work, "once")
        await run.sleep(60)
        await run.continue_as(endless())

    handle = await office.app.submit(endless())
    await office.parked(handle.id)
    await office.pass_time(61)
    following = await until(lambda: _following(office.app, handle.id))
    await office.parked(following)
    await office.app.cancel(following)
    with pytest.raises(RunCancelled):
        await office.app.handle(following).result(20)
    assert (await office.app.get(following)).next_run is None
    assert executed["clean"] == 2


async def _following(app: Dayjob, run: str) -> str | None:
    return (await app.get(run)).next_run


async def test_an_answer_after_the_deadline_is_refused(office: PatientOffice) -> None:
    @job
    async def asks(run: Run) -> str:
        return str(await run.ask("Well?", timeout=60))

    handle = await office.app.submit(asks())
    await office.parked(handle.id)
    office.clock.advance(61)
    with pytest.raises(UnknownAction, match="its time is up"):
        await office.app.answer(handle.id, "ask", "late")
    await office.pass_time(0)
    with pytest.raises(RunExpired):
        await handle.result(20)


async def test_to_hear_what_was_sent_takes_the_same_work_however_long_the_journal_is(
    url: str, path: Path
) -> None:
    @job
    async def steps(run: Run, count: int) -> None:
        for number in range(count):
            await run.step(work, str(number))

    efforts = []
    async with Dayjob(f"{url}?synchronous=off", jobs=[steps]) as app:
        for length in (10, 400):
            handle = await app.submit(steps(count=length))
            await handle.result(timeout=20)
            record, effort = await app.get(handle.id), count()
            with closing(sqlite3.connect(path)) as connection:
                connection.set_progress_handler(lambda effort=effort: next(effort) < 0, 1)
                assert load(connection, record.home, record.id, record.epoch)
            efforts.append(next(effort))
    assert efforts[0] == efforts[1]


# --- a job that stops early -----------------------------------------------------------------------------


async def cut_off(name: str) -> str:
    executed[name] += 1
    raise Incomplete("max_completion_tokens")


@job
async def stops_early(run: Run) -> str:
    await run.defer(work, "clean-up")
    await run.partial(await run.step(work, "half"))
    raise Incomplete("max_completion_tokens")


@job
async def stops_in_a_branch(run: Run) -> list:
    await run.defer(work, "clean-up")
    await run.partial(await run.step(work, "half"))
    return await run.gather(lambda inside: inside.step(cut_off, "cut"), lambda inside: inside.sleep(600))


@job
async def starts(run: Run) -> str:
    return await (await run.start(stops_early())).result()


@pytest.mark.parametrize("job", [stops_early, stops_in_a_branch], ids=lambda job: job.name)
async def test_a_job_stops_early_with_its_partial_output_whatever_dies(lab: CrashLab, job: Any) -> None:
    for ended in await everywhere(lab, job()):
        assert (ended.status, ended.run.reason) == (Status.INCOMPLETE, "max_completion_tokens")
        assert (ended.output, ended.error) == ("half done", "Incomplete")


async def test_who_asks_for_the_result_of_a_job_that_stopped_early_is_told(office: PatientOffice) -> None:
    handle = await office.app.submit(stops_early())
    with pytest.raises(RunIncomplete, match="max_completion_tokens") as end:
        await handle.result(10)
    assert end.value.partial == "half done"
    assert executed == {"half": 1, "clean-up": 1}


async def test_a_child_that_stopped_early_is_an_error_of_its_parent(office: PatientOffice) -> None:
    await office.app._make_known(stops_early)
    with pytest.raises(RunIncomplete, match=r"RunIncomplete: child run_.*: max_completion_tokens"):
        await (await office.app.submit(starts())).result(10)
