"""The verbs that only read, on connections of their own, which never block on the writer.

What may be long is read in a thread, a few rows by their keys where they are asked for.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dayjob.errors import StoreLocked, StoreUnavailable
from dayjob.kept import Found, Page
from dayjob.runs import Kind, RunRecord, Status, StepRecord
from dayjob.stores import BudgetRecord, InboxItem, Loaded, Since, WorkerRecord
from dayjob.stores.sqlite_budgets import read_budget
from dayjob.stores.sqlite_file import LOCKED_SECONDS, MIGRATIONS, SQLiteFile
from dayjob.stores.sqlite_pages import page_of
from dayjob.stores.sqlite_rows import (
    ENDED,
    RUN_FIELDS,
    STEP_COLUMNS,
    STEP_FIELDS,
    input_of,
    run_of,
    step_of,
)
from dayjob.stores.writer import translated

T = TypeVar("T")

FEW_STEPS, FEW_MESSAGES = 8, 50
"""So many are read where they are asked for, and more in a thread."""
FEW_BYTES = 1_000_000
"""So long may a few messages be: images lie in them."""
LOOKS_IN_A_ROW = 16
"""After so many reads in one turn of the event loop others get theirs: who only reads would leave them none."""

_QUALIFIED_STEP_FIELDS = ", ".join(f"steps.{name}" for name in STEP_COLUMNS)
# A branch that lost its race leaves open rows below it, which nobody waits for any more. Rows of a later
# claim are others: newer code walks a scope again that was done.
_IS_ACTION = "(steps.kind = 'ask' OR (steps.kind = 'tool' AND steps.call_key IS NULL))"
_NOT_CUT_OFF = """
AND (instr(steps.key, '/') = 0 OR NOT EXISTS (
    SELECT 1 FROM steps AS above WHERE above.home = steps.home AND above.run = steps.run AND above.kind = 'scope'
       AND above.outcome IN ('value', 'error', 'cancelled') AND above.epoch >= steps.epoch
       AND substr(steps.key, 1, length(above.key) + 1) = above.key || '/'))
"""
# A run's row "messages" is the place up to which it heard its thread.
_IN_ORDER = """
WITH ordered AS (
    SELECT n, said.id, said.message, said.said, coalesce(CAST(steps.value AS INTEGER), n) AS heard,
           steps.value IS NOT NULL AS answers
      FROM thread_messages AS said LEFT JOIN steps ON steps.home = said.home AND steps.run = said.run
       AND steps.key = 'messages' AND steps.kind = 'value' AND steps.outcome = 'value'
     WHERE said.home = :thread AND said.thread = :thread AND n <= :up_to)
"""
_PLACE = "heard, answers, n"
_SUMMARY_FIELDS = (
    "job", "runs", "active", "completed", "failed", "cancelled", "expired", "incomplete", "succeeded", "judged",
    "dollars", "input_tokens", "output_tokens", "seconds",
)  # fmt: skip
_SUMMARY = f"""
SELECT job, count(*), sum(status NOT IN {ENDED}), sum(status = 'completed'), sum(status = 'failed'),
       sum(status = 'cancelled'), sum(status = 'expired'), sum(status = 'incomplete'),
       coalesce(sum(success), 0), sum(success IS NOT NULL),
       CASE WHEN sum(ended IS NOT NULL AND dollars IS NULL) THEN NULL ELSE coalesce(sum(dollars), 0) END,
       coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), avg(ended - started)
  FROM runs WHERE project = :project GROUP BY job ORDER BY job
"""


_MARKS = """
SELECT id, status, epoch, (SELECT max(seq) FROM steps WHERE run = runs.id AND seq IS NOT NULL),
       (SELECT count(*) || ' ' || max(started) FROM steps INDEXED BY steps_open
         WHERE run = runs.id AND kind IN ('ask', 'tool') AND outcome IS NULL AND answer IS NULL)
  FROM runs WHERE id IN (SELECT value FROM json_each(?))
