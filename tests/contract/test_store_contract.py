"""What every store promises. A new adapter joins `ADAPTERS`, and must pass all of this as it is."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dayjob import Run, job
from dayjob.errors import StoreError, SubmitConflict, ThreadBusy, UnknownRun
from dayjob.jobs import Request
from dayjob.kept import MessageRecord
from dayjob.run import new_run
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord
from dayjob.stores import (
    End,
    Entry,
    Held,
    InboxItem,
    Loaded,
    Store,
    Wanted,
    WorkerRecord,
    open_store,
)
from dayjob.stores.process import start_of, this_host
from dayjob.testing import Clock

ADAPTERS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder / 'contract.db'}",
}
LEASE = 15.0
MAX_ATTEMPTS = 3
DONE = End(Status.COMPLETED, None, b'"done"')
nonces = itertools.count(1)


@job
async def work(run: Run) -> str: ...


@job
async def other(run: Run) -> str: ...


class Bench:
    """One database, opened as often as a test asks; a second opening stands for another process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.stores: list[Store] = []

    def open(self) -> Store:
        self.stores.append(open_store(self.url, clock=self.clock))
        return self.stores[-1]

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


@pytest.fixture(params=sorted(ADAPTERS))
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(ADAPTERS[request.param](tmp_path))
    yield bench
    await bench.close()


@pytest.fixture
def clock(bench: Bench) -> Clock:
    return bench.clock


@pytest.fixture
async def store(bench: Bench) -> Store:
    store = bench.open()
    await register(store, "w1")
    await register(store, "w2")
    return store


# --- a worker in small --------------------------------------------------------------------------------


def worker(
    id: str, *, jobs: Mapping[str, str] | None = None, lease: float = LEASE, **more: Any
) -> WorkerRecord:
    host, boot = this_host()
    process = {"host": host, "boot": boot, "pid": os.getpid(), "start": start_of(os.getpid()) or "", **more}
    return WorkerRecord(id, queues=["default"], jobs=jobs or {"work": "v1"}, lease=lease, **process)


async def register(store: Store, id: str, **more: Any) -> None:
    await store.register(worker(id, **more))


async def submit(
    store: Store, when_busy: str = "refuse", input: bytes = b"{}", of: Any = work, **fields: Any
) -> RunRecord:
    clock = store._clock  # type: ignore[attr-defined]
    due = fields.pop("due", None)
    record = new_run(Request(of, input), input, clock(), home=fields.get("thread"), **fields)
    if due is not None:
        record.admitted, record.due = 0, due
    return await store.submit(record, when_busy)


async def claim(store: Store, by: str = "w1", limit: int = 100, **wanted: Any) -> list[RunRecord]:
    fields: dict[str, Any] = {
        "queues": ["default"], "versions": {"work": ["v1"]}, "current": {"work": "v1"}, "alone": True, **wanted,
    }  # fmt: skip
    return [run for run, _ in await store.claim(Wanted(by, limit=limit, **fields))]


async def claim_one(store: Store, by: str = "w1", **wanted: Any) -> RunRecord:
    (run,) = await claim(store, by, **wanted)
    return run


async def held_run(store: Store, **fields: Any) -> RunRecord:
    await submit(store, **fields)
    return await claim_one(store)


def row(run: RunRecord, key: str, seq: int | None = None, **fields: Any) -> StepRecord:
    scope, _, name = key.rpartition("/")
    given: dict[str, Any] = {
        "kind": Kind.CALL, "outcome": Outcome.VALUE if seq else None, "value": b"1" if seq else None,
        "attempt": 1, "version": "v1", "nonce": next(nonces), "started": 1.0, "ended": 2.0 if seq else None,
        "fingerprint": b"f", "code": None, "epoch": run.epoch, **fields,
    }  # fmt: skip
    return StepRecord(home=run.home, run=run.id, key=key, scope=scope, name=name, seq=seq, **given)


def put(store: Store, run: RunRecord, *rows: StepRecord, **more: Any) -> asyncio.Future[str]:
    """Writes rows as the run's worker; the result says "durable" or "lost"."""
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    durable.add_done_callback(lambda _: outcome.done() or outcome.set_result("durable"))
    update = more.pop("update", ())
    store.put(
        Entry(
            run.home, run.id, more.pop("epoch", run.epoch), rows, update, durable,
            lambda: outcome.done() or outcome.set_result("lost"), **more, more=bool(more),
        )
    )  # fmt: skip
    return outcome


async def open_row(
    store: Store, run: RunRecord, key: str, kind: Kind = Kind.ASK, **fields: Any
) -> StepRecord:
    opened = row(run, key, None, kind=kind, **fields)
    assert await put(store, run, opened) == "durable"
    return opened


async def keys(store: Store, run: RunRecord) -> list[tuple[str, int | None]]:
    return [(step.key, step.seq) for step in await store.steps(run.id)]


async def current(store: Store, run: RunRecord) -> RunRecord:
    found = await store.get(run.id)
    assert found is not None
    return found


async def status_of(store: Store, run: RunRecord) -> Status:
    return (await current(store, run)).status


async def refreshed(store: Store, run: RunRecord, version: str | None = None) -> Loaded:
    """What a worker is told of a run that it holds; with a version, its journal too."""
    loaded = await store.refresh(run.home, run.id, run.epoch, version)
    assert loaded is not None
    return loaded


async def park(store: Store, run: RunRecord, due: float | None = None, wakes: int | None = None) -> Held:
    status = Status.WAITING if due else Status.REQUIRES_ACTION
    return await store.park(run.home, run.id, run.epoch, run.wakes if wakes is None else wakes, status, due)


async def parked_run(store: Store) -> RunRecord:
    """A run that waits for an answer to "ask"."""
    run = await held_run(store)
    await open_row(store, run, "ask")
    assert await park(store, run) is Held.DONE
    return run


async def settle(store: Store, run: RunRecord, end: End = DONE, following: RunRecord | None = None) -> Held:
    return await store.settle(run.home, run.id, run.epoch, run.wakes, end, following)


async def started_child(store: Store, parent: RunRecord, key: str = "child") -> RunRecord:
    child = new_run(
        Request(work, b"{}"), b"{}", 1.0, home=parent.home, root=parent.root, parent=parent.id, parent_key=key
    )
    step = row(parent, key, None, kind=Kind.RUN, child=child.id)
    assert await put(store, parent, step, child=child) == "durable"
    return child


# --- submitting ---------------------------------------------------------------------------------------


async def test_a_submitted_run_reads_back_as_it_was_given(store: Store) -> None:
    run = await submit(store, input=b'{"n":1}', submit_key="k", tags=b'["a"]', source="f.py:work", priority=2)
    found = await store.get(run.id)
    assert found == run
    assert found.input == b'{"n":1}'
    assert await store.get("run_nowhere") is None


async def test_the_same_key_with_the_same_input_is_the_same_run(store: Store) -> None:
    first = await submit(store, input=b'{"a":1,"b":2}', submit_key="k")
    assert (await submit(store, input=b'{"a":1,"b":2}', submit_key="k")).id == first.id
    assert (await submit(store, input=b'{"b": 2, "a": 1}', submit_key="k")).id == first.id
    assert len(await store.runs()) == 1


async def test_the_same_key_with_other_input_is_refused_naming_key_and_run(store: Store) -> None:
    first = await submit(store, input=b'{"a":1}', submit_key="ticket-17")
    with pytest.raises(SubmitConflict, match=f"key: 'ticket-17' was submitted before as {first.id}"):
        await submit(store, input=b'{"a":2}', submit_key="ticket-17")


async def test_a_key_is_unique_per_project_and_job_and_outlives_the_run(store: Store) -> None:
    first = await submit(store, submit_key="k")
    assert (await submit(store, submit_key="k", of=other)).id != first.id
    assert (await submit(store, submit_key="k", project="else")).id != first.id
    assert await settle(store, await claim_one(store, only=first.id)) is Held.DONE
    assert (await submit(store, submit_key="k")).id == first.id


async def test_a_key_submitted_by_many_at_once_makes_one_run(bench: Bench) -> None:
    stores = [bench.open() for _ in range(3)]
    runs = await asyncio.gather(*(submit(store, submit_key="k") for store in stores for _ in range(10)))
    assert len({run.id for run in runs}) == 1


# --- claiming -----------------------------------------------------------------------------------------


async def test_a_claim_gives_the_run_to_one_worker_and_raises_its_epoch(store: Store) -> None:
    submitted = await submit(store, input=b'{"n":1}')
    run = await claim_one(store)
    assert (run.id, run.epoch, run.worker, run.version) == (submitted.id, 1, "w1", "v1")
    assert (run.status, run.input, run.started) == (Status.IN_PROGRESS, b'{"n":1}', bench_time(store))
    assert await claim(store, "w2") == []
    assert await store.get(run.id) == run


