"""The seam to a database: each method is a durable verb, and one transaction.

A store is opened by URL; `sqlite:///dayjob.db` is relative to the working directory, four slashes
are absolute. The verbs are ordered as a run meets them. Whoever holds a run proves it with its
`epoch`: what comes from an older one changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dayjob.errors import InputError
from dayjob.kept import (
    Arrival,
    AuditRecord,
    Found,
    KeyRecord,
    MessageRecord,
    ObjectRecord,
    Page,
    Received,
    ThreadRecord,
)
from dayjob.runs import RunRecord, Status, StepRecord

COUNTED = ("dollars", "tokens", "input_tokens", "output_tokens", "steps")
"""What a budget counts, in whole numbers: dollars are billionths."""
OF_ANSWERS = ("dollars", "tokens", "output_tokens")
"""Those of them that bound how long a model's answer may be."""


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """What a run, with all its children, may spend, and what of it is spent or in flight.

    `most` has what is limited, of what is `COUNTED`; `spent` and `reserved` have all of it. `started` is when
    the run first started, None before that.
    """

    home: str
    run: str
    on_limit: str
    max_seconds: float | None
    started: float | None
    most: Mapping[str, int]
    spent: Mapping[str, int]
    reserved: Mapping[str, int]


class Reservation(NamedTuple):
    """The most that one attempt of a step may cost, by what is `COUNTED`; what is not named is 0.

    With `rest_of`, what was spent when it was computed, it asks for all that is left for an answer: granted
    only while no other is in flight and no more is spent.
    """

    home: str
    run: str
    epoch: int
    budget: str
    key: str
    attempt: int
    amounts: Mapping[str, int]
    rest_of: Mapping[str, int] | None = None


class Reserved(NamedTuple):
    """The answer to a reservation; not `held`: the run is another worker's now."""

    granted: bool
    held: bool
    budget: BudgetRecord


class Settlement(NamedTuple):
    """What a reserved step did cost; of what is not named, all that was reserved.

    Without a reservation it changes nothing.
    """

    key: str
    attempt: int
    spent: Mapping[str, int]


class Raise(NamedTuple):
    """The answer to the question for a higher limit: the new one, or None to stop at the limits from now on.

    Whoever else of the family asks this question gets the same answer.
    """

    budget: str
    question: str
    limit: str
    value: float | None
    answer: bytes


@dataclass(slots=True, eq=False)
class Entry:
    """What one run writes at once: all of it or, when the run was lost, none of it.

    `durable` is resolved when it is on disk; without it nobody waits, order being all that the entry
    needs. `lost` is called, on the event loop, when the run is no longer held at this epoch.
    """

    home: str
    run: str
    epoch: int
    insert: Sequence[StepRecord] = ()
    update: Sequence[StepRecord] = ()
    durable: asyncio.Future[None] | None = None
    lost: Callable[[], None] | None = None
    messages: Sequence[tuple[bytes, bytes]] = ()
    child: RunRecord | None = None
    supersede: Sequence[tuple[str, int]] = ()
    """Steps that no longer count, by (key, attempt)."""

    memory: tuple[str, bytes] | None = None
    append: tuple[str, MessageRecord] | None = None
    """A message of a thread."""

    consumed: str | None = None
    verdict: tuple[bool, float | None, str] | None = None
    progress: tuple[float, float | None] | None = None
    intent: bool = False
    """Something is about to be sent: refused, with IntentRefused, if the run was cancelled."""

    settled: Settlement | None = None
    raised: Raise | None = None
    more: bool = False
    """Set when any field below `update` is used: plain rows, by far the most, are written in bulk."""


class WorkerRecord(NamedTuple):
    """A process that claims runs. A process is named by its host, boot, pid and start time."""

    id: str
    host: str
    boot: str
    pid: int
    start: str
    queues: Sequence[str]
    jobs: Mapping[str, str]
    lease: float
    beat: float = 0.0
    dead: bool = False
    started: float = 0.0


class Wanted(NamedTuple):
    """What a worker can take: up to `limit` runs of these queues and jobs.

    `only` is one run: it and its family are taken, whatever their queue, and no other.
    `versions` are the versions that it may continue, by job, besides runs that never started.
    `alone` allows one suspect run, by itself.
    """

    worker: str
    queues: Sequence[str]
    versions: Mapping[str, Sequence[str]]
    current: Mapping[str, str]
    limit: int
    alone: bool = False
    only: str | None = None


class Answer(NamedTuple):
    """What the outside gives to an open step; `attempt`: only to this one of its attempts."""

    key: str
    attempt: int | None
    value: bytes


class Submitted(NamedTuple):
    """A run as it was queued, or found, and what was claimed at the same moment."""

    run: RunRecord
    claimed: list[tuple[RunRecord, Loaded | None]]


class InboxItem(NamedTuple):
    id: str
    name: str
    value: bytes


