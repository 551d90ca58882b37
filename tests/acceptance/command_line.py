"""The installed command line, as a person or a script uses it; and a look into the store from outside."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DAYJOB = Path(sys.executable).with_name("dayjob")
JOBS = Path(__file__).parent / "jobs"
PATIENCE_SECONDS = 60.0


class CommandLine:
    """A working directory with a store, and the commands typed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self.database = folder / "dayjob.db"
        unwanted = ("DAYJOB_", "OPENAI_")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        self.environment["LEDGER"] = str(self.ledger)

    def __call__(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Types a command and waits for its end."""
        return subprocess.run(
            [DAYJOB, *arguments], cwd=self.folder, env={**self.environment, **environment}, text=True,
            capture_output=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    @contextmanager
    def started(
        self, *arguments: str | Path, program: Path = DAYJOB, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Types a command and lets it run; it does not outlive the block."""
        process = subprocess.Popen(
            [program, *arguments], cwd=self.folder, env={**self.environment, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.communicate()

    def lines(self) -> list[str]:
        """What the ledger holds: a process id and a key a line."""
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            return connection.execute(statement, values).fetchall()

    def done(self) -> set[str]:
        """The keys of the chores that the journal holds as done, with a value or an error."""
        rows = self.query("SELECT input FROM steps WHERE kind = 'call' AND outcome IN ('value', 'error')")
        return {json.loads(input)[0] for (input,) in rows}

    def last_run(self) -> str:
        return str(self.query("SELECT id FROM runs WHERE parent IS NULL ORDER BY id DESC LIMIT 1")[0][0])


def until(condition: Callable[[], T], what: str, process: subprocess.Popen[str] | None = None) -> T:
    """Waits for a condition, not for a time; fails when it does not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (met := condition()):
        if process is not None and process.poll() is not None and not (met := condition()):
            output, errors = process.communicate()
            raise AssertionError(f"exit code {process.returncode} before {what}:\n{output}{errors}")
        if met:
            return met
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s in vain for {what}"
        time.sleep(0.002)
    return met


def text_of(result: subprocess.CompletedProcess[str]) -> str:
    return f"exit code {result.returncode}\n{result.stdout}{result.stderr}"