def bench_time(store: Store) -> float:
    return float(store._clock())  # type: ignore[attr-defined]


async def test_urgent_runs_come_first_and_then_the_oldest(store: Store) -> None:
    runs = [await submit(store, priority=priority) for priority in (0, 5, 0, -1, 5)]
    order = [run.id for run in await claim(store)]
    assert order == [runs[index].id for index in (1, 4, 0, 2, 3)]


async def test_no_more_is_claimed_than_was_asked_for(store: Store) -> None:
    for _ in range(5):
        await submit(store)
    assert len(await claim(store, limit=2)) == 2
    assert await claim(store, limit=0) == []
    assert len(await claim(store, "w2")) == 3


async def test_only_the_wanted_queues_and_jobs_are_claimed(store: Store) -> None:
    await submit(store, queue="slow")
    await submit(store, of=other)
    assert await claim(store) == []
    assert (await claim_one(store, queues=["slow", "default"])).queue == "slow"
    assert (await claim_one(store, versions={"other": ["v1"]}, current={"other": "v1"})).job == "other"
    assert await claim(store, versions={}, current={}) == []


async def test_only_one_run_and_its_family_can_be_asked_for(store: Store) -> None:
    await submit(store)
    wanted = await submit(store)
    parent = await claim_one(store, only=wanted.id)
    assert parent.id == wanted.id
    child = await started_child(store, parent)
    assert (await claim_one(store, only=wanted.id)).id == child.id
    assert await claim(store, only=wanted.id) == []


async def test_one_run_can_be_asked_for_whatever_its_queue(store: Store) -> None:
    await submit(store)
    wanted = await submit(store, queue="elsewhere")
    assert (await claim_one(store, only=wanted.id)).id == wanted.id


async def test_a_delayed_run_is_not_claimed_before_its_time(store: Store, clock: Clock) -> None:
    run = await submit(store, due=clock() + 60)
    swept = await store.sweep(MAX_ATTEMPTS)
    assert swept.next_due == clock() + 60
    assert await claim(store) == []
    clock.advance(61)
    store.beat("w1")
    assert (await store.sweep(MAX_ATTEMPTS)).woken == 1
    assert (await claim_one(store)).id == run.id


async def test_two_stores_never_claim_the_same_run(bench: Bench) -> None:
    stores = [bench.open() for _ in range(2)]
    for index, store in enumerate(stores):
        await register(store, f"w{index}")
    for _ in range(60):
        await submit(stores[0])

    async def take(store: Store, by: str) -> list[str]:
        taken: list[str] = []
        while found := await claim(store, by, limit=3):
            taken += [run.id for run in found]
        return taken

    taken = await asyncio.gather(*(take(store, f"w{index}") for index, store in enumerate(stores)))
    assert sorted(itertools.chain(*taken)) == sorted(run.id for run in await stores[0].runs(limit=100))
    assert all(taken), "one of them got nothing: the test has tested nothing"


async def test_a_worker_that_was_declared_dead_claims_nothing(store: Store, clock: Clock) -> None:
    await submit(store)
    clock.advance(LEASE + 1)
    assert set((await store.sweep(MAX_ATTEMPTS)).dead_workers) == {"w1", "w2"}
    assert await claim(store, "w1") == []
    await register(store, "w3")
    assert len(await claim(store, "w3")) == 1


# --- fencing ------------------------------------------------------------------------------------------


async def taken_over(store: Store, run: RunRecord, by: str = "w2") -> RunRecord:
    """The run, in the hands of another worker: whoever held it at the old epoch has lost it."""
    assert await store.reclaim(str(run.worker), [(run.id, run.epoch)]) == 1
    return await claim_one(store, by)


async def test_rows_at_an_old_epoch_change_nothing_and_say_so(store: Store) -> None:
    old = await held_run(store)
    new = await taken_over(store, old)
    assert await put(store, old, row(old, "a", 1)) == "lost"
    assert await keys(store, new) == []
    assert await put(store, new, row(new, "a", 1)) == "durable"


