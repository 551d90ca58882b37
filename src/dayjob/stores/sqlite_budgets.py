"""Budgets: what may be spent is reserved before a call and settled after it, inside the store's transactions.

One guarded UPDATE reserves: it changes nothing where the limit would be passed or the run is not held.
A settlement finds its reservation or changes nothing, so that it may be sent again.
"""

from __future__ import annotations

import math
import sqlite3
from typing import Any

import orjson

from dayjob.runs import Kind, RunRecord
from dayjob.stores import BudgetRecord, Raise, Reservation, Reserved, Settlement
from dayjob.stores.sqlite_rows import ENDED, HELD, PARKED

BILLION = 1_000_000_000
_FIELDS = ", ".join(name for name in BudgetRecord.__dataclass_fields__ if name != "started")
_READ = f"""
SELECT {_FIELDS}, (SELECT started FROM runs WHERE home = budgets.home AND id = budgets.run)
  FROM budgets WHERE home = ? AND run = ?
"""
_INSERT = """
INSERT INTO budgets (home, run, on_limit, max_dollars, max_tokens, max_steps, max_seconds)
VALUES (:home, :run, :on_limit, :dollars, :tokens, :steps, :seconds)
"""
_IS_HELD = f"SELECT 1 FROM runs WHERE home = :home AND id = :run AND epoch = :epoch AND status IN {HELD}"
_RESERVE = """
UPDATE budgets
   SET reserved_dollars = reserved_dollars + :dollars, reserved_tokens = reserved_tokens + :tokens,
       reserved_steps = reserved_steps + :steps
 WHERE home = :home AND run = :budget
   AND (max_dollars IS NULL OR spent_dollars + reserved_dollars + :dollars <= max_dollars)
   AND (max_tokens IS NULL OR spent_tokens + reserved_tokens + :tokens <= max_tokens)
   AND (max_steps IS NULL OR spent_steps + reserved_steps + :steps <= max_steps)
   AND (:spent_dollars IS NULL OR (reserved_dollars = 0 AND reserved_tokens = 0
        AND spent_dollars = :spent_dollars AND spent_tokens = :spent_tokens))
"""
_KEEP_RESERVATION = """
INSERT INTO reservations (home, run, key, attempt, budget, dollars, tokens, steps)
VALUES (:home, :run, :key, :attempt, :budget, :dollars, :tokens, :steps)
"""
_THIS_ONE = "home = :home AND run = :run AND key = :key AND attempt = :attempt"
_SETTLE = f"""
UPDATE budgets
   SET spent_dollars = spent_dollars + coalesce(:dollars, held.dollars),
       spent_tokens = spent_tokens + coalesce(:tokens, held.tokens),
       spent_steps = spent_steps + coalesce(:steps, held.steps),
       reserved_dollars = reserved_dollars - held.dollars, reserved_tokens = reserved_tokens - held.tokens,
       reserved_steps = reserved_steps - held.steps
  FROM (SELECT * FROM reservations WHERE {_THIS_ONE}) AS held
 WHERE budgets.home = held.home AND budgets.run = held.budget
"""
_DROP_RESERVATION = f"DELETE FROM reservations WHERE {_THIS_ONE}"
_SPEND_ALL_OF_RUN = """
UPDATE budgets
   SET spent_dollars = spent_dollars + held.dollars, reserved_dollars = reserved_dollars - held.dollars,
       spent_tokens = spent_tokens + held.tokens, reserved_tokens = reserved_tokens - held.tokens,
       spent_steps = spent_steps + held.steps, reserved_steps = reserved_steps - held.steps
  FROM (SELECT budget, sum(dollars) AS dollars, sum(tokens) AS tokens, sum(steps) AS steps
          FROM reservations WHERE home = ?1 AND run = ?2 GROUP BY budget) AS held
 WHERE budgets.home = ?1 AND budgets.run = held.budget
"""
_RAISE = {
    "dollars": "UPDATE budgets SET max_dollars = max(max_dollars, :value) WHERE home = :home AND run = :budget",
    "tokens": "UPDATE budgets SET max_tokens = max(max_tokens, :value) WHERE home = :home AND run = :budget",
    "steps": "UPDATE budgets SET max_steps = max(max_steps, :value) WHERE home = :home AND run = :budget",
    "seconds": "UPDATE budgets SET max_seconds = max(max_seconds, :value) WHERE home = :home AND run = :budget",
}
_STOP_FROM_NOW_ON = "UPDATE budgets SET on_limit = 'stop' WHERE home = :home AND run = :budget"
_ASKED_TOO = f"""
home = :home AND kind = '{Kind.ASK}' AND name = :question AND outcome IS NULL AND answer IS NULL
"""
_WAKE_WHO_ASKED_TOO = f"""
UPDATE runs SET wakes = wakes + 1, due = CASE WHEN status IN {PARKED} THEN NULL ELSE due END,
       status = CASE WHEN status IN {PARKED} THEN 'queued' ELSE status END
 WHERE home = :home AND budget = :budget AND id <> :run AND status NOT IN {ENDED}
   AND EXISTS (SELECT 1 FROM steps WHERE {_ASKED_TOO} AND run = runs.id)
"""
_ANSWER_WHO_ASKED_TOO = f"""
UPDATE steps SET answer = :answer
 WHERE {_ASKED_TOO} AND run <> :run
   AND run IN (SELECT id FROM runs WHERE home = :home AND budget = :budget AND status NOT IN {ENDED})
"""


