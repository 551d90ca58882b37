"""What the helpers of the official clients demand of a stream, checked event by event, and models that try it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage

Told = tuple[str, str, Any]
"""An event as it is on the wire: its id, its name, its data."""
ENDS = ("requires_action", "completed", "incomplete", "failed", "cancelled", "expired")
OPEN = ("created", "in_progress", "delta")
BEGINNING = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
MESSAGE_EVENTS = [
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
]
TEXT_RUN = [*BEGINNING, *MESSAGE_EVENTS, "done"]
"""The events of a run that says a message, and no more."""


def once(names: Sequence[str]) -> list[str]:
    """The names, each once where it stands several times in a row."""
    return [name for name, _ in groupby(names)]


def check(events: Sequence[Told], begun: Sequence[Told] = (), over: bool = True) -> None:
    """Fails at the first event that a strict client would choke on. `begun` is what it heard before."""
    rules = _Rules()
    for id, name, data in begun:
        rules.hear(id, name, data)
    for id, name, data in events:
        rules.hear(id, name, data)
    if over:
        assert rules.done, "no done"
        assert rules.ended is not None, "no event that ends the run"


class _Rules:
    def __init__(self) -> None:
        self.active: str | None = None
        self.messages: set[str] = set()
        self.steps: dict[str, str] = {}
        self.lengths: dict[str, int] = {}
        self.ids: set[str] = set()
        self.ended: str | None = None
        self.done = False
        self.before = ""

    def hear(self, id: str, name: str, data: Any) -> None:
        if name == "done":
            self.done = True
            return
        assert isinstance(data, dict), name
        assert id, f"{name} has no id"
        assert id not in self.ids, f"{id} twice"
        self.ids.add(id)
        self.done = False
        *_, verb = name.split(".")
        if name.startswith("thread.message."):
            self._message(verb, data)
        elif name.startswith("thread.run.step."):
            self._step(verb, data)
        elif name.startswith("thread.run."):
            if (self.ended, verb) == ("requires_action", "queued"):
                self.ended = None
            assert self.ended is None, f"{name} after {self.ended}"
            assert verb == data["status"] or verb == "created", (name, data["status"])
            assert (verb, self.before) != ("in_progress", "in_progress"), "in_progress twice"
            self.before = verb
            if verb in ENDS:
                assert verb == "requires_action" or self.active is None, f"a message is open at {name}"
                assert verb == "requires_action" or not self._open(), f"steps are open at {name}"
                self.ended = verb
            assert (verb == "requires_action") == (data["required_action"] is not None)

    def _open(self) -> list[str]:
        return [id for id, verb in self.steps.items() if verb in OPEN]

    def _message(self, verb: str, data: Any) -> None:
        id = data["id"]
        if verb == "created":
            assert self.active is None, "a second message is begun"
            assert id not in self.messages, "message.created twice"
            assert (data["content"], data["status"]) == ([], "in_progress")
            self.messages.add(id)
            self.active = id
        assert self.active == id, f"message.{verb} of a message that is not active"
        if verb == "delta":
            for part in data["delta"]["content"]:
                assert part["index"] <= self.lengths.get(id, 0), "indices are not contiguous"
                first = id not in self.lengths
                assert part["text"].get("annotations") == ([] if first else None)
                assert part["text"]["value"]
                self.lengths[id] = 1
        elif verb in ("completed", "incomplete"):
            assert data["status"] == verb
            assert bool(data["incomplete_details"]) == (verb == "incomplete")
            self.active = None

    def _step(self, verb: str, data: Any) -> None:
        id = data["id"]
        if verb == "created":
            assert id not in self.steps, "step.created twice"
            assert self._open() == [], "a second step is begun"
            details = data["step_details"]
            assert details["type"] == "message_creation" or details["tool_calls"] == []
        else:
            assert self.steps.get(id) in OPEN, f"step.{verb} of a step that is {self.steps.get(id)}"
        if verb != "delta":
            assert data["status"] == ("in_progress" if verb == "created" else verb), (verb, data["status"])
        self.steps[id] = verb


def said_in(events: Sequence[Told]) -> dict[str, str]:
    """The text of each message, as its deltas make it."""
    texts: dict[str, str] = {}
    for _, name, data in events:
        if name == "thread.message.delta":
            for part in data["delta"]["content"]:
                texts[data["id"]] = texts.get(data["id"], "") + part["text"]["value"]
    return texts


def plot(events: Sequence[Told]) -> list[tuple[str, str]]:
    """The names and ids of events, without `done`; a row of deltas as one, as they may come in other pieces."""
    made: list[tuple[str, str]] = []
    for _, name, data in events:
        if name == "done" or (made and "message.delta" in name and made[-1] == (name, data["id"])):
            continue
        made.append((name, data["id"]))
    return made


class Speaker:
    """A model that makes one turn after another: pieces of text, then an error to raise, or calls to ask for."""

    name = "speaker"

    def __init__(self, turns: Sequence[tuple[Sequence[str], Any]], pause: float | None = None) -> None:
        self.turns = turns
        self.pause = pause
        self.made = 0

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        pieces, then = self.turns[self.made % len(self.turns)]
        self.made += 1
        for piece in pieces:
            on_text(piece)
            if self.pause is not None:
                await asyncio.sleep(self.pause)
        if isinstance(then, asyncio.Event):
            await then.wait()
            then = "stop"
        if isinstance(then, Exception):
            raise then
        calls = tuple(then) if isinstance(then, list) else ()
        finish = then if isinstance(then, str) else "tool_calls" if calls else "stop"
        return ModelReply("".join(pieces), calls, Usage(1, 1), 0.0, finish, self.name)

    async def close(self) -> None:
        pass


def call(name: str, number: int = 1) -> ToolCall:
    return ToolCall(f"call_{name}_{number}", name, "{}")
