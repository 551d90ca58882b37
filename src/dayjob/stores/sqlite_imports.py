"""What was made elsewhere comes in, with its ids and times: thousands of rows in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from dayjob.kept import (
    Arrival,
    Came,
    MessageRecord,
    ObjectRecord,
    Received,
    ThreadRecord,
    is_imported,
)
from dayjob.runs import RunRecord
from dayjob.stores.sqlite_objects import SQLiteObjects, find_object
from dayjob.stores.sqlite_rows import ENDED, RUN_FIELDS, input_of, run_of
from dayjob.stores.sqlite_threads import (
    CREATE_THREAD,
    MESSAGE_FIELDS,
    THREAD_FIELDS,
    has_thread,
    message_of,
)

_INSERT_OBJECT = "INSERT INTO objects (home, kind, id, created, body) VALUES (?, ?, ?, ?, ?)"
_INSERT_MESSAGE = (
    "INSERT INTO thread_messages (home, thread, n, id, run, message, created, said, details) "
    "VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
)
_INSERT_RUN = f"INSERT INTO runs ({RUN_FIELDS}) VALUES ({', '.join('?' * len(RUN_FIELDS.split(', ')))})"
_INSERT_INPUT = "INSERT INTO inputs (home, run, input) VALUES (?, ?, ?)"
_run_values = attrgetter(*RUN_FIELDS.split(", "))
_ROW_BYTES = 1_000


class SQLiteImports(SQLiteObjects):
    """See `Store`."""

    async def receive(self, project: str, arrivals: Sequence[Arrival]) -> list[Received]:
        """Takes in what was made elsewhere, in this order; says of each what came of it.

        What is there already stays as it is. Messages of a thread are given in the order of their times, and
        stand in it among those that came before them in the same way; not after those that were made here.
        """

        def transaction(connection: sqlite3.Connection) -> list[Received]:
            received: list[Received] = []
            for (thread, run, _), group in groupby(
                arrivals, lambda each: (each.thread, each.run, type(each.record))
            ):
                records = [each.record for each in group]
                received += _receive(connection, project, thread, run, records)
            return received

        return await self._writer.run(transaction, _ROW_BYTES * len(arrivals))


def _receive(
    connection: sqlite3.Connection,
    project: str,
    thread: str | None,
    run: str | None,
    records: Sequence[object],
) -> list[Received]:
    """Those of one type, of one thread and run."""
    if thread is not None and not has_thread(connection, project, thread):
        return [Received(Came.NO_THREAD)] * len(records)
    if run is not None and not _takes_steps(connection, thread, run):
        return [Received(Came.NO_RUN)] * len(records)
    home = project if thread is None else thread
    if isinstance(records[0], MessageRecord):
        return _receive_messages(
            connection, home, [each for each in records if isinstance(each, MessageRecord)]
        )
    received = []
    for each in records:
        match each:
            case ThreadRecord():
                received.append(_receive_thread(connection, each))
            case RunRecord():
                received.append(_receive_run(connection, each))
            case ObjectRecord():
                received.append(_receive_object(connection, home, each))
    return received


def _takes_steps(connection: sqlite3.Connection, thread: str | None, run: str) -> bool:
    """A run that was made here has its journal."""
    row = connection.execute(
        f"SELECT {RUN_FIELDS} FROM runs WHERE home = ?1 AND id = ?2 AND thread = ?1", (thread, run)
    ).fetchone()
    return row is not None and is_imported(run_of(row))


def _receive_object(connection: sqlite3.Connection, home: str, made: ObjectRecord) -> Received:
    found = find_object(connection, home, made.kind, made.id)
    if found is not None:
        return Received(Came.THERE, found)
    connection.execute(_INSERT_OBJECT, (home, made.kind, made.id, made.created, made.body))
    return Received(Came.TAKEN)


def _receive_thread(connection: sqlite3.Connection, made: ThreadRecord) -> Received:
    statement = f"SELECT {THREAD_FIELDS} FROM threads WHERE home = ?1 AND id = ?1"
    row = connection.execute(statement, (made.id,)).fetchone()
    if row is not None:
        found = ThreadRecord(*row)
        return Received(Came.THERE, found) if found.project == made.project else Received(Came.CLASH)
    if connection.execute("SELECT 1 FROM runs WHERE home = ?", (made.id,)).fetchone() is not None:
        return Received(
            Came.CLASH
        )  # a run without thread is its own home: who deletes the one loses the other
    connection.execute(CREATE_THREAD, (made.id, made.project, made.created, made.details))
    return Received(Came.TAKEN)


def _receive_run(connection: sqlite3.Connection, made: RunRecord) -> Received:
    row = connection.execute(f"SELECT {RUN_FIELDS} FROM runs WHERE id = ?", (made.id,)).fetchone()
    if row is not None:
        found = run_of(row)
        found.input = input_of(connection, found)
        return Received(Came.THERE, found) if found.project == made.project else Received(Came.CLASH)
    connection.execute(_INSERT_RUN, _run_values(made))
    connection.execute(_INSERT_INPUT, (made.home, made.id, made.input))
    return Received(Came.TAKEN)


def _receive_messages(
    connection: sqlite3.Connection, thread: str, messages: Sequence[MessageRecord]
) -> list[Received]:
    last, there = _last_of(connection, thread), dict[str, MessageRecord]()
    if last is not None:
        there = _those_there(connection, thread, messages)
    went_on = _went_on(connection, thread, last)
    received, fresh = [], list[MessageRecord]()
    for each in messages:
        found = there.get(each.id)
        if found is not None:
            received.append(Received(Came.THERE, found))
        elif went_on:
            received.append(Received(Came.WENT_ON))
        else:
            there[each.id] = each
            fresh.append(each)
            received.append(Received(Came.TAKEN))
    if not fresh:
        return received
    if last is None or _follows(last, fresh[0], messages):
        first = 1 if last is None else last.n + 1
        _insert(connection, thread, [replace(each, n=n) for n, each in enumerate(fresh, first)])
    else:
        _insert_between(connection, thread, fresh, messages)
    return received


def _last_of(connection: sqlite3.Connection, thread: str) -> MessageRecord | None:
    row = connection.execute(
        f"SELECT {MESSAGE_FIELDS} FROM thread_messages WHERE home = ?1 AND thread = ?1 ORDER BY n DESC LIMIT 1",
        (thread,),
    ).fetchone()
    return None if row is None else message_of(row)


def _those_there(
    connection: sqlite3.Connection, thread: str, messages: Sequence[MessageRecord]
) -> dict[str, MessageRecord]:
    statement = f"SELECT {MESSAGE_FIELDS} FROM thread_messages WHERE home = ?1 AND thread = ?1 AND id = ?2"
    rows = (connection.execute(statement, (thread, each.id)).fetchone() for each in messages)
    return {found.id: found for found in (message_of(row) for row in rows if row is not None)}


def _went_on(connection: sqlite3.Connection, thread: str, last: MessageRecord | None) -> bool:
    """Whether the thread is in use here. What is made here stands last: to look at the last one is enough."""
    if last is not None and not is_imported(last):
        return True
    # Only a worker of here gives a run its version.
    statement = (
        f"SELECT 1 FROM runs WHERE thread = ? AND (version IS NOT NULL OR status NOT IN {ENDED}) LIMIT 1"
    )
    return connection.execute(statement, (thread,)).fetchone() is not None


def _follows(last: MessageRecord, first: MessageRecord, messages: Sequence[MessageRecord]) -> bool:
    """Whether new messages go to the end. One of the same second may have stood before the last in its file."""
    return first.created > last.created or (
        first.created == last.created and all(each.id != last.id for each in messages)
    )


def _insert_between(
    connection: sqlite3.Connection,
    thread: str,
    fresh: Sequence[MessageRecord],
    messages: Sequence[MessageRecord],
) -> None:
    """Numbers a thread anew. Nothing refers to the old numbers: no run of here has read it."""
    statement = "SELECT id, created FROM thread_messages WHERE home = ?1 AND thread = ?1 ORDER BY n"
    order = connection.execute(statement, (thread,)).fetchall()
    order += [(each.id, each.created) for each in fresh]
    place = {each.id: number for number, each in enumerate(messages)}
    order.sort(key=lambda each: (each[1], place.get(each[0], -1)))
    number = {id: n for n, (id, _) in enumerate(order, 1)}
    new = {each.id for each in fresh}
    # By way of negative numbers: no two messages may have the same one in between.
    connection.executemany(
        "UPDATE thread_messages SET n = -?3 WHERE home = ?1 AND thread = ?1 AND id = ?2",
        [(thread, id, n) for id, n in number.items() if id not in new],
    )
    of_thread = "WHERE home = ?1 AND thread = ?1 AND n < 0"
    connection.execute(f"UPDATE thread_messages SET n = -n {of_thread}", (thread,))
    _insert(connection, thread, [replace(each, n=number[each.id]) for each in fresh])


def _insert(connection: sqlite3.Connection, thread: str, messages: Sequence[MessageRecord]) -> None:
    connection.executemany(
        _INSERT_MESSAGE,
        [
            (thread, each.n, each.id, each.run, each.message, each.created, int(each.said), each.details)
            for each in messages
        ],
    )
