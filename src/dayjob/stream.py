"""What happens to a run, in order: its journal, its status, and what its models are saying right now.

    async for happening in app.streams.follow(run, after): …

What is durable is read from the store, when something durable happened to the run in this process, and else
at a slow poll that looks at all followed runs at once. Text is passed on as it is said, without a read; who
comes in the middle of a model's answer is given what it said so far. Each happening has a `position`: who
comes back with the last one that he saw, to whatever process, misses nothing and is given nothing twice.

A follower takes what he is given at his own speed, and nothing is kept for him meanwhile: the journal is in
the store, and a model's words are kept once, by its call, while it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson

from dayjob.actions import action_of
from dayjob.errors import InputError, StoreError, StoreUnavailable, UnknownRun
from dayjob.events import Events, Speech
from dayjob.runs import Action, Kind, RunRecord, Status, StepRecord
from dayjob.stores import Since, Store

POLL_SECONDS = 0.25
MOST_NOTES = 1_000
"""So many passing remarks are kept for a slow follower; the oldest are dropped, and nothing durable is lost."""
MOST_HEARD = 8
"""The answers under way of which a position says how much was given; of any more, all is given again."""
NOTES = frozenset({"step.started", "step.retrying", "run.progress", "run.warning"})
MOVES = frozenset(
    {
        "run.claimed", "run.parked", "run.settled", "run.lost", "run.note", "run.attention", "run.limit",
        "step.opened", "step.finished",
    }
)  # fmt: skip
"""The events that something durable has happened with."""


@dataclass(frozen=True, slots=True)
class Started:
    """A model call has begun; its text follows, from offset 0. `again`: what was given of it before is void."""

    key: str
    name: str
    attempt: int
    started: float
    again: bool
    position: str


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of what a model says; `offset` is how many characters came before it."""

    key: str
    attempt: int
    text: str
    offset: int
    position: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A step is finished, and durable; in the order of `seq`.

    Of a model's step `said` is how many characters of its text this follower was given, before and
    after coming back: all of them, or None if not even its start.
    """

    step: StepRecord
    said: int | None
    position: str


@dataclass(frozen=True, slots=True)
class ActionRequired:
    """The run waits for something from outside."""

    action: Action
    position: str


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """The status is another than the one given before, or may have been meanwhile: it waits for something else.

    `run` is without its input. A terminal one is the end.
    """

    run: RunRecord
    position: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A passing remark of this process: the start of a step that is no model call, progress, a warning, a retry.

    `name` and `fields` are those of the event (see `dayjob.events.EVENTS`).
    """

    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for as long as was asked for."""


Happening = Started | Text | Finished | ActionRequired | StatusChanged | Noted | Quiet

_POSITION = re.compile(
    r"(\d{1,18})(?:\.([a-z_]+)((?:\.a[0-9a-f]{8})*)((?:\.t[0-9a-f]{8}-\d{1,18}-\d{1,18})*))?", re.ASCII
)


def position_at(seq: int, status: str) -> str:
    """The position after the step of that number, with that status."""
    return f"{seq}.{status}"


def place_of(position: str) -> tuple[int, str | None]:
    """The seq and the status of a position. Raises InputError if it is none."""
    follower = _Follower(position)
    return follower.seq, follower.status


@dataclass(slots=True)
class _Heard:
    """How much of one answer a follower was given: characters, and pieces, if those were counted."""

    epoch: int
    offset: int = 0
    pieces: int | None = 0


class _Follower:
    """How far one follower is.

    Written out, a position is the last seq, the status, the open actions that were told, and of each answer
    under way the claim of the run that it was given in (what is said after another claim is said anew) and
    its length: "12.in_progress.a1b2c3d4e.t5f6a7b8c-1-340".
    """

    def __init__(self, after: str | int) -> None:
        match = _POSITION.fullmatch(str(after))
        if match is None or (match[2] and match[2] not in set(Status)):
            raise InputError(f"after: {after!r} is no position of a stream: give the id of one of its events")
        self.seq = int(match[1])
        self.status: str | None = match[2]
        self.told = {mark[1:] for mark in (match[3] or "").split(".")[1:]}
        self.heard: dict[str, _Heard] = {}
        for each in (match[4] or "").split(".")[1:]:
            mark, epoch, offset = each[1:].split("-")
            self.heard[mark] = _Heard(int(epoch), int(offset), None)
        self.over: set[tuple[str, int]] = set()
        self.notes: deque[tuple[int, Noted]] = deque(maxlen=MOST_NOTES)
        self.woken = asyncio.Event()

    async def is_woken(self, within: float | None) -> bool:
        try:
            async with asyncio.timeout(within):
                await self.woken.wait()
        except TimeoutError:
            return False
        self.woken.clear()
        return True

    @property
    def position(self) -> str:
        parts = [str(self.seq)]
        if self.status is not None:
            parts.append(self.status)
            parts += [f"a{mark}" for mark in sorted(self.told)]
            heard = list(self.heard.items())[-MOST_HEARD:]
            parts += [f"t{mark}-{each.epoch}-{each.offset}" for mark, each in heard]
        return ".".join(parts)

    def notes_until(self, moves: int) -> Iterator[Noted]:
        """The remarks that came before anything durable that is not yet given."""
        while self.notes and self.notes[0][0] <= moves:
            yield self.notes.popleft()[1]

    def durable(self, since: Since) -> Iterator[Happening]:
        for row in since.steps:
            yield from self._finished(row)
        if since.more:
            return
        open = {_mark(row.key, row.attempt): row for row in since.actions}
        moved = self.told != open.keys()  # perhaps it went on in between, and waits again
        self.told &= open.keys()
        for mark, row in open.items():
            if mark not in self.told:
                self.told.add(mark)
                yield ActionRequired(action_of(row), self.position)
        if since.run.status != self.status or (moved and self.status == Status.REQUIRES_ACTION):
            self.status = since.run.status
            yield StatusChanged(since.run, self.position)

    def _finished(self, row: StepRecord) -> Iterator[Happening]:
        mark, said = _mark(row.key, row.attempt), None
        heard = self.heard.get(mark) if row.kind == Kind.MODEL else None
        if heard is not None and heard.epoch == row.epoch:
            rest, offset = _text_of(row)[heard.offset :], heard.offset
            said = heard.offset = offset + len(rest)
            if rest:
                yield Text(row.key, row.attempt, rest, offset, self.position)
        if row.kind == Kind.MODEL:
            self.heard.pop(mark, None)
            self.over.add((mark, row.epoch))
        self.seq = row.seq or self.seq
        yield Finished(row, said, self.position)

    def live(self, speeches: Mapping[str, Speech]) -> Started | Text | None:
        """The next of what is said in this process and was not given; None: nothing."""
        if self.over:
            self.over &= {(_mark(each.key, each.attempt), each.epoch) for each in speeches.values()}
        for speech in speeches.values():
            mark = _mark(speech.key, speech.attempt)
            if (mark, speech.epoch) in self.over:
                continue  # its row was given already, and its call is about to notice
            heard = self.heard.get(mark)
            if heard is None or heard.epoch != speech.epoch:
                self.heard[mark] = _Heard(speech.epoch)
                return Started(
                    speech.key, speech.name, speech.attempt, speech.started, heard is not None, self.position
                )
            if heard.pieces != len(speech.pieces) and (text := _next_of(speech, heard)):
                offset, heard.offset = heard.offset, heard.offset + len(text)
                return Text(speech.key, speech.attempt, text, offset, self.position)
        return None


def _next_of(speech: Speech, heard: _Heard) -> str:
    known, heard.pieces = heard.pieces, len(speech.pieces)
    if known is not None:
        return "".join(speech.pieces[known:])
    said = "".join(speech.pieces)
    heard.offset = min(heard.offset, len(said))
    return said[heard.offset :]


@lru_cache(10_000)
def _mark(key: str, attempt: int) -> str:
    return blake2b(f"{attempt}:{key}".encode(), digest_size=4).hexdigest()


def _text_of(row: StepRecord) -> str:
    text = orjson.loads(row.value).get("text") if row.value else None
    return text or ""


@dataclass(slots=True, eq=False)
class _Followed:
    """A run that somebody follows. `moves` counts what happened here, `mark` is what the store was last seen to say."""

    run: str
    moves: int = 0
    mark: Any = None
    followers: set[_Follower] = field(default_factory=set)
    looks: dict[Any, asyncio.Task[Since | None]] = field(default_factory=dict)

    def hear(self, name: str, fields: dict[str, Any]) -> None:
        if name in NOTES:
            if fields.get("kind") != Kind.MODEL:
                for follower in self.followers:
                    follower.notes.append((self.moves, Noted(name, fields)))
        elif name in MOVES:
            if fields.get("reused"):
                return  # a replay: the row was there before
            self.moves += 1
        elif name != "step.text":
            return
        self.wake()

    def wake(self) -> None:
        for follower in self.followers:
            follower.woken.set()

    def seen(self, mark: Any) -> None:
        if self.mark != mark:
            self.mark = mark
            self.wake()


class Streams:
    """All that is followed in this process."""

    def __init__(self, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self._followed: dict[str, tuple[_Followed, Any]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many follow."""
        return sum(len(followed.followers) for followed, _ in self._followed.values())

    def follow(
        self, run: str, after: str | int = 0, quiet_seconds: float | None = None
    ) -> AsyncGenerator[Happening, None]:
        """What happens to a run, from the beginning or after a position, until it is over.

        `after` is a position, or a seq. With `quiet_seconds` there is a `Quiet` each time that nothing happened
        for so long. Close it (`contextlib.aclosing`) to leave. Raises InputError at once for what is no position;
        when it is read UnknownRun, and StoreError if the store cannot be read or the app is closed.
        """
        return self._follow(run, _Follower(after), quiet_seconds)

    async def _follow(
        self, run: str, follower: _Follower, quiet_seconds: float | None
    ) -> AsyncGenerator[Happening, None]:
        followed = self._enter(run, follower)
        moves, mark, more = -1, None, False
        try:
            while True:
                for note in follower.notes_until(moves):
                    yield note
                if more or followed.moves != moves or followed.mark != mark:
                    moves = followed.moves
                    since = await self._look(followed, follower.seq)
                    mark, more = since.mark, since.more
                    for happening in follower.durable(since):
                        yield happening
                    if since.run.status.is_terminal and not more:
                        return
                elif live := follower.live(self._events.speeches.get(run, {})):
                    yield live
                elif not await follower.is_woken(quiet_seconds):
                    yield Quiet()
        finally:
            self._leave(followed, follower)

    async def close(self) -> None:
        """Ends all that is followed, with StoreUnavailable."""
        self._closed = True
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for followed, _ in self._followed.values():
            followed.moves += 1
            followed.wake()

    def _enter(self, run: str, follower: _Follower) -> _Followed:
        if run not in self._followed:
            followed = _Followed(run)
            self._followed[run] = followed, self._events.subscribe(followed.hear, run)
        followed = self._followed[run][0]
        followed.followers.add(follower)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        return followed

    def _leave(self, followed: _Followed, follower: _Follower) -> None:
        followed.followers.discard(follower)
        if not followed.followers:
            _, unsubscribe = self._followed.pop(followed.run)
            unsubscribe()

    async def _look(self, followed: _Followed, after: int) -> Since:
        """What the store says now: one read for all who are as far."""
        if self._closed:
            raise StoreUnavailable(f"{followed.run}: the app is closed; follow its runs while it is open")
        as_of = (after, followed.moves)
        look = followed.looks.get(as_of)
        if look is None:
            look = followed.looks[as_of] = asyncio.create_task(self._store.since(followed.run, after))
            look.add_done_callback(lambda done: _looked(followed.looks, as_of, done))
        since = await asyncio.shield(look)
        if since is None:
            raise UnknownRun(f"{followed.run}: no run of that id is in {self._store.url}")
        followed.seen(since.mark)
        return since

    async def _poll(self) -> None:
        """One look for all that is followed: another process may work on it."""
        while self._followed:
            await asyncio.sleep(POLL_SECONDS)
            with contextlib.suppress(StoreError):  # it is looked at again
                marks = await self._store.marks(list(self._followed))
                for run, (followed, _) in self._followed.items():
                    followed.seen(marks.get(run, followed.mark))


def _looked(looks: dict[Any, Any], as_of: Any, done: asyncio.Task[Any]) -> None:
    looks.pop(as_of, None)
    if not done.cancelled():
        done.exception()  # known to who waits for it, if anybody still does
