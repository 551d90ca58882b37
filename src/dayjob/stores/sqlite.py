"""The store on SQLite: WAL, synchronous=FULL, one writer thread a process, readers that never block on it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from dayjob.errors import (
    ForeignStore,
    InputError,
    StoreError,
    StoreTooNew,
    StoreUnavailable,
    SubmitConflict,
    ThreadBusy,
    UnknownRun,
)
from dayjob.runs import TERMINAL, Kind, RunRecord, Status, StepRecord, new_id
from dayjob.stores import (
    Beat,
    End,
    Entry,
    Held,
    InboxItem,
    Loaded,
    Supersede,
    Swept,
    Wanted,
    WorkerRecord,
)
from dayjob.stores.process import is_gone
from dayjob.stores.writer import (
    INSERT_STEP,
    STEP_COLUMNS,
    FairLock,
    Writer,
    step_values,
    translated,
)

T = TypeVar("T")

APPLICATION_ID = 0x44415942  # "DAYB"
MIGRATIONS = ("sqlite.sql",)
"""Files applied in order; `user_version` counts those that a store has."""

LOCKED_SECONDS = 5.0
RUN_COLUMNS = tuple(name for name in RunRecord.__dataclass_fields__ if name != "input")
_RUN = ", ".join(RUN_COLUMNS)
_NEW_RUN_COLUMNS = (
    "home", "id", "project", "job", "status", "admitted", "queue", "priority", "due", "thread", "root", "parent",
    "parent_key", "submit_key", "tags", "limits", "source", "created",
)  # fmt: skip
_new_run_values = attrgetter(*_NEW_RUN_COLUMNS)
_INSERT_RUN = (
    f"INSERT INTO runs ({', '.join(_NEW_RUN_COLUMNS)}) VALUES ({', '.join('?' * len(_NEW_RUN_COLUMNS))})"
)
_INSERT_INPUT = "INSERT INTO inputs (home, run, input) VALUES (?, ?, ?)"
_STEP = ", ".join(STEP_COLUMNS)
_BRIEF_STEP = ", ".join(f"steps.{name}" for name in STEP_COLUMNS)
_HELD = "('in_progress', 'cancelling', 'unwinding')"
_PARKED = "('requires_action', 'waiting')"
# A branch that lost its race leaves open rows below it, which nobody waits for any more. Rows of a later
# claim are others: newer code walks a scope again that was done.
_NOT_CUT_OFF = """
AND (instr(steps.key, '/') = 0 OR NOT EXISTS (
    SELECT 1 FROM steps AS above WHERE above.home = steps.home AND above.run = steps.run AND above.kind = 'scope'
       AND above.outcome IN ('value', 'error', 'cancelled') AND above.epoch >= steps.epoch
       AND substr(steps.key, 1, length(above.key) + 1) = above.key || '/'))
"""
_TERMINAL = "(" + ", ".join(f"'{status}'" for status in sorted(TERMINAL)) + ")"
_CLAIMABLE = "worker IS NULL AND admitted = 1 AND status IN ('queued', 'cancelling', 'unwinding')"
_KEEP_MESSAGE = "INSERT INTO messages (home, hash, bytes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_REMEMBER = """
INSERT INTO memory (home, name, value, updated) VALUES (:project, :name, :value, :now)
ON CONFLICT DO UPDATE SET value = excluded.value, updated = excluded.updated
"""
_REMEMBER_FOR_RUN = """
INSERT INTO memory (home, name, value, updated)
SELECT project, :name, :value, :now FROM runs WHERE home = :home AND id = :run
ON CONFLICT DO UPDATE SET value = excluded.value, updated = excluded.updated
"""
_CREATE_THREAD = "INSERT INTO threads (home, id, project, created) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
# The id stays, so that what is sent again under it does not arrive again.
_CONSUME = "UPDATE inbox SET taken = 1, value = x'' WHERE home = :home AND run = :run AND id = :id"
_JUDGE = (
    "UPDATE runs SET success = :success, score = :score, verdict = :reason WHERE home = :home AND id = :run"
)
_PROGRESS = "UPDATE runs SET progress_done = :done, progress_total = :total WHERE home = :home AND id = :run"
_WAKE = f"""
UPDATE runs SET wakes = wakes + 1, due = CASE WHEN status IN {_PARKED} THEN NULL ELSE due END,
       status = CASE WHEN status IN {_PARKED} THEN 'queued' ELSE status END
 WHERE home = :home AND id = :run AND status NOT IN {_TERMINAL}
"""
_UPDATE_STEP = """
UPDATE steps SET outcome = :outcome, seq = :seq, ended = :ended, value = :value, error = :error, child = :child,
       nonce = :nonce
 WHERE home = :home AND run = :run AND key = :key AND attempt = :attempt
"""
_SETTLE = f"""
UPDATE runs SET status = :status, outcome = NULL, reason = :reason, error = coalesce(:error, error),
       ended = :now, worker = NULL, due = NULL, pinned = 0, changed = 0, next_run = :next_run,
       output = coalesce(:output, CASE WHEN :status <> 'completed' THEN (
           SELECT value FROM steps WHERE home = :home AND run = :run AND kind = 'note' AND name = 'partial'
            ORDER BY seq DESC LIMIT 1) END),
       (dollars, input_tokens, output_tokens, steps) = (
           SELECT CASE WHEN sum(kind = 'model' AND dollars IS NULL AND outcome <> 'cancelled') THEN NULL
                       ELSE coalesce(sum(dollars), 0) END,
                  coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), count(*)
             FROM steps WHERE home = :home AND run = :run)
 WHERE home = :home AND id = :run AND epoch = :epoch AND wakes = :wakes AND status IN {_HELD}
