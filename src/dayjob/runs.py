"""What is stored of a run and its steps, and how a run's status may change. Pure data."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Status(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    REQUIRES_ACTION = "requires_action"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    UNWINDING = "unwinding"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL

    @property
    def is_parked(self) -> bool:
        return self in PARKED


PARKED = frozenset({Status.REQUIRES_ACTION, Status.WAITING})
TERMINAL = frozenset({Status.COMPLETED, Status.INCOMPLETE, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
HELD = frozenset({Status.IN_PROGRESS, Status.CANCELLING, Status.UNWINDING})
"""The statuses in which a worker may write rows of the run."""

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.IN_PROGRESS, Status.CANCELLING, Status.FAILED}),
    Status.IN_PROGRESS: frozenset(
        {
            Status.QUEUED,
            Status.REQUIRES_ACTION,
            Status.WAITING,
            Status.CANCELLING,
            Status.UNWINDING,
            *TERMINAL - {Status.CANCELLED},
        }
    ),
    Status.REQUIRES_ACTION: frozenset({Status.QUEUED, Status.IN_PROGRESS, Status.CANCELLING}),
    Status.WAITING: frozenset({Status.QUEUED, Status.IN_PROGRESS, Status.CANCELLING}),
    Status.CANCELLING: frozenset({Status.UNWINDING, Status.CANCELLED, Status.EXPIRED}),
    Status.UNWINDING: frozenset({Status.CANCELLED, Status.FAILED, Status.EXPIRED, Status.INCOMPLETE}),
    Status.COMPLETED: frozenset({Status.QUEUED}),
    Status.INCOMPLETE: frozenset({Status.QUEUED}),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
    Status.EXPIRED: frozenset({Status.QUEUED}),
}
"""From each status, the ones that may follow. A terminal run leaves its status only by `resume`."""


class Kind(StrEnum):
    """What kind of call a step is."""

    CALL = "call"
    SCOPE = "scope"
    JOIN = "join"
    MODEL = "model"
    TOOL = "tool"
    ASK = "ask"
    EVENT = "event"
    SLEEP = "sleep"
    RUN = "run"
    VALUE = "value"
    NOTE = "note"


class Outcome(StrEnum):
    """How a step ended; a step without one is still open."""

    VALUE = "value"
    ERROR = "error"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


@dataclass(slots=True)
class StepRecord:
    """One row of the journal. Bytes are JSON. Times are seconds since the epoch.

    `key` is the step's path: the scope's key, "/", the name, and "#n" for the n-th equal name in
    that scope. `seq` numbers the finished steps of a run in the order in which they became durable;
    an open step has none. `answer` is what the outside gave, not yet consumed by the run.
    """

    home: str
    run: str
    key: str
    attempt: int
    scope: str
    name: str
    kind: str
    outcome: str | None
    seq: int | None
    version: str
    epoch: int
    nonce: int
    fingerprint: bytes | None
    code: bytes | None
    started: float
    ended: float | None
    due: float | None = None
    warn_at: float | None = None
    call_key: str | None = None
    undo: str | None = None
    child: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    dollars: float | None = None
    base_step: str | None = None
    keep_n: int | None = None
    hashes: bytes | None = None
    answer: bytes | None = None
    answered_at: float | None = None
    answered_by: str | None = None
    answer_reason: str | None = None
    input: bytes | None = None
    value: bytes | None = None
    error: bytes | None = None


@dataclass(slots=True)
class RunRecord:
    """One execution of a job, as stored. Bytes are JSON; times are seconds since the epoch.

    `home` is what its rows are kept together by: its thread, else its root run. `epoch` counts
    claims, `wakes` counts events from outside, `attempts` counts takeovers without progress.
    `attention` counts the effects that a person has to look into: those not undone, or of unknown outcome.
    `expires` is when its time is up, None once it is ending; it had `expires_seconds` from the start.
    `budget` is the run whose budget it draws on: its root, or the run that its root went on from.
    `details` is what a client keeps with it, and no job is told.
    `dollars` is None while the run is not over, and when the price of one of its calls is unknown.
    """

    home: str
    id: str
    project: str
    job: str
    version: str | None
    status: Status
    outcome: str | None
    reason: str | None
    epoch: int
    wakes: int
    worker: str | None
    attempts: int
    claimed_seq: int
    admitted: int
    queue: str
    priority: int
    due: float | None
    expires: float | None
    expires_seconds: float | None
    thread: str | None
    root: str
    parent: str | None
    parent_key: str | None
    submit_key: str | None
    tags: bytes | None
    limits: bytes | None
    budget: str | None
    source: str | None
    pinned: int
    changed: int
    created: float
    started: float | None
    ended: float | None
    progress_done: float | None
    progress_total: float | None
    success: int | None
    score: float | None
    verdict: str | None
    dollars: float | None
    input_tokens: int | None
    output_tokens: int | None
    steps: int | None
    next_run: str | None
    attention: int
    details: bytes | None
    output: bytes | None
    error: bytes | None
    input: bytes | None = field(default=None)


def is_action(row: StepRecord) -> bool:
    """Whether somebody outside has to answer a row: a question, or a tool that the client executes."""
    return row.kind == Kind.ASK or (row.kind == Kind.TOOL and row.call_key is None)


class Action(NamedTuple):
    """Something that a run waits for from outside.

    `kind` is "ask" (a question), "approval" (may this tool be called so?), "tool" (the client executes it,
    and answers with what it gave), "happened" (did a call whose outcome is unknown happen?) or "change" (the
    code is not what it was).
    """

    id: str
    run: str
    kind: str
    question: str
    schema: dict[str, Any] | None
    due: float | None
    opened: float
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    key: str = ""
    attempt: int = 1


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


_last_number = 0
_numbering = threading.Lock()


def new_id(prefix: str) -> str:
    """An id that sorts by its time of making: 10 characters of milliseconds, 13 of chance.

    In one process each id sorts after the one before, however quickly they follow.
    """
    global _last_number  # noqa: PLW0603
    chance = int.from_bytes(os.urandom(9), "big") >> 7
    fresh = time.time_ns() // 1_000_000 << 65 | chance
    with _numbering:
        _last_number = number = (
            fresh if fresh >> 65 > _last_number >> 65 else _last_number + 1 + (chance >> 33)
        )
    return f"{prefix}_{_base32(number, 23)}"


def _base32(number: int, length: int) -> str:
    digits = [""] * length
    for place in range(length - 1, -1, -1):
        digits[place] = _ALPHABET[number & 31]
        number >>= 5
    return "".join(digits)
