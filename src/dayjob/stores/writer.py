"""Group commit: one thread that writes everything a process has ready in one transaction.

Natural batching: while one commit waits for the disk, the next batch gathers. What somebody waits for
never lingers; what nobody waits for goes with it, or by itself a moment later. The event loop is woken
once per flush. A failing database keeps entries pending and tries again; verbs,
which somebody outside waits for, get the error at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from dayjob.errors import IntentRefused, StoreError, StoreFull, StoreLocked, StoreUnavailable
from dayjob.runs import Kind, StepRecord
from dayjob.stores import Entry
from dayjob.stores.sqlite_rows import HELD, STEP_COLUMNS

T = TypeVar("T")

PLAIN_COLUMNS = (
    "home", "run", "key", "attempt", "scope", "name", "kind", "outcome", "seq", "version", "epoch", "nonce",
    "fingerprint", "code", "started", "ended", "input", "value", "error",
)  # fmt: skip
"""All that most steps have; the other columns belong to model calls, waits and children."""

PLAIN_KINDS = (Kind.CALL, Kind.SCOPE, Kind.JOIN, Kind.VALUE, Kind.NOTE)


def _insert_step(columns: tuple[str, ...]) -> str:
    """A fenced insert. A row with the same nonce was flushed before a lost reply: it counts as written."""
    marks = {name: f"?{number}" for number, name in enumerate(columns, 1)}
    return (
        f"INSERT INTO steps ({', '.join(columns)}) SELECT {', '.join(marks.values())} FROM runs "
        f"WHERE home = {marks['home']} AND id = {marks['run']} AND epoch = {marks['epoch']} AND status IN {HELD} "
        "ON CONFLICT (home, run, key, attempt) DO UPDATE SET nonce = nonce WHERE nonce = excluded.nonce"
    )


INSERT_STEP = _insert_step(STEP_COLUMNS)
_INSERT_PLAIN_STEP = _insert_step(PLAIN_COLUMNS)
step_values: Callable[[StepRecord], tuple[Any, ...]] = attrgetter(*STEP_COLUMNS)
_plain_values: Callable[[StepRecord], tuple[Any, ...]] = attrgetter(*PLAIN_COLUMNS)
_FENCE = f"SELECT 1 FROM runs WHERE home = ? AND id = ? AND epoch = ? AND status IN {HELD}"
_INTENT_FENCE = "SELECT 1 FROM runs WHERE home = ? AND id = ? AND epoch = ? AND status = 'in_progress'"
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    OverflowError,  # an int of more than 64 bits
    ValueError,  # half a surrogate pair
    TypeError,
)
LATER_SECONDS = 0.003
"""So long may a row wait for company that nobody waits for: each flush costs a change of threads."""
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
CHECKPOINT_BYTES = 8 * 1024 * 1024
RESTART_PAGES = 16_384
_ROW_BYTES = 400


class Verb:
    """A transaction that somebody waits for."""

    __slots__ = ("bytes", "future", "run")

    def __init__(
        self, run: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any], bytes: int
    ) -> None:
        self.run = run
        self.future = future
        self.bytes = bytes


class FairLock:
    """Lets processes that share one file write in turn.

    SQLite's own busy handler is no queue: a busy writer takes its lock again before a waiting one
    wakes. Here whoever has had a turn stands in line behind those who wait for the next.
    """

    def __init__(self, path: str) -> None:
        self._files: list[int] = []
        try:
            for name in ("next", "turn"):
                self._files.append(os.open(f"{path}-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError as problem:
            self.close()
            raise StoreUnavailable(f"{problem.filename}: cannot be written ({problem.strerror}).") from None

    def __enter__(self) -> None:
        line, turn = self._files
        _flock(line, True)
        _flock(turn, True)
        _flock(line, False)

    def __exit__(self, *_: object) -> None:
        _flock(self._files[1], False)

    def close(self) -> None:
        for file in self._files:
            os.close(file)


try:
    import fcntl

    def _flock(file: int, locked: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX if locked else fcntl.LOCK_UN)

except ImportError:  # no flock here: SQLite's own lock is all there is

    def _flock(file: int, locked: bool) -> None:
        pass


class Writer:
    """The one thread that writes; see the module."""

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        compile_entry: Callable[[Entry], list[tuple[str, Sequence[Any]]]],
        on_trouble: Callable[[StoreError], None],
    ) -> None:
        self._path = path
        self._connect = connect
        self._compile = compile_entry
        self._on_trouble = on_trouble
        self._queue: queue.SimpleQueue[Entry | Verb | None] = queue.SimpleQueue()
        self._later: list[Entry] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = FairLock(path)
        self._checkpoint_lock = FairLock(path)  # a lock of its own: threads that share one are not kept apart
        self._unchecked_bytes = 0
        self._checkpoint_due = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="dayjob-writer", daemon=True)
        self._checkpointer = threading.Thread(target=self._checkpoint, name="dayjob-checkpoint", daemon=True)
        self._thread.start()
        self._checkpointer.start()

    def put(self, entry: Entry) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if entry.durable is not None:
            self._send(entry)
            return
        self._later.append(entry)
        if len(self._later) == 1:
            asyncio.get_running_loop().call_later(LATER_SECONDS, self._send)

    def _send(self, item: Entry | Verb | None = None) -> None:
        """Hands over what has waited, and then what somebody waits for."""
        later, self._later = self._later, []
        for entry in later:
            self._queue.put(entry)
        if item is not None:
            self._queue.put(item)

    async def run(self, transaction: Callable[[sqlite3.Connection], T], bytes: int = _ROW_BYTES) -> T:
        """Runs a verb. `bytes` is about what it writes."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StoreUnavailable(f"{self._path}: the store is closed")
        if self._loop is None:
            self._loop = loop
        future: asyncio.Future[T] = loop.create_future()
        self._send(Verb(transaction, future, bytes))
        return await future

    def close(self) -> None:
        """Writes what is queued, then stops."""
        if self._closed:
            return
        self._closed = True
        self._send()
        self._queue.put(None)
        self._thread.join(timeout=30)
        self._checkpoint_due.set()
        self._checkpointer.join(timeout=30)
        self._lock.close()
        self._checkpoint_lock.close()

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        pending: list[Entry | Verb] = []
        closing = False
        failures = 0
        while not closing or pending:
            if not pending:
                first = self._queue.get()
                closing = first is None
                pending = [] if first is None else [first]
            while not self._queue.empty():
                item = self._queue.get_nowait()
                if item is None:
                    closing = True
                else:
                    pending.append(item)
            try:
                connection = connection or self._connect()
                replies = self._flush(connection, pending)
            except (StoreError, sqlite3.Error, OSError) as problem:
                pending = self._keep_entries(pending, translated(problem, self._path))
                if closing and failures >= len(RETRY_SECONDS):
                    break
                time.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)] if pending else 0)
                failures += 1
                continue
            failures = 0
            pending = []
            self._reply(replies)
        if connection is not None:
            connection.close()

    def _flush(self, connection: sqlite3.Connection, batch: list[Entry | Verb]) -> list[tuple[Any, ...]]:
        """One transaction for the whole batch; if a row was stale or bad, again with each item by itself."""
        with self._lock:
            connection.execute("BEGIN IMMEDIATE")
            try:
                replies = self._write_together(connection, batch)
                if replies is None:
                    connection.execute("ROLLBACK")
                    connection.execute("BEGIN IMMEDIATE")
                    replies = self._write_apart(connection, batch)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        self._note_written(batch)
        return replies

    def _write_together(
        self, connection: sqlite3.Connection, batch: list[Entry | Verb]
    ) -> list[tuple[Any, ...]] | None:
        replies: list[tuple[Any, ...]] = []
        rows: list[tuple[Any, ...]] = []
        for item in batch:
            if isinstance(item, Entry):
                if _is_plain(item):
                    rows += map(_plain_values, item.insert)
                else:
                    if not (_insert(connection, rows) and self._apply(connection, item)):
                        return None
                    rows = []
                if item.durable is not None:
                    replies.append((_succeed, item.durable, None))
            else:
                if not _insert(connection, rows):
                    return None
                rows = []
                replies.append(self._run_verb(connection, item))
        return replies if _insert(connection, rows) else None

    def _write_apart(
        self, connection: sqlite3.Connection, batch: list[Entry | Verb]
    ) -> list[tuple[Any, ...]]:
        replies: list[tuple[Any, ...]] = []
        for item in batch:
            if not isinstance(item, Entry):
                replies.append(self._run_verb(connection, item))
                continue
            connection.execute("SAVEPOINT entry")
            if self._apply(connection, item):
                if item.durable is not None:
                    replies.append((_succeed, item.durable, None))
            else:
                connection.execute("ROLLBACK TO entry")
                if item.intent and item.durable is not None and _is_held(connection, item):
                    replies.append((_fail, item.durable, IntentRefused()))
                elif item.lost is not None:
                    replies.append((item.lost,))
            connection.execute("RELEASE entry")
        return replies

    def _apply(self, connection: sqlite3.Connection, entry: Entry) -> bool:
        """Writes an entry; False if its run is held by another, or if the row cannot be stored at all."""
        fence = _INTENT_FENCE if entry.intent else _FENCE
        if connection.execute(fence, (entry.home, entry.run, entry.epoch)).fetchone() is None:
            return False
        try:
            for statement, values in self._compile(entry):
                if connection.execute(statement, values).rowcount == 0 and statement is INSERT_STEP:
                    return False
        except _ROW_ERRORS:
            return False
        return True

    def _run_verb(self, connection: sqlite3.Connection, verb: Verb) -> tuple[Any, ...]:
        connection.execute("SAVEPOINT verb")
        try:
            result = verb.run(connection)
        except sqlite3.DatabaseError as problem:
            if not isinstance(problem, _ROW_ERRORS):
                raise
            connection.execute("ROLLBACK TO verb")
            return (_fail, verb.future, problem)
        except Exception as problem:
            connection.execute("ROLLBACK TO verb")
            return (_fail, verb.future, problem)
        finally:
            if connection.in_transaction:
                connection.execute("RELEASE verb")
        return (_succeed, verb.future, result)

    def _keep_entries(self, batch: list[Entry | Verb], error: StoreError) -> list[Entry | Verb]:
        self._reply([(_fail, item.future, error) for item in batch if isinstance(item, Verb)])
        self._on_trouble(error)
        return [item for item in batch if isinstance(item, Entry)]

    def _reply(self, replies: list[tuple[Any, ...]]) -> None:
        if not replies or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(_call_all, replies)

    def _note_written(self, batch: list[Entry | Verb]) -> None:
        for item in batch:
            self._unchecked_bytes += _ROW_BYTES if isinstance(item, Entry) else item.bytes
            if isinstance(item, Entry):
                for row in item.insert:
                    if row.value is not None:
                        self._unchecked_bytes += len(row.value)
        if self._unchecked_bytes > CHECKPOINT_BYTES:
            self._unchecked_bytes = 0
            self._checkpoint_due.set()

    def _checkpoint(self) -> None:
        """Moves the log into the database, beside the commits rather than in their way."""
        connection: sqlite3.Connection | None = None
        while not self._closed:
            self._checkpoint_due.wait()
            self._checkpoint_due.clear()
            try:
                connection = connection or self._connect()
                _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages > RESTART_PAGES and not self._closed:
                    with self._checkpoint_lock:
                        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            except (StoreError, sqlite3.Error) as problem:
                self._on_trouble(translated(problem, self._path))
        if connection is not None:
            connection.close()


