"""Follows one run through a crash, and prints the rows that `walkthrough.md` shows.

    python docs/walkthrough.py

Ids and times are shortened to what matters; `tests/docs/test_walkthrough.py` compares the rest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dayjob import Dayjob, Run, job

BODIES = Path(os.environ.get("WALKTHROUGH_BODIES", "bodies.txt"))
PATIENCE_SECONDS = 60.0


async def fetch(topic: str) -> str:
    _say("fetch")
    return f"notes on {topic}"


async def think(notes: str) -> str:
    _say("think")
    if _said().count("think") == 1:
        await asyncio.sleep(PATIENCE_SECONDS)  # the first time: long enough to be killed in
    return notes.upper()


@job(name="essay", version="1")
async def essay(run: Run, topic: str) -> str:
    notes = await run.step(fetch, topic)
    return await run.step(think, notes)


def _said() -> list[str]:
    return BODIES.read_text().split()


def _say(body: str) -> None:
    with BODIES.open("a") as file:
        file.write(f"{body}\n")


async def work(store: str) -> None:
    """The worker process: works until it is killed, or told to stop by the end of its input."""
    async with Dayjob(store, jobs=[essay]):
        await asyncio.to_thread(sys.stdin.read)


class Walk:
    """The one who looks on: reads the rows between the stages."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "walk.db"
        self.bodies = folder / "bodies.txt"
        self.stages: dict[str, str] = {}

    async def through(self) -> dict[str, str]:
        """Each stage's rows as text, in order."""
        self.bodies.touch()
        async with Dayjob(f"sqlite:///{self.file}", worker=False) as app:
            await app.submit(essay(topic="leases"), key="walk")
            self.note("submit", "runs", "inputs", "steps")
            worker = self.hire()
            until(lambda: "think" in self.bodies.read_text())
            until(lambda: self.count("steps") == 1)
            self.note("step", "runs", "steps", "workers")
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            self.note("crash", "runs", "steps", "workers")
            await app.store.sweep(max_attempts=3)
            self.note("sweep", "runs", "workers")
            worker = self.hire()
            until(lambda: self.count("runs WHERE status = 'completed'") == 1)
            self.note("settle", "runs", "steps")
            worker.communicate(timeout=PATIENCE_SECONDS)
            self.stages["bodies"] = " ".join(self.bodies.read_text().split())
        return self.stages

    def hire(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "WALKTHROUGH_BODIES": str(self.bodies)}
        command = [sys.executable, __file__, "work", f"sqlite:///{self.file}"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)

    def note(self, stage: str, *tables: str) -> None:
        self.stages[stage] = "\n\n".join(self.rows(table) for table in tables)

    def rows(self, table: str) -> str:
        connection = sqlite3.connect(self.file)
        found = connection.execute(f"{COLUMNS[table]} ORDER BY rowid").fetchall()
        names = [c[0] for c in connection.execute(f"{COLUMNS[table]} LIMIT 0").description]
        connection.close()
        lines = [names, *([_shown(value) for value in row] for row in found)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(names))]
        drawn = ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(f"  {line}".rstrip() for line in [table, *drawn] if line).replace("  ", "", 1)

    def count(self, what: str) -> int:
        connection = sqlite3.connect(self.file)
        number: int = connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0]
        connection.close()
        return number


COLUMNS = {
    "runs": "SELECT status, epoch, wakes, CASE WHEN worker IS NULL THEN NULL ELSE 'wrk_…' END AS worker, "
    "attempts, version, started IS NOT NULL AS started, ended IS NOT NULL AS ended, steps, output FROM runs",
    "inputs": "SELECT input FROM inputs",
    "steps": "SELECT seq, key, attempt, kind, outcome, epoch, input, value FROM steps",
    "workers": "SELECT 'wrk_…' AS id, jobs, lease, dead FROM workers",
}


def _shown(value: object) -> str:
    return "-" if value is None else value.decode() if isinstance(value, bytes) else str(value)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker did not get that far")
        time.sleep(0.02)


def walk() -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="dayjob-walk-") as folder:
        return asyncio.run(Walk(Path(folder)).through())


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        asyncio.run(work(sys.argv[2]))
    else:
        for stage, rows in walk().items():
            sys.stdout.write(f"--- {stage}\n{rows}\n\n")
