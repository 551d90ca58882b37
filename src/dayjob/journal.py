"""The journal of one held run: finds the recorded step, or writes the new one.

A scope is a sequential line of steps. Inside it a step's key is its path, its name and an ordinal
among equal names, so the same code finds the same row again. Rows written by this version of the
job win by key; rows of another version are matched by what went in (`fingerprint`), until the path
differs: from there on the scope runs for real.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from dayjob.errors import StepError
from dayjob.keys import UNDO_SCOPE, Effects
from dayjob.limits import QUESTIONS
from dayjob.prompts import Prompt
from dayjob.runs import Kind, Outcome, RunRecord, StepRecord
from dayjob.stores import Entry, Loaded, Store
from dayjob.values import Redactor, digest

DEFER_SCOPE = "#defer"
"""Where what was deferred is written: done at the end, whatever path led to it."""
WALKED = ""
"""The version on the row of a scope that every replay enters: no code's, so it is matched as another version's."""
_ESCAPES = {"%": "%25", "/": "%2F", "#": "%23"}
_nonces = itertools.count(int.from_bytes(os.urandom(6), "big") << 14)


class Scope:
    """A sequential line of steps, with the recorded rows that it may still use."""

    __slots__ = (
        "children", "closed", "counted", "current", "earlier", "live", "mine", "more", "ordinals", "owner",
        "parent", "path", "prefix", "prompt", "recorded", "source", "used", "walked",
    )  # fmt: skip

    def __init__(
        self,
        journal: Journal,
        path: str,
        parent: Scope | None,
        recorded: StepRecord | None = None,
        source: str | None = None,
    ) -> None:
        """`recorded` is the row that stands for the scope, if it was done before; it may have had another path."""
        self.path = path
        self.recorded = recorded
        self.prefix = path + "/" if path else ""
        self.parent = parent
        self.ordinals: dict[str, int] = {}
        self.source = source or (recorded.key if recorded is not None else path)
        self.mine, self.earlier = journal.rows_of(path, self.source)
        self.used: set[str] = set()
        self.live = False
        self.current: str | None = None
        self.owner: asyncio.Task[Any] | None = None
        self.closed = False
        self.counted = False
        self.walked = False
        self.prompt: Prompt | None = None
        self.more: Callable[[Any, Any], Awaitable[None]] | None = None
        """Adds a branch beside this one, if this is one of a collection."""
        self.children: set[Scope] = set()
        if parent is not None:
            parent.children.add(self)
            self.closed = parent.closed

    def next_key(self, name: str) -> str:
        """The key of the next step of this name; counts it."""
        ordinal = self.ordinals.get(name, 0) + 1
        self.ordinals[name] = ordinal
        return f"{self.prefix}{escape(name)}#{ordinal}" if ordinal > 1 else self.prefix + escape(name)

    def walk_always(self) -> None:
        """Something in here stays in memory alone: a replay enters this scope, even once it is done."""
        scope: Scope | None = self
        while scope is not None:
            scope.walked = True
            scope = scope.parent

    def close(self) -> None:
        """From now on no call in this scope, or below it, returns or writes."""
        self.closed = True
        for child in self.children:
            child.close()

    def leave(self) -> None:
        if self.parent is not None:
            self.parent.children.discard(self)

    def last_prompt(self) -> Prompt | None:
        """The latest prompt of this scope or of the nearest ancestor that has one."""
        scope: Scope | None = self
        while scope is not None:
            if scope.prompt is not None:
                return scope.prompt
            scope = scope.parent
        return None


class Journal:
    """The rows of a run, and the one place that writes them."""

    def __init__(
        self,
        run: RunRecord,
        version: str,
        store: Store,
        clock: Callable[[], float],
        redact: Redactor,
        lost: Callable[[], None],
    ) -> None:
        self.home = run.home
        self.run = run.id
        self.epoch = run.epoch
        self.version = version
        self.changed = bool(run.changed)
        self.load_version = "" if run.changed else version
        self.store = store
        self.clock = clock
        self.redact = redact
        self.seq = 0
        self.partial: bytes | None = None
        self._lost = lost
        self._mine: dict[str, dict[str, StepRecord]] = {}
        self._earlier: dict[str, list[StepRecord]] = {}
        self._unvisited: dict[tuple[str, int], StepRecord] = {}
        self._attempts: dict[str, int] = {}
        self._retried: dict[str, list[bytes]] = {}
        self.open: dict[str, StepRecord] = {}
        self.effects = Effects(run.id)
        self.reasons: dict[str, str] = {}
        """Why people answered as they did, by the key of the action."""

    def load(self, loaded: Loaded) -> None:
        """Takes in what the store has: rows of this version by key, the others to be matched."""
        self.seq = loaded.last_seq
        self._attempts = dict(loaded.attempts)
        self._retried = dict(loaded.retried)
        for row in loaded.effects:
            self.effects.note(row)
        for row in loaded.steps or ():
            self._attempts[row.key] = max(row.attempt, self._attempts.get(row.key, 0))
            if row.outcome is None:
                self.open[row.key] = row
            if row.name in QUESTIONS and row.key.startswith(row.name):
                continue  # it belongs to the budget, not to the path of the job
            if row.version == self.version and not self.changed:
                self._mine.setdefault(row.scope, {})[row.key] = row
            else:
                self._earlier.setdefault(row.scope, []).append(row)
                self._unvisited[row.key, row.attempt] = row

    @property
    def size(self) -> int:
        """About how many rows a replay has to walk."""
        return self.seq

    def rows_of(self, path: str, source: str) -> tuple[dict[str, StepRecord], list[StepRecord]]:
        earlier = list(self._earlier.get(source, ()))
        if path != source:
            earlier += self._earlier.get(path, ())
        return self._mine.get(path, {}), earlier

    # --- finding -------------------------------------------------------------------------------

    def find(
        self,
        scope: Scope,
        key: str,
        name: str,
        kind: Kind,
        fingerprint: bytes | None,
        code: bytes | None = None,
    ) -> StepRecord | None:
        """The recorded row of a step, or None: it has to be done."""
        scope.used.add(key)
        row = scope.mine.get(key)
        if row is None and scope.earlier:
            row = self._match(scope, key, name, kind, fingerprint, code)
            if row is not None:
                scope.used.add(row.key)
                scope.earlier.remove(row)
                self._earlier[row.scope].remove(row)
                self._unvisited.pop((row.key, row.attempt), None)
        if row is not None and scope.recorded is not None and row.epoch > scope.recorded.epoch:
            scope.live = True  # the scope ran for real before a crash: what it came to then is out of date
        return row

    def _match(
        self,
        scope: Scope,
        key: str,
        name: str,
        kind: Kind,
        fingerprint: bytes | None,
        code: bytes | None,
    ) -> StepRecord | None:
        def fits(row: StepRecord) -> bool:
            same = row.name == name and row.kind == kind and row.fingerprint == fingerprint
            return same and not (self.changed and code is not None and row.code != code)

        return next((row for row in scope.earlier if row.key == key and fits(row)), None) or next(
            (row for row in scope.earlier if fits(row)), None
        )

    def doomed(self, scope: Scope) -> list[StepRecord]:
        """The rows of other versions that no longer count once this scope runs for real.

        Those that stand in it directly, and those below scopes that it has not come to: what is below
        a scope that it came to is that scope's own affair.
        """
        if not self._unvisited:
            return []
        places = {scope.path, scope.source}
        return [
            row
            for row in self._unvisited.values()
            if row.scope not in (DEFER_SCOPE, UNDO_SCOPE)
            and (row.scope in places or any(_is_below(row.key, place, scope.used) for place in places))
        ]

    def supersede(self, scope: Scope, rows: Sequence[StepRecord]) -> None:
        """Writes off these rows, before anything that comes after; from here on the scope runs for real."""
        self.write_off(rows)
        scope.earlier = []
        scope.live = True

    def write_off(self, rows: Sequence[StepRecord]) -> None:
        for row in rows:
            self._unvisited.pop((row.key, row.attempt), None)
            self.open.pop(row.key, None)
            self.effects.supersede(row)
            if row in self._earlier.get(row.scope, ()):
                self._earlier[row.scope].remove(row)
        if rows:
            self.put(supersede=[(row.key, row.attempt) for row in rows])

    def old_rows(self) -> list[StepRecord]:
        """Rows of other versions that were not come to."""
        return list(self._unvisited.values())

    def attempts_of(self, key: str) -> int:
        return self._attempts.get(key, 0)

    def step_key(self, key: str) -> str:
        """What a call of a plain function is undone by: the same for its retries, another when it is done again."""
        done_before = self.attempts_of(key) - len(self.retries_of(key))
        return digest(f"{self.run} {key} {done_before}".encode()).hex()

    def was_opened(self, key: str) -> bool:
        return key in self._attempts

    def spend(self, scope: Scope, key: str) -> tuple[str, int]:
        """An answer was acted on: from now on the same question is a new one. Returns the row to supersede."""
        scope.mine.pop(key, None)
        return key, self._attempts[key]

    def retries_of(self, key: str) -> list[StepError]:
        """The errors after which a step that is not done yet was tried again."""
        return [stored_error(error, key) for error in self._retried.get(key, ())]

    # --- writing -------------------------------------------------------------------------------

    def row(
        self,
        scope_path: str,
        key: str,
        name: str,
        kind: Kind,
        outcome: Outcome | None,
        started: float,
        fingerprint: bytes | None = None,
        **more: Any,
    ) -> StepRecord:
        """A new row with the next attempt of its key and, if it is finished, the next seq."""
        attempt = self._attempts.get(key, 0) + 1
        self._attempts[key] = attempt
        ended = seq = None
        if outcome is not None:
            self.seq += 1
            seq = self.seq
            ended = self.clock()
        return StepRecord(
            self.home, self.run, key, attempt, scope_path, name if name.isascii() else _printable(name), kind,
            outcome, seq, self.version, self.epoch, next(_nonces), fingerprint, None, started, ended, **more,
        )  # fmt: skip

    def finish(
        self,
        row: StepRecord,
        outcome: Outcome,
        value: bytes | None = None,
        error: bytes | None = None,
    ) -> None:
        """Ends an open row, or overwrites how a row ended; the caller puts it."""
        if row.seq is None:
            self.seq += 1
            row.seq = self.seq
            row.ended = self.clock()
            self.open.pop(row.key, None)
        row.outcome = outcome
        row.value = value
        row.error = error

    def put(
        self, insert: tuple[StepRecord, ...] = (), update: tuple[StepRecord, ...] = (), **more: Any
    ) -> None:
        """Enqueues rows: durable in this order, nobody waits."""
        self.store.put(self._entry(insert, update, None, more))

    def intend(self, scope: Scope, **rows: Any) -> asyncio.Future[None]:
        """Enqueues rows before something is sent. Raises IntentRefused if the run was cancelled.

        What was deferred is done all the same: then there is nothing left to cancel.
        """
        return self.commit(**rows, intent=not is_deferred(scope.path))

    def commit(
        self, insert: tuple[StepRecord, ...] = (), update: tuple[StepRecord, ...] = (), **more: Any
    ) -> asyncio.Future[None]:
        """Enqueues rows; resolved when they are durable, and never if the run was lost."""
        durable = asyncio.get_running_loop().create_future()
        self.store.put(self._entry(insert, update, durable, more))
        return durable

    def _entry(
        self,
        insert: tuple[StepRecord, ...],
        update: tuple[StepRecord, ...],
        durable: asyncio.Future[None] | None,
        more: dict[str, Any],
    ) -> Entry:
        return Entry(
            self.home, self.run, self.epoch, insert, update, durable, self._lost, **more, more=bool(more)
        )


def is_deferred(scope: str) -> bool:
    return scope == DEFER_SCOPE or scope.startswith(f"{DEFER_SCOPE}/")


def escape(name: str) -> str:
    """A name or label as one segment of a key."""
    if name.isalnum():
        return name
    for character, escaped in _ESCAPES.items():
        name = name.replace(character, escaped)
    return name.encode("utf-8", "backslashreplace").decode()


def _is_below(key: str, place: str, used: set[str]) -> bool:
    """Whether a key stands below a place, but not below one of the scopes in use there."""
    prefix = place + "/" if place else ""
    return key.startswith(prefix) and prefix + key[len(prefix) :].split("/", 1)[0] not in used


def error_bytes(error: StepError, **flags: bool) -> bytes:
    """How an error is stored. Flags that are set stand beside it: retried, unknown, done, not_done."""
    fields = {
        "type": error.type,
        "message": error.message,
        "retryable": error.retryable,
        "step": error.step,
        "limit": error.limit,
        "traceback": error.traceback,
    }
    kept = {name: _printable(value) for name, value in fields.items() if value is not None}
    return orjson.dumps({**kept, **{name: True for name, is_set in flags.items() if is_set}})


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def stored_error(data: bytes, key: str | None = None) -> StepError:
    """The error as the job sees it, live and on replay alike."""
    fields = orjson.loads(data)
    return StepError(
        fields["type"], fields["message"], fields["retryable"], step=fields.get("step", key), limit=fields.get("limit")
    )  # fmt: skip
