"""What lists and guards cost must not grow with the store: counted in steps of SQLite's machine, not in time."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dayjob.kept import Page
from dayjob.stores.sqlite import SQLiteStore


class Measured(SQLiteStore):
    """Knows what its last read cost."""

    effort = 0

    async def _read(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        def measured(connection: sqlite3.Connection) -> Any:
            steps = itertools.count()
            connection.set_progress_handler(lambda: next(steps) < 0, 1)
            try:
                return query(connection)
            finally:
                connection.set_progress_handler(None, 0)
                self.effort = next(steps)

        return await super()._read(measured)


def fill(path: str, count: int) -> None:
    """So many runs of one thread, all over, each with a finished step; and so many threads, and gaps between them."""
    numbers = [(n,) for n in range(count)]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO runs (home, id, project, job, status, queue, thread, root, created) "
            "VALUES ('t', 'run_' || ?1, 'p', 'j', 'completed', 'default', 't', 'run_' || ?1, ?1)",
            numbers,
        )
        connection.executemany(
            "INSERT INTO steps (home, run, key, attempt, scope, name, kind, outcome, seq, version, epoch, nonce, "
            "started) VALUES ('t', 'run_' || ?1, 'tool', 1, '', 'tool', 'tool', 'value', 1, 'v', 1, 1, ?1)",
            numbers,
        )
        connection.executemany(
            "INSERT INTO threads (home, id, project, created) VALUES ('t_' || ?1, 't_' || ?1, 'p', -?1)",
            numbers,
        )
        connection.executemany(
            "INSERT INTO gaps (home, kind, id, created, deleted) VALUES ('g_' || ?1, 'thread/p', 'g_' || ?1, -?1, ?1)",
            numbers,
        )


ASKED: dict[str, Callable[[Measured], Any]] = {
    "runs": lambda store: store.runs_page("p", Page(10)),
    "runs after": lambda store: store.runs_page("p", Page(10, after="run_50")),
    "runs before": lambda store: store.runs_page("p", Page(10, before="run_50")),
    "runs of a parent": lambda store: store.runs_page("p", Page(10), parent="none"),
    "runs of a thread": lambda store: store.thread_runs("t", Page(10, after="run_50")),
    "threads": lambda store: store.threads("p", Page(10, after="t_50")),
    "threads after one that was deleted": lambda store: store.threads("p", Page(10, after="g_50")),
    "active runs": lambda store: store.active_runs("t"),
    "actions": lambda store: store.open_actions(None, "p"),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_what_is_asked_costs_the_same_however_much_is_stored(tmp_path: Path, asked: str) -> None:
    efforts = []
    for count in (100, 1_000):
        store = Measured(f"sqlite:///{tmp_path / f'{count}.db'}")
        try:
            fill(store.path, count)
            await ASKED[asked](store)
            efforts.append(store.effort)
        finally:
            await store.close()
    assert efforts[1] < 1.5 * efforts[0], efforts
