"""How runs end, wake and are repaired: functions that work inside a transaction of the store's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from dayjob.keys import attention_of
from dayjob.runs import Kind, RunRecord, Status, StepRecord
from dayjob.stores import End
from dayjob.stores.process import is_gone
from dayjob.stores.sqlite_budgets import spend_what_is_reserved
from dayjob.stores.sqlite_rows import ENDED, HELD, PARKED, STEP_FIELDS, insert_run, step_of

_WAKE = f"""
UPDATE runs SET wakes = wakes + 1, due = CASE WHEN status IN {PARKED} THEN NULL ELSE due END,
       status = CASE WHEN status IN {PARKED} THEN 'queued' ELSE status END
 WHERE home = :home AND id = :run AND status NOT IN {ENDED}
"""
_SETTLE = f"""
UPDATE runs SET status = :status, outcome = NULL, reason = :reason, error = coalesce(:error, error),
       ended = :now, worker = NULL, due = NULL, expires = NULL, pinned = 0, changed = 0, next_run = :next_run,
       output = coalesce(:output, CASE WHEN :status <> 'completed' THEN (
           SELECT value FROM steps WHERE home = :home AND run = :run AND kind = 'note' AND name = 'partial'
            ORDER BY seq DESC LIMIT 1) END),
       attention = :attention,
       (dollars, input_tokens, output_tokens, steps) = (
           SELECT CASE WHEN sum(kind = 'model' AND dollars IS NULL AND outcome <> 'cancelled') THEN NULL
                       ELSE coalesce(sum(dollars), 0) END,
                  coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), count(*)
             FROM steps WHERE home = :home AND run = :run)
 WHERE home = :home AND id = :run AND epoch = :epoch AND wakes = :wakes AND status IN {HELD}
