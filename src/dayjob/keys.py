"""Idempotency keys: what a receiver, and the journal, know a call by that changes something."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from enum import Enum

import orjson

from dayjob.runs import Outcome, StepRecord
from dayjob.values import canonical, digest

UNDO_SCOPE = "#undo"
"""Where it is written what was undone: that stands, whatever other path newer code takes."""


class Fate(Enum):
    """What became of a call that changes something, as far as the journal tells."""

    UNKNOWN = "unknown"
    DONE = "done"
    FAILED = "failed"
    NOT_DONE = "not done"


def message_id(run: str, step: str, attempt: int) -> str:
    """The id of the message that a model step says: known before it is said, and the same after a crash."""
    return f"msg_{digest(canonical([run, step, attempt])).hex()}"


def fate_of(row: StepRecord) -> Fate:
    if row.value is not None:
        return Fate.DONE
    error = orjson.loads(row.error) if row.error else {"unknown": True}
    if error.get("done"):
        return Fate.DONE
    if error.get("unknown"):
        return Fate.UNKNOWN
    return Fate.NOT_DONE if error.get("not_done") else Fate.FAILED


def is_write(row: StepRecord) -> bool:
    """Whether a row is that of a write: what must not be done twice."""
    return row.call_key is not None and orjson.loads(row.input or b"{}").get("effect") == "write"


def latest_by_call(rows: Iterable[StepRecord]) -> dict[str, StepRecord]:
    """The row of each call that tells what became of it, of rows in the order of their end.

    One that was left open and superseded comes last in that order, though a later claim adopted it.
    """
    in_order = sorted(rows, key=lambda row: row.epoch)
    return {row.call_key: row for row in in_order if row.call_key is not None}


def attention_of(rows: Iterable[StepRecord]) -> dict[str, str]:
    """Of a run that is over: what a person has to look into, and why, by the key of the step."""
    found = {}
    for row in latest_by_call(rows).values():
        if row.scope == UNDO_SCOPE and row.outcome == Outcome.ERROR:
            error = orjson.loads(row.error or b"{}")
            found[row.key] = f"could not be undone: {error['type']}: {error['message']}"
        elif fate_of(row) is Fate.UNKNOWN:
            found[row.key] = "nobody knows whether it happened"
    return found


def was_unwound(rows: Collection[StepRecord]) -> bool:
    """Whether effects were undone at the end of a run; a rollback, which is part of the job, leaves a note."""
    rolled_back = max((row.seq or 0 for row in rows if row.name == "rollback"), default=0)
    return any(row.scope == UNDO_SCOPE and (row.seq is None or row.seq > rolled_back) for row in rows)


class Effects:
    """The keys of a run's calls: given out once, found again after a crash or a change of the code."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._latest: dict[str, StepRecord] = {}
        self._given: set[str] = set()

    def note(self, row: StepRecord) -> None:
        if row.call_key is None:
            return
        have = self._latest.get(row.call_key)
        if have is None or row.outcome != Outcome.SUPERSEDED or have.outcome == Outcome.SUPERSEDED:
            self._latest[row.call_key] = row  # what an older path left behind never hides what adopted it

    def supersede(self, row: StepRecord) -> None:
        """Changed code left this call behind: an equal one may adopt it."""
        latest = self._latest.get(row.call_key or "")
        if latest is not None and (latest.key, latest.attempt) == (row.key, row.attempt):
            latest.outcome = Outcome.SUPERSEDED

    def assign(self, tool: str, arguments: bytes) -> tuple[str, StepRecord | None]:
        """The key of a new call, and the superseded call that it adopts, if there is one.

        Equal calls are numbered. A call that failed leaves its number to the next equal one, so that a
        receiver can recognise it, unless it certainly was not done. One of unknown outcome that ended in
        an error was idempotent: it may be made again.
        """
        for number in itertools.count():
            key = digest(canonical([self._run, tool, number]) + arguments).hex()
            row = self._latest.get(key)
            if row is None:
                if key not in self._given:
                    self._given.add(key)
                    return key, None
                continue
            fate = fate_of(row)
            if fate is Fate.FAILED or (fate is Fate.UNKNOWN and row.outcome == Outcome.ERROR):
                return key, None
            left_behind = row.outcome == Outcome.SUPERSEDED and not self.was_undone(key)
            if left_behind and fate in (Fate.DONE, Fate.UNKNOWN):
                return key, row
        raise AssertionError

    def any(self) -> bool:
        return bool(self._latest)

    def latest(self, key: str) -> StepRecord | None:
        """The row that a key was given to last."""
        return self._latest.get(key)

    def give_back(self, key: str) -> None:
        """The key was not used after all."""
        self._given.discard(key)

    def was_undone(self, key: str) -> bool:
        return undo_key(key) in self._latest


def undo_key(call_key: str) -> str:
    return digest(b"undo " + call_key.encode()).hex()
