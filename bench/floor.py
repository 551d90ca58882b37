"""The floor: what the disk and SQLite give a group commit from 100 coroutines, with no engine."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any


def connect(path: Path, rowid: bool = True) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    columns = "(run TEXT, seq INTEGER, value TEXT, PRIMARY KEY (run, seq))"
    connection.execute(f"CREATE TABLE IF NOT EXISTS steps {columns}{'' if rowid else ' WITHOUT ROWID'}")
    return connection


async def floor_per_second(
    path: Path, texts: list[str], rows: int = 5_000, coroutines: int = 100, rowid: bool = True
) -> float:
    """Durable rows a second; the table keeps its rowid, or is one tree ordered by run."""
    connection = connect(path, rowid)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def write() -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            while not waiting.empty():
                batch.append(waiting.get_nowait())
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO steps VALUES (?, ?, ?)", [row for row, _ in batch])
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(_resolve, [future for _, future in batch])

    async def one(run: str) -> None:
        for seq in range(rows // coroutines):
            future = loop.create_future()
            waiting.put(((run, seq, texts[seq % len(texts)]), future))
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


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)