@dataclass(slots=True, eq=False)
class Loaded:
    """What the store knows of a held run at one moment: every answer recorded up to `wakes`.

    `steps` is None when only answers were asked for. `attempts` gives the last attempt by key of
    superseded rows, `retried` the errors of those that were retries, in order.
    """

    status: Status
    outcome: str | None
    reason: str | None
    wakes: int
    answered: list[StepRecord]
    inbox: list[InboxItem]
    steps: list[StepRecord] | None = None
    attempts: dict[str, int] = field(default_factory=dict)
    retried: dict[str, list[bytes]] = field(default_factory=dict)
    last_seq: int = 0
    effects: list[StepRecord] = field(default_factory=list)
    """The calls that change something, superseded ones too, in the order of their attempts."""


class Held(StrEnum):
    """What came of a guarded change."""

    DONE = "done"
    WOKEN = "woken"  # something happened meanwhile: refresh, and go on
    LOST = "lost"  # another worker has it


class End(NamedTuple):
    """How a run ends: its terminal status, with one reason."""

    status: Status
    reason: str | None = None
    output: bytes | None = None
    error: bytes | None = None


class Swept(NamedTuple):
    """What a sweep repaired. `next_due` is when the next timer is due, if any."""

    woken: int
    taken_over: Sequence[str]
    poisoned: Sequence[str]
    dead_workers: Sequence[str]
    next_due: float | None
    warned: Sequence[tuple[str, str, float]] = ()
    """Actions whose deadline is near: (run, key, due)."""

    expired: Sequence[str] = ()
    """Runs whose time is up; those that had begun are asked to stop."""


class Since(NamedTuple):
    """What came of a run at one moment: the steps finished since, and the actions that are open.

    `more` steps are finished than these. `mark` is another one when any of it has changed.
    """

    run: RunRecord
    steps: list[StepRecord]
    actions: list[StepRecord]
    more: bool
    mark: Any


class Beat(NamedTuple):
    """The answer to a heartbeat: None held means that the worker was declared dead."""

    at: float
    held: Mapping[str, tuple[int, int]] | None


