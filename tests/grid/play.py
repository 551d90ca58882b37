"""One case of the grid: the job, its tools, the people around it, and whoever cancels it.

The job looks, books "first", does what the case is about, looks again, books "last", and ends. The case is
about one or two calls, in the job itself, in branches or in a child.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import dayjob
from dayjob import Call, Dayjob, NotDone, Run, StepError, tool
from dayjob.app import RunEvent
from dayjob.errors import UnknownAction
from dayjob.jobs import Job
from dayjob.runs import Action, RunRecord, Status, StepRecord
from dayjob.testing import Ended, Scripted
from dayjob.tools import Tool
from dayjob.worker import MAX_ATTEMPTS
from tests.bank import book, look, reverse
from tests.grid.cases import Case
from tests.office import LEASE_SECONDS

TIMEOUT = 2.0
SOON = 0.25
DAY = 86_400.0
BRANCHES = ("left", "right")
_CONTRACTS: dict[str, dict[str, Any]] = {
    "read": {"effect": "read"},
    "idempotent": {"effect": "idempotent"},
    "write to keys": {"key_lifetime": DAY},
    "write to probe": {},
    "write to ask": {},
}


class Play:
    """A case on the stage."""

    def __init__(self, stage: Any, case: Case) -> None:
        self.stage = stage
        self.case = case
        keys = case["effect"] in ("idempotent", "write to keys")
        self.account = stage.bank.account(honours_keys=keys, slow_seconds=4 * SOON)
        self.run_id = ""
        self.cancelled: int | None = None
        self.begun: set[str | None] = set()
        self.returned: Status | None = None
        self.canceller: asyncio.Task[None] | None = None
        self.streamed: list[RunEvent] = []
        self.reader: asyncio.Task[None] | None = None
        self.family: list[RunRecord] = []
        self.steps: dict[str, Sequence[StepRecord]] = {}
        self.read = tool(name="read", effect="read")(self._looking())
        self.book = self._booking("book", "write to keys" if keys else "write to probe", TIMEOUT, False)
        self.subject = self._subject()
        self.inner = Job(self._inner(), "inner", "v1")
        self.main = Job(self._main(), "main", "v1")
        self._prepare()

    # --- tools -------------------------------------------------------------------------------------

    def _looking(self) -> Callable[..., Any]:
        url = self.account.url

        async def looks(to: str) -> int | None:
            return await look(url, to)

        return looks

    def _booking(self, name: str, effect: str, timeout: float, approve: bool) -> Tool[..., Any]:
        url = self.account.url

        async def books(call: Call, to: str) -> int:
            return await book(url, to, call.key)

        async def takes_back(call: Call, result: Any) -> bool:
            return await reverse(url, call.arguments["to"])

        async def finds(call: Call) -> Any:
            return await look(url, call.arguments["to"]) or NotDone

        contract = {**_CONTRACTS[effect], "name": name, "timeout": timeout, "approve": approve}
        if effect == "write to probe":
            contract["probe"] = finds
        return tool(undo=takes_back, **contract)(books)

    def _subject(self) -> Tool[..., Any]:
        if self.case["effect"] == "read":
            return tool(name="subject", effect="read", approve=self.case["approval"])(self._looking())
        timeout = SOON if self.case["trouble"] == "slow" else TIMEOUT
        return self._booking("subject", self.case["effect"], timeout, self.case["approval"])

    # --- jobs --------------------------------------------------------------------------------------

    def _main(self) -> Callable[..., Any]:
        read, book_, place, case = self.read, self.book, self._place(), self.case
        began = self._began

        async def main(run: Run) -> str:
            began(run.id)
            await run.partial("begun")
            await run.tool(read, to="begin")
            await run.tool(book_, to="first")
            if case["streaming"]:
                await run.model("Say something.")
            await place(run)
            await run.tool(read, to="after")
            await run.tool(book_, to="last")
            if case["end"] == "fail":
                raise ValueError("no good")
            return "done"

        return main

    def _began(self, run: str) -> None:
        self.run_id = run

    def _inner(self) -> Callable[..., Any]:
        book_, one = self.book, self._one()

        async def inner(run: Run) -> Any:
            await run.tool(book_, to="inner")
            return await one(run, "only")

        return inner

    def _one(self) -> Callable[[Run, str], Any]:
        subject, end = self.subject, self.case["end"]

        async def one(run: Run, to: str) -> Any:
            try:
                return await run.tool(subject, to=to)
            except StepError as error:
                if error.type == "Rejected" and end == "reject":
                    raise
                return error.type

        return one

    def _place(self) -> Callable[[Run], Any]:
        one, inner, case = self._one(), self.inner, self.case

        async def place(run: Run) -> Any:
            if case["place"] == "job":
                return await one(run, "only")
            if case["place"] == "child":
                return await (await run.start(inner())).result()
            if case["join"] == "map":
                return await run.map(one, BRANCHES, key=str)
            return await run.gather(*(_bound(one, to) for to in BRANCHES))

        return place

    # --- the world around it -----------------------------------------------------------------------

    def _prepare(self) -> None:
        case, account = self.case, self.account
        about = "left" if case["place"] == "branch" else "only"
        what = "looked" if case["effect"] == "read" else "asked"
        if case["trouble"] != "none":
            account.trouble(about, case["trouble"], what=what)
        if case["undo"] == "drop":
            account.trouble("first", "drop", what="asked back")
        moment = {
            "early": ("looked", "begin"),
            "during": (what, about),
            "after": ("looked", "after"),
            "unwinding": ("asked back", "last" if case["end"] == "fail" else "first"),
        }.get(case["cancel"])
        if moment is not None:
            account.when(*moment, self._cancel_from_elsewhere)

    def _cancel_from_elsewhere(self) -> None:
        """Another app, on another loop: in a thread of the bank's server."""

        async def cancel() -> None:
            async with Dayjob(self.stage.url, worker=False, clock=self.stage.clock) as app:
                await self._cancel(app)

        asyncio.run(cancel())

    async def _cancel(self, app: Dayjob) -> None:
        self.returned = await app.cancel(self.run_id)
        for run in await self._runs(app, self.run_id):
            self.begun |= {step.call_key for step in await app.steps(run) if step.outcome is None}
        self.cancelled = self.stage.bank.next_number()

    async def _runs(self, app: Dayjob, run: str) -> list[str]:
        return [run, *(child.id for child in await app.runs(parent=run))]

    async def outside(self, app: Dayjob, run: str) -> bool:
        """Somebody who answers truthfully, and lets time pass when that is all that is waited for."""
        if self.case["streaming"] and self.reader is None:
            self.reader = asyncio.create_task(self._read_along(app, run))
        actions = [action for id in await self._runs(app, run) for action in await app.actions(id)]
        approvals = [action for action in actions if action.kind == "approval"]
        if approvals and self.case["cancel"] == "waiting" and self.cancelled is None:
            if self.case["place"] != "branch" or len(approvals) == len(BRANCHES):
                self.canceller = self.canceller or asyncio.create_task(self._cancel(app))
                await asyncio.shield(self.canceller)  # a death may call this look off, not what it began
            return True
        if approvals and self.case["place"] == "branch" and not self.account.all("approved", "rejected"):
            if len(approvals) < len(BRANCHES):
                return False  # both first, then in the other order
            approvals.reverse()
        for action in approvals:
            await self._decide(app, action)
        for action in actions:
            if action.kind == "happened":
                await self._tell(app, action)
        return bool(actions) or await self._pass_time(app, run)

    async def _decide(self, app: Dayjob, action: Action) -> None:
        to = _reference(action)
        yes = self.case["end"] != "reject" and to != "right"
        said = self.account.note("approved" if yes else "rejected", to)
        try:
            await app.answer(action.run, action.id, yes)
        except UnknownAction:  # the run was cancelled meanwhile
            self.account.history.remove(said)

    async def _tell(self, app: Dayjob, action: Action) -> None:
        to = _reference(action)
        await self.stage.bank.settle()
        entry = next(iter(self.account.all("booked", reference=to)), None)
        self.account.note("told", to, found=entry is not None)
        with suppress(UnknownAction):
            await app.answer(action.run, action.id, {"result": entry.number} if entry else False)

    async def _pass_time(self, app: Dayjob, run: str) -> bool:
        """Time passes once the bank is quiet, in strides that a lease survives."""
        waiting = [await app.get(id) for id in await self._runs(app, run)]
        if not any(record.status in (Status.WAITING, Status.UNWINDING) for record in waiting):
            return False
        await self.stage.bank.settle()
        now = self.stage.clock.now
        if any(worker.beat < now for worker in await app.store.workers() if not worker.dead):
            return False
        self.stage.clock.advance(LEASE_SECONDS / 4)
        await app.store.sweep(MAX_ATTEMPTS)
        return True

    async def _read_along(self, app: Dayjob, run: str) -> None:
        async with Dayjob(self.stage.url, worker=False, clock=self.stage.clock) as other:
            async for event in other.handle(run).events():
                self.streamed.append(event)

    # --- playing it --------------------------------------------------------------------------------

    async def perform(self) -> Ended:
        before = (
            3 + self.case["streaming"] + (self.case["place"] != "job")
        )  # what the case is about among them
        limits = {"limits": dayjob.Limits(steps=before)} if self.case["end"] == "limit" else {}
        ended = await self.stage.lab.run(
            self.main(), jobs=[self.inner], death=self.case["death"] or (), outside=self.outside,
            model=Scripted(lambda request: "one two three four five six seven eight nine"), **limits,
        )  # fmt: skip
        await self.stage.bank.settle()
        store = self.stage.lab.store
        self.family = [ended.run, *(await store.runs(parent=ended.run.id))]
        self.steps = {record.id: await store.steps(record.id) for record in self.family}
        if self.reader is not None:
            await asyncio.wait_for(self.reader, 20)
        return ended


def _bound(one: Callable[[Run, str], Any], to: str) -> Callable[[Run], Any]:
    async def branch(run: Run) -> Any:
        return await one(run, to)

    return branch


def _reference(action: Action) -> str:
    assert action.arguments is not None
    return str(action.arguments["to"])
