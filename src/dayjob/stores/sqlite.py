"""The store on SQLite: WAL, synchronous=FULL, one writer thread a process, readers that never block on it.

Here are the verbs that a run meets; `SQLiteReads` has those that read, `SQLiteThreads` and `SQLiteObjects`
those on what is kept beside runs, `SQLiteImports` the one that takes in what was made elsewhere.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dayjob.errors import StoreError, SubmitConflict, ThreadBusy, UnknownRun, UnknownThread
from dayjob.kept import MessageRecord, ThreadRecord
from dayjob.runs import RunRecord, Status, StepRecord
from dayjob.stores import (
    Answer,
    Beat,
    End,
    Entry,
    Held,
    InboxItem,
    Loaded,
    Reservation,
    Reserved,
    Submitted,
    Swept,
    Wanted,
    WorkerRecord,
)
from dayjob.stores.sqlite_budgets import open_budget, raising, reserve, settlement, spend_what_is_reserved
from dayjob.stores.sqlite_ends import (
    admit_delayed,
    bury_dead_workers,
    cancel_all,
    expire_overdue,
    settle,
    signal_ended_children,
    take_over,
    wake,
    warn_of_deadlines,
)
from dayjob.stores.sqlite_file import MIGRATIONS
from dayjob.stores.sqlite_imports import SQLiteImports
from dayjob.stores.sqlite_pages import close_gaps
from dayjob.stores.sqlite_reads import load
from dayjob.stores.sqlite_rows import CLAIMABLE, ENDED, HELD, PARKED, RUN_FIELDS, input_of, insert_run, run_of
from dayjob.stores.sqlite_threads import (
    APPEND,
    CREATE_THREAD,
    active_run,
    append,
    append_values,
    has_thread,
)
from dayjob.stores.writer import INSERT_STEP, FairLock, Writer, step_values, translated
from dayjob.threads import in_a_thread

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
# The id stays, so that what is sent again under it does not arrive again.
_CONSUME = "UPDATE inbox SET taken = 1, value = x'' WHERE home = :home AND run = :run AND id = :id"
_JUDGE = (
    "UPDATE runs SET success = :success, score = :score, verdict = :reason WHERE home = :home AND id = :run"
)
_PROGRESS = "UPDATE runs SET progress_done = :done, progress_total = :total WHERE home = :home AND id = :run"
_UPDATE_STEP = """
UPDATE steps SET outcome = :outcome, seq = :seq, started = :started, ended = :ended, due = :due, value = :value,
       error = :error, child = :child, nonce = :nonce
 WHERE home = :home AND run = :run AND key = :key AND attempt = :attempt