class Store(Protocol):
    """Where everything is durable. Every async verb raises a StoreError if the database fails."""

    url: str

    def put(self, entry: Entry) -> None: ...
    async def submit(
        self, run: RunRecord, when_busy: str, messages: Sequence[MessageRecord] = ()
    ) -> RunRecord: ...
    async def submit_and_claim(
        self,
        run: RunRecord,
        when_busy: str,
        messages: Sequence[MessageRecord] = (),
        wanted: Wanted | None = None,
        make_thread: bool | ThreadRecord = True,
    ) -> Submitted: ...
    async def register(self, worker: WorkerRecord) -> None: ...
    async def retire(self, worker: str) -> None: ...
    async def adoptable(self, jobs: Mapping[str, str]) -> dict[str, list[str]]: ...
    async def claim(self, wanted: Wanted) -> list[tuple[RunRecord, Loaded | None]]: ...
    async def refresh(self, home: str, run: str, epoch: int, version: str | None) -> Loaded | None: ...
    async def park(
        self, home: str, run: str, epoch: int, wakes: int, status: Status, due: float | None
    ) -> Held: ...
    async def unpark(self, home: str, run: str, epoch: int, worker: str) -> bool: ...
    async def release(self, home: str, run: str, epoch: int, pin: str | None) -> None: ...
    async def unwind(self, home: str, run: str, epoch: int, wakes: int, end: End) -> Held: ...
    async def settle(
        self, home: str, run: str, epoch: int, wakes: int, end: End, following: RunRecord | None
    ) -> Held: ...
    async def answer(
        self,
        run: str,
        key: str,
        value: bytes,
        by: str | None,
        reason: str | None = None,
        attempt: int | None = None,
    ) -> bool: ...
    async def answer_all(
        self, run: str, answers: Sequence[Answer], by: str | None = None, reason: str | None = None
    ) -> bool: ...
    async def send(self, run: str, item: InboxItem) -> bool: ...
    async def cancel(self, run: str, reason: str) -> Status: ...
    async def stop_children(self, run: str, reason: str) -> int: ...
    async def resume(self, run: str, supersede: Sequence[tuple[str, int]], changed: bool) -> bool: ...
    async def forgive(self, run: str) -> None: ...
    async def sweep(self, max_attempts: int) -> Swept: ...
    async def reclaim(self, worker: str, runs: Sequence[tuple[str, int]]) -> int: ...
    async def reserve(self, reservation: Reservation) -> Reserved: ...
    async def remember(self, project: str, name: str, value: bytes) -> None: ...
    async def create_thread(
        self,
        project: str,
        thread: str,
        details: bytes | None = None,
        messages: Sequence[MessageRecord] = (),
        created: float | None = None,
    ) -> None: ...
    async def change_thread(self, thread: str, given: bytes) -> ThreadRecord | None: ...
    async def delete_thread(self, thread: str, when_busy: str = "leave") -> bool: ...
    async def append_message(
        self, thread: str, message: MessageRecord, when_busy: str = "enqueue"
    ) -> MessageRecord | None: ...
    async def change_message(self, thread: str, id: str, details: bytes) -> None: ...
    async def delete_message(self, thread: str, id: str) -> bool: ...
    async def change_run(self, run: str, details: bytes) -> None: ...
    async def create_object(self, project: str, made: ObjectRecord) -> ObjectRecord: ...
    async def change_object(self, project: str, kind: str, id: str, given: bytes) -> ObjectRecord | None: ...
    async def delete_object(self, project: str, kind: str, id: str) -> bool: ...
    async def receive(self, project: str, arrivals: Sequence[Arrival]) -> list[Received]: ...
    async def add_key(self, key: KeyRecord) -> None: ...
    async def revoke_key(self, id: str) -> bool: ...
    async def record(self, project: str, entries: Sequence[AuditRecord]) -> None: ...
    async def close(self) -> None: ...

    def beat(self, worker: str) -> Beat: ...
    def changed(self, worker: str) -> tuple[bool, Mapping[str, tuple[int, int]]] | None: ...

    async def get(self, run: str) -> RunRecord | None: ...
    async def runs(
        self,
        *,
        project: str = "default",
        status: Status | None = None,
        job: str | None = None,
        thread: str | None = None,
        parent: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[RunRecord]: ...
    async def runs_page(
        self,
        project: str,
        page: Page,
        *,
        status: Status | None = None,
        job: str | None = None,
        thread: str | None = None,
        parent: str | None = None,
        tag: str | None = None,
    ) -> Found[RunRecord]: ...
    async def line(self, child: str) -> list[RunRecord]: ...
    async def effects(self, run: str) -> list[StepRecord]: ...
    async def ended(self, runs: Sequence[str]) -> list[str]: ...
    async def statuses(self, runs: Sequence[str]) -> dict[str, Status]: ...
    async def steps(self, run: str, after: int = 0) -> list[StepRecord]: ...
    async def steps_page(self, run: str, after: int, limit: int) -> Found[StepRecord]: ...
    async def since(self, run: str, after: int, limit: int = 100) -> Since | None: ...
    async def marks(self, runs: Sequence[str]) -> Mapping[str, Any]: ...
    async def open_actions(self, run: str | None, project: str | None = None) -> list[StepRecord]: ...
    async def open_steps(self, run: str | None, kinds: Sequence[str]) -> list[StepRecord]: ...
    async def open_step(self, run: str, key: str) -> StepRecord | None: ...
    async def step(self, run: str, key: str, attempt: int | None = None) -> StepRecord | None: ...
    async def messages(self, home: str, hashes: Sequence[bytes]) -> dict[bytes, bytes]: ...
    async def recall(self, project: str, name: str) -> bytes | None: ...
    async def memories(self, project: str, prefix: str = "") -> dict[str, bytes]: ...
    async def thread_messages(
        self, thread: str, up_to: int | None = None, last: int | None = None
    ) -> list[tuple[int, str, bytes]]: ...
    async def thread(self, thread: str) -> ThreadRecord | None: ...
    async def threads(self, project: str, page: Page) -> Found[ThreadRecord]: ...
    async def thread_runs(self, thread: str, page: Page, job: str | None = None) -> Found[RunRecord]: ...
    async def active_runs(self, thread: str) -> list[str]: ...
    async def message(self, thread: str, id: str) -> MessageRecord | None: ...
    async def messages_page(
        self, thread: str, page: Page, run: str | None = None
    ) -> Found[MessageRecord]: ...
    async def object(self, project: str, kind: str, id: str) -> ObjectRecord | None: ...
    async def objects(self, project: str, kind: str, page: Page) -> Found[ObjectRecord]: ...
    async def api_keys(self) -> list[KeyRecord]: ...
    async def audit(self, project: str, limit: int = 100) -> list[AuditRecord]: ...
    async def summary(self, project: str = "default") -> list[dict[str, Any]]: ...
    async def budget(self, home: str, run: str) -> BudgetRecord | None: ...
    async def workers(self) -> list[WorkerRecord]: ...


def store_exists(url: str) -> bool:
    """Whether a store is there already, without making one. Raises InputError for an unknown kind of URL."""
    if not url.startswith("sqlite://"):
        open_store(url)  # says what is wrong with it
    from dayjob.stores.sqlite_file import path_of  # noqa: PLC0415

    return Path(path_of(url)).exists()


def folder_beside(url: str) -> Path:
    """Where files are kept that belong to a store, unless another folder is named."""
    from dayjob.stores.sqlite_file import path_of  # noqa: PLC0415

    return Path(path_of(url)).with_suffix(".files")


def open_store(url: str, **options: Any) -> Store:
    """The store that a URL names. Raises InputError for an unknown kind of URL, StoreError for a bad file."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise InputError(
            f"store: {url!r} is no URL; expected sqlite:///path (relative) or sqlite:////path (absolute)"
        )
    if scheme == "sqlite":
        from dayjob.stores.sqlite import SQLiteStore  # noqa: PLC0415

        return SQLiteStore(url, **options)
    if scheme in ("postgresql", "postgres"):
        raise InputError(f"store: {scheme}:// is not supported yet; use sqlite:///dayjob.db")
    raise InputError(f"store: {scheme}:// is not a kind of store; expected sqlite:///path")
