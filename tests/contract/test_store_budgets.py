"""What every store promises of budgets: a reservation fits or is refused, and is settled once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dayjob import Limits, Run, job
from dayjob.limits import BILLION, most_of
from dayjob.run import new_run
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord
from dayjob.stores import (
    End,
    Entry,
    Held,
    Raise,
    Reservation,
    Settlement,
    Store,
    Wanted,
    WorkerRecord,
    open_store,
)
from dayjob.stores.process import start_of, this_host
from dayjob.testing import Clock

LEASE = 15.0


@job(version="v1")
async def spends(run: Run) -> None: ...


class Bench:
    """Stores on one database, and a run that is held by the worker w1."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock(1_000.0)
        self.stores: list[Store] = []

    def open(self) -> Store:
        store = open_store(self.url, clock=self.clock)
        self.stores.append(store)
        return store

    async def held(self, limits: Limits | None, **more: Any) -> RunRecord:
        record = new_run(spends(), b"{}", self.clock(), **more)
        if limits is not None:
            record.limits, record.budget = limits.to_json(), record.id
        await self.stores[0].submit(record, "refuse")
        return await self.claimed()

    async def claimed(self, by: str = "w1") -> RunRecord:
        host, boot = this_host()
        pid = os.getpid()
        process = (host, boot, pid, start_of(pid) or "")
        await self.stores[0].register(WorkerRecord(by, *process, ["default"], {"spends": "v1"}, LEASE))
        wanted = Wanted(by, ["default"], {"spends": ["v1"]}, {"spends": "v1"}, 1, alone=True)
        ((run, _),) = await self.stores[0].claim(wanted)
        return run


