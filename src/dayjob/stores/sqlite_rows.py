"""What reading and writing share: lists of columns, conditions on a run's status, rows as records."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from dayjob.runs import TERMINAL, RunRecord, Status, StepRecord

RUN_FIELDS = ", ".join(name for name in RunRecord.__dataclass_fields__ if name != "input")
STEP_COLUMNS = tuple(StepRecord.__dataclass_fields__)
STEP_FIELDS = ", ".join(STEP_COLUMNS)
HELD = "('in_progress', 'cancelling', 'unwinding')"
PARKED = "('requires_action', 'waiting')"
ENDED = "(" + ", ".join(f"'{status}'" for status in sorted(TERMINAL)) + ")"
CLAIMABLE = "worker IS NULL AND admitted = 1 AND status IN ('queued', 'cancelling', 'unwinding')"

_NEW_RUN_COLUMNS = (
    "home", "id", "project", "job", "status", "admitted", "queue", "priority", "due", "expires", "thread", "root",
    "parent", "parent_key", "submit_key", "tags", "limits", "budget", "source", "created", "details",
)  # fmt: skip
_new_run_values = attrgetter(*_NEW_RUN_COLUMNS)
_INSERT_RUN = (
    f"INSERT INTO runs ({', '.join(_NEW_RUN_COLUMNS)}) VALUES ({', '.join('?' * len(_NEW_RUN_COLUMNS))})"
)
_INSERT_INPUT = "INSERT INTO inputs (home, run, input) VALUES (?, ?, ?)"


def run_of(row: Sequence[Any]) -> RunRecord:
    record = RunRecord(*row)
    record.status = Status(record.status)
    return record


def step_of(row: Sequence[Any]) -> StepRecord:
    return StepRecord(*row)


def input_of(connection: sqlite3.Connection, run: RunRecord) -> bytes | None:
    row = connection.execute(
        "SELECT input FROM inputs WHERE home = ? AND run = ?", (run.home, run.id)
    ).fetchone()
    return row[0] if row else None


def insert_run(run: RunRecord) -> list[tuple[str, Any]]:
    return [(_INSERT_RUN, _new_run_values(run)), (_INSERT_INPUT, (run.home, run.id, run.input))]
