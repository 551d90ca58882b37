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
from dayjob.stores import COUNTED, OF_ANSWERS, BudgetRecord, Raise, Reservation, Reserved, Settlement
from dayjob.stores.sqlite_rows import ENDED, HELD, PARKED

BILLION = 1_000_000_000


def _each(said: str, between: str = ", ", counted: tuple[str, ...] = COUNTED) -> str:
    """What is said of #, said of each thing that a budget counts."""
    return between.join(said.replace("#", name) for name in counted)


_READ = f"""
SELECT home, run, on_limit, max_seconds,
       (SELECT started FROM runs WHERE home = budgets.home AND id = budgets.run),
       {_each("max_#")}, {_each("spent_#")}, {_each("reserved_#")}
  FROM budgets WHERE home = ? AND run = ?
"""
_INSERT = f"""
INSERT INTO budgets (home, run, on_limit, max_seconds, {_each("max_#")})
VALUES (:home, :run, :on_limit, :seconds, {_each(":#")})
"""
_IS_HELD = f"SELECT 1 FROM runs WHERE home = :home AND id = :run AND epoch = :epoch AND status IN {HELD}"
_RESERVE = f"""
UPDATE budgets
   SET {_each("reserved_# = reserved_# + :#")}
 WHERE home = :home AND run = :budget
   AND {_each("(max_# IS NULL OR spent_# + reserved_# + :# <= max_#)", " AND ")}
   AND (NOT :takes_rest OR ({_each("reserved_# = 0 AND spent_# = :rest_of_#", " AND ", OF_ANSWERS)}))
"""
_KEEP_RESERVATION = f"""
INSERT INTO reservations (home, run, key, attempt, budget, {_each("#")})
VALUES (:home, :run, :key, :attempt, :budget, {_each(":#")})
"""
_THIS_ONE = "home = :home AND run = :run AND key = :key AND attempt = :attempt"
_SETTLE = f"""
UPDATE budgets
   SET {_each("spent_# = spent_# + coalesce(:#, held.#), reserved_# = reserved_# - held.#")}
  FROM (SELECT * FROM reservations WHERE {_THIS_ONE}) AS held
 WHERE budgets.home = held.home AND budgets.run = held.budget
"""
_DROP_RESERVATION = f"DELETE FROM reservations WHERE {_THIS_ONE}"
_SPEND_ALL_OF_RUN = f"""
UPDATE budgets
   SET {_each("spent_# = spent_# + held.#, reserved_# = reserved_# - held.#")}
  FROM (SELECT budget, {_each("sum(#) AS #")}
          FROM reservations WHERE home = ?1 AND run = ?2 GROUP BY budget) AS held
 WHERE budgets.home = ?1 AND budgets.run = held.budget
"""
_RAISE = {
    name: f"UPDATE budgets SET max_{name} = max(max_{name}, :value) WHERE home = :home AND run = :budget"
    for name in (*COUNTED, "seconds")
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
    if row is None:
        return None
    home, run, on_limit, max_seconds, started, *counts = row
    many = len(COUNTED)
    most, spent, reserved = (
        dict(zip(COUNTED, counts[at : at + many], strict=True)) for at in (0, many, 2 * many)
    )
    limited = {name: count for name, count in most.items() if count is not None}
    return BudgetRecord(home, run, on_limit, max_seconds, started, limited, spent, reserved)


def reserve(connection: sqlite3.Connection, wanted: Reservation) -> Reserved:
    home, run, epoch, budget_run, key, attempt, amounts, rest_of = wanted
    values = {"home": home, "run": run, "epoch": epoch, "budget": budget_run, "key": key, "attempt": attempt}
    values |= {name: amounts.get(name, 0) for name in COUNTED}
    values |= {f"rest_of_{name}": (rest_of or {}).get(name, 0) for name in OF_ANSWERS}
    values["takes_rest"] = rest_of is not None
    held = connection.execute(_IS_HELD, values).fetchone() is not None
    there = connection.execute(f"SELECT 1 FROM reservations WHERE {_THIS_ONE}", values).fetchone()
    granted = held and (there is not None or connection.execute(_RESERVE, values).rowcount > 0)
    if granted and there is None:  # else it was granted before a lost reply
        connection.execute(_KEEP_RESERVATION, values)
    budget = read_budget(connection, home, budget_run)
    assert budget is not None
    return Reserved(granted, held, budget)


def settlement(home: str, run: str, settled: Settlement) -> list[tuple[str, Any]]:
    values = {"home": home, "run": run, "key": settled.key, "attempt": settled.attempt}
    values |= {name: settled.spent.get(name) for name in COUNTED}
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