RETURNING parent, parent_key, thread, budget
"""


def wake(connection: sqlite3.Connection, home: str, run: str) -> bool:
    """Has a run look at what happened. False: it has ended."""
    return bool(connection.execute(_WAKE, {"home": home, "run": run}).rowcount)


def settle(
    connection: sqlite3.Connection,
    now: float,
    home: str,
    run: str,
    epoch: int,
    wakes: int,
    end: End,
    following: RunRecord | None,
) -> bool:
    settled = connection.execute(
        _SETTLE,
        {
            "home": home, "run": run, "epoch": epoch, "wakes": wakes, "now": now, "status": end.status,
            "reason": end.reason, "output": end.output, "error": end.error,
            "next_run": following.id if following else None,
            "attention": len(attention_of(_in_doubt(connection, home, run))),
        },
    ).fetchone()  # fmt: skip
    if settled is None:
        return False
    parent, parent_key, thread, budget = settled
    if budget is not None:
        spend_what_is_reserved(connection, home, run)
    if following is not None:
        for statement, values in insert_run(following):
            connection.execute(statement, values)
        if parent is not None:
            connection.execute(
                "UPDATE steps SET child = ? WHERE home = ? AND run = ? AND key = ? AND child = ?",
                (following.id, home, parent, parent_key, run),
            )
    elif parent is not None:
        signal_parent(connection, home, run)
    if thread is not None and following is None:
        connection.execute(
            "UPDATE runs SET admitted = 1 WHERE home = ?1 AND id = (SELECT id FROM runs WHERE thread = ?2 "
            "AND admitted = 0 AND status = 'queued' AND due IS NULL ORDER BY id LIMIT 1) "
            "AND NOT EXISTS (SELECT 1 FROM runs WHERE thread = ?2 AND admitted = 1 "
            f"AND status NOT IN {ENDED})",
            (home, thread),
        )
    return True


def _in_doubt(connection: sqlite3.Connection, home: str, run: str) -> list[StepRecord]:
    """The rows of the calls that did not all end with a value."""
    found = connection.execute(
        f"SELECT {STEP_FIELDS} FROM steps WHERE home = ?1 AND run = ?2 AND call_key IS NOT NULL "
        "AND call_key IN (SELECT call_key FROM steps "
        "WHERE run = ?2 AND call_key IS NOT NULL AND outcome IS NOT 'value') "
        "ORDER BY seq IS NULL, seq, started, attempt",
        (home, run),
    )
    return [step_of(row) for row in found]


def cancel_all(
    connection: sqlite3.Connection, now: float, home: str, runs: Sequence[str], reason: str
) -> None:
    """Asks these runs, and all below them, to stop; those that never started are cancelled at once.

    Those that are ending in another way go on with that.
    """
    family = connection.execute(
        "WITH RECURSIVE family (id) AS (SELECT value FROM json_each(?) UNION SELECT runs.id FROM runs "
        "JOIN family ON runs.parent = family.id) "
        f"SELECT id FROM runs WHERE id IN (SELECT id FROM family) AND status NOT IN {ENDED} AND outcome IS NULL",
        (json.dumps(list(runs)),),
    ).fetchall()
    for (id,) in family:
        _ask_to_stop(connection, now, home, id, None, reason)


def expire_overdue(connection: sqlite3.Connection, now: float) -> list[str]:
    """Asks the runs whose time is up to stop, as expired, and all below them; those that never started end at once."""
    overdue = connection.execute(
        "SELECT home, id, expires_seconds FROM runs WHERE expires <= ? ORDER BY expires", (now,)
    ).fetchall()
    for home, id, seconds in overdue:
        reason = f"not over within {seconds:g} seconds"
        _ask_to_stop(connection, now, home, id, Status.EXPIRED, reason)
        children = connection.execute("SELECT id FROM runs WHERE parent = ?", (id,)).fetchall()
        cancel_all(
            connection, now, home, [child for (child,) in children],
            f"the run that started it is {Status.EXPIRED}: {reason}",
        )  # fmt: skip
    return [id for _, id, _ in overdue]


def _ask_to_stop(
    connection: sqlite3.Connection, now: float, home: str, run: str, outcome: Status | None, reason: str
) -> None:
    """The run is to stop and then to end so: cancelled, unless another outcome is named."""
    epoch, wakes, started = connection.execute(
        "UPDATE runs SET status = 'cancelling', outcome = ?, reason = ?, wakes = wakes + 1, due = NULL, "
        "expires = NULL, admitted = CASE WHEN started IS NULL THEN admitted ELSE 1 END WHERE home = ? AND id = ? "
        "RETURNING epoch, wakes, started",
        (outcome, reason, home, run),
    ).fetchone()
    if started is None:
        settle(connection, now, home, run, epoch, wakes, End(outcome or Status.CANCELLED, reason), None)


def signal_parent(connection: sqlite3.Connection, home: str, child: str) -> bool:
    """Answers the step that waits for a child, and wakes the parent."""
    parent, key, status, reason, output, error = connection.execute(
        "SELECT parent, parent_key, status, reason, output, error FROM runs WHERE home = ? AND id = ?",
        (home, child),
    ).fetchone()
    answer = b'{"status":%s,"reason":%s,"output":%s,"error":%s}' % (
        json.dumps(status).encode(),
        json.dumps(reason).encode(),
        output or b"null",
        error or b"null",
    )
    changed = connection.execute(
        "UPDATE steps SET answer = ? WHERE home = ? AND run = ? AND key = ? AND child = ? "
        "AND outcome IS NULL AND answer IS NULL",
        (answer, home, parent, key, child),
    ).rowcount
    if changed:
        wake(connection, home, parent)
    return bool(changed)


def bury_dead_workers(connection: sqlite3.Connection, now: float) -> list[str]:
    dead = [
        id
        for id, host, boot, pid, start, beat, lease in connection.execute(
            "SELECT id, host, boot, pid, start, beat, lease FROM workers WHERE dead = 0"
        ).fetchall()
        if beat + lease < now or is_gone(host, boot, pid, start)
    ]
    connection.executemany("UPDATE workers SET dead = 1 WHERE id = ?", [(id,) for id in dead])
    return dead


def take_over(connection: sqlite3.Connection, now: float, max_attempts: int) -> tuple[list[str], list[str]]:
    """Puts the runs of dead workers back into the queue; those that keep killing workers end.

    One that was ending already ends as it was to, without what was left to do.
    """
    taken_over, poisoned = [], []
    orphans = connection.execute(
        "SELECT home, id, epoch, wakes, status, outcome, reason, "
        "(SELECT coalesce(max(seq), 0) FROM steps WHERE run = runs.id AND seq IS NOT NULL) > claimed_seq, "
        "attempts FROM runs "
        f"WHERE worker IN (SELECT DISTINCT worker FROM runs WHERE worker IS NOT NULL AND worker NOT IN "
        f"(SELECT id FROM workers WHERE dead = 0)) AND status IN {HELD}"
    ).fetchall()
    for home, id, epoch, wakes, status, outcome, reason, progressed, attempts in orphans:
        attempts = 0 if progressed else attempts + 1
        if attempts >= max_attempts:
            end = _poisoned(status, outcome, reason, attempts)
            poisoned.append(id)
            if status == Status.IN_PROGRESS and _left_something_behind(connection, id):
                connection.execute(
                    "UPDATE runs SET status = 'unwinding', outcome = ?, reason = ?, error = ?, worker = NULL, "
                    "expires = NULL, "
                    "epoch = epoch + 1, attempts = 0 WHERE home = ? AND id = ?",
                    (end.status, end.reason, end.error, home, id),
                )
                spend_what_is_reserved(connection, home, id)
                taken_over.append(id)
            else:
                settle(connection, now, home, id, epoch, wakes, end, None)
            continue
        connection.execute(
            "UPDATE runs SET worker = NULL, epoch = epoch + 1, attempts = ?, "
            "status = CASE status WHEN 'in_progress' THEN 'queued' ELSE status END WHERE home = ? AND id = ?",
            (attempts, home, id),
        )
        spend_what_is_reserved(connection, home, id)
        taken_over.append(id)
    return taken_over, poisoned


def _poisoned(status: str, outcome: str | None, reason: str | None, attempts: int) -> End:
    """The end of a run that keeps killing workers."""
    text = f"poison: {attempts} workers died while they held it, without one finished step between"
    if status == Status.IN_PROGRESS:
        error = json.dumps({"type": "Poison", "message": text, "retryable": False}).encode()
        return End(Status.FAILED, text, None, error)
    left = f"what was left to do at its end was skipped ({text})"
    return End(Status(outcome or Status.CANCELLED), f"{reason}; {left}" if reason else left)


def _left_something_behind(connection: sqlite3.Connection, run: str) -> bool:
    """Whether there may be something to undo, or a child to stop, before a run may end."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM steps WHERE run = ?1 AND call_key IS NOT NULL) "
            "OR EXISTS (SELECT 1 FROM runs WHERE parent = ?1)",
            (run,),
        ).fetchone()[0]
    )


