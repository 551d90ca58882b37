"""The event stream of the Assistants wire: made from a run's journal, so that it can be gone on with.

Each event has an id. Who comes back with the last one that he saw, to `GET …/runs/{run_id}/stream` of this
server or of another on the same store, misses nothing and is given nothing twice. An id is a position in
the stream of the run (`dayjob.stream`), how many of the events that follow from there were given, and how the
client sees the run at that position: its status, and of a message that is open how much was given:
"12.in_progress~2~in_progress". Those that come before anything has happened are "-1" to "-3".
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import orjson

from dayjob.errors import DayjobError, InputError, UnknownRun
from dayjob.kept import ThreadRecord
from dayjob.keys import message_id
from dayjob.replies import CUT_OFF
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord
from dayjob.server.desk import Desk
from dayjob.server.errors import Refused, not_found, refused_of
from dayjob.server.events import HEARTBEAT, frame
from dayjob.server.wire import (
    ENDED_STEP,
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
from dayjob.stream import Finished, Happening, Quiet, Started, StatusChanged, Text, place_of

Event = tuple[str, dict[str, Any]]
BEGINNING = "0"
WAITED_FOR = (Kind.TOOL, Kind.ASK)
DONE = b"event: done\ndata: [DONE]\n\n"
_BEFORE = re.compile(r"-(\d{1,9})", re.ASCII)
_ID = re.compile(r"([^~]+)~(\d{1,9})(?:~([a-z_]+))?(?:~(\d{1,12})~(\d{1,9})~(\S+))?", re.ASCII)
logger = logging.getLogger("dayjob.server")


@dataclass(slots=True)
class Message:
    """One that is being said, and how many of its characters were given."""

    key: str
    attempt: int
    given: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """How far a client is: a position, `count` of the events that follow from there, and what it knew before them."""

    position: str = BEGINNING
    count: int = 0
    status: str | None = None
    message: Message | None = None
    is_before: bool = False
    """Nothing has happened yet that it knows of."""

    @classmethod
    def of(cls, id: str | None) -> Place:
        """The place after the event of that id. Raises InputError if it is none."""
        if id is None:
            return cls(is_before=True)
        if before := _BEFORE.fullmatch(id):
            return cls(count=int(before[1]), is_before=True)
        match = _ID.fullmatch(id)
        if match is None or (match[3] and match[3] not in set(Status)):
            raise InputError(f"Last-Event-ID: {id[:100]!r} is not the id of an event of this stream")
        place_of(match[1])
        message = Message(unquote(match[6]), int(match[5]), int(match[4])) if match[6] else None
        return cls(match[1], int(match[2]), match[3], message)


def ended_with(problem: Exception, run: str) -> bytes:
    """The end of a stream of which no more can be told."""
    if isinstance(problem, UnknownRun):
        refused = not_found("run", run)
    elif isinstance(problem, DayjobError):
        refused = refused_of(problem)
    else:
        refused = Refused("The server had an error while streaming this run.", 500)
    return frame("error", {"error": refused.detail}) + DONE


_STOPPING = Refused("The server is stopping; this stream can be picked up.", 503)
LAST_WORDS = frame("error", {"error": _STOPPING.detail}) + DONE
"""What a stream ends with when the server stops."""


async def events_of(
    desk: Desk, run: RunRecord, after: str | None = None, thread: ThreadRecord | None = None
) -> AsyncGenerator[bytes, None]:
    """The frames of a run's stream, from the beginning or after an id, until it is over or needs its client.

    `thread` is one that was made with the run. Raises InputError if `after` is the id of no event. Whatever goes
    wrong afterwards is told by an error event, and ends it.
    """
    place = Place.of(after)
    try:
        async with aclosing(_told(desk, run, place, thread)) as frames:
            async for each in frames:
                yield each
    except Exception as problem:
        if isinstance(problem, DayjobError):
            logger.warning("the stream of %s broke off: %s", run.id, problem)
        else:
            logger.exception("the stream of %s broke off", run.id)
        yield ended_with(problem, run.id)
    else:
        yield DONE


async def _told(
    desk: Desk, run: RunRecord, place: Place, thread: ThreadRecord | None
) -> AsyncGenerator[bytes, None]:
    position, known = place.position, place.count
    seq, _ = place_of(position)
    events = RunEvents(run, await desk.app.store.steps(run.id) if seq else [], place)
    if place.is_before:
        first = 1 if thread is not None else 2
        told = list(enumerate(events.prelude(thread), first))
        yield b"".join(frame(*event, f"-{number}") for number, event in told if number > known)
        known = 0
    quiet = desk.settings.heartbeat_seconds
    async with aclosing(desk.app.streams.follow(run.id, position, quiet_seconds=quiet)) as happenings:
        async for happening in happenings:
            if isinstance(happening, Quiet):
                yield HEARTBEAT
                continue
            waiting = await desk.app.store.open_steps(run.id, WAITED_FOR) if _waits(happening) else []
            before, position = (position, events.known), getattr(happening, "position", position)
            news = list(events.of(happening, waiting))
            after = (position, events.known)
            yield b"".join(  # at once: each send costs as much as making an event
                frame(*event, _id(before, number) if number < len(news) else _id(after, 0))
                for number, event in enumerate(news[known:], known + 1)
            )
            known = 0 if news else known
            if events.is_over:
                return


def _id(place: tuple[str, str], count: int) -> str:
    position, known = place
    return f"{position}~{count}{known}"


def _waits(happening: Happening) -> bool:
    return isinstance(happening, StatusChanged) and happening.run.status is Status.REQUIRES_ACTION


class RunEvents:
    """What the happenings of one run are on this wire."""

    def __init__(self, run: RunRecord, steps: Sequence[StepRecord], place: Place) -> None:
        """`place` is how far the client is; `steps` the journal of the run as it is now."""
        self.run = run
        self.status = place.status
        self.message = place.message
        self.is_over = False
        """Whether the stream ends here: the run is over, or waits for its client."""
        self._began: float | None = None
        self._asked: dict[str, StepRecord] = {}
        """The model's rows whose calls are under way, by the scope of each call."""
        self._done: dict[str, StepRecord] = {}
        """What came of those calls so far, by key."""
        seq, _ = place_of(place.position)
        for row in steps:
            if row.seq is not None and row.seq <= seq:
                self._keep(row)
                if row.key in self._asked and self._completed(self._asked[row.key]):
                    self._forget()

    @property
    def known(self) -> str:
        """What the client knows, as it stands in an id."""
        status = "" if self.status is None else f"~{self.status}"
        if self.message is None:
            return status
        return f"{status}~{self.message.given}~{self.message.attempt}~{quote(self.message.key)}"

    def prelude(self, thread: ThreadRecord | None) -> Iterator[Event]:
        """What comes before anything has happened."""
        if thread is not None:
            yield "thread.created", thread_object(thread)
        queued = run_object(replace(self.run, status=Status.QUEUED, started=None, ended=None))
        yield "thread.run.created", queued
        yield "thread.run.queued", queued

    def of(self, happening: Happening, waiting: Sequence[StepRecord] = ()) -> Iterator[Event]:
        """The events of one happening; `waiting` are the steps that wait, if the run does."""
        if self.status in (None, "queued") and isinstance(happening, Text | Finished):
            self.status = "in_progress"  # who comes late is told nothing of what it was in between
            yield (
                "thread.run.in_progress",
                run_object(replace(self.run, status=Status.IN_PROGRESS, ended=None)),
            )
        match happening:
            case Started(started=started):
                self._began = started
            case Text(key=key, attempt=attempt, offset=offset, text=text):
                yield from self._said(key, attempt, offset, text)
            case Finished(step=row):
                self._keep(row)
                if row.kind == Kind.MODEL:
                    yield from self._answered(row)
                elif row.kind == Kind.SCOPE and row.key in self._asked:
                    yield from self._called(self._asked[row.key])
            case StatusChanged(run=run):
                yield from self._moved(run, waiting)

    # --- messages ----------------------------------------------------------------------------------

    def _said(
        self, key: str, attempt: int, offset: int, text: str, started: float | None = None
    ) -> Iterator[Event]:
        """A piece of a message; what is said again after a crash is given from where it is new."""
        yield from self._left_unsaid(key, attempt)
        message = self.message
        if message is None:
            message = self.message = Message(key, attempt, offset)
            began = started or self._began or self.run.started or self.run.created
            yield from self._begun(key, attempt, began)
        if fresh := text[max(message.given - offset, 0) :]:
            said: dict[str, Any] = {"value": fresh}
            if message.given == 0:
                said["annotations"] = []
            message.given = offset + len(text)
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
        yield from self._left_unsaid(row.key, row.attempt)
        text = orjson.loads(row.value)["text"] if row.value else ""
        if text:
            yield from self._said(row.key, row.attempt, 0, text, row.started)
            yield from self._ended(row)
        else:  # it was begun before a crash, and what was said instead is nothing
            yield from self._left_unsaid()
        if row.outcome == Outcome.VALUE and calls_of(row):
            yield from calls_begun(self.run, row)

    def _ended(self, row: StepRecord) -> Iterator[Event]:
        value = orjson.loads(row.value or b"{}")
        is_answer = row.outcome == Outcome.VALUE
        why = CUT_OFF.get(value["finish"], None if is_answer else "run_failed")
        id = message_id(self.run.id, row.key, row.attempt)
        message = said_now(id, str(self.run.thread), self.run, row.started, value["text"], why, over=True)
        self.message = None
        yield f"thread.message.{message['status']}", message
        ends_as = value["finish"] if value["finish"] in set(Status) else Status.FAILED
        run = self.run if is_answer else replace(self.run, status=Status(ends_as))
        step = message_step(run, row)
        yield f"thread.run.step.{step['status']}", step

    def _left_unsaid(self, key: str = "", attempt: int = 0) -> Iterator[Event]:
        """Closes a message that is open and is not that one: nothing of it was kept."""
        message = self.message
        if message is None or (message.key, message.attempt) == (key, attempt):
            return
        self.message = None
        run, status = self.run, ENDED_STEP.get(self.run.status, "failed")
        started = run.started or run.created
        id, why = message_id(run.id, message.key, message.attempt), CUT_OFF.get(run.status, "run_failed")
        said = said_now(id, str(run.thread), run, started, why=why, over=True)
        yield "thread.message.incomplete", {**said, "content": []}
        step = message_step_begun(run, message.key, message.attempt, started)
        step.update({"status": status, f"{status}_at": int(run.ended or started)})
        yield f"thread.run.step.{status}", step

    # --- tools -------------------------------------------------------------------------------------

    def _keep(self, row: StepRecord) -> None:
        """Of the journal no more than is needed to tell how the calls under way end."""
        if row.kind == Kind.MODEL and row.outcome == Outcome.VALUE:
            self._asked.update(dict.fromkeys(scopes_of(row), row))
        elif row.key in self._asked or row.scope in self._asked:
            self._done[row.key] = row

    @property
    def _rows_asked(self) -> list[StepRecord]:
        return list({row.key: row for row in self._asked.values()}.values())

    def _called(self, asked: StepRecord) -> Iterator[Event]:
        """A call is over that was made here: perhaps the last of its step."""
        step = self._completed(asked)
        if step is None:
            return
        is_clients = any(row.kind == Kind.TOOL and row.answered_at is not None for row in self._done.values())
        self._forget()
        yield "thread.run.step.completed", step
        if is_clients:
            self.status = "in_progress"
            queued = replace(self.run, status=Status.QUEUED, ended=None)
            yield "thread.run.queued", run_object(queued)
            yield "thread.run.in_progress", run_object(replace(queued, status=Status.IN_PROGRESS))

    def _completed(self, asked: StepRecord) -> dict[str, Any] | None:
        """The step of a model's row whose calls are all over, each with what its model is told; else None."""
        if any(row is asked and scope not in self._done for scope, row in self._asked.items()):
            return None
        step = calls_step(self.run, asked, self._done)
        return step if step["status"] == "completed" else None

    def _forget(self) -> None:
        self._asked.clear()
        self._done.clear()

    # --- the run -----------------------------------------------------------------------------------

    def _moved(self, run: RunRecord, waiting: Sequence[StepRecord]) -> Iterator[Event]:
        self.run = replace(run, input=self.run.input)
        steps = (*self._rows_asked, *waiting)
        before, status = self.status, status_of(self.run, bool(calls_required(self.run, steps)))
        if status == "queued" or (before == "requires_action" and status == "in_progress"):
            # A run that was taken over is queued again: of no concern to who heard that it is in progress. And
            # what its client handed in is told of when it was taken.
            self.status = "in_progress" if before == "requires_action" else before or status
            return
        self.status = status
        if self.run.status.is_terminal:
            yield from self._left_unsaid()
            yield from self._left_open()
        if status != before:
            self.is_over = self.run.status.is_terminal or status == "requires_action"
            yield f"thread.run.{status}", run_object(self.run, steps)

    def _left_open(self) -> Iterator[Event]:
        """The step that the end of the run has cut off."""
        for row in self._rows_asked:
            step = calls_step(self.run, row, self._done)
            yield f"thread.run.step.{step['status']}", step