def _is_plain(entry: Entry) -> bool:
    if entry.update or entry.more:
        return False
    for row in entry.insert:  # noqa: SIM110  a generator would cost more: this is once a step
        if row.kind not in PLAIN_KINDS or row.call_key is not None:
            return False
    return True


def _insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> bool:
    """Writes plain step rows in one go; False if any was stale."""
    if not rows:
        return True
    try:
        return connection.executemany(_INSERT_PLAIN_STEP, rows).rowcount == len(rows)
    except _ROW_ERRORS:
        return False


def _is_held(connection: sqlite3.Connection, entry: Entry) -> bool:
    return connection.execute(_FENCE, (entry.home, entry.run, entry.epoch)).fetchone() is not None


def _call_all(replies: list[tuple[Any, ...]]) -> None:
    for call, *args in replies:
        call(*args)


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def translated(problem: Exception, path: str) -> StoreError:
    """SQLite's error, in words that say what to do."""
    if isinstance(problem, StoreError):
        return problem
    text = str(problem)
    if "locked" in text or "busy" in text:
        return StoreLocked(
            f"{path}: another program holds the database's lock. Close it, or wait and try again."
        )
    if "full" in text:
        return StoreFull(
            f"{path}: no space is left on the device. Free some; nothing that was accepted is lost."
        )
    if "readonly" in text or "unable to open" in text:
        directory = Path(path).resolve().parent
        return StoreUnavailable(
            f"{path}: cannot be written ({text}). Check that {directory} exists and is writable."
        )
    if "disk I/O" in text:
        return StoreUnavailable(
            f"{path}: the disk failed ({text}). Check its space, its quota and its health; "
            "nothing that was accepted is lost."
        )
    return StoreUnavailable(f"{path}: {text}")