"""


class SQLiteReads:
    """The half of `SQLiteStore` that reads."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.time,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        self.url = url
        self._file = SQLiteFile(url)
        self.path = self._file.path
        self._clock = clock
        self._file.migrate(migrations)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="dayjob-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._closed = False
        self._looks = 0

    def _close_readers(self) -> None:
        self._closed = True
        self._readers.shutdown()
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Makes a read in a thread."""
        self._check_open()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._make, query, LOCKED_SECONDS)

    async def _look(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Makes a read of a few rows by their keys right here: by another thread it takes ten times as long."""
        self._check_open()
        self._looks += 1
        if self._looks == 1:
            asyncio.get_running_loop().call_soon(self._forget_looks)
        elif self._looks > LOOKS_IN_A_ROW:
            await asyncio.sleep(0)
        try:
            return self._make(query, 0.0)
        except StoreLocked:  # by a process that recovers the file: not for the event loop to wait for
            return await self._read(query)

    def _forget_looks(self) -> None:
        self._looks = 0

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.path}: the store is closed")

    def _make(self, query: Callable[[sqlite3.Connection], T], locked_seconds: float) -> T:
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._file.connect(locked_seconds)
                connection.execute("PRAGMA query_only = 1")
                self._reader_connections.append(connection)
            return query(connection)
        except sqlite3.DatabaseError as problem:
            raise translated(problem, self.path) from None

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

    async def refresh(self, home: str, run: str, epoch: int, version: str | None = None) -> Loaded | None:
        """What happened to a held run; with a version, its journal too. None: it is held by another.

        Rows inside a scope that this version finished are left out: nothing will ask for them.
        """

        def query(connection: sqlite3.Connection) -> Loaded | None:
            connection.execute("BEGIN")
            try:
                loaded = load(connection, home, run, epoch)
                if loaded is not None and version is not None:
                    _load_journal(connection, loaded, home, run, version)
                return loaded
            finally:
                connection.execute("COMMIT")

        return await (self._look(query) if version is None else self._read(query))

    async def get(self, run: str) -> RunRecord | None:
        """A run, with its input."""

        def query(connection: sqlite3.Connection) -> RunRecord | None:
            row = connection.execute(f"SELECT {RUN_FIELDS} FROM runs WHERE id = ?", (run,)).fetchone()
            if row is None:
                return None
            found = run_of(row)
            found.input = input_of(connection, found)
            return found

        return await self._look(query)

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
            clauses += " AND (created, id) < (SELECT created, id FROM runs WHERE id = :before)"
        # The plus keeps SQLite from walking a whole project for the few runs of a parent.
        project_field = "+project" if parent or thread else "project"
        values = {**filters, "project": project, "before": before, "limit": limit}
        statement = (
            f"SELECT {RUN_FIELDS} FROM runs WHERE {project_field} = :project{clauses} "
            "ORDER BY created DESC, id DESC LIMIT :limit"
        )
        return await self._read(lambda c: [run_of(row) for row in c.execute(statement, values)])

    async def runs_page(
        self,
        project: str,
        page: Page,
        *,
        status: Status | None = None,
        job: str | None = None,
        thread: str | None = None,
        parent: str | None = None,
        tag: str | None = None,
    ) -> Found[RunRecord]:
        """A page of the runs of a project, without their input. A cursor stays good whatever becomes of its run."""
        wanted = {"status": status, "job": job, "thread": thread, "parent": parent}
        filters = {name: value for name, value in wanted.items() if value is not None}
        where = "".join(f" AND {name} = :{name}" for name in filters)
        if tag is not None:
            where += " AND EXISTS (SELECT 1 FROM json_each(CAST(tags AS TEXT)) WHERE value = :tag)"
        project_field = "+project" if parent or thread else "project"  # as in `runs`
        values = {**filters, "project": project, "tag": tag}
        return await self._read(
            lambda c: page_of(
                c, page, columns=RUN_FIELDS, table="runs", where=f"{project_field} = :project{where}",
                among="project = :project", order="created, id", values=values, make=run_of,
            )
        )  # fmt: skip

    async def line(self, child: str) -> list[RunRecord]:
        """A child run, and before it those that it continues, the latest first; without their input."""

        def query(connection: sqlite3.Connection) -> list[RunRecord]:
            same_step = connection.execute(
                f"SELECT {RUN_FIELDS} FROM runs WHERE parent = (SELECT parent FROM runs WHERE id = ?1) "
                "AND parent_key = (SELECT parent_key FROM runs WHERE id = ?1)",
                (child,),
            )
            runs = [run_of(row) for row in same_step]
            by_next = {run.next_run: run for run in runs if run.next_run is not None}
            found = [run for run in runs if run.id == child]
            while found and found[-1].id in by_next:
                found.append(by_next[found[-1].id])
            return found

        return await self._read(query)

    async def ended(self, runs: Sequence[str]) -> list[str]:
        """Those of these runs that are over."""
        return await self._read(
            lambda c: [
                id
                for (id,) in c.execute(
                    f"SELECT id FROM runs WHERE id IN (SELECT value FROM json_each(?)) AND status IN {ENDED}",
                    (json.dumps(list(runs)),),
                )
            ]
        )

    async def statuses(self, runs: Sequence[str]) -> dict[str, Status]:
        """The status of each of these runs that there is."""
        statement = "SELECT id, status FROM runs WHERE id IN (SELECT value FROM json_each(?))"
        return await self._read(
            lambda c: {id: Status(status) for id, status in c.execute(statement, (json.dumps(list(runs)),))}
        )

    async def steps(self, run: str, after: int = 0) -> list[StepRecord]:
        """The journal of a run in the order of completion, open steps last; `after` skips up to that seq."""
        return await self._read(
            lambda c: [
                step_of(row)
                for row in c.execute(
                    f"SELECT {STEP_FIELDS} FROM steps WHERE home = (SELECT home FROM runs WHERE id = :run) "
                    "AND run = :run AND (seq > :after OR (seq IS NULL AND :after = 0)) "
                    "ORDER BY seq IS NULL, seq, started",
                    {"run": run, "after": after},
                )
            ]
        )

    async def steps_page(self, run: str, after: int, limit: int) -> Found[StepRecord]:
        """Steps by seq, beyond `after`; those that are open stand at the end of the last page, all of them."""

        def query(connection: sqlite3.Connection) -> Found[StepRecord]:
            finished = connection.execute(
                f"SELECT {STEP_FIELDS} FROM steps WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?",
                (run, after, limit + 1),
            ).fetchall()
            more = len(finished) > limit
            open = () if more else connection.execute(
                f"SELECT {STEP_FIELDS} FROM steps WHERE run = ? AND outcome IS NULL ORDER BY started", (run,)
            )  # fmt: skip
            return Found([step_of(row) for row in (*finished[:limit], *open)], more)

        return await self._read(query)

    async def since(self, run: str, after: int, limit: int = 100) -> Since | None:
        """Up to `limit` steps finished after that seq, with the run and its open actions; None: no such run."""

        def query(connection: sqlite3.Connection, limit: int) -> Since | None:
            connection.execute("BEGIN")
            try:
                row = connection.execute(f"SELECT {RUN_FIELDS} FROM runs WHERE id = ?", (run,)).fetchone()
                if row is None:
                    return None
                found = connection.execute(
                    f"SELECT {STEP_FIELDS} FROM steps WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?",
                    (run, after, limit + 1),
                )
                steps = [step_of(row) for row in found]
                actions = _open_rows(connection, _IS_ACTION, run)
                return Since(
                    run_of(row), steps[:limit], actions, len(steps) > limit, _marks(connection, [run])[run]
                )
            finally:
                connection.execute("COMMIT")

        few = await self._look(lambda c: query(c, min(limit, FEW_STEPS)))
        if few is None or not few.more or limit <= FEW_STEPS:
            return few
        return await self._read(lambda c: query(c, limit))

    async def marks(self, runs: Sequence[str]) -> Mapping[str, Any]:
        """Of each run the mark of `since`, for one who follows many: it tells which to look at."""
        return await self._read(lambda connection: _marks(connection, runs))

    async def effects(self, run: str) -> list[StepRecord]:
        """What a run did to the world, and what it took back: calls with a key, undos, and children."""
        return await self._read(
            lambda c: [
                step_of(row)
                for row in c.execute(
                    f"SELECT {STEP_FIELDS} FROM steps WHERE home = (SELECT home FROM runs WHERE id = :run) "
                    "AND run = :run AND (call_key IS NOT NULL OR kind = 'run') "
                    "ORDER BY seq IS NULL, seq, started, attempt",
                    {"run": run},
                )
            ]
        )

    async def open_actions(self, run: str | None, project: str | None = None) -> list[StepRecord]:
        """Steps that a person or a client has to answer, of one run or of all that are not over, oldest first."""
        if project is not None:
            # The plus keeps SQLite from reading the journals of a whole project for the few steps that are open.
            return await self._open(f"+runs.project = ? AND {_IS_ACTION}", run, [project])
        return await self._open(_IS_ACTION, run)

    async def _open(self, which: str, run: str | None, values: Sequence[str] = ()) -> list[StepRecord]:
        return await self._read(lambda c: _open_rows(c, which, run, values))

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

    async def open_steps(self, run: str | None, kinds: Sequence[str]) -> list[StepRecord]:
        """Steps of these kinds that wait, of one run or of all that are not over, oldest first."""
        marks = ", ".join("?" * len(kinds))
        return await self._open(f"steps.kind IN ({marks})", run, kinds)

    async def open_step(self, run: str, key: str) -> StepRecord | None:
        """A step of a run that is not over which still waits for its answer."""

        def query(connection: sqlite3.Connection) -> StepRecord | None:
            row = connection.execute(
                f"SELECT {STEP_FIELDS} FROM steps WHERE home = (SELECT home FROM runs WHERE id = :run "
                f"AND status NOT IN {ENDED}) AND run = :run AND key = :key AND outcome IS NULL AND answer IS NULL "
                f"{_NOT_CUT_OFF}",
                {"run": run, "key": key},
            ).fetchone()
            return step_of(row) if row else None

        return await self._look(query)

    async def step(self, run: str, key: str, attempt: int | None = None) -> StepRecord | None:
        """An attempt of a step, or its last."""

        def query(connection: sqlite3.Connection) -> StepRecord | None:
            row = connection.execute(
                f"SELECT {STEP_FIELDS} FROM steps WHERE home = (SELECT home FROM runs WHERE id = ?1) AND run = ?1 "
                "AND key = ?2 AND attempt = coalesce(?3, attempt) ORDER BY attempt DESC LIMIT 1",
                (run, key, attempt),
            ).fetchone()
            return step_of(row) if row else None

        return await self._look(query)

    async def recall(self, project: str, name: str) -> bytes | None:
        def query(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(
                "SELECT value FROM memory WHERE home = ? AND name = ?", (project, name)
            ).fetchone()
            return row[0] if row else None

        return await self._look(query)

    async def memories(self, project: str, prefix: str = "") -> dict[str, bytes]:
        """The values whose names begin so, by name."""
        return await self._read(
            lambda c: dict(
                c.execute(
                    "SELECT name, value FROM memory WHERE home = ?1 AND name >= ?2 "
                    "AND substr(name, 1, length(?2)) = ?2 ORDER BY name",
                    (project, prefix),
                ).fetchall()
            )
        )

    async def thread_messages(
        self, thread: str, up_to: int | None = None, last: int | None = None
    ) -> list[tuple[int, str, bytes]]:
        """(n, id, message) in order, from the `last` on that people read.

        What came while a run was active, which it did not hear, stands behind all that the run said.
        """

        def query(connection: sqlite3.Connection) -> list[tuple[int, str, bytes]]:
            values = {"thread": thread, "up_to": 2**62 if up_to is None else up_to, "skip": (last or 1) - 1}
            first = None
            if last is not None:
                first = connection.execute(
                    f"{_IN_ORDER} SELECT {_PLACE} FROM ordered WHERE said = 1 "
                    "ORDER BY heard DESC, answers DESC, n DESC LIMIT 1 OFFSET :skip",
                    values,
                ).fetchone()
            return connection.execute(
                f"{_IN_ORDER} SELECT n, id, message FROM ordered WHERE ({_PLACE}) >= (:heard, :answers, :n) "
                f"ORDER BY {_PLACE}",
                {**values, **dict(zip(("heard", "answers", "n"), first or (0, 0, 0), strict=True))},
            ).fetchall()

        are_few = (
            "SELECT count(*) <= :few AND coalesce(sum(bytes), 0) <= :bytes FROM (SELECT length(message) AS bytes "
            "FROM thread_messages WHERE home = :thread AND thread = :thread LIMIT :few + 1)"
        )
        values = {"thread": thread, "few": FEW_MESSAGES, "bytes": FEW_BYTES}
        (few,) = await self._look(lambda c: c.execute(are_few, values).fetchone())
        return await (self._look(query) if few else self._read(query))

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

    async def budget(self, home: str, run: str) -> BudgetRecord | None:
        """What may be spent and is spent; None for a run without limits of its own."""
        return await self._look(lambda c: read_budget(c, home, run))

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


def _open_rows(
    connection: sqlite3.Connection, which: str, run: str | None, values: Sequence[str] = ()
) -> list[StepRecord]:
    found = connection.execute(
        f"SELECT {_QUALIFIED_STEP_FIELDS} "
        "FROM steps JOIN runs ON runs.home = steps.home AND runs.id = steps.run "
        f"WHERE {which} AND steps.outcome IS NULL AND steps.answer IS NULL {_NOT_CUT_OFF} "
        f"AND runs.status NOT IN {ENDED} {'AND steps.run = ?' if run else ''} ORDER BY steps.started",
        (*values, *([run] if run else [])),
    )
    return [step_of(row) for row in found]


def _marks(connection: sqlite3.Connection, runs: Sequence[str]) -> dict[str, Any]:
    return {id: tuple(mark) for id, *mark in connection.execute(_MARKS, (json.dumps(list(runs)),))}


def load(connection: sqlite3.Connection, home: str, run: str, epoch: int) -> Loaded | None:
    """A held run's status and every answer up to its `wakes`, as of this transaction."""
    row = connection.execute(
        "SELECT status, outcome, reason, wakes FROM runs WHERE home = ? AND id = ? AND epoch = ?",
        (home, run, epoch),
    ).fetchone()
    if row is None:
        return None
    answered = connection.execute(
        # Without the hint SQLite takes the primary key, and reads the whole journal to find what is open.
        f"SELECT {STEP_FIELDS} FROM steps INDEXED BY steps_open "
        "WHERE home = ? AND run = ? AND outcome IS NULL AND answer IS NOT NULL",
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
        [step_of(found) for found in answered],
        [InboxItem(*found) for found in inbox],
    )


def _load_journal(connection: sqlite3.Connection, loaded: Loaded, home: str, run: str, version: str) -> None:
    loaded.steps = [
        step_of(row)
        for row in connection.execute(
            f"SELECT {STEP_FIELDS} FROM steps AS s WHERE home = :home AND run = :run AND outcome IS NOT 'superseded' "
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
    for key, attempt, error, retried in connection.execute(
        "SELECT key, attempt, error, json_extract(error, '$.retried') FROM steps "
        "WHERE home = ? AND run = ? AND outcome = 'superseded' ORDER BY key, attempt",
        (home, run),
    ):
        loaded.attempts[key] = attempt
        loaded.retried[key] = [*loaded.retried.get(key, ()), error] if retried else []
    loaded.effects = [
        step_of(row)
        for row in connection.execute(
            f"SELECT {STEP_FIELDS} FROM steps WHERE home = ? AND run = ? AND call_key IS NOT NULL "
            "ORDER BY rowid",
            (home, run),
        )
    ]
    loaded.last_seq = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM steps WHERE run = ? AND seq IS NOT NULL", (run,)
    ).fetchone()[0]


def _ancestors(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key
