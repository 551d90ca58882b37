"""Pages of lists that are ordered by what is unique: a cursor is an id, and new rows never shift a page."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dayjob.kept import Found, Page

T = TypeVar("T")


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
) -> Found[T]:
    """One page. `order` names the columns that order the list, parted by commas; none of them is NULL.

    A cursor that is not in the list, as one that was deleted, gives an empty page; it may be one of a longer
    list, `among` all that meet this condition, if what is in this one changes.
    """
    backwards = page.before is not None and page.after is None
    ascending = page.ascending != backwards
    conditions, cursors = [where], dict[str, str]()
    for cursor, beyond in ((page.after, page.ascending), (page.before, not page.ascending)):
        if cursor is not None:
            name = f"cursor_{len(cursors)}"
            cursors[name] = cursor
            place = f"(SELECT {order} FROM {table} WHERE {among or where} AND id = :{name})"
            conditions.append(f"({order}) {'>' if beyond else '<'} {place}")
    direction = "ASC" if ascending else "DESC"
    ordered = ", ".join(f"{column} {direction}" for column in order.split(", "))
    found = connection.execute(
        f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)} ORDER BY {ordered} LIMIT :limit",
        {**values, **cursors, "limit": page.limit + 1},
    ).fetchall()
    rows = [make(row) for row in found[: page.limit]]
    return Found(rows[::-1] if backwards else rows, len(found) > page.limit)
