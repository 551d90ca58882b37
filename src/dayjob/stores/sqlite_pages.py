"""Pages of lists that are ordered by what is unique: a cursor is an id, and new rows never shift a page.

What is deleted leaves a gap for a while: who lists a page, deletes what is on it and asks for the next one goes on
from there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dayjob.errors import UnknownCursor
from dayjob.kept import Found, Page

T = TypeVar("T")

GAP_SECONDS = 86_400.0
CLOSED_AT_ONCE = 1_000
"""So many gaps a sweep closes, so that it keeps no other writer waiting."""


def page_of(
    connection: sqlite3.Connection,
    page: Page,
    *,
    columns: str,
    table: str,
    where: str,
    order: str,
    values: Mapping[str, Any],
    make: Callable[[tuple[Any, ...]], T],
    among: str = "",
    gaps: str = "FALSE",
) -> Found[T]:
    """One page. `order` names the columns that order the list, parted by commas; none of them is NULL.

    A cursor may be one of a longer list, `among` all that meet this condition, if what is in this one changes; or
    one that was deleted, if it meets the condition `gaps`. Raises UnknownCursor.
    """
    backwards = page.before is not None and page.after is None
    ascending = page.ascending != backwards
    conditions, places = [where], dict[str, Any]()
    for field, cursor, beyond in (
        ("after", page.after, page.ascending),
        ("before", page.before, not page.ascending),
    ):
        if cursor is not None:
            place = _place(connection, order, ((table, among or where), ("gaps", gaps)), values, cursor)
            if place is None:
                raise UnknownCursor(field, cursor)
            named = {f"{field}_{number}": part for number, part in enumerate(place)}
            conditions.append(
                f"({order}) {'>' if beyond else '<'} ({', '.join(f':{name}' for name in named)})"
            )
            places |= named
    direction = "ASC" if ascending else "DESC"
    ordered = ", ".join(f"{column} {direction}" for column in order.split(", "))
    found = connection.execute(
        f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)} ORDER BY {ordered} LIMIT :limit",
        {**values, **places, "limit": page.limit + 1},
    ).fetchall()
    rows = [make(row) for row in found[: page.limit]]
    return Found(rows[::-1] if backwards else rows, len(found) > page.limit)


def _place(
    connection: sqlite3.Connection,
    order: str,
    lists: Sequence[tuple[str, str]],
    values: Mapping[str, Any],
    cursor: str,
) -> tuple[Any, ...] | None:
    for table, where in lists:
        statement = f"SELECT {order} FROM {table} WHERE {where} AND id = :cursor"
        if place := connection.execute(statement, {**values, "cursor": cursor}).fetchone():
            return tuple(place)
    return None


def close_gaps(connection: sqlite3.Connection, now: float) -> None:
    """Forgets those that no client can still be at."""
    connection.execute(
        "DELETE FROM gaps WHERE rowid IN (SELECT rowid FROM gaps WHERE deleted < ? ORDER BY deleted LIMIT ?)",
        (now - GAP_SECONDS, CLOSED_AT_ONCE),
    )
