"""Conversations: the verbs on threads and their messages, for whoever keeps them from outside a run."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dayjob.errors import ThreadBusy
from dayjob.kept import Found, MessageRecord, Page, ThreadRecord, with_fields
from dayjob.runs import RunRecord
from dayjob.stores.sqlite_pages import page_of
from dayjob.stores.sqlite_reads import SQLiteReads
from dayjob.stores.sqlite_rows import ENDED, RUN_FIELDS, input_of, run_of
from dayjob.stores.writer import Writer

THREAD_FIELDS = "id, project, created, details"
MESSAGE_FIELDS = "id, message, created, n, run, said, details"
# A message that is there already stays as it is: what is sent again changes nothing. A thread that was deleted
# meanwhile takes none.
APPEND = """
INSERT INTO thread_messages (home, thread, n, id, run, message, created, said, details)
SELECT :thread, :thread, (SELECT coalesce(max(n), 0) + 1 FROM thread_messages WHERE home = :thread AND thread = home),
       :id, :run, :message, :created, :said, :details
 WHERE EXISTS (SELECT 1 FROM threads WHERE home = :thread AND id = home)
    ON CONFLICT (home, thread, id) DO NOTHING
"""
CREATE_THREAD = """
INSERT INTO threads (home, id, project, created, details) VALUES (?1, ?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING
"""
# Everything of a run that is over lies in the home of its thread.
_OF_HOME = ("runs", "inputs", "steps", "messages", "budgets", "reservations", "inbox")


class SQLiteThreads(SQLiteReads):
    """See `Store`."""

    _writer: Writer

    async def create_thread(
        self, project: str, thread: str, details: bytes | None = None, messages: Sequence[MessageRecord] = (),
        created: float | None = None,
    ) -> None:  # fmt: skip
        """Makes a thread with its first messages. One that is there already stays as it is."""

        def transaction(connection: sqlite3.Connection) -> None:
            at = self._clock() if created is None else created
            connection.execute(CREATE_THREAD, (thread, project, at, details))
            append(connection, thread, messages)

        await self._writer.run(transaction)

    async def thread(self, thread: str) -> ThreadRecord | None:
        return await self._look(lambda c: _thread(c, thread))

    async def threads(self, project: str, page: Page) -> Found[ThreadRecord]:
        where = "project = :project AND home = id"  # always so; a cursor is found by its primary key
        return await self._read(
            lambda c: page_of(
                c, page, columns=THREAD_FIELDS, table="threads", where=where, order="created, id",
                values={"project": project}, make=lambda row: ThreadRecord(*row),
                gaps="home = id AND kind = 'thread/' || :project",
            )
        )  # fmt: skip

    async def change_thread(self, thread: str, given: bytes) -> ThreadRecord | None:
        """Puts the fields that are given in the place of those of its details. None: there is no such thread."""

        def transaction(connection: sqlite3.Connection) -> ThreadRecord | None:
            found = _thread(connection, thread)
            if found is None:
                return None
            changed = replace(found, details=with_fields(found.details, given))
            statement = "UPDATE threads SET details = ?2 WHERE home = ?1 AND id = ?1"
            connection.execute(statement, (thread, changed.details))
            return changed

        return await self._writer.run(transaction)

    async def delete_thread(self, thread: str, when_busy: str = "leave") -> bool:
        """Deletes a thread, its messages, and all its runs if they are over. False: there is no such thread.

        Raises ThreadBusy if a run of the thread is active and `when_busy` is "refuse".
        """
        of_runs = "DELETE FROM objects WHERE home = ? AND kind >= 'step/' AND kind < 'step0'"

        def transaction(connection: sqlite3.Connection) -> bool:
            if when_busy == "refuse":
                refuse_when_busy(connection, thread)
            which = "home = ?1 AND id = ?1"
            connection.execute(
                "INSERT OR REPLACE INTO gaps (home, kind, id, created, deleted) "
                f"SELECT home, 'thread/' || project, id, created, ?2 FROM threads WHERE {which}",
                (thread, self._clock()),
            )
            gone = connection.execute(f"DELETE FROM threads WHERE {which}", (thread,)).rowcount
            connection.execute("DELETE FROM thread_messages WHERE home = ?", (thread,))
            connection.execute("DELETE FROM gaps WHERE home = ? AND kind = 'message'", (thread,))
            if active_run(connection, thread) is None:
                for table in _OF_HOME:
                    connection.execute(f"DELETE FROM {table} WHERE home = ?", (thread,))
                connection.execute(of_runs, (thread,))
            return bool(gone)

        return await self._writer.run(transaction)

    async def append_message(
        self, thread: str, message: MessageRecord, when_busy: str = "enqueue"
    ) -> MessageRecord | None:
        """Adds a message; one of the same id that is there already is given back as it is.

        None: there is no such thread. Raises ThreadBusy if a run of the thread is active and `when_busy` is "refuse".
        """

        def transaction(connection: sqlite3.Connection) -> MessageRecord | None:
            found = _message(connection, thread, message.id)
            if found is not None:
                return found
            if when_busy == "refuse":
                refuse_when_busy(connection, thread)
            append(connection, thread, [message])
            return _message(connection, thread, message.id)

        return await self._writer.run(transaction)

    async def message(self, thread: str, id: str) -> MessageRecord | None:
        return await self._look(lambda c: _message(c, thread, id))

    async def messages_page(self, thread: str, page: Page, run: str | None = None) -> Found[MessageRecord]:
        """Messages that people read, all or those that one run said."""
        among = "home = :thread AND thread = :thread"
        where = f"{among} AND said = 1" + (" AND run = :run" if run else "")
        return await self._read(
            lambda c: page_of(
                c, page, columns=MESSAGE_FIELDS, table="thread_messages", where=where, order="n",
                values={"thread": thread, "run": run}, make=message_of, among=among,
                gaps="home = :thread AND kind = 'message'",
            )
        )  # fmt: skip

    async def change_message(self, thread: str, id: str, details: bytes) -> None:
        statement = "UPDATE thread_messages SET details = ?3 WHERE home = ?1 AND thread = ?1 AND id = ?2"
        await self._execute(statement, (thread, id, details))

    async def delete_message(self, thread: str, id: str) -> bool:
        """False: there is no such message. Raises ThreadBusy while a run of the thread is active."""

        def transaction(connection: sqlite3.Connection) -> bool:
            refuse_when_busy(connection, thread)
            which, values = "home = ?1 AND thread = ?1 AND id = ?2", (thread, id)
            connection.execute(
                "INSERT OR REPLACE INTO gaps (home, kind, id, n, deleted) "
                f"SELECT home, 'message', id, n - 0.5, ?3 FROM thread_messages WHERE {which}",
                (*values, self._clock()),
            )
            return bool(connection.execute(f"DELETE FROM thread_messages WHERE {which}", values).rowcount)

        return await self._writer.run(transaction)

    async def thread_runs(self, thread: str, page: Page, job: str | None = None) -> Found[RunRecord]:
        """The runs of a thread that were submitted to it, all or those of one job, with their input; no children."""
        among = "thread = :thread AND parent IS NULL"
        where = among + (" AND job = :job" if job else "")

        def query(connection: sqlite3.Connection) -> Found[RunRecord]:
            found = page_of(
                connection, page, columns=RUN_FIELDS, table="runs", where=where, order="created, id",
                values={"thread": thread, "job": job}, make=run_of, among=among,
            )  # fmt: skip
            for run in found.rows:
                run.input = input_of(connection, run)
            return found

        return await self._read(query)

    async def active_runs(self, thread: str) -> list[str]:
        """The runs of a thread that are not over, the one at work first, then those that wait their turn."""
        return await self._read(lambda c: active_runs(c, thread))

    async def change_run(self, run: str, details: bytes) -> None:
        await self._execute("UPDATE runs SET details = ?2 WHERE id = ?1", (run, details))

    async def _execute(self, statement: str, values: Any) -> None:
        def transaction(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._writer.run(transaction)


def append(connection: sqlite3.Connection, thread: str, messages: Sequence[MessageRecord]) -> None:
    for message in messages:
        connection.execute(APPEND, append_values(thread, message))


def append_values(thread: str, message: MessageRecord) -> dict[str, Any]:
    return {
        "thread": thread, "id": message.id, "run": message.run, "message": message.message,
        "created": message.created, "said": int(message.said), "details": message.details,
    }  # fmt: skip


def refuse_when_busy(connection: sqlite3.Connection, thread: str) -> None:
    if (busy := active_run(connection, thread)) is not None:
        raise ThreadBusy(f"thread {thread} has an active run, {busy}. Wait for it, or cancel it.", busy)


def active_run(connection: sqlite3.Connection, thread: str) -> str | None:
    """The run of a thread that is not over, the one at work first."""
    return next(iter(active_runs(connection, thread)), None)


def active_runs(connection: sqlite3.Connection, thread: str) -> list[str]:
    # Each half by an index of its own, which holds no run that is over: a thread may have had thousands.
    half = f"SELECT id, admitted FROM runs WHERE thread = ?1 AND status NOT IN {ENDED} AND admitted ="
    statement = f"SELECT id FROM ({half} 1 UNION ALL {half} 0) ORDER BY admitted DESC, id"
    return [str(id) for (id,) in connection.execute(statement, (thread,))]


def has_thread(connection: sqlite3.Connection, project: str, thread: str) -> bool:
    statement = "SELECT 1 FROM threads WHERE home = ?1 AND id = ?1 AND project = ?2"
    return connection.execute(statement, (thread, project)).fetchone() is not None


def _thread(connection: sqlite3.Connection, thread: str) -> ThreadRecord | None:
    statement = f"SELECT {THREAD_FIELDS} FROM threads WHERE home = ?1 AND id = ?1"
    row = connection.execute(statement, (thread,)).fetchone()
    return None if row is None else ThreadRecord(*row)


def _message(connection: sqlite3.Connection, thread: str, id: str) -> MessageRecord | None:
    row = connection.execute(
        f"SELECT {MESSAGE_FIELDS} FROM thread_messages WHERE home = ?1 AND thread = ?1 AND id = ?2",
        (thread, id),
    ).fetchone()
    return None if row is None else message_of(row)


def message_of(row: Sequence[Any]) -> MessageRecord:
    id, message, created, n, run, said, details = row
    return MessageRecord(id, message, created, n, run, bool(said), details)