"""


class SQLiteStore:
    """See `Store`. `?synchronous=normal|off` in the URL trades durability for speed; the default is full."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.time,
        on_trouble: Callable[[StoreError], None] = lambda error: None,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        self.url = url
        self.path, self._synchronous = _parse(url)
        self._clock = clock
        self._migrate(migrations)
        self._writer = Writer(self.path, self._connect, self._statements, on_trouble)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="dayjob-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._beaters = threading.local()
        self._beater_list: list[_Beater] = []

    # --- opening -------------------------------------------------------------------------------

    def _connect(self, timeout: float = LOCKED_SECONDS) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        except sqlite3.DatabaseError as problem:
            if "not a database" in str(problem):
                raise ForeignStore(f"{self.path}: is no SQLite database. Choose another path.") from None
            raise translated(problem, self.path) from None
        return connection

    def _migrate(self, migrations: Sequence[str]) -> None:
        """Brings the schema up to date, in one transaction; refuses what it does not know."""
        if Path(self.path).is_dir():
            raise StoreUnavailable(f"{self.path}: is a directory; the store is a file.")
        self._check_foreign(len(migrations))
        connection = self._connect()
        try:
            connection.execute("BEGIN IMMEDIATE")
            have = connection.execute("PRAGMA user_version").fetchone()[0]
            for file in migrations[have:]:
                for statement in _statements_of(files("dayjob.stores").joinpath(file).read_text()):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as problem:
            raise translated(problem, self.path) from None
        finally:
            connection.close()

    def _check_foreign(self, known: int) -> None:
        """Looks before touching: not even the journal mode of another program's file may change."""
        if not Path(self.path).exists() or Path(self.path).stat().st_size == 0:
            return
        try:
            connection = sqlite3.connect(self.path, timeout=LOCKED_SECONDS)
            try:
                application = connection.execute("PRAGMA application_id").fetchone()[0]
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            finally:
                connection.close()
        except sqlite3.DatabaseError as problem:
            if "not a database" in str(problem):
                raise ForeignStore(f"{self.path}: is no SQLite database. Choose another path.") from None
            raise translated(problem, self.path) from None
        if application != APPLICATION_ID and (tables or application):
            raise ForeignStore(f"{self.path}: is a database of another program. Choose another path.")
        if version > known:
            raise StoreTooNew(
                f"{self.path}: has schema {version}; this Dayjob knows up to {known}. Upgrade Dayjob."
            )

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close_now)

    def close_now(self) -> None:
        """Writes what is queued and closes every connection."""
        self._writer.close()
        self._readers.shutdown()
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()
        for beater in self._beater_list:
            beater.connection.close()
            beater.lock.close()
        self._beater_list.clear()

    # --- what a held run writes ----------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        self._writer.put(entry)

    def _statements(self, entry: Entry) -> list[tuple[str, Any]]:
        """An entry as SQL, each statement safe to send again; the fence stands before them."""
        fence = {"home": entry.home, "run": entry.run, "epoch": entry.epoch}
        now = self._clock()
        statements: list[tuple[str, Any]] = []
        if entry.supersede is not None:
            statements += _supersede_statements(entry.home, entry.run, entry.supersede)
        statements += [(_KEEP_MESSAGE, (entry.home, hash, data)) for hash, data in entry.messages]
        statements += [(INSERT_STEP, step_values(row)) for row in entry.insert]
        statements += [(_UPDATE_STEP, {**fence, **_finish_of(row)}) for row in entry.update]
        if entry.child is not None:
            statements += _insert_run(entry.child)
        if entry.memory is not None:
            name, value = entry.memory
            statements.append((_REMEMBER_FOR_RUN, {**fence, "name": name, "value": value, "now": now}))
        if entry.append is not None:
            thread, id, message = entry.append
            values = {
                "home": thread,
                "thread": thread,
                "run": entry.run,
                "id": id,
                "message": message,
                "now": now,
            }
            statements.append((_APPEND, values))
        if entry.consumed is not None:
            statements.append((_CONSUME, {**fence, "id": entry.consumed}))
        if entry.verdict is not None:
            success, score, reason = entry.verdict
            statements.append((_JUDGE, {**fence, "success": success, "score": score, "reason": reason}))
        if entry.progress is not None:
            done, total = entry.progress
            statements.append((_PROGRESS, {**fence, "done": done, "total": total}))
        return statements

    # --- the life of a run ---------------------------------------------------------------------

    async def submit(self, run: RunRecord, when_busy: str = "refuse") -> RunRecord:
        """Queues a run. The same key with the same input gives the run that is there already.

        Raises SubmitConflict for the same key with other input, ThreadBusy if its thread has an active
        run and `when_busy` is "refuse"; with "enqueue" it waits its turn.
        """

        def transaction(connection: sqlite3.Connection) -> RunRecord:
            if run.submit_key is not None:
                row = connection.execute(
                    f"SELECT {_RUN} FROM runs WHERE project = ? AND job = ? AND submit_key = ?",
                    (run.project, run.job, run.submit_key),
                ).fetchone()
                if row is not None:
                    found = _run(row)
                    found.input = _input_of(connection, found)
                    if not _equal_json(found.input, run.input):
                        raise SubmitConflict(
                            f"key: {run.submit_key!r} was submitted before as {found.id} with other input. "
                            "Use another key, or the same input."
                        )
                    return found
            if run.thread is not None:
                connection.execute(_CREATE_THREAD, (run.home, run.thread, run.project, run.created))
                busy = connection.execute(
                    f"SELECT id FROM runs WHERE thread = ? AND status NOT IN {_TERMINAL}",
                    (run.thread,),
                ).fetchone()
                if busy and when_busy == "refuse":
                    raise ThreadBusy(
                        f"thread {run.thread} already has an active run, {busy[0]}. "
                        'Wait for it, cancel it, or submit with when_busy="enqueue".'
                    )
                if busy:
                    run.admitted = 0
            for statement, values in _insert_run(run):
                connection.execute(statement, values)
            return run

        return await self._writer.run(transaction)

    async def register(self, worker: WorkerRecord) -> None:
        """Announces a worker and the versions of its jobs; the order of versions is that of first sight."""

        def transaction(connection: sqlite3.Connection) -> None:
            now = self._clock()
            connection.execute(
                "INSERT INTO workers (id, host, boot, pid, start, queues, jobs, beat, lease, started) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET jobs = excluded.jobs",
                (worker.id, worker.host, worker.boot, worker.pid, worker.start, json.dumps(list(worker.queues)),
                 json.dumps(dict(worker.jobs)), now, worker.lease, now),
            )  # fmt: skip
            for job, version in worker.jobs.items():
                connection.execute(
                    "INSERT INTO versions (job, version, n, seen) SELECT ?1, ?2, "
                    "(SELECT coalesce(max(n), 0) + 1 FROM versions WHERE job = ?1), ?3 WHERE true "
                    "ON CONFLICT DO NOTHING",
                    (job, version, now),
                )
            connection.execute("DELETE FROM workers WHERE dead = 1 AND beat < ?", (now - 86_400,))

        await self._writer.run(transaction)

    async def retire(self, worker: str) -> None:
        """Takes a worker that stopped in good order off the list."""
        await self._execute("DELETE FROM workers WHERE id = ?", (worker,))

    async def adoptable(self, jobs: Mapping[str, str]) -> dict[str, list[str]]:
        """By job: its current version, and the older ones that no live worker has any more."""

        def query(connection: sqlite3.Connection) -> dict[str, list[str]]:
            alive = {
                (job, version)
                for (data,) in connection.execute(
                    "SELECT jobs FROM workers WHERE dead = 0 AND beat + lease > ?", (self._clock(),)
                )
                for job, version in json.loads(data).items()
            }
            found: dict[str, list[str]] = {}
            for job, current in jobs.items():
                older = connection.execute(
                    "SELECT version FROM versions WHERE job = ?1 AND n < "
                    "(SELECT n FROM versions WHERE job = ?1 AND version = ?2)",
                    (job, current),
                )
                found[job] = [
                    current,
                    *(version for (version,) in older if (job, version) not in alive),
                ]
            return found

        return await self._read(query)

    async def claim(self, wanted: Wanted) -> list[tuple[RunRecord, Loaded | None]]:
        """Takes up to `limit` runs, each with a raised epoch, most urgent first, then oldest first.

        With a run that was begun before comes what happened to it meanwhile, all but its journal.
        """
        if wanted.limit <= 0:
            return []
        conditions, values = [], []
        for job, versions in wanted.versions.items():
            marks = ", ".join("?" * len(versions))
            conditions.append(
                f"(job = ? AND (version IS NULL OR version = ? OR (pinned = 0 AND version IN ({marks}))))"
            )
            values += [job, wanted.current[job], *versions]
        if not conditions:
            return []
        queues = ", ".join("?" * len(wanted.queues))
        statement = (
            "SELECT home, id, job, attempts FROM runs "
            f"WHERE {_CLAIMABLE} AND queue IN ({queues}) AND (attempts < 2 OR {wanted.alone:d}) "
            "AND EXISTS (SELECT 1 FROM workers WHERE id = ? AND dead = 0) "
            f"AND ({' OR '.join(conditions)}) "
            f"{'AND home = (SELECT home FROM runs WHERE id = ?) ' if wanted.only else ''}"
            "ORDER BY priority DESC, id LIMIT ?"
        )
        values = [
            *wanted.queues,
            wanted.worker,
            *values,
            *([wanted.only] if wanted.only else []),
            str(wanted.limit),
        ]

        def transaction(connection: sqlite3.Connection) -> list[tuple[RunRecord, Loaded | None]]:
            found = connection.execute(statement, values).fetchall()
            if found and found[0][3] >= 2:
                found = found[:1]
            else:
                found = [row for row in found if row[3] < 2]
            now = self._clock()
            claimed = []
            for home, id, job, _ in found:
                row = connection.execute(
                    "UPDATE runs SET status = CASE status WHEN 'queued' THEN 'in_progress' ELSE status END, "
                    "worker = ?, epoch = epoch + 1, version = ?, started = coalesce(started, ?), due = NULL, "
                    "claimed_seq = CASE epoch WHEN 0 THEN 0 ELSE "
                    "(SELECT coalesce(max(seq), 0) FROM steps WHERE run = runs.id) END "
                    f"WHERE home = ? AND id = ? RETURNING {_RUN}",
                    (wanted.worker, wanted.current[job], now, home, id),
                ).fetchone()
                run = _run(row)
                run.input = _input_of(connection, run)
                begun = run.epoch > 1 or run.wakes > 0
                claimed.append((run, _loaded(connection, home, id, run.epoch) if begun else None))
            return claimed

        return await self._writer.run(transaction)

    async def refresh(self, home: str, run: str, epoch: int, version: str | None = None) -> Loaded | None:
        """What happened to a held run; with a version, its journal too. None: it is held by another.

        Rows inside a scope that this version finished are left out: nothing will ask for them.
        """

        def query(connection: sqlite3.Connection) -> Loaded | None:
            connection.execute("BEGIN")
            try:
                loaded = _loaded(connection, home, run, epoch)
                if loaded is not None and version is not None:
                    _load_journal(connection, loaded, home, run, version)
                return loaded
            finally:
                connection.execute("COMMIT")

        return await self._read(query)

    async def park(
        self, home: str, run: str, epoch: int, wakes: int, status: Status, due: float | None
    ) -> Held:
        """Lets go of a run that waits. WOKEN: something came meanwhile, and it is still held."""

        def transaction(connection: sqlite3.Connection) -> Held:
            changed = connection.execute(
                "UPDATE runs SET status = ?, worker = NULL, attempts = 0, due = ? "
                "WHERE home = ? AND id = ? AND epoch = ? AND wakes = ? AND status = 'in_progress'",
                (status, due, home, run, epoch, wakes),
            ).rowcount
            return Held.DONE if changed else _why_not(connection, home, run, epoch)

        return await self._writer.run(transaction)

    async def unpark(self, home: str, run: str, epoch: int, worker: str) -> bool:
        """Takes back a parked run that acts by itself. False: another worker has claimed it since."""

        def transaction(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    "UPDATE runs SET worker = ?, due = NULL, "
                    "status = CASE WHEN status = 'cancelling' THEN status ELSE 'in_progress' END "
                    "WHERE home = ? AND id = ? AND epoch = ? AND worker IS NULL "
                    f"AND (status IN {_PARKED} OR status IN ('queued', 'cancelling'))",
                    (worker, home, run, epoch),
                ).rowcount
            )

        return await self._writer.run(transaction)

    async def release(self, home: str, run: str, epoch: int, pin: str | None = None) -> None:
        """Hands a held run back to the queue, as it is; `pin`: only this version may go on with it."""

        def transaction(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE runs SET worker = NULL, epoch = epoch + 1, attempts = 0, "
                "pinned = max(pinned, ? IS NOT NULL), "
                "version = coalesce(?, version), "
                "status = CASE status WHEN 'in_progress' THEN 'queued' ELSE status END "
                f"WHERE home = ? AND id = ? AND epoch = ? AND status IN {_HELD}",
                (pin, pin, home, run, epoch),
            )

        await self._writer.run(transaction)

    async def unwind(self, home: str, run: str, epoch: int, wakes: int, end: End) -> Held:
        """Marks that a run is ending this way, before what must be done at its end."""

        def transaction(connection: sqlite3.Connection) -> Held:
            changed = connection.execute(
                "UPDATE runs SET status = 'unwinding', outcome = ?, reason = ?, error = ? "
                "WHERE home = ? AND id = ? AND epoch = ? AND wakes = ? AND status IN ('in_progress', 'cancelling')",
                (end.status, end.reason, end.error, home, run, epoch, wakes),
            ).rowcount
            return Held.DONE if changed else _why_not(connection, home, run, epoch)

        return await self._writer.run(transaction)

    async def settle(
        self,
        home: str,
        run: str,
        epoch: int,
        wakes: int,
        end: End,
        following: RunRecord | None = None,
    ) -> Held:
        """Ends a run and tells its parent, in one transaction. `following` is the run that goes on for it."""

        def transaction(connection: sqlite3.Connection) -> Held:
            if not _settle(connection, self._clock(), home, run, epoch, wakes, end, following):
                return _why_not(connection, home, run, epoch)
            return Held.DONE

        return await self._writer.run(transaction)

    # --- from outside --------------------------------------------------------------------------

    async def answer(
        self, run: str, key: str, value: bytes, by: str | None = None, reason: str | None = None
    ) -> bool:
        """Records the answer to an open step and wakes its run. False: there is no such open step."""

        def transaction(connection: sqlite3.Connection) -> bool:
            home = _home_of(connection, run)
            changed = connection.execute(
                "UPDATE steps SET answer = ?, answered_at = ?, answered_by = ?, answer_reason = ? "
                "WHERE home = ? AND run = ? AND key = ? AND outcome IS NULL AND answer IS NULL "
                "AND EXISTS (SELECT 1 FROM runs WHERE home = steps.home AND id = steps.run "
                f"AND status NOT IN {_TERMINAL})",
                (value, self._clock(), by, reason, home, run, key),
            ).rowcount
            if changed:
                connection.execute(_WAKE, {"home": home, "run": run})
            return bool(changed)

        return await self._writer.run(transaction)

    async def send(self, run: str, item: InboxItem) -> bool:
        """Puts a value into a run's inbox and wakes it. False: the run has ended. Idempotent by the item's id."""

        def transaction(connection: sqlite3.Connection) -> bool:
            home = _home_of(connection, run)
            if not connection.execute(_WAKE, {"home": home, "run": run}).rowcount:
                return False
            connection.execute(
                "INSERT INTO inbox (home, run, id, name, value, sent) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (home, run, item.id, item.name, item.value, self._clock()),
            )
            return True

        return await self._writer.run(transaction)

    async def cancel(self, run: str, reason: str) -> Status:
        """Asks a run and its children to stop; those that never started are cancelled at once.

        Returns the status that the run has now; that of a run which is over does not change.
        """

        def transaction(connection: sqlite3.Connection) -> Status:
            home = _home_of(connection, run)
            family = connection.execute(
                "WITH RECURSIVE family (id) AS (SELECT ? UNION SELECT runs.id FROM runs "
                "JOIN family ON runs.parent = family.id) "
                f"SELECT id, epoch FROM runs WHERE id IN (SELECT id FROM family) AND status NOT IN {_TERMINAL} "
                "AND status <> 'unwinding'",
                (run,),
            ).fetchall()
            for id, epoch in family:
                wakes = connection.execute(
                    "UPDATE runs SET status = 'cancelling', reason = ?, wakes = wakes + 1, due = NULL, admitted = "
                    "CASE epoch WHEN 0 THEN admitted ELSE 1 END WHERE home = ? AND id = ? RETURNING wakes",
                    (reason, home, id),
                ).fetchone()[0]
                if epoch == 0:
                    end = End(Status.CANCELLED, reason)
                    _settle(connection, self._clock(), home, id, 0, wakes, end, None)
            return Status(connection.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()[0])

        return await self._writer.run(transaction)

    async def resume(self, run: str, supersede: Supersede, changed: bool = False) -> bool:
        """Queues a run again that is over. False: it is not over, or its thread is busy."""

        def transaction(connection: sqlite3.Connection) -> bool:
            home = _home_of(connection, run)
            if not connection.execute(
                "UPDATE runs SET status = 'queued', outcome = NULL, reason = NULL, error = NULL, output = NULL, "
                "ended = NULL, attempts = 0, worker = NULL, epoch = epoch + 1, wakes = wakes + 1, changed = ?, "
                "next_run = NULL, dollars = NULL, input_tokens = NULL, output_tokens = NULL, steps = NULL "
                f"WHERE home = ? AND id = ? AND status IN {_TERMINAL}",
                (changed, home, run),
            ).rowcount:
                return False
            for statement, values in _supersede_statements(home, run, supersede):
                connection.execute(statement, values)
            return True

        try:
            return await self._writer.run(transaction)
        except sqlite3.IntegrityError:
            raise ThreadBusy(f"{run}: its thread has another active run now") from None

    async def forgive(self, run: str) -> None:
        """Forgets how many workers died with a run: somebody asked for it to be tried again."""
        await self._execute("UPDATE runs SET attempts = 0 WHERE id = ?", (run,))

    async def sweep(self, max_attempts: int) -> Swept:
        """Repairs what nobody did: dead workers' runs, due timers, delays, parents whose child ended."""

        def transaction(connection: sqlite3.Connection) -> Swept:
            now = self._clock()
            dead = _bury_dead_workers(connection, now)
            taken_over, poisoned = _take_over(connection, now, max_attempts)
            woken = connection.execute(
                f"UPDATE runs SET status = 'queued', wakes = wakes + 1, due = NULL "
                f"WHERE due <= ? AND status IN {_PARKED}",
                (now,),
            ).rowcount
            woken += _admit_delayed(connection, now)
            woken += _signal_ended_children(connection)
            next_due = connection.execute("SELECT min(due) FROM runs WHERE due IS NOT NULL").fetchone()[0]
            return Swept(woken, taken_over, poisoned, dead, next_due)

        return await self._writer.run(transaction)

    async def reclaim(self, worker: str, runs: Sequence[tuple[str, int]]) -> int:
        """Queues runs again that this worker was given, at these epochs, and does not know of."""

        def transaction(connection: sqlite3.Connection) -> int:
            return sum(
                connection.execute(
                    "UPDATE runs SET worker = NULL, epoch = epoch + 1, "
                    "status = CASE status WHEN 'in_progress' THEN 'queued' ELSE status END "
                    f"WHERE id = ? AND epoch = ? AND worker = ? AND status IN {_HELD}",
                    (run, epoch, worker),
                ).rowcount
                for run, epoch in runs
            )

        return await self._writer.run(transaction)

    async def remember(self, project: str, name: str, value: bytes) -> None:
        values = {"project": project, "name": name, "value": value, "now": self._clock()}
        await self._execute(_REMEMBER, values)

    async def create_thread(self, project: str, thread: str) -> None:
        await self._execute(_CREATE_THREAD, (thread, thread, project, self._clock()))

    async def append_message(self, thread: str, message: bytes) -> str:
        """Adds a message to a thread, and returns its id."""
        id = new_id("msg")

        def transaction(connection: sqlite3.Connection) -> str:
            values = {"home": thread, "thread": thread, "id": id, "run": None, "message": message}
            connection.execute(_APPEND, {**values, "now": self._clock()})
            return id

        return await self._writer.run(transaction)

    async def _execute(self, statement: str, values: Any) -> None:
        def transaction(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._writer.run(transaction)

    # --- from a thread of its own: the heartbeat -----------------------------------------------

    def beat(self, worker: str) -> Beat:
        """Says that this worker lives, and brings (epoch, wakes) of the runs it holds. Blocking."""
        beater = self._beater()
        try:
            with beater.lock:
                now = self._clock()
                alive = beater.connection.execute(
                    "UPDATE workers SET beat = ? WHERE id = ? AND dead = 0", (now, worker)
                ).rowcount
            return Beat(now, _held_by(beater.connection, worker) if alive else None)
        except (sqlite3.Error, OSError) as problem:
            raise translated(problem, self.path) from None

    def changed(self, worker: str) -> tuple[bool, Mapping[str, tuple[int, int]]] | None:
        """None if nothing was committed since the last call; else whether a run can be claimed, and those held."""
        beater = self._beater()
        try:
            version = beater.connection.execute("PRAGMA data_version").fetchone()[0]
            if version == beater.data_version:
                return None
            claimable = beater.connection.execute(f"SELECT 1 FROM runs WHERE {_CLAIMABLE} LIMIT 1").fetchone()
            held = _held_by(beater.connection, worker)
            beater.data_version = version
            return claimable is not None, held
        except sqlite3.Error as problem:
            raise translated(problem, self.path) from None

    def _beater(self) -> _Beater:
        """What the calling thread beats with: several workers may share this store."""
        beater: _Beater | None = getattr(self._beaters, "own", None)
        if beater is None:
            beater = self._beaters.own = _Beater(self._connect(), FairLock(self.path))
            self._beater_list.append(beater)
        return beater

    # --- reading -------------------------------------------------------------------------------

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
                connection.execute("PRAGMA query_only = 1")
                self._reader_connections.append(connection)
            try:
                return query(connection)
            except sqlite3.DatabaseError as problem:
                raise translated(problem, self.path) from None

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def get(self, run: str) -> RunRecord | None:
        """A run, with its input."""

        def query(connection: sqlite3.Connection) -> RunRecord | None:
            row = connection.execute(f"SELECT {_RUN} FROM runs WHERE id = ?", (run,)).fetchone()
            if row is None:
                return None
            found = _run(row)
            found.input = _input_of(connection, found)
            return found

        return await self._read(query)

    async def runs(
        self,
        *,
        project: str = "default",
        status: Status | None = None,
        job: str | None = None,
        thread: str | None = None,
        parent: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[RunRecord]:
        """Runs, newest first; `before` is the id after which the next page goes on."""
        wanted = {"status": status, "job": job, "thread": thread, "parent": parent}
        filters = {name: value for name, value in wanted.items() if value is not None}
        clauses = "".join(f" AND {name} = :{name}" for name in filters)
        if before is not None:
            clauses += " AND id < :before"
        values = {**filters, "project": project, "before": before, "limit": limit}
        statement = f"SELECT {_RUN} FROM runs WHERE project = :project{clauses} ORDER BY id DESC LIMIT :limit"
        return await self._read(lambda c: [_run(row) for row in c.execute(statement, values)])

    async def ended(self, runs: Sequence[str]) -> list[str]:
        """Those of these runs that are over."""
        return await self._read(
            lambda c: [
                id
                for (id,) in c.execute(
                    f"SELECT id FROM runs WHERE id IN (SELECT value FROM json_each(?)) AND status IN {_TERMINAL}",
                    (json.dumps(list(runs)),),
                )
            ]
        )

    async def steps(self, run: str, after: int = 0) -> list[StepRecord]:
        """The journal of a run in the order of completion, open steps last; `after` skips up to that seq."""
        return await self._read(
            lambda c: [
                _step(row)
                for row in c.execute(
                    f"SELECT {_STEP} FROM steps WHERE home = (SELECT home FROM runs WHERE id = :run) AND run = :run "
                    "AND (seq > :after OR (seq IS NULL AND :after = 0)) ORDER BY seq IS NULL, seq, started",
                    {"run": run, "after": after},
                )
            ]
        )

    async def open_steps(self, run: str | None, kinds: Sequence[str]) -> list[StepRecord]:
        """Steps of these kinds that wait, of one run or of all that are not over, oldest first."""
        marks = ", ".join("?" * len(kinds))
        return await self._read(
            lambda c: [
                _step(row)
                for row in c.execute(
                    f"SELECT {_BRIEF_STEP} FROM steps JOIN runs ON runs.home = steps.home AND runs.id = steps.run "
                    f"WHERE steps.kind IN ({marks}) AND steps.outcome IS NULL AND steps.answer IS NULL {_NOT_CUT_OFF} "
                    f"AND runs.status NOT IN {_TERMINAL} {'AND steps.run = ?' if run else ''} ORDER BY steps.started",
                    (*kinds, *([run] if run else [])),
                )
            ]
        )

    async def messages(self, home: str, hashes: Sequence[bytes]) -> dict[bytes, bytes]:
        def query(connection: sqlite3.Connection) -> dict[bytes, bytes]:
            found = {}
            for hash in set(hashes):
                row = connection.execute(
                    "SELECT bytes FROM messages WHERE home = ? AND hash = ?", (home, hash)
                ).fetchone()
                if row is not None:
                    found[hash] = row[0]
            return found

        return await self._read(query)

    async def open_step(self, run: str, key: str) -> StepRecord | None:
        """A step of a run that is not over which still waits for its answer."""

        def query(connection: sqlite3.Connection) -> StepRecord | None:
            row = connection.execute(
                f"SELECT {_STEP} FROM steps WHERE home = (SELECT home FROM runs WHERE id = :run "
                f"AND status NOT IN {_TERMINAL}) AND run = :run AND key = :key AND outcome IS NULL AND answer IS NULL "
                f"{_NOT_CUT_OFF}",
                {"run": run, "key": key},
            ).fetchone()
            return _step(row) if row else None

        return await self._read(query)

    async def step(self, run: str, key: str, attempt: int) -> StepRecord | None:
        def query(connection: sqlite3.Connection) -> StepRecord | None:
            row = connection.execute(
                f"SELECT {_STEP} FROM steps WHERE home = (SELECT home FROM runs WHERE id = ?1) AND run = ?1 "
                "AND key = ?2 AND attempt = ?3",
                (run, key, attempt),
            ).fetchone()
            return _step(row) if row else None

        return await self._read(query)

    async def recall(self, project: str, name: str) -> bytes | None:
        def query(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT value FROM memory WHERE home = ? AND name = ?", (project, name)
            ).fetchone()
            return row[0] if row else None

        return await self._read(query)

    async def memories(self, project: str) -> dict[str, bytes]:
        return await self._read(
            lambda c: dict(
                c.execute(
                    "SELECT name, value FROM memory WHERE home = ? ORDER BY name", (project,)
                ).fetchall()
            )
        )

    async def thread_messages(self, thread: str, up_to: int | None = None) -> list[tuple[int, str, bytes]]:
        """(n, id, message) in order."""
        return await self._read(
            lambda c: c.execute(
                "SELECT n, id, message FROM thread_messages WHERE home = ?1 AND thread = ?1 "
                "AND (?2 IS NULL OR n <= ?2) ORDER BY n",
                (thread, up_to),
            ).fetchall()
        )

    async def summary(self, project: str = "default") -> list[dict[str, Any]]:
        """By job: runs by status, success, dollars, tokens and seconds, over runs that ended."""
        return await self._read(
            lambda c: [
                dict(zip(_SUMMARY_FIELDS, row, strict=True))
                for row in c.execute(_SUMMARY, {"project": project})
            ]
        )

    async def facts(self) -> dict[str, str]:
        """What is worth knowing of this database, in words."""

        def query(connection: sqlite3.Connection) -> dict[str, str]:
            def pragma(name: str) -> Any:
                return connection.execute(f"PRAGMA {name}").fetchone()[0]

            megabytes = pragma("page_count") * pragma("page_size") / 1e6
            return {
                "SQLite": sqlite3.sqlite_version,
                "schema": str(pragma("user_version")),
                "journal": pragma("journal_mode"),
                "synchronous": ("off", "normal", "full", "extra")[pragma("synchronous")],
                "size": f"{megabytes:.1f} MB",
            }

        return await self._read(query)

    async def workers(self) -> list[WorkerRecord]:
        return await self._read(
            lambda c: [
                WorkerRecord(
                    id,
                    host,
                    boot,
                    pid,
                    start,
                    json.loads(queues),
                    json.loads(jobs),
                    lease,
                    beat,
                    bool(dead),
                    started,
                )
                for id, host, boot, pid, start, queues, jobs, lease, beat, dead, started in c.execute(
                    "SELECT id, host, boot, pid, start, queues, jobs, lease, beat, dead, started "
                    "FROM workers ORDER BY started"
                )
            ]
        )


_SUMMARY_FIELDS = (
    "job", "runs", "active", "completed", "failed", "cancelled", "expired", "incomplete", "succeeded", "judged",
    "dollars", "input_tokens", "output_tokens", "seconds",
)  # fmt: skip
_SUMMARY = f"""
SELECT job, count(*), sum(status NOT IN {_TERMINAL}), sum(status = 'completed'), sum(status = 'failed'),
       sum(status = 'cancelled'), sum(status = 'expired'), sum(status = 'incomplete'),
       coalesce(sum(success), 0), sum(success IS NOT NULL),
       CASE WHEN sum(ended IS NOT NULL AND dollars IS NULL) THEN NULL ELSE coalesce(sum(dollars), 0) END,
       coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), avg(ended - started)
  FROM runs WHERE project = :project GROUP BY job ORDER BY job
"""
_APPEND = """
INSERT INTO thread_messages (home, thread, n, id, run, message, created)
SELECT :home, :thread, (SELECT coalesce(max(n), 0) + 1 FROM thread_messages WHERE home = :home AND thread = :thread),
       :id, :run, :message, :now
 WHERE NOT EXISTS (SELECT 1 FROM thread_messages WHERE home = :home AND thread = :thread AND id = :id)
"""


@dataclass(slots=True)
class _Beater:
    connection: sqlite3.Connection
    lock: FairLock
    data_version: int = -1


def path_of(url: str) -> str:
    """The file that a URL names. Raises InputError for a URL that names none."""
    return _parse(url)[0]


def _parse(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    path = parts.path[1:]
    if parts.netloc or not path or path == ":memory:":
        raise InputError(
            f"store: {url!r} names no file; expected sqlite:///path (relative) or sqlite:////path (absolute)"
        )
    options = parse_qs(parts.query)
    synchronous = options.pop("synchronous", ["full"])[0].lower()
    if options or synchronous not in ("full", "normal", "off"):
        raise InputError(f"store: {url!r}: the only option is synchronous=full|normal|off")
    return path, synchronous


def _statements_of(script: str) -> list[str]:
    """The statements of a .sql file, which may hold no semicolon but at a statement's end or in a comment."""
    lines = (line.split("--")[0] for line in script.splitlines())
    return [statement for part in "\n".join(lines).split(";") if (statement := part.strip())]


def _run(row: Sequence[Any]) -> RunRecord:
    record = RunRecord(*row)
    record.status = Status(record.status)
    return record


def _step(row: Sequence[Any]) -> StepRecord:
    return StepRecord(*row)


def _input_of(connection: sqlite3.Connection, run: RunRecord) -> bytes | None:
    row = connection.execute(
        "SELECT input FROM inputs WHERE home = ? AND run = ?", (run.home, run.id)
    ).fetchone()
    return row[0] if row else None


def _equal_json(one: bytes | None, other: bytes | None) -> bool:
    """Whether two inputs are the same, in whatever order their keys were given."""
    return one == other or json.loads(one or b"null") == json.loads(other or b"null")


def _home_of(connection: sqlite3.Connection, run: str) -> str:
    row = connection.execute("SELECT home FROM runs WHERE id = ?", (run,)).fetchone()
    if row is None:
        raise UnknownRun(f"{run}: no run of that id is in this store. List them with `dayjob runs`.")
    return str(row[0])


def _held_by(connection: sqlite3.Connection, worker: str) -> dict[str, tuple[int, int]]:
    return {
        id: (epoch, wakes)
        for id, epoch, wakes in connection.execute(
            "SELECT id, epoch, wakes FROM runs WHERE worker = ?", (worker,)
        )
    }


def _insert_run(run: RunRecord) -> list[tuple[str, Any]]:
    return [(_INSERT_RUN, _new_run_values(run)), (_INSERT_INPUT, (run.home, run.id, run.input))]


def _finish_of(row: StepRecord) -> dict[str, Any]:
    names = ("key", "attempt", "outcome", "seq", "ended", "value", "error", "child", "nonce")
    return {name: getattr(row, name) for name in names}


def _supersede_statements(home: str, run: str, supersede: Supersede) -> list[tuple[str, Any]]:
    statements: list[tuple[str, Any]] = [
        (
            "UPDATE steps SET outcome = 'superseded' WHERE home = ? AND run = ? AND key = ? AND attempt = ?",
            (home, run, key, attempt),
        )
        for key, attempt in supersede.steps
    ]
    for scope in supersede.scopes:
        # Every key below a scope begins with its path and "/", and "0" is the character after "/".
        statements.append((
            "UPDATE steps SET outcome = 'superseded' WHERE home = ? AND run = ? AND key > ? AND key < ?",
            (home, run, scope + "/", scope + "0"),
        ))  # fmt: skip
    return statements


def _loaded(connection: sqlite3.Connection, home: str, run: str, epoch: int) -> Loaded | None:
    """A held run's status and every answer up to its `wakes`, as of this transaction."""
    row = connection.execute(
        "SELECT status, outcome, reason, wakes FROM runs WHERE home = ? AND id = ? AND epoch = ?",
        (home, run, epoch),
    ).fetchone()
    if row is None:
        return None
    answered = connection.execute(
        f"SELECT {_STEP} FROM steps WHERE home = ? AND run = ? AND outcome IS NULL AND answer IS NOT NULL",
        (home, run),
    )
    inbox = connection.execute(
        "SELECT id, name, value FROM inbox WHERE home = ? AND run = ? AND taken = 0 ORDER BY id", (home, run)
    )
    status, outcome, reason, wakes = row
    return Loaded(
        Status(status),
        outcome,
        reason,
        wakes,
        [_step(found) for found in answered],
        [InboxItem(*found) for found in inbox],
    )


def _load_journal(connection: sqlite3.Connection, loaded: Loaded, home: str, run: str, version: str) -> None:
    loaded.steps = [
        _step(row)
        for row in connection.execute(
            f"SELECT {_STEP} FROM steps AS s WHERE home = :home AND run = :run AND outcome IS NOT 'superseded' "
            "AND NOT EXISTS (SELECT 1 FROM steps AS d WHERE d.home = :home AND d.run = :run AND d.key = s.scope "
            "AND d.kind = 'scope' AND d.outcome IN ('value', 'error', 'cancelled') AND d.version = :version) "
            "ORDER BY seq IS NULL, seq, started",
            {"home": home, "run": run, "version": version},
        )
    ]
    done = {
        row.key for row in loaded.steps if row.kind == Kind.SCOPE and row.outcome and row.version == version
    }
    if done:  # the query looks at the scope itself; here at those further up, across joins
        loaded.steps = [row for row in loaded.steps if done.isdisjoint(_ancestors(row.key))]
    for key, attempt, retried in connection.execute(
        "SELECT key, attempt, json_extract(error, '$.retried') FROM steps "
        "WHERE home = ? AND run = ? AND outcome = 'superseded' ORDER BY key, attempt",
        (home, run),
    ):
        loaded.attempts[key] = attempt
        loaded.retried[key] = loaded.retried.get(key, 0) + 1 if retried else 0
    loaded.last_seq = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM steps WHERE run = ?", (run,)
    ).fetchone()[0]


def _ancestors(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def _why_not(connection: sqlite3.Connection, home: str, run: str, epoch: int) -> Held:
    row = connection.execute(
        f"SELECT 1 FROM runs WHERE home = ? AND id = ? AND epoch = ? AND status IN {_HELD}",
        (home, run, epoch),
    ).fetchone()
    return Held.WOKEN if row else Held.LOST


def _settle(
    connection: sqlite3.Connection,
    now: float,
    home: str,
    run: str,
    epoch: int,
    wakes: int,
    end: End,
    following: RunRecord | None,
) -> bool:
    changed = connection.execute(
        _SETTLE,
        {
            "home": home, "run": run, "epoch": epoch, "wakes": wakes, "now": now, "status": end.status,
            "reason": end.reason, "output": end.output, "error": end.error,
            "next_run": following.id if following else None,
        },
    ).rowcount  # fmt: skip
    if not changed:
        return False
    parent, parent_key, thread = connection.execute(
        "SELECT parent, parent_key, thread FROM runs WHERE home = ? AND id = ?", (home, run)
    ).fetchone()
    if following is not None:
        for statement, values in _insert_run(following):
            connection.execute(statement, values)
        if parent is not None:
            connection.execute(
                "UPDATE steps SET child = ? WHERE home = ? AND run = ? AND key = ? AND child = ?",
                (following.id, home, parent, parent_key, run),
            )
    elif parent is not None:
        _signal_parent(connection, home, run)
    if thread is not None and following is None:
        connection.execute(
            "UPDATE runs SET admitted = 1 WHERE home = ?1 AND id = (SELECT id FROM runs WHERE thread = ?2 "
            "AND admitted = 0 AND status = 'queued' AND due IS NULL ORDER BY id LIMIT 1) "
            "AND NOT EXISTS (SELECT 1 FROM runs WHERE thread = ?2 AND admitted = 1 "
            f"AND status NOT IN {_TERMINAL})",
            (home, thread),
        )
    return True


def _signal_parent(connection: sqlite3.Connection, home: str, child: str) -> bool:
    """Answers the step that waits for a child, and wakes the parent."""
    parent, key, status, reason, output, error = connection.execute(
        "SELECT parent, parent_key, status, reason, output, error FROM runs WHERE home = ? AND id = ?",
        (home, child),
    ).fetchone()
    answer = b'{"status":%s,"reason":%s,"output":%s,"error":%s}' % (
        json.dumps(status).encode(),
        json.dumps(reason).encode(),
        output or b"null",
        error or b"null",
    )
    changed = connection.execute(
        "UPDATE steps SET answer = ? WHERE home = ? AND run = ? AND key = ? AND child = ? "
        "AND outcome IS NULL AND answer IS NULL",
        (answer, home, parent, key, child),
    ).rowcount
    if changed:
        connection.execute(_WAKE, {"home": home, "run": parent})
    return bool(changed)


def _bury_dead_workers(connection: sqlite3.Connection, now: float) -> list[str]:
    dead = [
        id
        for id, host, boot, pid, start, beat, lease in connection.execute(
            "SELECT id, host, boot, pid, start, beat, lease FROM workers WHERE dead = 0"
        ).fetchall()
        if beat + lease < now or is_gone(host, boot, pid, start)
    ]
    connection.executemany("UPDATE workers SET dead = 1 WHERE id = ?", [(id,) for id in dead])
    return dead


def _take_over(connection: sqlite3.Connection, now: float, max_attempts: int) -> tuple[list[str], list[str]]:
    """Puts the runs of dead workers back into the queue; those that keep killing workers fail."""
    taken_over, poisoned = [], []
    orphans = connection.execute(
        "SELECT home, id, epoch, wakes, status, "
        "(SELECT coalesce(max(seq), 0) FROM steps WHERE run = runs.id) > claimed_seq, attempts FROM runs "
        f"WHERE worker IN (SELECT DISTINCT worker FROM runs WHERE worker IS NOT NULL AND worker NOT IN "
        f"(SELECT id FROM workers WHERE dead = 0)) AND status IN {_HELD}"
    ).fetchall()
    for home, id, epoch, wakes, status, progressed, attempts in orphans:
        attempts = 0 if progressed else attempts + 1
        if attempts >= max_attempts and status == Status.IN_PROGRESS:
            text = f"poison: {attempts} workers died while they held it, without one finished step between"
            error = json.dumps({"type": "Poison", "message": text, "retryable": False}).encode()
            _settle(connection, now, home, id, epoch, wakes, End(Status.FAILED, text, None, error), None)
            poisoned.append(id)
            continue
        connection.execute(
            "UPDATE runs SET worker = NULL, epoch = epoch + 1, attempts = ?, "
            "status = CASE status WHEN 'in_progress' THEN 'queued' ELSE status END WHERE home = ? AND id = ?",
            (attempts, home, id),
        )
        taken_over.append(id)
    return taken_over, poisoned


def _admit_delayed(connection: sqlite3.Connection, now: float) -> int:
    admitted = 0
    for home, id, thread in connection.execute(
        "SELECT home, id, thread FROM runs WHERE due <= ? AND status = 'queued' AND admitted = 0",
        (now,),
    ).fetchall():
        busy = (
            thread is not None
            and connection.execute(
                f"SELECT 1 FROM runs WHERE thread = ? AND admitted = 1 AND status NOT IN {_TERMINAL}",
                (thread,),
            ).fetchone()
        )
        connection.execute(
            "UPDATE runs SET due = NULL, admitted = ? WHERE home = ? AND id = ?",
            (0 if busy else 1, home, id),
        )
        admitted += not busy
    return admitted


def _signal_ended_children(connection: sqlite3.Connection) -> int:
    children = connection.execute(
        "SELECT steps.home, steps.child FROM steps JOIN runs ON runs.home = steps.home AND runs.id = steps.child "
        f"WHERE steps.kind = '{Kind.RUN}' AND steps.outcome IS NULL AND steps.answer IS NULL "
        f"AND runs.status IN {_TERMINAL}"
    ).fetchall()
    return sum(_signal_parent(connection, home, child) for home, child in children)