def warn_of_deadlines(connection: sqlite3.Connection, now: float) -> list[tuple[str, str, float]]:
    """The open actions whose deadline is near, each once: (run, key, due)."""
    warned = connection.execute(
        "SELECT steps.run, steps.key, steps.due FROM steps JOIN runs ON runs.home = steps.home AND runs.id = steps.run "
        f"WHERE warn_at <= ? AND steps.outcome IS NULL AND steps.answer IS NULL AND runs.status NOT IN {ENDED}",
        (now,),
    ).fetchall()
    connection.execute("UPDATE steps SET warn_at = NULL WHERE warn_at <= ?", (now,))
    return warned


def admit_delayed(connection: sqlite3.Connection, now: float) -> int:
    admitted = 0
    for home, id, thread in connection.execute(
        "SELECT home, id, thread FROM runs WHERE due <= ? AND status = 'queued' AND admitted = 0",
        (now,),
    ).fetchall():
        busy = (
            thread is not None
            and connection.execute(
                f"SELECT 1 FROM runs WHERE thread = ? AND admitted = 1 AND status NOT IN {ENDED}",
                (thread,),
            ).fetchone()
        )
        connection.execute(
            "UPDATE runs SET due = NULL, admitted = ? WHERE home = ? AND id = ?",
            (0 if busy else 1, home, id),
        )
        admitted += not busy
    return admitted


def signal_ended_children(connection: sqlite3.Connection) -> int:
    children = connection.execute(
        "SELECT steps.home, steps.child FROM steps JOIN runs ON runs.home = steps.home AND runs.id = steps.child "
        f"WHERE steps.kind = '{Kind.RUN}' AND steps.outcome IS NULL AND steps.answer IS NULL "
        f"AND runs.status IN {ENDED}"
    ).fetchall()
    return sum(signal_parent(connection, home, child) for home, child in children)
