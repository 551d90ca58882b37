"""The floor: what the disk and SQLite give a group commit from 100 coroutines, with no engine."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from dayjob.stores import sqlite_file
from dayjob.stores.writer import PLAIN_COLUMNS

NARROW = "CREATE TABLE IF NOT EXISTS steps (run TEXT, seq INTEGER, value TEXT, PRIMARY KEY (run, seq))"
JOURNAL = (Path(sqlite_file.__file__).parent / sqlite_file.MIGRATIONS[0]).read_text()
_INSERT_NARROW = "INSERT INTO steps VALUES (?, ?, ?)"
_INSERT_JOURNAL = (
    f"INSERT INTO steps ({', '.join(PLAIN_COLUMNS)}) VALUES ({', '.join('?' * len(PLAIN_COLUMNS))})"
)


def connect(path: Path, schema: str = NARROW) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    if not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
        connection.executescript(schema)
    return connection


async def floor_per_second(
    path: Path, texts: list[str], schema: str = NARROW, rows: int = 5_000, coroutines: int = 100
) -> float:
    """Durable rows a second, into the leanest table (NARROW) or into the journal's own (JOURNAL)."""
    connection = connect(path, schema)
    insert, row_of = (_INSERT_NARROW, _narrow_row) if schema is NARROW else (_INSERT_JOURNAL, _journal_row)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def write() -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            while not waiting.empty():
                batch.append(waiting.get_nowait())
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, [row for row, _ in batch])
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(_resolve, [future for _, future in batch])

    async def one(run: str) -> None:
        for seq in range(rows // coroutines):
            future = loop.create_future()
            waiting.put((row_of(run, seq, texts[seq % len(texts)]), future))
            await future

    thread = threading.Thread(target=write)
    thread.start()
    began = time.perf_counter()
    await asyncio.gather(*(one(f"run_{time.time_ns()}_{n}") for n in range(coroutines)))
    seconds = time.perf_counter() - began
    waiting.put(None)
    thread.join()
    connection.close()
    return rows / seconds


def _narrow_row(run: str, seq: int, text: str) -> tuple[Any, ...]:
    return run, seq, text


def _journal_row(run: str, seq: int, text: str) -> tuple[Any, ...]:
    now = time.time()
    return (
        run, run, f"produce#{seq}", 1, "", "produce", "call", "value", seq, "8f031c9fe2d07f73", 1, seq,
        b"fingerprint 16 b", b"code hash 16 byt", now, now, b"[1]", text.encode(), None,
    )  # fmt: skip


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)
