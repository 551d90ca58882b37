"""The file of a store: which one a URL names, how it is opened, and its schema brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from dayjob.errors import ForeignStore, InputError, StoreTooNew, StoreUnavailable
from dayjob.stores.writer import translated

APPLICATION_ID = 0x44415942  # "DAYB"
MIGRATIONS = ("sqlite.sql",)
"""Files applied in order; `user_version` counts those that a store has."""

LOCKED_SECONDS = 5.0


class SQLiteFile:
    """The file that a URL names. Raises InputError for a URL that names none."""

    def __init__(self, url: str) -> None:
        self.path, self._synchronous = _parse(url)

    def connect(self, locked_seconds: float = LOCKED_SECONDS) -> sqlite3.Connection:
        """A connection, which waits so long for a lock that another one holds."""
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=locked_seconds,
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

    def migrate(self, migrations: Sequence[str]) -> None:
        """Brings the schema up to date, in one transaction; refuses what it does not know."""
        if Path(self.path).is_dir():
            raise StoreUnavailable(f"{self.path}: is a directory; the store is a file.")
        self._check_foreign(len(migrations))
        connection = self.connect()
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


def path_of(url: str) -> str:
    """The file that a URL names. Raises InputError for a URL that names none."""
    return _parse(url)[0]


def _parse(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if parts.fragment:
        raise InputError(f'store: {url!r}: a "#" in a path is written %23, a "?" %3F, a "%" %25')
    if parts.netloc or not path or path == ":memory:" or "\0" in path:
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