"""
_SUPERSEDE = "UPDATE steps SET outcome = 'superseded' WHERE home = ? AND run = ? AND key = ? AND attempt = ?"


class SQLiteStore(SQLiteImports):
    """See `Store`. `?synchronous=normal|off` in the URL trades durability for speed; the default is full."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.time,
        on_trouble: Callable[[StoreError], None] = lambda error: None,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        super().__init__(url, clock, migrations)
        self._writer = Writer(self.path, self._file.connect, self._statements, on_trouble)
        self._beaters = threading.local()
        self._beater_list: list[_Beater] = []

    async def close(self) -> None:
        await in_a_thread(self.close_now)

    def close_now(self) -> None:
        """Writes what is queued and closes every connection."""
        self._writer.close()
        self._close_readers()
        self._close_beaters(lambda beater: True)

    # --- what a held run writes ----------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        self._writer.put(entry)

    def _statements(self, entry: Entry) -> list[tuple[str, Any]]:
        """An entry as SQL, each statement safe to send again; the fence stands before them."""
        fence = {"home": entry.home, "run": entry.run, "epoch": entry.epoch}
        now = self._clock()
        statements = _superseded(entry.home, entry.run, entry.supersede)
        statements += [(_KEEP_MESSAGE, (entry.home, hash, data)) for hash, data in entry.messages]
        statements += [(INSERT_STEP, step_values(row)) for row in entry.insert]
        statements += [(_UPDATE_STEP, {**fence, **_finish_of(row)}) for row in entry.update]
        if entry.child is not None:
            statements += insert_run(entry.child)
        if entry.memory is not None:
            name, value = entry.memory
            statements.append((_REMEMBER_FOR_RUN, {**fence, "name": name, "value": value, "now": now}))
        if entry.append is not None:
            thread, message = entry.append
            statements.append((APPEND, append_values(thread, message)))
        if entry.consumed is not None:
            statements.append((_CONSUME, {**fence, "id": entry.consumed}))
        if entry.verdict is not None:
            success, score, reason = entry.verdict
            statements.append((_JUDGE, {**fence, "success": success, "score": score, "reason": reason}))
        if entry.progress is not None:
            done, total = entry.progress
            statements.append((_PROGRESS, {**fence, "done": done, "total": total}))
        if entry.settled is not None:
            statements += settlement(entry.home, entry.run, entry.settled)
        if entry.raised is not None:
            statements += raising(entry.home, entry.run, entry.raised)
        return statements

    # --- the life of a run ---------------------------------------------------------------------

    async def submit(
        self, run: RunRecord, when_busy: str = "refuse", messages: Sequence[MessageRecord] = ()
    ) -> RunRecord:
        """Queues a run. The same key with the same input gives the run that is there already.

        `messages` are added to its thread before. Raises SubmitConflict for the same key with other input,
        ThreadBusy if its thread has an active run and `when_busy` is "refuse"; with "enqueue" it waits its turn.
        """
        return (await self.submit_and_claim(run, when_busy, messages)).run

    async def submit_and_claim(
        self, run: RunRecord, when_busy: str = "refuse", messages: Sequence[MessageRecord] = (),
        wanted: Wanted | None = None, make_thread: bool | ThreadRecord = True,
    ) -> Submitted:  # fmt: skip
        """`submit` and then `claim`, in one transaction: what a worker has room for need not wait for a second.

        A thread that is not there is made, as `make_thread` says. With False it has to be there, in its project:
        else UnknownThread is raised.
        """

        def insert(connection: sqlite3.Connection) -> RunRecord:
            if run.submit_key is not None:
                row = connection.execute(
                    f"SELECT {RUN_FIELDS} FROM runs WHERE project = ? AND job = ? AND submit_key = ?",
                    (run.project, run.job, run.submit_key),
                ).fetchone()
                if row is not None:
                    found = run_of(row)
                    found.input = input_of(connection, found)
                    if not _equal_json(found.input, run.input):
                        raise SubmitConflict(
                            f"key: {run.submit_key!r} was submitted before as {found.id} with other input. "
                            "Use another key, or the same input."
                        )
                    return found
            if run.thread is not None:
                if make_thread:
                    made = make_thread
                    if made is True:
                        made = ThreadRecord(run.thread, run.project, run.created)
                    connection.execute(CREATE_THREAD, (run.thread, made.project, made.created, made.details))
                elif not has_thread(connection, run.project, run.thread):
                    raise UnknownThread(f"No thread found with id '{run.thread}'.")
                busy = active_run(connection, run.thread)
                if busy is not None and when_busy == "refuse":
                    raise ThreadBusy(
                        f"thread {run.thread} already has an active run, {busy}. "
                        'Wait for it, cancel it, or submit with when_busy="enqueue".',
                        busy,
                    )
                if busy is not None:
                    run.admitted = 0
                append(connection, run.thread, messages)
            for statement, values in insert_run(run):
                connection.execute(statement, values)
            open_budget(connection, run)
            return run

        def transaction(connection: sqlite3.Connection) -> Submitted:
            stored = insert(connection)
            return Submitted(stored, [] if wanted is None else self._claim(connection, wanted))

        return await self._writer.run(transaction)

    async def register(self, worker: WorkerRecord) -> None:
        """Announces a worker, its lease and the versions of its jobs, or what of them is new.

        The order of versions is that of first sight.
        """

        def transaction(connection: sqlite3.Connection) -> None:
            now = self._clock()
            connection.execute(
                "INSERT INTO workers (id, host, boot, pid, start, queues, jobs, beat, lease, started) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET jobs = excluded.jobs, lease = excluded.lease",
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
        """Takes a worker that stopped in good order off the list; what it still holds is queued again, as it is."""

        def transaction(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE runs SET worker = NULL, epoch = epoch + 1, "
                "status = CASE status WHEN 'in_progress' THEN 'queued' ELSE status END WHERE worker = ?",
                (worker,),
            )
            connection.execute("DELETE FROM workers WHERE id = ?", (worker,))

        await self._writer.run(transaction)

    async def claim(self, wanted: Wanted) -> list[tuple[RunRecord, Loaded | None]]:
        """Takes up to `limit` runs, each with a raised epoch, most urgent first, then oldest first.

        With a run that was begun before comes what happened to it meanwhile, all but its journal.
        """
        if wanted.limit <= 0:
            return []
        return await self._writer.run(lambda connection: self._claim(connection, wanted))

    def _claim(self, connection: sqlite3.Connection, wanted: Wanted) -> list[tuple[RunRecord, Loaded | None]]:
        conditions: list[str] = []
        values: list[Any] = []
        for job, versions in wanted.versions.items():
            marks = ", ".join("?" * len(versions))
            conditions.append(
                f"(job = ? AND (version IS NULL OR version = ? OR (pinned = 0 AND version IN ({marks}))))"
            )
            values += [job, wanted.current[job], *versions]
        if not conditions:
            return []
        if wanted.only is None:
            where, places = f"queue IN ({', '.join('?' * len(wanted.queues))})", list(wanted.queues)
        else:  # who asks for one run means it, whatever queue it is in
            where, places = "home = (SELECT home FROM runs WHERE id = ?)", [wanted.only]
        statement = (
            "SELECT home, id, job, attempts FROM runs "
            f"WHERE {CLAIMABLE} AND {where} AND (attempts < 2 OR {wanted.alone:d}) "
            "AND (expires IS NULL OR expires > ?) "
            "AND EXISTS (SELECT 1 FROM workers WHERE id = ? AND dead = 0) "
            f"AND ({' OR '.join(conditions)}) "
            "ORDER BY priority DESC, id LIMIT ?"
        )
        now = self._clock()
        values = [*places, now, wanted.worker, *values, wanted.limit]
        found = connection.execute(statement, values).fetchall()
        if found and found[0][3] >= 2:
            found = found[:1]
        else:
            found = [row for row in found if row[3] < 2]
        claimed = []
        for home, id, job, _ in found:
            row = connection.execute(
                "UPDATE runs SET status = CASE status WHEN 'queued' THEN 'in_progress' ELSE status END, "
                "worker = ?, epoch = epoch + 1, version = ?, started = coalesce(started, ?), due = NULL, "
                "claimed_seq = CASE epoch WHEN 0 THEN 0 ELSE "
                "(SELECT coalesce(max(seq), 0) FROM steps WHERE run = runs.id AND seq IS NOT NULL) END "
                f"WHERE home = ? AND id = ? RETURNING {RUN_FIELDS}",
                (wanted.worker, wanted.current[job], now, home, id),
            ).fetchone()
            run = run_of(row)
            run.input = input_of(connection, run)
            if run.budget is not None:
                spend_what_is_reserved(connection, home, id)
            begun = run.epoch > 1 or run.wakes > 0
            claimed.append((run, load(connection, home, id, run.epoch) if begun else None))
        return claimed

    async def park(
        self, home: str, run: str, epoch: int, wakes: int, status: Status, due: float | None
    ) -> Held:
        """Lets go of a run that waits. WOKEN: something came meanwhile, and it is still held."""

        def transaction(connection: sqlite3.Connection) -> Held:
            parked = connection.execute(
                "UPDATE runs SET status = ?, worker = NULL, attempts = 0, due = ? "
                "WHERE home = ? AND id = ? AND epoch = ? AND wakes = ? AND status = 'in_progress' "
                "RETURNING budget",
                (status, due, home, run, epoch, wakes),
            ).fetchone()
            if parked is None:
                return _why_not(connection, home, run, epoch)
            if parked[0] is not None:
                spend_what_is_reserved(connection, home, run)
            return Held.DONE

        return await self._writer.run(transaction)

    async def unpark(self, home: str, run: str, epoch: int, worker: str) -> bool:
        """Takes back a parked run that acts by itself. False: another worker has claimed it since."""

        def transaction(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    "UPDATE runs SET worker = ?, due = NULL, "
                    "status = CASE WHEN status = 'cancelling' THEN status ELSE 'in_progress' END "
                    "WHERE home = ? AND id = ? AND epoch = ? AND worker IS NULL "
                    f"AND (status IN {PARKED} OR status IN ('queued', 'cancelling'))",
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
                f"WHERE home = ? AND id = ? AND epoch = ? AND status IN {HELD}",
                (pin, pin, home, run, epoch),
            )

        await self._writer.run(transaction)

    async def unwind(self, home: str, run: str, epoch: int, wakes: int, end: End) -> Held:
        """Marks that a run is ending this way, before what must be done at its end."""

        def transaction(connection: sqlite3.Connection) -> Held:
            changed = connection.execute(
                "UPDATE runs SET status = 'unwinding', outcome = ?, reason = ?, error = ?, expires = NULL "
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
            if not settle(connection, self._clock(), home, run, epoch, wakes, end, following):
                return _why_not(connection, home, run, epoch)
            return Held.DONE

        return await self._writer.run(transaction)

    # --- from outside --------------------------------------------------------------------------

    async def answer(
        self,
        run: str,
        key: str,
        value: bytes,
        by: str | None = None,
        reason: str | None = None,
        attempt: int | None = None,
    ) -> bool:
        """Records the answer to an open step and wakes its run. False: there is no such open step."""
        return await self.answer_all(run, [Answer(key, attempt, value)], by, reason)

    async def answer_all(
        self, run: str, answers: Sequence[Answer], by: str | None = None, reason: str | None = None
    ) -> bool:
        """Records answers to open steps, all or none, and wakes their run. False: one of the steps is not open."""

        def transaction(connection: sqlite3.Connection) -> bool:
            home = _home_of(connection, run)
            now = self._clock()
            connection.execute("SAVEPOINT answers")
            changed = sum(
                connection.execute(
                    "UPDATE steps SET answer = ?, answered_at = ?, answered_by = ?, answer_reason = ? "
                    "WHERE home = ? AND run = ? AND key = ? AND outcome IS NULL AND answer IS NULL "
                    "AND (due IS NULL OR due > ?) AND attempt = coalesce(?, attempt) "
                    "AND EXISTS (SELECT 1 FROM runs WHERE home = steps.home AND id = steps.run "
                    f"AND status NOT IN {ENDED} AND (status <> 'unwinding' OR substr(steps.scope, 1, 1) = '#'))",
                    (each.value, now, by, reason, home, run, each.key, now, each.attempt),
                ).rowcount
                for each in answers
            )
            complete = changed == len(answers)
            if not complete:
                connection.execute("ROLLBACK TO answers")
            connection.execute("RELEASE answers")
            if complete:
                wake(connection, home, run)
            return complete

        return await self._writer.run(transaction)

    async def send(self, run: str, item: InboxItem) -> bool:
        """Puts a value into a run's inbox and wakes it. False: the run has ended. Idempotent by the item's id."""

        def transaction(connection: sqlite3.Connection) -> bool:
            home = _home_of(connection, run)
            if not wake(connection, home, run):
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
            cancel_all(connection, self._clock(), home, [run], reason)
            return Status(connection.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()[0])

        return await self._writer.run(transaction)

    async def stop_children(self, run: str, reason: str) -> int:
        """Asks the children of a run, and all below them, to stop; returns how many children are not over yet."""

        def transaction(connection: sqlite3.Connection) -> int:
            home = _home_of(connection, run)
            statement = f"SELECT id, status FROM runs WHERE parent = ? AND status NOT IN {ENDED}"
            running = connection.execute(statement, (run,)).fetchall()
            if asked := [id for id, status in running if status not in ("cancelling", "unwinding")]:
                cancel_all(connection, self._clock(), home, asked, reason)
            return len(connection.execute(statement, (run,)).fetchall())

        return await self._writer.run(transaction)

    async def resume(self, run: str, supersede: Sequence[tuple[str, int]], changed: bool = False) -> bool:
        """Queues a run again that is over. False: it is not over, or its thread is busy."""

        def transaction(connection: sqlite3.Connection) -> bool:
            home = _home_of(connection, run)
            if not connection.execute(
                "UPDATE runs SET status = 'queued', outcome = NULL, reason = NULL, error = NULL, output = NULL, "
                "ended = NULL, attempts = 0, worker = NULL, epoch = epoch + 1, wakes = wakes + 1, changed = ?, "
                "admitted = admitted OR NOT EXISTS (SELECT 1 FROM runs AS other WHERE other.thread = runs.thread "
                f"AND other.admitted = 1 AND other.status NOT IN {ENDED}), "
                "expires = ? + expires_seconds, next_run = NULL, "
                "dollars = NULL, input_tokens = NULL, output_tokens = NULL, steps = NULL "
                f"WHERE home = ? AND id = ? AND status IN {ENDED}",
                (changed, self._clock(), home, run),
            ).rowcount:
                return False
            for statement, values in _superseded(home, run, supersede):
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
        """Repairs what nobody did: dead workers' runs, due timers, delays, parents whose child ended.

        Runs whose time is up are asked to stop.
        """

        def transaction(connection: sqlite3.Connection) -> Swept:
            now = self._clock()
            expired = expire_overdue(connection, now)
            dead = bury_dead_workers(connection, now)
            taken_over, poisoned = take_over(connection, now, max_attempts)
            woken = connection.execute(
                f"UPDATE runs SET status = 'queued', wakes = wakes + 1, due = NULL "
                f"WHERE due <= ? AND status IN {PARKED}",
                (now,),
            ).rowcount
            woken += admit_delayed(connection, now)
            woken += signal_ended_children(connection)
            warned = warn_of_deadlines(connection, now)
            close_gaps(connection, now)
            next_due = connection.execute(
                "SELECT min(at) FROM (SELECT min(due) AS at FROM runs WHERE due IS NOT NULL "
                "UNION ALL SELECT min(expires) FROM runs WHERE expires IS NOT NULL "
                "UNION ALL SELECT min(warn_at) FROM steps WHERE warn_at IS NOT NULL)"
            ).fetchone()[0]
            return Swept(woken, taken_over, poisoned, dead, next_due, warned, expired)

        return await self._writer.run(transaction)

    async def reclaim(self, worker: str, runs: Sequence[tuple[str, int]]) -> int:
        """Queues runs again that this worker was given, at these epochs, and does not know of."""

        def transaction(connection: sqlite3.Connection) -> int:
            return sum(
                connection.execute(
                    "UPDATE runs SET worker = NULL, epoch = epoch + 1, "
                    "status = CASE status WHEN 'in_progress' THEN 'queued' ELSE status END "
                    f"WHERE id = ? AND epoch = ? AND worker = ? AND status IN {HELD}",
                    (run, epoch, worker),
                ).rowcount
                for run, epoch in runs
            )

        return await self._writer.run(transaction)

    async def reserve(self, reservation: Reservation) -> Reserved:
        """Sets aside the most that a step may cost. Not granted: it does not fit, or the run is not held."""
        return await self._writer.run(lambda connection: reserve(connection, reservation))

    async def remember(self, project: str, name: str, value: bytes) -> None:
        values = {"project": project, "name": name, "value": value, "now": self._clock()}
        await self._execute(_REMEMBER, values)

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
            claimable = beater.connection.execute(f"SELECT 1 FROM runs WHERE {CLAIMABLE} LIMIT 1").fetchone()
            held = _held_by(beater.connection, worker)
            beater.data_version = version
            return claimable is not None, held
        except sqlite3.Error as problem:
            raise translated(problem, self.path) from None

    def _beater(self) -> _Beater:
        """What the calling thread beats with: several workers may share this store."""
        beater: _Beater | None = getattr(self._beaters, "own", None)
        if beater is None:
            self._close_beaters(lambda beater: not beater.thread.is_alive())
            beater = self._beaters.own = _Beater(
                self._file.connect(), FairLock(self.path), threading.current_thread()
            )
            self._beater_list.append(beater)
        return beater

    def _close_beaters(self, over: Callable[[_Beater], bool]) -> None:
        for beater in [beater for beater in self._beater_list if over(beater)]:
            self._beater_list.remove(beater)
            beater.connection.close()
            beater.lock.close()


@dataclass(slots=True, eq=False)
class _Beater:
    connection: sqlite3.Connection
    lock: FairLock
    thread: threading.Thread
    data_version: int = -1


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


def _finish_of(row: StepRecord) -> dict[str, Any]:
    names = (
        "key",
        "attempt",
        "outcome",
        "seq",
        "started",
        "ended",
        "due",
        "value",
        "error",
        "child",
        "nonce",
    )
    return {name: getattr(row, name) for name in names}


def _superseded(home: str, run: str, steps: Sequence[tuple[str, int]]) -> list[tuple[str, Any]]:
    return [(_SUPERSEDE, (home, run, key, attempt)) for key, attempt in steps]


def _why_not(connection: sqlite3.Connection, home: str, run: str, epoch: int) -> Held:
    row = connection.execute(
        f"SELECT 1 FROM runs WHERE home = ? AND id = ? AND epoch = ? AND status IN {HELD}",
        (home, run, epoch),
    ).fetchone()
    return Held.WOKEN if row else Held.LOST
