"""The event stream of the Assistants wire: made from a run's journal, so that it can be gone on with.

Each event has an id. Who comes back with the last one that he saw, to `GET …/runs/{run_id}/stream` of this
server or of another on the same store, misses nothing and is given nothing twice. An id is a position in
the stream of the run (`dayjob.stream`), and how many of the events that follow from there were given:
"12.in_progress~2"; those that come before anything has happened are "-1" to "-3".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson

from dayjob.errors import InputError
from dayjob.kept import ThreadRecord
from dayjob.keys import message_id
from dayjob.replies import CUT_OFF
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord
from dayjob.server.desk import Desk
from dayjob.server.events import HEARTBEAT, frame
from dayjob.server.wire import (
    calls_begun,
    calls_of,
    calls_required,
    calls_step,
    message_step,
    message_step_begun,
    run_object,
    said_now,
    scopes_of,
    status_of,
    thread_object,
)
from dayjob.stream import Finished, Happening, Quiet, StatusChanged, Text, heard_at, mark_of, place_of

Event = tuple[str, dict[str, Any]]
BEGINNING = "0"
DONE = b"event: done\ndata: [DONE]\n\n"


async def events_of(
    desk: Desk, run: RunRecord, after: str | None = None, thread: ThreadRecord | None = None
) -> AsyncGenerator[bytes, None]:
    """The frames of a run's stream, from the beginning or after an id, until it is over or needs its client.

    `thread` is one that was made with the run. Raises InputError if `after` is the id of no event.
    """
    position, skip = parsed(after)
    seq, status = place_of(position)
    steps = await desk.app.store.steps(run.id) if seq else []
    events = RunEvents(run, steps, seq, status, heard_at(position))
    if position == BEGINNING and (after is None or after.startswith("-")):
        first = 1 if thread is not None else 2
        for number, event in enumerate(events.prelude(thread), first):
            if number > skip:
                yield frame(*event, f"-{number}")
        skip = 0
    quiet = desk.settings.heartbeat_seconds
    async with aclosing(desk.app.streams.follow(run.id, position, quiet_seconds=quiet)) as happenings:
        async for happening in happenings:
            if isinstance(happening, Quiet):
                yield HEARTBEAT
                continue
            steps = await desk.app.store.steps(run.id) if events.needs_steps(happening) else []
            before, position = position, getattr(happening, "position", position)
            follow = list(events.of(happening, steps))
            for number, event in enumerate(follow[skip:], skip + 1):
                yield frame(*event, f"{before}~{number}" if number < len(follow) else f"{position}~0")
            skip = 0 if follow else skip
            if isinstance(happening, StatusChanged) and events.is_over:
                break
    yield DONE


def parsed(id: str | None) -> tuple[str, int]:
    """An id as a position, and how many of the events that follow from there are known."""
    if id is None:
        return BEGINNING, 0
    if id.startswith("-") and id[1:].isdecimal():
        return BEGINNING, int(id[1:])
    position, tilde, number = id.rpartition("~")
    if not tilde or not number.isdecimal():
        raise InputError(f"Last-Event-ID: {id!r} is not the id of an event of this stream")
    place_of(position)
    return position, int(number)


class RunEvents:
    """What the happenings of one run are on this wire."""

    def __init__(
        self,
        run: RunRecord,
        steps: Sequence[StepRecord],
        seq: int,
        status: str | None,
        heard: Mapping[str, int],
    ) -> None:
        """`seq`, `status` and `heard` are how far the client is; `steps` the journal of the run as it is now."""
        self.run = run
        self.steps = {row.key: row for row in steps if row.seq is not None and row.seq <= seq}
        self.status = status or ("in_progress" if seq else None)
        self.given = {mark: length for mark, length in heard.items() if length}
        """How many characters the client has of each message that is being said."""

    def prelude(self, thread: ThreadRecord | None) -> Iterator[Event]:
        """What comes before anything has happened."""
        if thread is not None:
            yield "thread.created", thread_object(thread)
        queued = run_object(replace(self.run, status=Status.QUEUED, started=None, ended=None))
        yield "thread.run.created", queued
        yield "thread.run.queued", queued

    def of(self, happening: Happening, steps: Sequence[StepRecord]) -> Iterator[Event]:
        """The events of one happening; `steps` are needed when the status has changed."""
        if self.status in (None, "queued") and isinstance(happening, Text | Finished):
            self.status = "in_progress"  # who comes late is told nothing of what it was in between
            yield (
                "thread.run.in_progress",
                run_object(replace(self.run, status=Status.IN_PROGRESS, ended=None)),
            )
        match happening:
            case Text(key=key, attempt=attempt, offset=offset, text=text):
                yield from self._said(key, attempt, offset, text)
            case Finished(step=row):
                self.steps[row.key] = row
                if row.kind == Kind.MODEL:
                    yield from self._answered(row)
                elif row.kind == Kind.SCOPE:
                    yield from self._called(row)
            case StatusChanged(run=run):
                yield from self._moved(run, steps)

    def needs_steps(self, happening: Happening) -> bool:
        """Whether the whole journal is needed to tell what this means."""
        if not isinstance(happening, StatusChanged):
            return False
        status = happening.run.status
        return status is Status.REQUIRES_ACTION or status.is_terminal or self.status == "requires_action"

    @property
    def is_over(self) -> bool:
        """Whether the stream ends here: the run is over, or waits for its client."""
        return self.run.status.is_terminal or self.status == "requires_action"

    # --- messages ----------------------------------------------------------------------------------

    def _said(
        self, key: str, attempt: int, offset: int, text: str, started: float | None = None
    ) -> Iterator[Event]:
        """A piece of a message; what is said again after a crash is given from where it is new."""
        mark = mark_of(key, attempt)
        given = self.given.get(mark, offset)
        if offset == 0 and mark not in self.given:
            yield from self._begun(key, attempt, started or self.run.started or self.run.created)
        self.given[mark] = max(given, offset + len(text))
        if fresh := text[max(given - offset, 0) :]:
            said: dict[str, Any] = {"value": fresh}
            if given == 0:
                said["annotations"] = []
            delta = {"content": [{"index": 0, "type": "text", "text": said}]}
            id = message_id(self.run.id, key, attempt)
            yield "thread.message.delta", {"id": id, "object": "thread.message.delta", "delta": delta}

    def _begun(self, key: str, attempt: int, started: float) -> Iterator[Event]:
        step = message_step_begun(self.run, key, attempt, started)
        message = said_now(message_id(self.run.id, key, attempt), str(self.run.thread), self.run, started)
        empty = {**message, "content": []}
        yield "thread.run.step.created", step
        yield "thread.run.step.in_progress", step
        yield "thread.message.created", empty
        yield "thread.message.in_progress", empty

    def _answered(self, row: StepRecord) -> Iterator[Event]:
        """A model's row: the message that it ends, and the calls that it asks for."""
        value: dict[str, Any] = {"text": "", "tool_calls": [], "finish": ""}
        if row.value:
            value = orjson.loads(row.value)
        if value["text"]:
            yield from self._said(row.key, row.attempt, 0, value["text"], row.started)
        if self.given.pop(mark_of(row.key, row.attempt), 0):
            yield from self._ended(row, value)
        if value["tool_calls"] and row.outcome == Outcome.VALUE:
            yield from calls_begun(self.run, row)

    def _ended(self, row: StepRecord, value: dict[str, Any]) -> Iterator[Event]:
        is_answer = row.outcome == Outcome.VALUE
        why = CUT_OFF.get(value["finish"], None if is_answer else "run_failed")
        id = message_id(self.run.id, row.key, row.attempt)
        message = said_now(id, str(self.run.thread), self.run, row.started, value["text"], why, over=True)
        yield f"thread.message.{message['status']}", message
        ends_as = value["finish"] if value["finish"] in set(Status) else Status.FAILED
        run = self.run if is_answer else replace(self.run, status=Status(ends_as))
        step = message_step(run, row)
        yield f"thread.run.step.{step['status']}", step

    # --- tools -------------------------------------------------------------------------------------

    def _called(self, row: StepRecord) -> Iterator[Event]:
        """A call is over that was made here: perhaps the last of its step."""
        asked = next((each for each in self._with_calls() if row.key in scopes_of(each)), None)
        step = None if asked is None else calls_step(self.run, asked, self.steps)
        if asked is None or step is None or step["status"] != "completed":
            return
        yield "thread.run.step.completed", step
        if any(self._is_clients(scope) for scope in scopes_of(asked)):
            queued = replace(self.run, status=Status.QUEUED, ended=None)
            yield "thread.run.queued", run_object(queued)
            yield "thread.run.in_progress", run_object(replace(queued, status=Status.IN_PROGRESS))

    def _with_calls(self) -> list[StepRecord]:
        models = [
            row for row in self.steps.values() if row.kind == Kind.MODEL and row.outcome == Outcome.VALUE
        ]
        return [row for row in models if calls_of(row)]

    def _is_clients(self, scope: str) -> bool:
        rows = (row for row in self.steps.values() if row.scope == scope and row.kind == Kind.TOOL)
        return any(row.answered_at is not None for row in rows)

    # --- the run -----------------------------------------------------------------------------------

    def _moved(self, run: RunRecord, steps: Sequence[StepRecord]) -> Iterator[Event]:
        self.run = replace(run, input=self.run.input)
        status = status_of(self.run, bool(calls_required(self.run, steps)))
        before, self.status = self.status, status
        if self.run.status.is_terminal:
            yield from self._left_open(steps)
        if before == "requires_action" and status in ("queued", "in_progress"):
            self.status = "in_progress"
            return  # told when what its client handed in was taken
        if status not in (before, "queued"):
            yield f"thread.run.{status}", run_object(self.run, steps)

    def _left_open(self, steps: Sequence[StepRecord]) -> Iterator[Event]:
        """The steps that the end of the run has cut off."""
        ends = {row.key: row for row in steps if row.outcome is not None}
        for row in self._with_calls():
            step = calls_step(self.run, row, ends)
            if step["status"] != "completed":
                yield f"thread.run.step.{step['status']}", step
