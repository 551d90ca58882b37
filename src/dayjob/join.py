"""Scopes side by side, and the decision that ends them: `gather`, `map` and `race`; `collect` stands on it.

Each branch is a scope in a task of its own, and ends in a row. The join's row holds only the
decision: which branch won a race, or which error ended a gather. It is written in one entry with the
rows of the branches that it cuts off, so that after a crash the same decision stands.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from dayjob.errors import NotJSON, StepError
from dayjob.journal import WALKED, Scope, error_bytes, escape, stored_error
from dayjob.runs import Kind, Outcome, StepRecord
from dayjob.steps import Steps
from dayjob.values import canonical, decode, digest


class Branch:
    """One function of a join, with its scope."""

    __slots__ = (
        "added", "call", "fingerprint", "index", "item", "key", "label", "place", "recorded", "returns", "row", "scope",
        "started", "task",
    )  # fmt: skip

    def __init__(self, index: int, label: str, call: Callable[[Any], Any], item: Any, returns: Any) -> None:
        self.index = index
        self.label = label
        self.call = call
        self.item = item
        self.place: tuple[int, ...] = (index,)
        self.added = 0
        self.returns = returns
        self.fingerprint = _fingerprint(label, item)
        self.key = ""
        self.recorded: StepRecord | None = None
        self.row: StepRecord | None = None
        self.scope: Scope | None = None
        self.started = 0.0
        self.task: asyncio.Task[None] | None = None


class Join:
    """Branches that run side by side, `limit` at a time, until the join is decided."""

    def __init__(
        self,
        run: Steps,
        key: str,
        name: str,
        calls: list[tuple[str, Callable[[Any], Any], Any]],
        types: list[Any],
        race: bool,
        limit: int | None,
    ) -> None:
        self.run = run
        self.key = key
        self.name = name
        self.race = race
        self.limit = limit or sys.maxsize
        self.branches = [
            Branch(index, label, call, item, returns)
            for index, ((label, call, item), returns) in enumerate(zip(calls, types, strict=True))
        ]
        self.waiting: list[Branch] = []
        self.rest: list[Branch] = []
        self.running: set[Branch] = set()
        self.decision: dict[str, Any] | None = None
        self.row: StepRecord | None = None
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.durable: asyncio.Future[None] | None = None
        self.started = 0.0

    async def perform(self) -> Any:
        run = self.run
        recorded = await run.find(self.key, self.name, Kind.JOIN, self._fingerprint())
        self.place = Scope(run.journal, self.key, run.scope, recorded)
        try:
            if recorded is not None and recorded.outcome == Outcome.CANCELLED:
                await run.replay(recorded, Any)
            settled = recorded is not None and run.is_settled(recorded)
            if recorded is not None and settled:
                self.decision = orjson.loads(recorded.value or b"{}")
            self._look_up_all()
            if settled:
                return self._result()
            await self._run_branches(recorded)
            return self._result()
        finally:
            self.place.leave()

    def _fingerprint(self) -> bytes:
        return digest(canonical([self.race, [branch.label for branch in self.branches]]))

    def _decisive(self, recorded: StepRecord | None) -> set[Branch]:
        """Those that decided a recorded join; the others need not be walked unless these no longer do."""
        decision = orjson.loads(recorded.value or b"{}") if recorded is not None else {}
        index = decision.get("winner", decision.get("failed"))
        return {branch for branch in self.branches if branch.index == index}

    def _look_up_all(self) -> None:
        for branch in self.branches:
            self._look_up(branch)

    def _look_up(self, branch: Branch) -> None:
        """A branch's row counts if this version wrote it, or wrote the join and kept it."""
        branch.key = f"{self.key}/{escape(branch.label)}"
        branch.recorded = self.run.journal.find(
            self.place, branch.key, branch.label, Kind.SCOPE, branch.fingerprint
        )
        settled = self.decision is not None
        if branch.recorded is not None and (settled or self.run.is_settled(branch.recorded)):
            branch.row = branch.recorded
            if self.run.keeper.events.active:
                self.run.announce(branch.row, reused=True)

    # --- running -------------------------------------------------------------------------------

    async def _run_branches(self, recorded: StepRecord | None) -> None:
        """Runs what is not recorded, until the decision; a join of another version is walked again."""
        run, scope = self.run, self.run.scope
        self.started = run.journal.clock()
        decisive = self._decisive(recorded)
        finished = sorted((b for b in self.branches if b.row is not None), key=lambda b: b.row.seq or 0)  # type: ignore[union-attr]
        for branch in finished:
            self._weigh(branch)
        undone = [branch for branch in self.branches if branch.row is None]
        self.waiting = [branch for branch in undone if not decisive or branch in decisive]
        self.rest = [branch for branch in undone if decisive and branch not in decisive]
        if self.decision is None and not undone:
            self._weigh_all()
        if self.decision is None:
            if run.keeper.events.active:
                run.keeper.events.emit(
                    "step.started",
                    run=run.id,
                    key=self.key,
                    name=self.name,
                    kind=Kind.JOIN,
                    attempt=1,
                )
            self._start_more()
            run.keeper.uncount(scope)
            await self._until_decided()
        live = self.place.live or any(b.scope is not None and b.scope.live for b in self.branches)
        scope.live = scope.live or live
        if recorded is not None and not live:
            return
        if recorded is not None:
            await run.diverge([recorded, *run.journal.doomed(scope)])
        self._write_decision()
        assert self.durable is not None and self.row is not None
        try:
            await self.durable
        except asyncio.CancelledError:
            if not scope.closed:
                run.journal.finish(self.row, Outcome.CANCELLED, self.row.value)
                run.journal.put(update=(self.row,))
            raise
        if run.keeper.events.active:
            run.announce(self.row)

    async def _until_decided(self) -> None:
        run, scope = self.run, self.run.scope
        try:
            await Wait(self.decided)
        except asyncio.CancelledError:
            self._close_losers()
            if scope.closed:
                raise
            run.keeper.count(scope)
            if run.keeper.dormant:
                await run.keeper.ready(scope)
            rows = [self._loser_row(branch) for branch in self.branches if branch.row is None and branch.task]
            row = run.journal.row(
                scope.path,
                self.key,
                self.name,
                Kind.JOIN,
                Outcome.CANCELLED,
                self.started,
                self._fingerprint(),
            )
            run.journal.put((*rows, row))
            raise

    def _start_more(self) -> None:
        if not self.waiting and not self.running and self.decision is None:
            self.waiting, self.rest = self.rest, []
        while self.waiting and len(self.running) < self.limit and self.decision is None:
            branch = self.waiting.pop(0)
            source = None if branch.recorded else f"{self.place.source}/{escape(branch.label)}"
            branch.scope = Scope(self.run.journal, branch.key, self.place, branch.recorded, source)
            branch.started = self.run.journal.clock()
            self._enter(branch, branch.scope)
            self.running.add(branch)
            self.run.keeper.count(branch.scope)
            branch.task = self.run.keeper.spawn(branch.scope, self._branch(branch, branch.scope))

    def _enter(self, branch: Branch, scope: Scope) -> None:
        """A branch begins."""

    async def _branch(self, branch: Branch, scope: Scope) -> None:
        """The body of a branch's task: ends in the branch's row, unless the branch was cut off."""
        keeper, journal = self.run.keeper, self.run.journal
        inside = self.run.inside(scope)
        try:
            _, data, error = await inside.body(
                partial(branch.call, inside), branch.returns, branch.label, None, before=0
            )
        except asyncio.CancelledError:
            if scope.closed:
                raise
            data = None
            error = StepError("CancelledError", f"{branch.label!r} was cancelled", step=branch.key)
        if scope.closed:
            return
        if keeper.dormant:
            await keeper.ready(scope)
        if branch.recorded is not None and not scope.live:
            branch.row = branch.recorded
        else:
            if branch.recorded is not None:
                journal.write_off([branch.recorded])  # alone: its siblings may still use what is beside it
            scope.live = True
            branch.row = journal.row(
                self.key, branch.key, branch.label, Kind.SCOPE, Outcome.VALUE if error is None else Outcome.ERROR,
                branch.started, branch.fingerprint, value=data,
                error=None if error is None else journal.redact(error_bytes(error)),
            )  # fmt: skip
            if scope.walked:
                branch.row.version = WALKED
            journal.put((branch.row,))
            if keeper.events.active:
                self.run.announce(branch.row)
        scope.leave()
        self.running.discard(branch)
        self._weigh(branch)
        self._start_more()
        if self.decision is None and not self.running:
            self._weigh_all()
        keeper.uncount(scope)

    # --- deciding ------------------------------------------------------------------------------

    def _weigh(self, branch: Branch) -> None:
        """Whether this finished branch decides the join."""
        if self.decision is not None or branch.row is None:
            return
        if self.race and branch.row.outcome == Outcome.VALUE:
            self._decide({"winner": branch.index})
        elif not self.race and branch.row.outcome == Outcome.ERROR:
            self._decide({"failed": branch.index})

    def _weigh_all(self) -> None:
        """All branches are done, and none decided it."""
        if not self.race:
            self._decide({})
            return
        last = max(self.branches, key=lambda branch: (branch.row.seq or 0) if branch.row else 0)
        self._decide({"failed": last.index})

    def _decide(self, decision: dict[str, Any]) -> None:
        self.decision = decision
        if self.decided.done():
            return
        self._close_losers()
        self.run.keeper.count(self.run.scope)
        self.decided.set_result(None)

    def _close_losers(self) -> None:
        for branch in self.running:
            assert branch.scope is not None and branch.task is not None
            branch.scope.close()
            branch.scope.leave()
            self.run.keeper.uncount(branch.scope)
            branch.task.cancel()

    def _write_decision(self) -> None:
        """The losers' rows and the join's, as one entry."""
        run = self.run
        losers = self._last_rows()
        self.row = run.journal.row(
            run.scope.path, self.key, self.name, Kind.JOIN, Outcome.VALUE, self.started, self._fingerprint(),
            value=orjson.dumps(self.decision),
        )  # fmt: skip
        if self.place.walked:
            self.row.version = WALKED
        self.durable = run.journal.commit((*losers, self.row))

    def _last_rows(self) -> list[StepRecord]:
        return [self._loser_row(branch) for branch in self.running]

    def _loser_row(self, branch: Branch) -> StepRecord:
        return self.run.journal.row(
            self.key,
            branch.key,
            branch.label,
            Kind.SCOPE,
            Outcome.CANCELLED,
            branch.started,
            branch.fingerprint,
        )

    def _result(self) -> Any:
        decision = self.decision or {}
        if "failed" in decision:
            row = self.branches[decision["failed"]].row
            assert row is not None
            raise stored_error(row.error or b"{}", row.key)
        if self.race:
            branch = self.branches[decision["winner"]]
            assert branch.row is not None
            return decode(branch.row.value or b"null", branch.returns)
        return [decode(b.row.value or b"null", b.returns) for b in self.branches if b.row is not None]


class Wait:
    """What a run that may leave memory waits on: an await chain that ends here can be taken up again."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future

    def __await__(self) -> Any:
        return (yield from self.future)


def _fingerprint(label: str, item: Any) -> bytes:
    try:
        return digest(canonical([label, item]))
    except NotJSON:
        return digest(canonical([label]))