@pytest.fixture(params=["sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(f"sqlite:///{tmp_path / 'jobs.db'}?synchronous=off")
    bench.open()
    yield bench
    for store in bench.stores:
        await store.close()


@pytest.fixture
async def store(bench: Bench) -> Store:
    return bench.stores[0]


def wish(run: RunRecord, key: str = "model", dollars: float = 0.0, **more: Any) -> Reservation:
    rest_of = more.pop("rest_of", None)
    amounts = {"dollars": round(dollars * BILLION), **more}
    return Reservation(run.home, run.id, run.epoch, run.budget or "", key, 1, amounts, rest_of)


def row(run: RunRecord, key: str, seq: int | None, **more: Any) -> StepRecord:
    fields: dict[str, Any] = {"kind": Kind.MODEL, "outcome": Outcome.VALUE if seq else None, **more}
    return StepRecord(
        run.home, run.id, key, 1, "", key, seq=seq, version="v1", epoch=run.epoch, nonce=id(key),
        fingerprint=None, code=None, started=1.0, ended=2.0, **fields,
    )  # fmt: skip


async def put(store: Store, run: RunRecord, *rows: StepRecord, **more: Any) -> str:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[str] = loop.create_future()
    durable: asyncio.Future[None] = loop.create_future()
    durable.add_done_callback(lambda _: outcome.set_result("durable"))
    lost = lambda: outcome.set_result("lost")  # noqa: E731
    store.put(Entry(run.home, run.id, run.epoch, rows, (), durable, lost, **more, more=True))
    return await outcome


async def dollars_of(store: Store, run: RunRecord) -> tuple[float, float]:
    """(spent, reserved)"""
    budget = await store.budget(run.home, run.budget or "")
    assert budget is not None
    return budget.spent["dollars"] / BILLION, budget.reserved["dollars"] / BILLION


async def test_a_budget_is_opened_with_the_run_that_has_limits(bench: Bench, store: Store) -> None:
    run = await bench.held(Limits(dollars=1.5, steps=3, seconds=60, on_limit="ask"))
    budget = await store.budget(run.home, run.id)
    assert budget is not None
    assert budget.most == {"dollars": 1.5 * BILLION, "steps": 3}
    assert (budget.max_seconds, budget.on_limit, budget.started) == (60, "ask", run.started)
    plain = await bench.held(None)
    assert await store.budget(plain.home, plain.id) is None


async def test_what_fits_is_granted_and_what_does_not_is_refused_to_the_last_billionth(
    bench: Bench, store: Store
) -> None:
    run = await bench.held(Limits(dollars=1.0))
    assert (await store.reserve(wish(run, "a", 0.6))).granted
    refused = await store.reserve(wish(run, "b", 0.400000001))
    assert not refused.granted
    assert refused.held
    assert refused.budget.reserved["dollars"] == 0.6 * BILLION
    assert (await store.reserve(wish(run, "b", 0.4))).granted


@pytest.mark.parametrize("name", ["tokens", "input_tokens", "output_tokens", "steps"])
async def test_other_limits_hold_in_the_same_way(bench: Bench, store: Store, name: str) -> None:
    run = await bench.held(Limits(**{name: 5}))
    assert (await store.reserve(wish(run, "a", **{name: 5}))).granted
    assert not (await store.reserve(wish(run, "b", **{name: 1}))).granted


async def test_processes_that_reserve_at_once_never_reserve_more_than_there_is(bench: Bench) -> None:
    run = await bench.held(Limits(dollars=1.0))
    others = [bench.open() for _ in range(3)]
    wishes = [wish(run, f"{n}", 0.07) for n in range(40)]
    answers = await asyncio.gather(*(others[n % 3].reserve(one) for n, one in enumerate(wishes)))
    assert sum(answer.granted for answer in answers) == 14
    assert await dollars_of(others[0], run) == (0.0, 0.98)


async def test_all_that_is_left_is_granted_only_while_nothing_else_is_in_flight(
    bench: Bench, store: Store
) -> None:
    run = await bench.held(Limits(dollars=1.0))
    await store.reserve(wish(run, "a", 0.1))
    assert not (await store.reserve(wish(run, "b", 0.9, rest_of={"dollars": 0}))).granted
    await put(store, run, settled=Settlement("a", 1, {"dollars": BILLION // 20}))
    assert not (await store.reserve(wish(run, "b", 0.9, rest_of={"dollars": 0}))).granted
    assert (await store.reserve(wish(run, "b", 0.95, rest_of={"dollars": BILLION // 20}))).granted


async def test_a_settlement_is_written_with_its_row_and_counts_once(bench: Bench, store: Store) -> None:
    run = await bench.held(Limits(dollars=1.0))
    await store.reserve(wish(run, "model", 0.5))
    for _ in range(2):  # sent again after a lost reply
        assert (
            await put(
                store, run, row(run, "model", 1), settled=Settlement("model", 1, {"dollars": 200_000_000})
            )
            == "durable"
        )
        assert await dollars_of(store, run) == (0.2, 0.0)


async def test_a_settlement_without_figures_spends_what_was_reserved(bench: Bench, store: Store) -> None:
    run = await bench.held(Limits(dollars=1.0))
    await store.reserve(wish(run, "model", 0.5))
    await put(store, run, settled=Settlement("model", 1, {}))
    assert await dollars_of(store, run) == (0.5, 0.0)


async def test_a_reservation_asked_for_again_after_a_lost_reply_is_the_same(
    bench: Bench, store: Store
) -> None:
    run = await bench.held(Limits(dollars=1.0))
    for _ in range(2):
        assert (await store.reserve(wish(run, "model", 0.6))).granted
    assert await dollars_of(store, run) == (0.0, 0.6)


async def test_who_lost_the_run_reserves_and_settles_nothing(bench: Bench, store: Store) -> None:
    run = await bench.held(Limits(dollars=1.0))
    await store.reserve(wish(run, "model", 0.5))
    bench.clock.advance(LEASE + 1)
    assert (await store.sweep(3)).taken_over == [run.id]
    assert await dollars_of(store, run) == (0.5, 0.0)
    late = await store.reserve(wish(run, "next", 0.1))
    assert (late.granted, late.held) == (False, False)
    assert await put(store, run, settled=Settlement("model", 1, {"dollars": 0})) == "lost"
    again = await bench.claimed("w2")
    assert (await store.reserve(wish(again, "model", 0.5))).granted
    assert await dollars_of(store, run) == (0.5, 0.5)


async def test_what_a_run_has_in_flight_when_it_is_let_go_of_is_spent(bench: Bench, store: Store) -> None:
    run = await bench.held(Limits(dollars=1.0))
    await store.reserve(wish(run, "a", 0.1))
    assert await store.park(run.home, run.id, run.epoch, run.wakes, Status.WAITING, 1_001.0) == Held.DONE
    assert await dollars_of(store, run) == (0.1, 0.0)
    bench.clock.advance(2)
    await store.sweep(3)
    run = await bench.claimed()
    await store.reserve(wish(run, "b", 0.2))
    await store.release(run.home, run.id, run.epoch, None)
    run = await bench.claimed()
    assert await dollars_of(store, run) == (pytest.approx(0.3), 0.0)
    await store.reserve(wish(run, "c", 0.3))
    assert (
        await store.settle(run.home, run.id, run.epoch, run.wakes, End(Status.COMPLETED), None) == Held.DONE
    )
    assert await dollars_of(store, run) == (pytest.approx(0.6), 0.0)


@pytest.mark.parametrize(
    ("name", "most"), [("dollars", 3 * BILLION), ("output_tokens", 3), ("steps", 3), ("seconds", 3.0)]
)
async def test_a_raise_is_for_good_and_never_lowers(
    bench: Bench, store: Store, name: str, most: float
) -> None:
    run = await bench.held(Limits(dollars=2, tokens=2, output_tokens=2, steps=2, seconds=2, on_limit="ask"))
    for value in (3.0, 2.5):
        await put(store, run, raised=Raise(run.id, f"#{name}", name, value, b"3"))
        budget = await store.budget(run.home, run.id)
        assert budget is not None and most_of(budget, name) == most
    await put(store, run, raised=Raise(run.id, f"#{name}", name, None, b'"stop"'))
    budget = await store.budget(run.home, run.id)
    assert budget is not None and budget.on_limit == "stop"


async def test_one_answer_reaches_all_of_the_family_that_ask_the_same(bench: Bench, store: Store) -> None:
    root = await bench.held(Limits(steps=1, on_limit="ask"))
    child = new_run(
        spends(), b"{}", 1.0, home=root.home, root=root.id, parent=root.id, parent_key="c", budget=root.id
    )
    await put(store, root, row(root, "c", None, kind=Kind.RUN, child=child.id), child=child)
    child = await bench.claimed()
    assert child.budget == root.id
    for key, question in (("#steps", "#steps"), ("ask", "ask")):
        await put(store, child, replace(row(child, key, None, kind=Kind.ASK), name=question, nonce=len(key)))
    assert await store.park(child.home, child.id, child.epoch, child.wakes, Status.REQUIRES_ACTION, None)
    await put(store, root, raised=Raise(root.id, "#steps", "steps", 9.0, b"9"))
    rows = {step.key: step.answer for step in await store.steps(child.id)}
    assert rows == {"#steps": b"9", "ask": None}
    woken = await store.get(child.id)
    assert woken is not None and woken.status == Status.QUEUED
