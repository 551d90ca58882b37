"""What clients keep beside threads and runs, the keys by which they come in, and what they did."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from dayjob.kept import AuditRecord, Found, KeyRecord, ObjectRecord, Page, with_fields
from dayjob.stores.sqlite_pages import page_of
from dayjob.stores.sqlite_threads import SQLiteThreads

_OBJECT = "kind, id, created, body"
_OF_KIND = "home = :project AND kind = :kind"
_KEY = "id, hash, start, project, role, name, created, revoked"
_AUDIT = "at, who, action, status, request"


class SQLiteObjects(SQLiteThreads):
    """See `Store`."""

    async def create_object(self, project: str, made: ObjectRecord) -> ObjectRecord:
        """Keeps an object. One of the same kind and id that is there already is given back as it is."""

        def transaction(connection: sqlite3.Connection) -> ObjectRecord:
            connection.execute(
                "INSERT INTO objects (home, kind, id, created, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (project, made.kind, made.id, made.created, made.body),
            )
            found = find_object(connection, project, made.kind, made.id)
            assert found is not None
            return found

        return await self._writer.run(transaction)

    async def object(self, project: str, kind: str, id: str) -> ObjectRecord | None:
        return await self._look(lambda c: find_object(c, project, kind, id))

    async def objects(self, project: str, kind: str, page: Page) -> Found[ObjectRecord]:
        return await self._read(
            lambda c: page_of(
                c, page, columns=_OBJECT, table="objects", where=_OF_KIND, gaps=_OF_KIND,
                order="created, id", values={"project": project, "kind": kind},
                make=lambda row: ObjectRecord(*row),
            )
        )  # fmt: skip

    async def change_object(self, project: str, kind: str, id: str, given: bytes) -> ObjectRecord | None:
        """Puts the fields that are given in the place of those of its body. None: there is no such object."""

        def transaction(connection: sqlite3.Connection) -> ObjectRecord | None:
            found = find_object(connection, project, kind, id)
            if found is None:
                return None
            changed = replace(found, body=with_fields(found.body, given))
            statement = "UPDATE objects SET body = ? WHERE home = ? AND kind = ? AND id = ?"
            connection.execute(statement, (changed.body, project, kind, id))
            return changed

        return await self._writer.run(transaction)

    async def delete_object(self, project: str, kind: str, id: str) -> bool:
        """False: there is no such object."""

        def transaction(connection: sqlite3.Connection) -> bool:
            which, values = "home = ? AND kind = ? AND id = ?", (project, kind, id)
            connection.execute(
                "INSERT OR REPLACE INTO gaps (home, kind, id, created, deleted) "
                f"SELECT home, kind, id, created, ? FROM objects WHERE {which}",
                (self._clock(), *values),
            )
            return bool(connection.execute(f"DELETE FROM objects WHERE {which}", values).rowcount)

        return await self._writer.run(transaction)

    async def add_key(self, key: KeyRecord) -> None:
        await self._execute(
            f"INSERT INTO api_keys ({_KEY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key.id, key.hash, key.start, key.project, key.role, key.name, key.created, key.revoked),
        )

    async def api_keys(self) -> list[KeyRecord]:
        """All keys, those that were revoked too, oldest first."""
        statement = f"SELECT {_KEY} FROM api_keys ORDER BY created, id"
        return await self._look(lambda c: [KeyRecord(*row) for row in c.execute(statement)])

    async def revoke_key(self, id: str) -> bool:
        """False: there is no such key, or it was revoked before."""

        def transaction(connection: sqlite3.Connection) -> bool:
            statement = "UPDATE api_keys SET revoked = ? WHERE id = ? AND revoked IS NULL"
            return bool(connection.execute(statement, (self._clock(), id)).rowcount)

        return await self._writer.run(transaction)

    async def record(self, project: str, entries: Sequence[AuditRecord]) -> None:
        """Adds to the audit log."""

        def transaction(connection: sqlite3.Connection) -> None:
            connection.executemany(
                f"INSERT INTO audit (home, n, {_AUDIT}) SELECT ?1, "
                "(SELECT coalesce(max(n), 0) + 1 FROM audit WHERE home = ?1), ?2, ?3, ?4, ?5, ?6",
                [(project, *entry) for entry in entries],
            )

        await self._writer.run(transaction)

    async def audit(self, project: str, limit: int = 100) -> list[AuditRecord]:
        """The log, newest first."""
        statement = f"SELECT {_AUDIT} FROM audit WHERE home = ? ORDER BY n DESC LIMIT ?"
        return await self._read(
            lambda c: [AuditRecord(*row) for row in c.execute(statement, (project, limit))]
        )


def find_object(connection: sqlite3.Connection, project: str, kind: str, id: str) -> ObjectRecord | None:
    row = connection.execute(
        f"SELECT {_OBJECT} FROM objects WHERE home = ? AND kind = ? AND id = ?", (project, kind, id)
    ).fetchone()
    return None if row is None else ObjectRecord(*row)