def open_budget(connection: sqlite3.Connection, run: RunRecord) -> None:
    """Opens the budget of a run that was submitted with limits."""
    if run.limits is None:
        return
    limits = orjson.loads(run.limits)
    if limits["dollars"] is not None:
        limits["dollars"] = billionths(limits["dollars"])
    connection.execute(_INSERT, {**limits, "home": run.home, "run": run.id})


def read_budget(connection: sqlite3.Connection, home: str, run: str) -> BudgetRecord | None:
    row = connection.execute(_READ, (home, run)).fetchone()
    return BudgetRecord(*row) if row else None


def reserve(connection: sqlite3.Connection, wanted: Reservation) -> Reserved:
    values = wanted._asdict()
    values["spent_dollars"], values["spent_tokens"] = values.pop("rest_of") or (None, None)
    held = connection.execute(_IS_HELD, values).fetchone() is not None
    there = connection.execute(f"SELECT 1 FROM reservations WHERE {_THIS_ONE}", values).fetchone()
    granted = held and (there is not None or connection.execute(_RESERVE, values).rowcount > 0)
    if granted and there is None:  # else it was granted before a lost reply
        connection.execute(_KEEP_RESERVATION, values)
    budget = read_budget(connection, wanted.home, wanted.budget)
    assert budget is not None
    return Reserved(granted, held, budget)


def settlement(home: str, run: str, settled: Settlement) -> list[tuple[str, Any]]:
    values = {"home": home, "run": run, **settled._asdict()}
    return [(_SETTLE, values), (_DROP_RESERVATION, values)]


def spend_what_is_reserved(connection: sqlite3.Connection, home: str, run: str) -> None:
    """Nobody holds this run any more: what it had in flight may have been billed, and counts in full."""
    connection.execute(_SPEND_ALL_OF_RUN, (home, run))
    connection.execute("DELETE FROM reservations WHERE home = ? AND run = ?", (home, run))


def raising(home: str, run: str, raised: Raise) -> list[tuple[str, Any]]:
    values = {"home": home, "run": run, **raised._asdict()}
    if raised.value is not None and raised.limit == "dollars":
        values["value"] = billionths(raised.value)
    change = _STOP_FROM_NOW_ON if raised.value is None else _RAISE[raised.limit]
    return [(change, values), (_WAKE_WHO_ASKED_TOO, values), (_ANSWER_WHO_ASKED_TOO, values)]


def billionths(dollars: float) -> int:
    """What a limit of so many dollars is: never more than was said."""
    return math.floor(dollars * BILLION + 0.001)
