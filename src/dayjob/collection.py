"""`collect`: scopes side by side that are all heard out, errors too, and that may become more while they run.

A branch that is added later is recorded beside the others, in a row that holds its item, before it
begins: a replay knows it without asking who added it. What is done `after` each branch runs in one
scope of its own, one branch after the other, in the order in which they ended: that order is the
journal's, so it is the same on replay.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from dayjob.errors import InputError, StepError
from dayjob.join import Branch, Join
from dayjob.journal import WALKED, Scope, error_bytes, escape, stored_error
from dayjob.runs import Kind, Outcome, StepRecord
from dayjob.shapes import parameter_types, shape_of
from dayjob.steps import Steps, awaited, cancellings
from dayjob.values import canonical, decode, digest

AFTER = "#after"
"""The scope of what is done after each branch; no label can begin with a "#"."""
MORE = "more"


@dataclass(frozen=True, slots=True)
class Ok:
    """A branch that gave a value, and the item that it was for."""

    value: Any
    item: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Err:
    """A branch that gave none: it failed, or was cancelled (type `Cancelled`) once enough others had succeeded."""

    error: StepError
    item: Any = field(default=None, compare=False, repr=False)


class Collection(Join):
    """A join that no error ends. It ends when all branches have, or when `quorum` of them have succeeded."""

    def __init__(
        self,
        run: Steps,
        key: str,
        name: str,
        fn: Callable[[Any, Any], Any],
        items: list[Any],
        label_of: Callable[[Any], str] | None,
        limit: int | None,
        quorum: int | None,
        after: Callable[[Any, Ok | Err], Any] | None,
    ) -> None:
        labels = [str(label_of(item)) if label_of else str(index) for index, item in enumerate(items)]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise InputError(f"collect {name!r}: key {twice!r} stands for more than one item")
        calls = [(label, _on(fn, item), item) for label, item in zip(labels, items, strict=True)]
        returns = shape_of(fn).returns
        super().__init__(run, key, name, calls, [returns] * len(calls), race=False, limit=limit)
        self.fn = fn
        self.item_type = (parameter_types(fn) or [Any])[-1]
        self.label_of = label_of
        self.quorum = quorum
        self.after = after
        self.labels = labels
        self.succeeded: list[str] = []
        self.decisive: set[str] = set()
        self.by_label = {branch.label: branch for branch in self.branches}
        self.walked: set[Branch] = set()
        self.unheard: list[tuple[int, Branch]] = []
        """A heap, by the order of the journal: of no two branches the rows have the same place in it."""
        self.hearing: asyncio.Task[None] | None = None
        self.added_after = 0
        self.after_scope: Scope | None = None
        self.after_row: StepRecord | None = None
        self.after_error: StepError | None = None
        self.after_started = 0.0

    def _fingerprint(self) -> bytes:
        return digest(canonical([MORE, self.quorum, self.labels]))

    def _decisive(self, recorded: StepRecord | None) -> set[Branch]:
        decision = orjson.loads(recorded.value or b"{}") if recorded is not None else {}
        self.decisive = set(decision.get("succeeded", ()))
        return {branch for branch in self.branches if branch.label in self.decisive}

    def _look_up(self, branch: Branch) -> None:
        super()._look_up(branch)
        if branch.recorded is not None and branch.row is None:
            self.walked.add(branch)

    def _look_up_all(self) -> None:
        super()._look_up_all()
        self.after_row = self.place.mine.get(f"{self.key}/{AFTER}")
        rows = self.place.mine.values()
        kept = None
        if (
            self.decision is not None
        ):  # rows of earlier code may stand for branches that were kept as they were
            rows = [*rows, *self.place.earlier]  # type: ignore[assignment]
            kept = self.decision.get("added", ())
        for row in sorted(rows, key=lambda row: row.seq or 0):
            if row.kind == Kind.NOTE and row.name == MORE:
                told = orjson.loads(row.value or b"{}")
                if kept is None or told["label"] in kept:
                    item = decode(orjson.dumps(told["item"]), self.item_type)
                    self._add(told["label"], tuple(told["place"]), item)

    # --- more branches ---------------------------------------------------------------------------

    def _enter(self, branch: Branch, scope: Scope) -> None:
        scope.more = partial(self._more, branch)

    async def _more(self, parent: Branch | None, run: Steps, item: Any) -> None:
        """Records a further item, in a row beside the branches, and begins with it."""
        journal = self.run.journal
        await run.begin(MORE)
        try:
            data = run.encode(MORE, item, self.item_type)
            item = decode(data, self.item_type)
            label, place = self._next_to(parent, item)
            key = f"{self.key}/{escape(label)}#{MORE}"
            value = orjson.dumps({"label": label, "place": place, "item": orjson.loads(data)})
            row = journal.find(self.place, key, MORE, Kind.NOTE, digest(value))
            if row is None:
                if doomed := journal.doomed(run.scope):
                    await run.diverge(doomed)
                await run.live()
                self.place.live = True
            if row is None or row.version != journal.version:
                # this version's own: nobody asks for another's once the adder is done
                now = journal.clock()
                note = journal.row(
                    self.key, key, MORE, Kind.NOTE, Outcome.VALUE, now, digest(value), value=value
                )
                journal.put((note,), supersede=[(row.key, row.attempt)] if row is not None else [])
            if label not in self.by_label:
                begins = not self.decisive or label in self.decisive
                (self.waiting if begins else self.rest).append(self._add(label, place, item))
                self._start_more()
        finally:
            run.scope.current = None

    def _next_to(self, parent: Branch | None, item: Any) -> tuple[str, tuple[int, ...]]:
        """The label of a further item, and its place in the result: after all others, by who added it."""
        if parent is None:
            self.added_after += 1
            place: tuple[int, ...] = (len(self.labels), self.added_after)
        else:
            parent.added += 1
            place = (*parent.place, parent.added)
        if self.label_of is None:
            return f"{parent.label if parent else ''}+{place[-1]}", place
        label = str(self.label_of(item))
        known = self.by_label.get(label)
        if known is not None and known.place != place:
            raise InputError(f"collect {self.name!r}: key {label!r} stands for more than one item")
        return label, place

    def _add(self, label: str, place: tuple[int, ...], item: Any) -> Branch:
        branch = Branch(len(self.branches), label, _on(self.fn, item), item, shape_of(self.fn).returns)
        branch.place = place
        self.branches.append(branch)
        self.by_label[label] = branch
        self._look_up(branch)
        return branch

    # --- after each ------------------------------------------------------------------------------

    def _hear_out(self) -> None:
        """Begins to do what is to be done after branches that have ended, unless that is being done."""
        if self.after is None or self.hearing is not None or self.decision is not None or not self._next():
            return
        if self.after_scope is None:
            self.after_scope = Scope(self.run.journal, f"{self.key}/{AFTER}", self.place)
            self.after_scope.more = partial(self._more, None)
            self.after_started = self.run.journal.clock()
        self.run.keeper.count(self.after_scope)
        self.hearing = self.run.keeper.spawn(self.after_scope, self._hear(self.after, self.after_scope))

    def _next(self) -> Branch | None:
        """The next in the order of the journal; one that is walked again is waited for."""
        if not self.unheard:
            return None
        order, branch = self.unheard[0]
        return None if any(_order(walked) < order for walked in self.walked) else branch

    async def _hear(self, after: Callable[[Any, Ok | Err], Any], scope: Scope) -> None:
        inside, keeper = self.run.inside(scope), self.run.keeper
        error: StepError | None = None
        while error is None and (branch := self._next()) is not None:
            order, _ = heapq.heappop(self.unheard)
            self._pass_over(order)
            try:
                await awaited(after(inside, self._outcome(branch)))
            except asyncio.CancelledError:
                if scope.closed or cancellings() > 0:
                    raise
                error = StepError("CancelledError", f"{self.name!r} cancelled itself", step=scope.path)
            except (Exception, SystemExit) as problem:
                error = inside.step_error(scope.path, self.name, problem)
            if scope.closed:
                return
        if keeper.dormant:
            await keeper.ready(scope)
        self.place.live = self.place.live or scope.live
        self.hearing = None
        if error is not None:
            self.after_error = error
            self._decide({"failed": AFTER})
        elif not self.running and not self.waiting:
            self._weigh_all()
        keeper.uncount(scope)

    def _pass_over(self, order: int) -> None:
        """Newer code hears this branch before it has added all that ended earlier: those will end again, behind it."""
        passed = [row for row in self.place.earlier if row.kind == Kind.SCOPE and (row.seq or 0) < order]
        if passed:
            self.run.journal.write_off(passed)
            self.place.earlier = [row for row in self.place.earlier if row not in passed]

    def _row_of_after(self, scope: Scope) -> StepRecord:
        """One row stands for what was done after the branches, so that no replay walks it again."""
        journal, error = self.run.journal, self.after_error
        row = journal.row(
            self.key, scope.path, AFTER, Kind.SCOPE, Outcome.ERROR if error else Outcome.VALUE, self.after_started,
            digest(b"[]"), value=None if error else b"null",
            error=journal.redact(error_bytes(error)) if error else None,
        )  # fmt: skip
        if self.place.walked:
            row.version = WALKED
        return row

    # --- deciding --------------------------------------------------------------------------------

    def _weigh(self, branch: Branch) -> None:
        if self.decision is not None or branch.row is None:
            return
        self.walked.discard(branch)
        if branch.row.outcome == Outcome.VALUE:
            self.succeeded.append(branch.label)
        if self.after is not None:
            heapq.heappush(self.unheard, (_order(branch), branch))
            self._hear_out()
        elif len(self.succeeded) == self.quorum:
            self._decide(self._with_added({"succeeded": self.succeeded}))

    def _weigh_all(self) -> None:
        if self.hearing is None and not self.unheard:
            self._decide(self._with_added({}))

    def _with_added(self, decision: dict[str, Any]) -> dict[str, Any]:
        added = [branch.label for branch in self.branches[len(self.labels) :]]
        return {**decision, "added": added} if added else decision

    def _close_losers(self) -> None:
        super()._close_losers()
        if self.after_scope is not None:
            self.after_scope.close()
            self.after_scope.leave()
            self.run.keeper.uncount(self.after_scope)
        if self.hearing is not None:
            self.hearing.cancel()

    def _last_rows(self) -> list[StepRecord]:
        rows = super()._last_rows()
        if self.after_scope is not None:
            self.after_row = self._row_of_after(self.after_scope)
            rows.append(self.after_row)
        return rows

    def _result(self) -> Any:
        if "failed" in (self.decision or {}):
            raise self._why_after_failed()
        in_order = sorted(self.branches, key=lambda branch: (len(branch.place) > 1, branch.place))
        return [self._outcome(branch) for branch in in_order]

    def _why_after_failed(self) -> StepError:
        if self.after_row is not None:
            return stored_error(self.after_row.error or b"{}", self.after_row.key)
        assert self.after_error is not None
        return self.after_error

    def _outcome(self, branch: Branch) -> Ok | Err:
        row = branch.row
        if row is None or row.outcome == Outcome.CANCELLED:
            reason = f"{branch.label!r} was not needed: {self.quorum} others had succeeded"
            return Err(StepError("Cancelled", reason, step=branch.key), branch.item)
        if row.outcome == Outcome.ERROR:
            return Err(stored_error(row.error or b"{}", row.key), branch.item)
        return Ok(decode(row.value or b"null", branch.returns), branch.item)


def _order(branch: Branch) -> int:
    row = branch.row or branch.recorded
    return (row.seq if row is not None else 0) or 0


def _on(fn: Callable[[Any, Any], Any], item: Any) -> Callable[[Any], Any]:
    return lambda run: fn(run, item)
