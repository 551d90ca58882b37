"""What Dayjob says of itself while it works: named events, to whoever subscribes.

Nothing here is durable: what must survive is in the journal. Every event and its fields stand in
`EVENTS`; a subscriber is a function `(name, fields)` called on the event loop, and must not block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EVENTS: dict[str, str] = {
    "run.claimed": "run, job, epoch, attempts: a worker took a run",
    "run.parked": "run, status, evicted: it waits for something outside",
    "run.settled": "run, job, status, reason: it is over",
    "run.lost": "run, epoch: another worker has it, or it was given back",
    "run.abandoned": "run, tasks: tasks of the job ignored their cancellation and were left behind",
    "run.limit": "run, limit, allowed, spent, on_limit: a limit was reached; it stops, or asks for a higher one",
    "run.warning": "run, step, message: something in the job is not deterministic, or not durable",
    "run.progress": "run, done, total",
    "run.note": "run, key, name, value: a remark, a verdict, a partial output and the like",
    "step.started": "run, key, name, kind, attempt",
    "step.text": "run, key, attempt, text: a piece of a model's answer",
    "step.opened": "run, key, name, kind, due: a step began to wait",
    "step.finished": "run, key, name, kind, attempt, outcome, seconds, dollars, input_tokens, output_tokens, reused",
    "step.retrying": "run, key, attempt, delay, error",
    "run.attention": "run, steps: what it did there could not be undone, or nobody knows whether it happened",
    "action.due_soon": "run, key, due: the deadline of an action is near, and nobody has answered",
    "worker.started": "worker, jobs, queues",
    "worker.stopped": "worker",
    "worker.dead": "worker: the store declared this worker dead; it registers anew",
    "worker.took_over": "runs: runs of dead workers were put back into the queue",
    "worker.poisoned": "runs: runs that kept killing workers have ended",
    "worker.blocked": "seconds, step, stack: the event loop did not run",
    "store.failing": "error: the store cannot write; it keeps what it has and tries again",
}

Subscriber = Callable[[str, dict[str, Any]], None]
logger = logging.getLogger("dayjob")


@dataclass(slots=True, eq=False)
class Speech:
    """What a model says in a call that is under way, piece by piece."""

    key: str
    name: str
    attempt: int
    epoch: int
    started: float
    pieces: list[str] = field(default_factory=list)


class Events:
    """Subscribers of one app, and the model calls that are under way in this process, by run and key."""

    def __init__(self) -> None:
        self.speeches: dict[str, dict[str, Speech]] = {}
        self._subscribers: list[Subscriber] = []
        self._of_run: dict[str, list[Subscriber]] = {}
        self.active = False

    def subscribe(self, subscriber: Subscriber, run: str | None = None) -> Callable[[], None]:
        """Adds a subscriber, to all events or those of one run; the function returned takes it off again."""
        group = self._subscribers if run is None else self._of_run.setdefault(run, [])
        group.append(subscriber)
        self.active = True

        def unsubscribe() -> None:
            if subscriber in group:
                group.remove(subscriber)
            if run is not None and not group and self._of_run.get(run) is group:
                del self._of_run[run]
            self.active = bool(self._subscribers or self._of_run)

        return unsubscribe

    def emit(self, name: str, /, **fields: Any) -> None:
        of_run = self._of_run.get(fields.get("run", ""), ())
        for subscriber in (*self._subscribers, *of_run):
            try:
                subscriber(name, fields)
            except Exception:  # who only watches must not break what is watched
                logger.exception("a subscriber failed at %s", name)

    def begin(self, run: str, speech: Speech) -> None:
        """A model begins to speak: whoever comes meanwhile finds what it said so far."""
        self.speeches.setdefault(run, {})[speech.key] = speech

    def end(self, run: str, key: str, epoch: int) -> None:
        """Its row is written, or it broke off."""
        of_run = self.speeches.get(run, {})
        if key in of_run and of_run[key].epoch == epoch:
            del of_run[key]
            if not of_run:
                del self.speeches[run]