@pytest.mark.parametrize(
    "more",
    [
        {"memory": ("name", b"1")},
        {"append": ("thread", "msg_1", b"{}")},
        {"verdict": (True, 1.0, "good")},
        {"progress": (1, 2)},
        {"messages": [(b"hash", b"{}")]},
        {"supersede": [("a", 1)]},
        {"update": True},
        {"child": True},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_nothing_else_at_an_old_epoch_is_written_either(store: Store, more: dict[str, Any]) -> None:
    old = await held_run(store)
    opened = await open_row(store, old, "ask")
    assert await put(store, old, row(old, "a", 1)) == "durable"
    new = await taken_over(store, old)
    before = await store.get(new.id), await store.steps(new.id)
    if "child" in more:
        more = {"child": new_run(Request(work, b"{}"), b"{}", 1.0, home=old.home, parent=old.id)}
    if "update" in more:
        opened.outcome, opened.seq, opened.value = Outcome.VALUE, 2, b"2"
        more = {"update": (opened,)}
    assert await put(store, old, **more) == "lost"
    assert (await store.get(new.id), await store.steps(new.id)) == before
    assert len(await store.runs()) == 1
    assert await store.recall("default", "name") is None
    assert await store.thread_messages("thread") == []
    assert await store.messages(old.home, [b"hash"]) == {}


async def test_a_run_that_is_not_held_takes_no_rows(store: Store) -> None:
    parked = await held_run(store)
    await open_row(store, parked, "ask")
    assert await park(store, parked) is Held.DONE
    assert await put(store, parked, row(parked, "late", 1)) == "lost"
    settled = await held_run(store)
    assert await settle(store, settled) is Held.DONE
    assert await put(store, settled, row(settled, "late", 1)) == "lost"


async def test_a_lost_run_does_not_take_its_neighbours_with_it(store: Store) -> None:
    lost, kept = await held_run(store), await held_run(store)
    await taken_over(store, lost)
    outcomes = [put(store, run, row(run, f"step#{seq}", seq)) for seq in range(1, 20) for run in (kept, lost)]
    assert await asyncio.gather(*outcomes) == ["durable", "lost"] * 19
    assert len(await keys(store, kept)) == 19
    assert await keys(store, lost) == []


async def test_a_verb_in_the_same_flush_as_a_lost_run_is_done_once(store: Store) -> None:
    lost, kept = await held_run(store), await held_run(store)
    await taken_over(store, lost)
    refused = put(store, lost, row(lost, "a", 1))
    submitted = asyncio.gather(*(submit(store) for _ in range(5)))
    written = put(store, kept, row(kept, "a", 1))
    assert (await refused, await written) == ("lost", "durable")
    ids = {run.id for run in await submitted}
    assert {run.id for run in await store.runs()} == ids | {lost.id, kept.id}


UNSTORABLE = {
    "an int over 64 bits": {"input_tokens": 2**70, "kind": Kind.MODEL},
    "half a surrogate pair": {"call_key": "\ud800", "kind": Kind.MODEL},
    "no value of SQL's": {"input": object()},
    "a plain row with half a surrogate pair": {"version": "\ud800"},
}


@pytest.mark.parametrize("bad", UNSTORABLE.values(), ids=UNSTORABLE)
async def test_one_bad_row_never_fails_its_neighbours(store: Store, bad: dict[str, Any]) -> None:
    sick, well = await held_run(store), await held_run(store)
    outcomes = [
        put(store, well, row(well, "a", 1)),
        put(store, sick, row(sick, "a", 1, **bad)),
        put(store, well, row(well, "b", 2)),
    ]
    async with asyncio.timeout(10):
        assert await asyncio.gather(*outcomes) == ["durable", "lost", "durable"]
    assert await keys(store, well) == [("a", 1), ("b", 2)]


async def test_a_row_sent_again_after_a_lost_reply_counts_as_written(store: Store) -> None:
    run = await held_run(store)
    written = row(run, "a", 1)
    ask = row(run, "ask", None, kind=Kind.ASK)
    for _ in range(2):
        assert await put(store, run, written) == "durable"
        assert await put(store, run, ask) == "durable"
    assert await keys(store, run) == [("a", 1), ("ask", None)]


async def test_an_entry_sent_again_writes_each_of_its_parts_once(store: Store) -> None:
    run = await held_run(store)
    opened = await open_row(store, run, "event", Kind.EVENT)
    assert await store.send(run.id, InboxItem("evt_1", "event", b"1"))
    opened.outcome, opened.seq, opened.value = Outcome.VALUE, 1, b"1"
    note = row(run, "append", 2, kind=Kind.NOTE)
    await store.create_thread("default", "t1")
    for _ in range(2):
        sent = put(store, run, note, append=("t1", MessageRecord("msg_1", b'{"role":"user"}', 1.0)))
        assert await put(store, run, update=(opened,), consumed="evt_1") == "durable"
        assert await sent == "durable"
    assert await keys(store, run) == [("event", 1), ("append", 2)]
    assert [id for _, id, _ in await store.thread_messages("t1")] == ["msg_1"]


async def test_another_row_of_the_same_key_and_attempt_is_refused(store: Store) -> None:
    run = await held_run(store)
    assert await put(store, run, row(run, "a", 1)) == "durable"
    assert await put(store, run, row(run, "a", 2)) == "lost"
    assert await keys(store, run) == [("a", 1)]


async def test_a_number_in_the_order_of_completion_is_given_once(store: Store) -> None:
    run = await held_run(store)
    assert await put(store, run, row(run, "a", 1)) == "durable"
    assert await put(store, run, row(run, "b", 1)) == "lost"
    opened = await open_row(store, run, "ask")
    opened.outcome, opened.seq = Outcome.VALUE, 1
    assert await put(store, run, update=(opened,)) == "lost"
    assert await put(store, run, row(run, "b", 2)) == "durable"


async def test_an_entry_is_written_whole_or_not_at_all(store: Store) -> None:
    run = await held_run(store)
    assert await put(store, run, row(run, "taken", 1)) == "durable"
    clash = [row(run, "a", 2), row(run, "taken", 3)]
    assert await put(store, run, *clash, memory=("m", b"1")) == "lost"
    assert await put(store, run, *clash) == "lost"
    assert await keys(store, run) == [("taken", 1)]
    assert await store.recall("default", "m") is None


# --- order --------------------------------------------------------------------------------------------


async def test_a_row_is_never_durable_before_an_earlier_row_of_its_run(bench: Bench) -> None:
    """Another process that looks at any time sees a beginning of the journal, and no gap."""
    writing, looking = bench.open(), bench.open()
    await register(writing, "w1")
    runs = [await held_run(writing) for _ in range(4)]
    first, looks = 1, 0
    while looks < 20:  # a busy machine may write all of a round while it looks once
        last = asyncio.gather(
            *(
                put(writing, run, row(run, f"step#{seq}", seq, value=b'"%b"' % (b"x" * (seq % 7) * 200)))
                for seq in range(first, first + 200)
                for run in runs
            )
        )
        first += 200
        while not last.done():
            for run in runs:
                seqs = [step.seq for step in await looking.steps(run.id)]
                assert seqs == list(range(1, len(seqs) + 1))
                looks += 1
        assert set(await last) == {"durable"}


async def test_what_was_durable_is_in_the_file_that_another_process_opens(bench: Bench) -> None:
    store = bench.open()
    await register(store, "w1")
    run = await held_run(store)
    assert await put(store, run, row(run, "a", 1)) == "durable"
    assert await keys(bench.open(), run) == [("a", 1)]


async def test_closing_writes_what_is_queued(bench: Bench) -> None:
    store = bench.open()
    await register(store, "w1")
    run = await held_run(store)
    for seq in range(1, 300):
        store.put(Entry(run.home, run.id, run.epoch, (row(run, f"a#{seq}", seq),)))
    await store.close()
    assert len(await keys(bench.open(), run)) == 299
    with pytest.raises(StoreError, match="closed"):
        await submit(store)


# --- parking ------------------------------------------------------------------------------------------


async def test_a_parked_run_is_held_by_nobody_until_something_comes(store: Store) -> None:
    run = await parked_run(store)
    found = await current(store, run)
    assert (found.status, found.worker, found.attempts) == (Status.REQUIRES_ACTION, None, 0)
    assert await claim(store) == []
    assert await store.answer(run.id, "ask", b'"yes"', "ann")
    again = await claim_one(store, "w2")
    assert (again.id, again.epoch, again.wakes) == (run.id, 2, 1)


async def test_an_answer_that_comes_before_the_park_keeps_the_run_held(store: Store) -> None:
    run = await held_run(store)
    await open_row(store, run, "ask")
    assert await store.answer(run.id, "ask", b'"yes"', None)
    assert await park(store, run) is Held.WOKEN
    loaded = await refreshed(store, run)
    assert (loaded.wakes, [(step.key, step.answer) for step in loaded.answered]) == (1, [("ask", b'"yes"')])
    assert await park(store, run, wakes=loaded.wakes) is Held.DONE


async def test_only_the_epoch_says_lost(store: Store) -> None:
    run = await held_run(store)
    await store.send(run.id, InboxItem("evt_1", "news", b"1"))
    new = await taken_over(store, run)
    assert await park(store, run) is Held.LOST
    assert await settle(store, run) is Held.LOST
    assert await store.unwind(run.home, run.id, run.epoch, run.wakes, DONE) is Held.LOST
    assert await store.refresh(run.home, run.id, run.epoch, None) is None
    assert not await store.unpark(run.home, run.id, run.epoch, "w1")
    await store.release(run.home, run.id, run.epoch, None)
    assert await store.get(run.id) == new


async def test_every_guarded_change_is_refused_when_something_came_meanwhile(store: Store) -> None:
    run = await held_run(store)
    await store.send(run.id, InboxItem("evt_1", "news", b"1"))
    assert await settle(store, run) is Held.WOKEN
    assert await store.unwind(run.home, run.id, run.epoch, run.wakes, End(Status.FAILED, "r")) is Held.WOKEN
    assert await status_of(store, run) == Status.IN_PROGRESS
    run.wakes = 1
    assert await settle(store, run) is Held.DONE


async def test_a_warm_run_takes_itself_back_if_nobody_else_has(store: Store) -> None:
    run = await parked_run(store)
    assert await store.unpark(run.home, run.id, run.epoch, "w1")
    found = await current(store, run)
    assert (found.status, found.worker, found.epoch) == (Status.IN_PROGRESS, "w1", run.epoch)
    assert await put(store, run, row(run, "a", 1)) == "durable"
    assert not await store.unpark(run.home, run.id, run.epoch, "w1")  # it is not parked now


async def test_a_warm_run_that_another_worker_has_claimed_cannot_be_taken_back(store: Store) -> None:
    run = await parked_run(store)
    assert await store.answer(run.id, "ask", b"1", None)
    await claim_one(store, "w2")
    assert not await store.unpark(run.home, run.id, run.epoch, "w1")


async def test_a_warm_run_that_is_being_cancelled_stays_so_when_it_is_taken_back(store: Store) -> None:
    run = await parked_run(store)
    assert await store.cancel(run.id, "enough") == Status.CANCELLING
    assert await store.unpark(run.home, run.id, run.epoch, "w1")
    assert await status_of(store, run) == Status.CANCELLING


async def test_a_released_run_goes_back_to_the_queue_as_it_is(store: Store) -> None:
    run = await held_run(store)
    assert await put(store, run, row(run, "a", 1)) == "durable"
    await store.release(run.home, run.id, run.epoch, None)
    assert await put(store, run, row(run, "b", 2)) == "lost"
    again = await claim_one(store, "w2")
    assert (again.id, again.attempts, await keys(store, again)) == (run.id, 0, [("a", 1)])


# --- answers ------------------------------------------------------------------------------------------


async def test_an_action_is_answered_once(store: Store) -> None:
    run = await held_run(store)
    await open_row(store, run, "ask", input=b'{"question":"?"}')
    assert [step.key for step in await store.open_steps(None, [Kind.ASK])] == ["ask"]
    assert await store.answer(run.id, "ask", b"1", "ann")
    assert not await store.answer(run.id, "ask", b"2", "bob")
    found = await store.step(run.id, "ask", 1)
    assert found is not None
    assert (found.answer, found.answered_by, found.outcome) == (b"1", "ann", None)
    assert await store.open_steps(None, [Kind.ASK]) == []


async def test_many_who_answer_at_once_cannot_all_have_answered(bench: Bench) -> None:
    stores = [bench.open() for _ in range(3)]
    await register(stores[0], "w1")
    run = await held_run(stores[0])
    await open_row(stores[0], run, "ask")
    given = await asyncio.gather(
        *(store.answer(run.id, "ask", b"1", None) for store in stores for _ in range(5))
    )
    assert sum(given) == 1
    assert (await current(stores[0], run)).wakes == 1


async def test_what_is_finished_over_or_unknown_takes_no_answer(store: Store) -> None:
    run = await held_run(store)
    await open_row(store, run, "ask")
    assert await put(store, run, row(run, "a", 1)) == "durable"
    assert not await store.answer(run.id, "a", b"1", None)
    assert not await store.answer(run.id, "nowhere", b"1", None)
    with pytest.raises(UnknownRun, match="run_nowhere"):
        await store.answer("run_nowhere", "ask", b"1", None)
    assert await settle(store, run) is Held.DONE
    assert not await store.answer(run.id, "ask", b"1", None)
    assert await store.open_step(run.id, "ask") is None


async def test_what_is_sent_waits_in_order_until_it_is_consumed(store: Store) -> None:
    run = await held_run(store)
    for number in (1, 2, 3):
        assert await store.send(run.id, InboxItem(f"evt_{number}", "news", b"%d" % number))
    loaded = await refreshed(store, run)
    assert ([item.value for item in loaded.inbox], loaded.wakes) == ([b"1", b"2", b"3"], 3)
    assert await put(store, run, row(run, "news", 1, kind=Kind.EVENT), consumed="evt_1") == "durable"
    loaded = await refreshed(store, run)
    assert [item.id for item in loaded.inbox] == ["evt_2", "evt_3"]


async def test_what_is_sent_twice_under_one_id_arrives_once(store: Store) -> None:
    run = await held_run(store)
    item = InboxItem("evt_1", "news", b"1")
    assert await store.send(run.id, item)
    assert await store.send(run.id, item)
    loaded = await refreshed(store, run)
    assert loaded.inbox == [item]
    assert await put(store, run, row(run, "news", 1, kind=Kind.EVENT), consumed="evt_1") == "durable"
    assert await store.send(run.id, item)
    loaded = await refreshed(store, run)
    assert loaded.inbox == []


async def test_nothing_is_sent_to_a_run_that_is_over(store: Store) -> None:
    run = await held_run(store)
    assert await settle(store, run) is Held.DONE
    assert not await store.send(run.id, InboxItem("evt_1", "news", b"1"))
    with pytest.raises(UnknownRun, match="run_nowhere"):
        await store.send("run_nowhere", InboxItem("evt_1", "news", b"1"))


async def test_what_is_sent_wakes_a_parked_run(store: Store) -> None:
    run = await held_run(store)
    await open_row(store, run, "news", Kind.EVENT)
    assert await park(store, run, due=bench_time(store) + 60) is Held.DONE
    assert await store.send(run.id, InboxItem("evt_1", "news", b"1"))
    again = await claim_one(store)
    assert (again.id, again.due, again.wakes) == (run.id, None, 1)


# --- settling -----------------------------------------------------------------------------------------


async def test_a_settled_run_is_over_with_its_sums(store: Store, clock: Clock) -> None:
    run = await held_run(store)
    priced = {"kind": Kind.MODEL, "input_tokens": 10, "output_tokens": 5, "dollars": 0.25}
    assert await put(store, run, row(run, "a", 1, **priced), row(run, "b", 2, **priced)) == "durable"
    clock.advance(5)
    assert await settle(store, run, End(Status.COMPLETED, None, b'"out"')) is Held.DONE
    found = await current(store, run)
    assert (found.status, found.output, found.ended, found.worker) == (
        Status.COMPLETED,
        b'"out"',
        clock(),
        None,
    )
    assert (found.dollars, found.input_tokens, found.output_tokens, found.steps) == (0.5, 20, 10, 2)
    assert await store.ended([run.id, "run_nowhere"]) == [run.id]
    assert await settle(store, run) is Held.LOST


async def test_a_call_of_unknown_price_makes_the_cost_unknown(store: Store) -> None:
    run = await held_run(store)
    assert await put(store, run, row(run, "a", 1, kind=Kind.MODEL, dollars=None)) == "durable"
    assert await settle(store, run) is Held.DONE
    found = await current(store, run)
    assert found.dollars is None


async def test_a_run_that_stops_early_has_its_last_partial_output(store: Store) -> None:
    run = await held_run(store)
    for seq in (1, 2):
        note = row(run, f"partial#{seq}", seq, kind=Kind.NOTE, value=b"%d" % seq)
        note.name = "partial"
        assert await put(store, run, note) == "durable"
    assert await settle(store, run, End(Status.FAILED, "broke", None, b"{}")) is Held.DONE
    found = await current(store, run)
    assert (found.status, found.reason, found.output, found.error) == (Status.FAILED, "broke", b"2", b"{}")


async def test_an_unwinding_run_keeps_the_outcome_to_come(store: Store) -> None:
    run = await held_run(store)
    end = End(Status.FAILED, "broke", None, b'{"type":"E"}')
    assert await store.unwind(run.home, run.id, run.epoch, run.wakes, end) is Held.DONE
    found = await current(store, run)
    assert (found.status, found.outcome, found.reason) == (Status.UNWINDING, "failed", "broke")
    assert await put(store, run, row(run, "undo", 1)) == "durable"
    new = await taken_over(store, run)
    assert (new.status, new.outcome) == (Status.UNWINDING, "failed")
    assert await store.cancel(run.id, "too late") == Status.UNWINDING
    assert await settle(store, new, end) is Held.DONE


async def test_a_child_and_its_step_are_one_transaction(store: Store) -> None:
    parent = await held_run(store)
    child = await started_child(store, parent)
    claimed = await claim_one(store)
    assert (claimed.id, claimed.parent, claimed.home, claimed.root) == (
        child.id,
        parent.id,
        parent.home,
        parent.id,
    )
    clash = new_run(Request(work, b"{}"), b"{}", 1.0, home=parent.home, parent=parent.id)
    assert await put(store, parent, row(parent, "child", None, kind=Kind.RUN), child=clash) == "lost"
    assert await store.get(clash.id) is None


async def test_the_end_of_a_child_answers_and_wakes_its_parent_at_once(store: Store) -> None:
    parent = await held_run(store)
    await started_child(store, parent)
    child = await claim_one(store)
    assert await park(store, parent) is Held.DONE
    assert await settle(store, child, End(Status.FAILED, "broke", b"1", b'{"type":"E"}')) is Held.DONE
    woken = await claim_one(store)
    assert (woken.id, woken.wakes) == (parent.id, 1)
    loaded = await refreshed(store, woken)
    (step,) = loaded.answered
    assert json.loads(step.answer or b"") == {
        "status": "failed", "reason": "broke", "output": 1, "error": {"type": "E"},
    }  # fmt: skip


async def test_a_child_that_ends_before_its_parent_parks_is_not_missed(store: Store) -> None:
    parent = await held_run(store)
    await started_child(store, parent)
    assert await settle(store, await claim_one(store)) is Held.DONE
    assert await park(store, parent) is Held.WOKEN


async def test_the_run_that_continues_another_takes_its_place(store: Store) -> None:
    parent = await held_run(store)
    await started_child(store, parent)
    first = await claim_one(store)
    following = new_run(
        Request(work, b"{}"),
        b"{}",
        2.0,
        home=parent.home,
        root=parent.root,
        parent=parent.id,
        parent_key="child",
    )
    assert await settle(store, first, DONE, following) is Held.DONE
    assert await park(store, parent) is Held.DONE  # its child has not ended
    found = await current(store, first)
    assert found.next_run == following.id
    assert [run.id for run in await store.line(following.id)] == [following.id, first.id]
    assert [run.id for run in await store.line(first.id)] == [first.id]
    assert await settle(store, await claim_one(store)) is Held.DONE
    assert (await claim_one(store)).id == parent.id


# --- cancelling and resuming --------------------------------------------------------------------------


async def test_a_run_that_never_started_is_cancelled_at_once(store: Store, clock: Clock) -> None:
    for run in (await submit(store), await submit(store, due=clock() + 60)):
        assert await store.cancel(run.id, "not needed") == Status.CANCELLED
        found = await current(store, run)
        assert (found.reason, found.ended) == ("not needed", clock())
    assert await claim(store) == []
    assert await store.cancel(run.id, "again") == Status.CANCELLED


async def test_a_held_run_is_asked_to_stop(store: Store) -> None:
    run = await held_run(store)
    assert await store.cancel(run.id, "enough") == Status.CANCELLING
    loaded = await refreshed(store, run)
    assert (loaded.status, loaded.reason, loaded.wakes) == (Status.CANCELLING, "enough", 1)
    assert await settle(store, run) is Held.WOKEN
    assert await put(store, run, row(run, "last", 1)) == "durable"
    run.wakes = 1
    assert await settle(store, run, End(Status.CANCELLED, "enough")) is Held.DONE


async def test_a_parked_run_that_is_cancelled_goes_to_a_worker_to_clean_up(store: Store) -> None:
    run = await parked_run(store)
    assert await store.cancel(run.id, "enough") == Status.CANCELLING
    assert (await claim_one(store)).status == Status.CANCELLING


async def test_cancelling_a_run_cancels_its_family(store: Store) -> None:
    parent = await held_run(store)
    await started_child(store, parent, "one")
    running = await claim_one(store)
    grandchild = await started_child(store, running, "grand")
    queued = await started_child(store, parent, "two")
    bystander = await submit(store)
    assert await store.cancel(parent.id, "enough") == Status.CANCELLING
    assert [await status_of(store, run) for run in (running, queued, grandchild, bystander)] == [
        Status.CANCELLING,
        Status.CANCELLED,
        Status.CANCELLED,
        Status.QUEUED,
    ]


async def test_an_enqueued_run_that_was_resumed_is_cancelled_at_once_too(store: Store) -> None:
    await submit(store, thread="t1")
    run = await submit(store, when_busy="enqueue", thread="t1")
    assert await store.cancel(run.id, "not needed") == Status.CANCELLED
    assert await store.resume(run.id, [], False)
    assert await store.cancel(run.id, "not needed") == Status.CANCELLED


async def test_a_held_run_whose_time_is_up_is_asked_to_stop_with_its_children(
    store: Store, clock: Clock
) -> None:
    run = await held_run(store, expires=clock() + 10, expires_seconds=10.0)
    child = await started_child(store, run, "one")
    clock.advance(9)
    swept = await store.sweep(MAX_ATTEMPTS)
    assert (swept.expired, swept.next_due) == ([], clock() + 1)
    clock.advance(1)
    swept = await store.sweep(MAX_ATTEMPTS)
    assert (swept.expired, swept.next_due) == ([run.id], None)
    assert await status_of(store, child) == Status.CANCELLED
    loaded = await refreshed(store, run)
    assert (loaded.status, loaded.outcome) == (Status.CANCELLING, Status.EXPIRED)
    assert await settle(store, run) is Held.WOKEN
    assert await store.cancel(run.id, "enough") == Status.CANCELLING
    assert (await current(store, run)).reason == "not over within 10 seconds"


async def test_a_run_that_is_over_or_is_ending_does_not_expire(store: Store, clock: Clock) -> None:
    completed, unwinding = [
        await held_run(store, expires=clock() + 10, expires_seconds=10.0) for _ in range(2)
    ]
    assert await settle(store, completed) is Held.DONE
    failed = End(Status.FAILED, "broken")
    identity = (unwinding.home, unwinding.id, unwinding.epoch, unwinding.wakes)
    assert await store.unwind(*identity, failed) is Held.DONE
    clock.advance(10)
    assert (await store.sweep(MAX_ATTEMPTS)).expired == []
    assert await status_of(store, completed) == Status.COMPLETED
    assert (await current(store, unwinding)).outcome == Status.FAILED


async def test_a_run_whose_time_is_up_is_not_begun_and_has_it_anew_when_resumed(
    store: Store, clock: Clock
) -> None:
    run = await submit(store, expires=clock() + 10, expires_seconds=10.0)
    clock.advance(10)
    assert await claim(store) == []
    assert (await store.sweep(MAX_ATTEMPTS)).expired == [run.id]
    assert await status_of(store, run) == Status.EXPIRED
    assert await store.resume(run.id, [], False)
    assert (await claim_one(store)).expires == clock() + 10


async def test_cancelling_what_is_over_changes_nothing(store: Store) -> None:
    run = await held_run(store)
    assert await settle(store, run) is Held.DONE
    before = await store.get(run.id)
    assert await store.cancel(run.id, "late") == Status.COMPLETED
    assert await store.get(run.id) == before
    with pytest.raises(UnknownRun):
        await store.cancel("run_nowhere", "x")


async def test_a_resumed_run_begins_again_without_what_was_superseded(store: Store) -> None:
    run = await held_run(store)
    rows = [row(run, "a", 1), row(run, "b", 2, outcome=Outcome.ERROR), row(run, "b/inside", 3)]
    assert await put(store, run, *rows) == "durable"
    priced = End(Status.FAILED, "broke", None, b"{}")
    assert await settle(store, run, priced) is Held.DONE
    assert await store.resume(run.id, [("b", 1), ("b/inside", 1)], False)
    queued = await current(store, run)
    assert (queued.status, queued.reason, queued.error, queued.ended) == (Status.QUEUED, None, None, None)
    assert (queued.attempts, queued.dollars) == (0, None)
    again = await claim_one(store)
    loaded = await refreshed(store, again, "v1")
    assert [step.key for step in loaded.steps or ()] == ["a"]
    assert (loaded.attempts, loaded.last_seq) == ({"b": 1, "b/inside": 1}, 3)
    assert await put(store, run, row(run, "late", 9)) == "lost"


async def test_only_a_run_that_is_over_can_be_resumed(store: Store) -> None:
    run = await held_run(store)
    assert not await store.resume(run.id, [], False)
    assert await settle(store, run) is Held.DONE
    assert await store.resume(run.id, [], True)
    assert not await store.resume(run.id, [], False)
    assert (await claim_one(store)).changed == 1


async def test_a_run_that_was_cancelled_before_its_time_begins_at_once_when_it_is_resumed(
    store: Store, clock: Clock
) -> None:
    run = await submit(store, due=clock() + 60)
    assert await store.cancel(run.id, "x") == Status.CANCELLED
    assert await store.resume(run.id, [], False)
    assert (await claim_one(store)).id == run.id


async def test_a_run_that_was_cancelled_before_its_turn_takes_its_turn_when_it_is_resumed(
    store: Store,
) -> None:
    first = await held_run(store, thread="t")
    second = await submit(store, "enqueue", thread="t")
    assert await store.cancel(second.id, "x") == Status.CANCELLED
    assert await store.resume(second.id, [], False)
    assert await claim(store) == []
    assert await settle(store, first) is Held.DONE
    assert (await claim_one(store)).id == second.id
    assert await store.cancel(second.id, "x") == Status.CANCELLING
    third = await submit(store, "enqueue", thread="t")
    assert await store.cancel(third.id, "x") == Status.CANCELLED
    assert await settle(store, await current(store, second), End(Status.CANCELLED)) is Held.DONE
    assert await store.resume(third.id, [], False)
    assert (await claim_one(store)).id == third.id


async def test_superseding_a_step_leaves_its_neighbours(store: Store) -> None:
    run = await held_run(store)
    rows = ["a", "a/x", "a/x/y", "a#2", "a#2/x", "a!", "ab/x"]
    assert await put(store, run, *(row(run, key, seq) for seq, key in enumerate(rows, 1))) == "durable"
    assert await put(store, run, supersede=[("a/x", 1), ("a#2", 1)]) == "durable"
    outcomes = {step.key: step.outcome for step in await store.steps(run.id)}
    assert [key for key, outcome in outcomes.items() if outcome == Outcome.SUPERSEDED] == ["a/x", "a#2"]


# --- the journal that a claim loads -------------------------------------------------------------------


async def test_a_finished_scope_is_loaded_without_its_inside(store: Store) -> None:
    run = await held_run(store)
    rows = [
        row(run, "part/a", 1), row(run, "part/deep/b", 2), row(run, "part/deep", 3, kind=Kind.SCOPE),
        row(run, "part", 4, kind=Kind.SCOPE), row(run, "open/c", 5),
    ]  # fmt: skip
    assert await put(store, run, *rows) == "durable"
    loaded = await refreshed(store, run, "v1")
    assert [step.key for step in loaded.steps or ()] == ["part", "open/c"]
    newer = await refreshed(store, run, "v2")
    assert len(newer.steps or ()) == 5


async def test_branches_of_a_join_in_a_finished_scope_are_not_loaded(store: Store) -> None:
    run = await held_run(store)
    rows = [
        row(run, "part/map/0/a", 1), row(run, "part/map/0", 2, kind=Kind.SCOPE),
        row(run, "part/map", 3, kind=Kind.JOIN), row(run, "part", 4, kind=Kind.SCOPE),
    ]  # fmt: skip
    assert await put(store, run, *rows) == "durable"
    loaded = await refreshed(store, run, "v1")
    assert [step.key for step in loaded.steps or ()] == ["part"]


async def test_retries_are_known_by_the_errors_of_the_superseded_rows(store: Store) -> None:
    run = await held_run(store)
    errors = [b'{"type":"A","retried":true}', b'{"type":"B","retried":true}']
    rows = [
        row(run, "a", n, attempt=n, outcome=Outcome.SUPERSEDED, error=error)
        for n, error in enumerate(errors, 1)
    ]
    assert await put(store, run, *rows) == "durable"
    loaded = await refreshed(store, run, "v1")
    assert (loaded.steps, loaded.attempts, loaded.retried) == ([], {"a": 2}, {"a": errors})


async def test_a_claim_brings_what_happened_to_a_run_that_was_begun_before(store: Store) -> None:
    await submit(store)
    wanted = Wanted("w1", ["default"], {"work": ["v1"]}, {"work": "v1"}, 10, True)
    ((run, loaded),) = await store.claim(wanted)
    assert loaded is None
    await open_row(store, run, "ask")
    assert await park(store, run) is Held.DONE
    assert await store.answer(run.id, "ask", b"7", None)
    ((again, loaded),) = await store.claim(wanted)
    assert loaded is not None
    assert (loaded.wakes, [step.answer for step in loaded.answered]) == (again.wakes, [b"7"])


# --- repairing ----------------------------------------------------------------------------------------


async def test_a_due_timer_wakes_its_run(store: Store, clock: Clock) -> None:
    run = await held_run(store)
    await open_row(store, run, "sleep", Kind.SLEEP, due=clock() + 10)
    assert await park(store, run, due=clock() + 10) is Held.DONE
    assert (await store.sweep(MAX_ATTEMPTS)).woken == 0
    clock.advance(10)
    assert (await store.sweep(MAX_ATTEMPTS)).woken == 1
    assert (await store.sweep(MAX_ATTEMPTS)).woken == 0
    assert (await claim_one(store)).wakes == 1


async def test_a_worker_that_is_late_is_dead_and_its_runs_are_queued_again(
    store: Store, clock: Clock
) -> None:
    run = await held_run(store)
    clock.advance(LEASE - 1)
    assert store.beat("w2").held == {}
    clock.advance(2)
    swept = await store.sweep(MAX_ATTEMPTS)
    assert (swept.dead_workers, swept.taken_over) == (["w1"], [run.id])
    again = await claim_one(store, "w2")
    assert (again.id, again.attempts, again.epoch > run.epoch) == (run.id, 1, True)
    assert await put(store, run, row(run, "a", 1)) == "lost"


async def test_a_worker_that_beats_keeps_its_runs(store: Store, clock: Clock) -> None:
    run = await held_run(store)
    for _ in range(5):
        clock.advance(LEASE - 1)
        assert store.beat("w1").held == {run.id: (1, 0)}
        store.beat("w2")
        assert (await store.sweep(MAX_ATTEMPTS)).taken_over == []


async def test_a_worker_once_declared_dead_stays_dead(store: Store, clock: Clock) -> None:
    clock.advance(LEASE + 1)
    await store.sweep(MAX_ATTEMPTS)
    assert store.beat("w1").held is None
    await register(store, "w1", jobs={"work": "v2"})  # to announce another job does not bring it back
    assert store.beat("w1").held is None
    assert store.beat("nobody").held is None
    assert {known.id: known.dead for known in await store.workers()} == {"w1": True, "w2": True}


async def test_a_process_that_is_gone_from_this_host_is_dead_at_once(store: Store) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220
    start = start_of(gone.pid)
    assert start
    await register(store, "w9", pid=gone.pid, start=start)
    await submit(store)
    run = await claim_one(store, "w9")
    assert (await store.sweep(MAX_ATTEMPTS)).dead_workers == []
    gone.kill()
    gone.communicate()
    swept = await store.sweep(MAX_ATTEMPTS)
    assert (swept.dead_workers, swept.taken_over) == (["w9"], [run.id])


async def test_a_process_whose_id_is_another_ones_now_is_gone(store: Store) -> None:
    await register(store, "w9", start="1")
    await register(store, "w8", boot="another boot of this host")
    assert set((await store.sweep(MAX_ATTEMPTS)).dead_workers) == {"w8", "w9"}


async def test_a_process_of_another_host_is_dead_only_by_its_lease(store: Store, clock: Clock) -> None:
    await register(store, "far", host="elsewhere", boot="b", pid=2**22 + 1, start="1")
    assert (await store.sweep(MAX_ATTEMPTS)).dead_workers == []
    clock.advance(LEASE + 1)
    assert "far" in (await store.sweep(MAX_ATTEMPTS)).dead_workers


async def test_a_process_of_another_container_on_this_host_is_dead_only_by_its_lease(
    store: Store, clock: Clock
) -> None:
    boot = this_host()[1].partition(" ")[0]
    await register(store, "far", boot=f"{boot} pid:[1]", pid=2**22 + 1, start="1")
    assert (await store.sweep(MAX_ATTEMPTS)).dead_workers == []
    clock.advance(LEASE + 1)
    assert "far" in (await store.sweep(MAX_ATTEMPTS)).dead_workers


async def test_a_worker_that_retires_leaves_nothing_held(store: Store) -> None:
    run = await held_run(store)
    cancelled = await held_run(store)
    await store.cancel(cancelled.id, "x")
    await store.retire("w1")
    assert {known.id for known in await store.workers()} == {"w2"}
    assert await put(store, run, row(run, "a", 1)) == "lost"
    assert (await store.sweep(MAX_ATTEMPTS)).taken_over == []
    found = await claim(store, "w2")
    assert [(again.id, again.attempts) for again in found] == [(run.id, 0), (cancelled.id, 0)]
    assert [again.status for again in found] == [Status.IN_PROGRESS, Status.CANCELLING]


async def test_a_worker_that_retires_neither_adds_to_the_count_nor_resets_it(store: Store) -> None:
    await held_run(store)
    await die(store, "w1")
    for _ in range(MAX_ATTEMPTS):
        assert (await claim_one(store)).attempts == 1
        await store.retire("w1")
        await register(store, "w1")


async def die(store: Store, by: str) -> Sequence[str]:
    """The worker of that id dies, and another comes by that id; what was poisoned by it."""
    await register(store, by, lease=-1.0)
    swept = await store.sweep(MAX_ATTEMPTS)
    await store.retire(by)
    await register(store, by)
    return swept.poisoned


async def test_a_run_that_kills_three_workers_without_progress_fails_as_poison(store: Store) -> None:
    run = await held_run(store)
    assert await die(store, "w1") == []
    assert (await claim_one(store)).attempts == 1
    assert await die(store, "w1") == []
    assert (await claim_one(store)).attempts == 2
    assert await die(store, "w1") == [run.id]
    found = await current(store, run)
    assert (found.status, found.worker) == (Status.FAILED, None)
    assert "3 workers died" in str(found.reason)
    assert json.loads(found.error or b"")["type"] == "Poison"


async def test_progress_between_two_deaths_begins_the_count_anew(store: Store) -> None:
    await held_run(store)
    for seq in range(1, 7):
        await die(store, "w1")
        run = await claim_one(store)
        assert run.attempts == (1 if seq == 1 else 0)
        assert await put(store, run, row(run, f"a#{seq}", seq)) == "durable"
    assert await die(store, "w1") == []


async def test_a_poisoned_child_tells_its_parent(store: Store) -> None:
    parent = await held_run(store)
    await started_child(store, parent)
    for _ in range(MAX_ATTEMPTS):
        await register(store, "w9")
        await claim_one(store, "w9")
        await die(store, "w9")
    loaded = await refreshed(store, parent)
    assert json.loads(loaded.answered[0].answer or b"")["status"] == "failed"


async def test_a_run_being_cancelled_that_kills_three_workers_is_cancelled_and_says_what_was_left(
    store: Store,
) -> None:
    run = await held_run(store)
    await store.cancel(run.id, "enough")
    for _ in range(MAX_ATTEMPTS - 1):
        assert await die(store, "w1") == []
        assert (await claim_one(store)).status == Status.CANCELLING
    assert await die(store, "w1") == [run.id]
    found = await current(store, run)
    assert (found.status, found.worker, found.error) == (Status.CANCELLED, None, None)
    assert str(found.reason).startswith(
        "enough; what was left to do at its end was skipped (poison: 3 workers died"
    )


async def test_an_unwinding_run_that_kills_three_workers_ends_as_it_was_to(store: Store) -> None:
    run = await held_run(store)
    end = End(Status.FAILED, "ValueError: x", None, b'{"type":"ValueError"}')
    assert await store.unwind(run.home, run.id, run.epoch, run.wakes, end) is Held.DONE
    for _ in range(MAX_ATTEMPTS - 1):
        assert await die(store, "w1") == []
        assert (await claim_one(store)).status == Status.UNWINDING
    assert await die(store, "w1") == [run.id]
    found = await current(store, run)
    assert (found.status, found.error) == (Status.FAILED, b'{"type":"ValueError"}')
    assert str(found.reason).startswith(
        "ValueError: x; what was left to do at its end was skipped (poison: 3 workers"
    )


async def test_a_suspect_run_is_claimed_alone(store: Store) -> None:
    suspect = await held_run(store)
    for _ in range(2):
        await die(store, "w1")
        await claim_one(store)
    await store.release(suspect.home, suspect.id, -1, None)  # nobody's: changes nothing
    assert await store.reclaim("w1", [(suspect.id, (await current(store, suspect)).epoch)]) == 1
    healthy = [await submit(store) for _ in range(3)]
    assert [run.id for run in await claim(store, alone=False)] == [run.id for run in healthy]
    assert [run.id for run in await claim(store, alone=False)] == []
    assert [run.id for run in await claim(store, "w2", alone=True)] == [suspect.id]


async def test_a_suspect_run_does_not_keep_others_from_being_claimed(store: Store) -> None:
    suspect = await held_run(store)
    for _ in range(2):
        await die(store, "w1")
        await claim_one(store)
    assert await store.reclaim("w1", [(suspect.id, (await current(store, suspect)).epoch)]) == 1
    healthy = await submit(store)
    assert [run.id for run in await claim(store, limit=1, alone=False)] == [healthy.id]


async def test_parking_draining_and_resuming_reset_the_count(store: Store) -> None:
    run = await held_run(store)
    await die(store, "w1")
    run = await claim_one(store)
    await open_row(store, run, "ask")
    assert await park(store, run) is Held.DONE
    assert (await current(store, run)).attempts == 0
    await store.answer(run.id, "ask", b"1", None)
    await claim_one(store)
    await die(store, "w1")
    run = await claim_one(store)
    assert run.attempts == 1
    await store.release(run.home, run.id, run.epoch, None)
    assert (await current(store, run)).attempts == 0
    await claim_one(store)
    for _ in range(2):
        await die(store, "w1")
        run = await claim_one(store)
    assert await settle(store, run, End(Status.FAILED, "x")) is Held.DONE
    assert await store.resume(run.id, [], False)
    assert (await current(store, run)).attempts == 0


async def test_a_parent_whose_child_ended_unheard_is_told_by_the_sweep(store: Store) -> None:
    """As after a repair by hand, or a store that spreads homes over several databases."""
    parent = await held_run(store)
    stranger = new_run(Request(work, b"{}"), b"{}", 1.0, home=parent.home)
    child = new_run(Request(work, b"{}"), b"{}", 1.0, home=parent.home, parent=parent.id, parent_key="child")
    for run in (stranger, child):
        await store.submit(run, "refuse")
        assert await settle(store, await claim_one(store)) is Held.DONE
    await open_row(store, parent, "stranger", Kind.RUN, child=stranger.id)
    assert await park(store, parent) is Held.DONE
    assert (await store.sweep(MAX_ATTEMPTS)).woken == 0  # nobody's child: it must be this parent's
    assert await store.unpark(parent.home, parent.id, parent.epoch, "w1")
    await open_row(store, parent, "child", Kind.RUN, child=child.id)
    assert await park(store, parent) is Held.DONE
    assert (await store.sweep(MAX_ATTEMPTS)).woken == 1
    parent = await claim_one(store)
    assert [step.key for step in (await refreshed(store, parent)).answered] == ["child"]
    assert await store.cancel(parent.id, "x") == Status.CANCELLING


async def test_a_claim_whose_reply_was_lost_is_given_back_at_its_epoch(store: Store) -> None:
    run = await held_run(store)
    assert await store.reclaim("w2", [(run.id, run.epoch)]) == 0
    assert await store.reclaim("w1", [(run.id, run.epoch + 1)]) == 0
    assert await store.reclaim("w1", [(run.id, run.epoch)]) == 1
    assert await store.reclaim("w1", [(run.id, run.epoch)]) == 0
    again = await claim_one(store, "w2")
    assert (again.id, again.attempts, again.epoch > run.epoch) == (run.id, 0, True)


async def test_a_beat_brings_the_epoch_and_wakes_of_every_held_run(store: Store) -> None:
    runs = [await held_run(store) for _ in range(3)]
    await store.send(runs[1].id, InboxItem("evt_1", "news", b"1"))
    await taken_over(store, runs[2])
    held = store.beat("w1").held
    assert held == {runs[0].id: (1, 0), runs[1].id: (1, 1)}


async def test_a_change_by_another_process_is_seen(bench: Bench) -> None:
    here, there = bench.open(), bench.open()
    await register(here, "w1")
    here.changed("w1")
    assert here.changed("w1") is None
    run = await submit(there)
    change = here.changed("w1")
    assert change is not None
    assert change == (True, {})
    await claim_one(here)
    await there.cancel(run.id, "x")
    change = here.changed("w1")
    assert change is not None
    assert change[1] == {run.id: (1, 1)}


# --- threads and memory -------------------------------------------------------------------------------


async def test_a_thread_has_at_most_one_active_run(store: Store) -> None:
    first = await submit(store, thread="t1")
    with pytest.raises(ThreadBusy, match=f"thread t1 already has an active run, {first.id}"):
        await submit(store, thread="t1")
    await submit(store, thread="t2")
    run = await claim_one(store, limit=1)
    assert await settle(store, run) is Held.DONE
    await submit(store, thread="t1")


async def test_enqueued_runs_of_a_thread_take_turns(store: Store) -> None:
    runs = [await submit(store, "enqueue", thread="t1") for _ in range(3)]
    for run in runs:
        held = await claim_one(store)
        assert held.id == run.id
        assert await claim(store) == []
        assert await settle(store, held) is Held.DONE


async def test_an_enqueued_run_that_is_cancelled_lets_nobody_past(store: Store) -> None:
    first, second, third = [await submit(store, "enqueue", thread="t1") for _ in range(3)]
    held = await claim_one(store)
    assert held.id == first.id
    assert await store.cancel(second.id, "not needed") == Status.CANCELLED
    assert await claim(store) == []
    assert await settle(store, held) is Held.DONE
    assert (await claim_one(store)).id == third.id


async def test_a_run_that_continues_another_keeps_the_thread(store: Store) -> None:
    await submit(store, thread="t1")
    waiting = await submit(store, "enqueue", thread="t1")
    held = await claim_one(store)
    following = new_run(Request(work, b"{}"), b"{}", 2.0, home="t1", thread="t1")
    assert await settle(store, held, DONE, following) is Held.DONE
    held = await claim_one(store)
    assert held.id == following.id
    assert await settle(store, held) is Held.DONE
    assert (await claim_one(store)).id == waiting.id


async def test_a_delayed_run_of_a_busy_thread_waits_for_its_turn_too(store: Store, clock: Clock) -> None:
    await submit(store, thread="t1")
    delayed = await submit(store, "enqueue", thread="t1", due=clock() + 10)
    held = await claim_one(store)
    clock.advance(11)
    store.beat("w1")
    await store.sweep(MAX_ATTEMPTS)
    assert await claim(store) == []
    assert await settle(store, held) is Held.DONE
    assert (await claim_one(store)).id == delayed.id


async def test_a_run_of_a_busy_thread_cannot_be_resumed(store: Store) -> None:
    first = await held_run(store, thread="t1")
    assert await settle(store, first, End(Status.FAILED, "x")) is Held.DONE
    await submit(store, thread="t1")
    with pytest.raises(ThreadBusy, match=first.id):
        await store.resume(first.id, [], False)
    assert await status_of(store, first) == Status.FAILED


async def test_a_poisoned_run_gives_its_thread_to_the_next(store: Store) -> None:
    await submit(store, thread="t1")
    waiting = await submit(store, "enqueue", thread="t1")
    for _ in range(MAX_ATTEMPTS):
        await claim_one(store)
        await die(store, "w1")
    assert (await claim_one(store)).id == waiting.id


async def test_messages_of_a_thread_are_numbered_and_read_up_to_a_number(store: Store) -> None:
    await store.create_thread("default", "t1")
    for number in (1, 2, 3):
        await store.append_message("t1", MessageRecord(f"m{number}", b'{"n":%d}' % number, 1.0))
    await store.append_message("t2", MessageRecord("m9", b'{"n":9}', 1.0))
    found = await store.thread_messages("t1")
    assert found == [(1, "m1", b'{"n":1}'), (2, "m2", b'{"n":2}'), (3, "m3", b'{"n":3}')]
    assert [n for n, _, _ in await store.thread_messages("t1", 2)] == [1, 2]


async def test_many_who_append_at_once_leave_no_gap(bench: Bench) -> None:
    stores = [bench.open() for _ in range(2)]
    messages = [MessageRecord(f"m{number}", b"{}", 1.0) for number in range(40)]
    await stores[0].create_thread("default", "t1")
    await asyncio.gather(*(stores[n % 2].append_message("t1", each) for n, each in enumerate(messages)))
    assert [n for n, _, _ in await stores[0].thread_messages("t1")] == list(range(1, 41))


async def test_memory_is_kept_by_project_and_overwritten(store: Store) -> None:
    await store.remember("default", "b", b"1")
    await store.remember("default", "a", b"2")
    await store.remember("else", "a", b"3")
    await store.remember("default", "b", b"4")
    assert await store.recall("default", "b") == b"4"
    assert await store.recall("default", "missing") is None
    assert list((await store.memories("default")).items()) == [("a", b"2"), ("b", b"4")]
    assert await store.memories("default", "b") == {"b": b"4"}
    run = await held_run(store, project="else")
    note = row(run, "remember", 1, kind=Kind.NOTE)
    assert await put(store, run, note, memory=("a", b"5")) == "durable"
    assert (await store.recall("else", "a"), await store.recall("default", "a")) == (b"5", b"2")


async def test_memory_is_read_by_the_beginning_of_its_names(store: Store) -> None:
    for name in ("a%/", "a%/b", "A%/c", "a", "aa", "a%/\U0010ffff", "ä/1", "b"):
        await store.remember("default", name, b"1")
    assert list(await store.memories("default", "a%/")) == ["a%/", "a%/b", "a%/\U0010ffff"]
    assert list(await store.memories("default", "ä")) == ["ä/1"]
    assert await store.memories("else", "a") == {}


async def test_messages_of_prompts_are_stored_once_by_hash(store: Store) -> None:
    run = await held_run(store)
    step = row(run, "model", 1, kind=Kind.MODEL, base_step=None, keep_n=0, hashes=b"h1h2")
    assert await put(store, run, step, messages=[(b"h1", b"one"), (b"h2", b"two")]) == "durable"
    again = row(run, "model#2", 2, kind=Kind.MODEL, base_step="1:model", keep_n=2, hashes=b"h3")
    assert await put(store, run, again, messages=[(b"h1", b"one"), (b"h3", b"three")]) == "durable"
    found = await store.messages(run.home, [b"h1", b"h3", b"h1", b"unknown"])
    assert found == {b"h1": b"one", b"h3": b"three"}
    assert await store.messages("another home", [b"h1"]) == {}
    kept = await store.step(run.id, "model#2", 1)
    assert kept is not None
    assert (kept.base_step, kept.keep_n, kept.hashes) == ("1:model", 2, b"h3")


# --- looking ------------------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first_filtered_and_by_page(store: Store) -> None:
    runs = [await submit(store, of=of) for of in (work, other, work, work)]
    await submit(store, project="else")
    newest_first = [run.id for run in reversed(runs)]
    assert [run.id for run in await store.runs()] == newest_first
    assert [run.id for run in await store.runs(limit=2)] == newest_first[:2]
    assert [run.id for run in await store.runs(limit=2, before=newest_first[1])] == newest_first[2:]
    assert [run.job for run in await store.runs(job="other")] == ["other"]
    await claim(store, limit=1)
    assert [run.id for run in await store.runs(status=Status.IN_PROGRESS)] == [runs[0].id]
    assert await store.runs(thread="t1") == []


async def test_runs_are_listed_by_when_they_were_made_whatever_their_ids(store: Store) -> None:
    for id, at in (("run_b", 1.0), ("run_c", 2.0), ("run_a", 3.0)):
        await store.submit(new_run(work(), b"{}", at, id=id), "refuse")
    assert [run.id for run in await store.runs()] == ["run_a", "run_c", "run_b"]
    assert [run.id for run in await store.runs(before="run_a")] == ["run_c", "run_b"]


async def test_the_journal_reads_in_the_order_of_completion_from_any_point(store: Store) -> None:
    run = await held_run(store)
    await open_row(store, run, "ask")
    assert await put(store, run, row(run, "b", 1), row(run, "a", 2), row(run, "c", 3)) == "durable"
    assert await keys(store, run) == [("b", 1), ("a", 2), ("c", 3), ("ask", None)]
    assert [step.seq for step in await store.steps(run.id, after=1)] == [2, 3]
    assert await store.steps("run_nowhere") == []


async def test_every_column_of_a_step_reads_back(store: Store) -> None:
    run = await held_run(store)
    full = row(
        run, "a/b", 1, kind=Kind.MODEL, attempt=3, code=b"code", due=4.0, call_key="ck", child="c", model="m",
        input_tokens=1, output_tokens=2, cached_tokens=1, dollars=0.5, base_step="1:x", keep_n=4, hashes=b"h",
        answer=b"1", answered_at=5.0, answered_by="ann", input=b"{}", value=b"\x00", error=b"{}",
    )  # fmt: skip
    plain = row(run, "c", 2, code=b"code", input=b"[]", value=b"\x00")
    assert await put(store, run, full) == "durable"
    assert await put(store, run, plain) == "durable"
    assert await store.steps(run.id) == [full, plain]


async def test_the_summary_counts_by_job(store: Store, clock: Clock) -> None:
    good, bad = await held_run(store), await held_run(store)
    await submit(store)
    await submit(store, of=other)
    await submit(store, project="else")
    priced = row(good, "m", 1, kind=Kind.MODEL, dollars=0.25, input_tokens=3, output_tokens=1)
    assert await put(store, good, priced, verdict=(True, 0.9, "fine")) == "durable"
    assert await put(store, bad, row(bad, "m", 1), verdict=(False, None, "")) == "durable"
    clock.advance(4)
    assert await settle(store, good) is Held.DONE
    assert await settle(store, bad, End(Status.FAILED, "x")) is Held.DONE
    others, works = await store.summary()
    assert (others["job"], others["runs"], others["active"]) == ("other", 1, 1)
    expected = {
        "job": "work", "runs": 3, "active": 1, "completed": 1, "failed": 1, "cancelled": 0, "expired": 0,
        "incomplete": 0, "succeeded": 1, "judged": 2, "dollars": 0.25, "input_tokens": 3, "output_tokens": 1,
        "seconds": 4.0,
    }  # fmt: skip
    assert works == expected


async def test_actions_of_runs_that_are_over_are_not_listed(store: Store) -> None:
    over, waiting = await held_run(store), await held_run(store)
    await open_row(store, over, "ask")
    await open_row(store, waiting, "ask")
    await open_row(store, waiting, "sleep", Kind.SLEEP)
    assert await settle(store, over) is Held.DONE
    assert [(step.run, step.key) for step in await store.open_steps(None, [Kind.ASK])] == [
        (waiting.id, "ask")
    ]
    assert await store.open_steps(over.id, [Kind.ASK]) == []
    assert len(await store.open_steps(waiting.id, [Kind.ASK, Kind.SLEEP])) == 2


# --- versions -----------------------------------------------------------------------------------------


async def test_an_older_version_is_adopted_when_no_live_worker_has_it(store: Store, clock: Clock) -> None:
    await register(store, "new", jobs={"work": "v2"})
    assert await store.adoptable({"work": "v2"}) == {"work": ["v2"]}  # w1 and w2 have v1
    clock.advance(LEASE + 1)
    store.beat("new")
    assert await store.adoptable({"work": "v2"}) == {"work": ["v2", "v1"]}


async def test_a_newer_version_is_never_adopted_by_an_older_one(store: Store, clock: Clock) -> None:
    await register(store, "new", jobs={"work": "v2"})
    clock.advance(LEASE + 1)
    await register(store, "old", jobs={"work": "v1"})  # seen again later, and still the older
    assert await store.adoptable({"work": "v1"}) == {"work": ["v1"]}
    assert await store.adoptable({"work": "v2", "other": "v9"}) == {"work": ["v2"], "other": ["v9"]}


async def test_a_run_goes_on_with_a_newer_version_and_never_back(store: Store) -> None:
    run = await held_run(store)
    await store.release(run.home, run.id, run.epoch, None)
    newer = {"versions": {"work": ["v2", "v1"]}, "current": {"work": "v2"}}
    assert await claim(store, versions={"work": ["v2"]}, current={"work": "v2"}) == []
    moved = await claim_one(store, **newer)
    assert moved.version == "v2"
    await store.release(moved.home, moved.id, moved.epoch, None)
    assert await claim(store) == []  # a worker with v1
    assert len(await claim(store, **newer)) == 1


async def test_a_pinned_run_waits_for_its_own_version(store: Store) -> None:
    newer = {"versions": {"work": ["v2", "v1"]}, "current": {"work": "v2"}}
    run = await held_run(store)
    await store.release(run.home, run.id, run.epoch, None)
    run = await claim_one(store, **newer)
    await store.release(run.home, run.id, run.epoch, "v1")
    assert await claim(store, **newer) == []
    run = await claim_one(store)
    assert (run.version, run.pinned) == ("v1", 1)
    await store.release(run.home, run.id, run.epoch, None)  # its worker drains: it stays pinned
    assert await claim(store, **newer) == []
    assert len(await claim(store)) == 1


async def test_two_databases_do_not_meet(bench: Bench, tmp_path: Path) -> None:
    store = bench.open()
    await submit(store)
    elsewhere = open_store(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert await elsewhere.runs() == []
    await elsewhere.close()


async def test_what_is_submitted_may_be_claimed_in_the_same_breath_unless_another_is_more_urgent(
    store: Store,
) -> None:
    wanted = Wanted("w1", ["default"], {"work": ["v1"]}, {"work": "v1"}, 1)
    first = new_run(Request(work, b"{}"), b"{}", 1.0)
    submitted = await store.submit_and_claim(first, "refuse", (), wanted)
    assert [(run.id, run.status, run.epoch) for run, _ in submitted.claimed] == [
        (first.id, Status.IN_PROGRESS, 1)
    ]
    urgent = await submit(store, priority=5)
    second = new_run(Request(work, b"{}"), b"{}", 1.0)
    submitted = await store.submit_and_claim(second, "refuse", (), wanted)
    assert (submitted.run.id, [run.id for run, _ in submitted.claimed]) == (second.id, [urgent.id])
    assert await status_of(store, second) == Status.QUEUED
    nobody = wanted._replace(worker="who is not there")
    assert (
        await store.submit_and_claim(new_run(Request(work, b"{}"), b"{}", 1.0), "refuse", (), nobody)
    ).claimed == []
