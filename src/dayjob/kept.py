"""What is kept beside runs: conversations and their messages, objects of clients, API keys. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

from dayjob.runs import RunRecord
from dayjob.values import encode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ThreadRecord:
    """A conversation. `details` is JSON that its client keeps with it."""

    id: str
    project: str
    created: float
    details: bytes | None = None


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One message of a thread; `n` is its place, from 1.

    `message` is the chat-style message that models are told, as JSON. `details` is JSON that its client
    keeps with it, and no model is told. `said`: it is one that people read, and not tool calls alone, or
    the result of one. `run` is the run that said it.
    """

    id: str
    message: bytes
    created: float
    n: int = 0
    run: str | None = None
    said: bool = True
    details: bytes | None = None


def is_said(message: Mapping[str, Any]) -> bool:
    """Whether people read a chat-style message, and not only a model."""
    return message.get("role") in ("user", "assistant") and bool(message.get("content"))


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """Something that a client keeps: an assistant, a file. `body` is JSON."""

    kind: str
    id: str
    created: float
    body: bytes


def with_fields(kept: bytes | None, given: bytes) -> bytes:
    """A JSON object with the fields of another in the place of its own. Raises ValueTooLarge."""
    return encode({**orjson.loads(kept or b"{}"), **orjson.loads(given)})


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key, by the hash of its secret; `start` is how the secret begins."""

    id: str
    hash: bytes
    start: str
    project: str
    role: str
    name: str
    created: float
    revoked: float | None = None


class AuditRecord(NamedTuple):
    """One request: who asked for what, and what the answer was."""

    at: float
    who: str
    action: str
    status: int
    request: str


class Page(NamedTuple):
    """Which part of a list is wanted: up to `limit`, beyond the ids `after` and `before`, newest first."""

    limit: int = 20
    ascending: bool = False
    after: str | None = None
    before: str | None = None


class Found(NamedTuple, Generic[T]):
    """A page of a list, and whether there is more beyond it."""

    rows: list[T]
    more: bool


# --- what comes from elsewhere, with its own ids and times -----------------------------------------

IMPORTED = "imported"
"""The key in the details of a run, or a message, by which one knows that it was not made here."""


def is_imported(record: RunRecord | MessageRecord) -> bool:
    """Whether it was made elsewhere: such a run is a record of what was, and is never worked on."""
    return record.details is not None and IMPORTED in orjson.loads(record.details)


def step_kind(run: str) -> str:
    """The kind of the objects that are the steps of an imported run; they lie in the home of its thread."""
    return f"step/{run}"


class Arrival(NamedTuple):
    """Something that comes in. `thread` and `run` are those that it belongs to.

    An object without a thread is the project's; one with a thread and a run is a step of that run.
    """

    record: ObjectRecord | ThreadRecord | MessageRecord | RunRecord
    thread: str | None = None
    run: str | None = None


class Came(StrEnum):
    """What came of an arrival."""

    TAKEN = "taken"
    THERE = "there"  # one of its id is there, and stays as it is: the same, or another
    CLASH = "clash"  # its id is taken by what is none of this project's business
    NO_THREAD = "no thread"
    NO_RUN = "no run"
    WENT_ON = "went on"  # its thread has messages, or an active run, that were made here


class Received(NamedTuple):
    """The answer to an arrival; `found` is what is there under its id."""

    came: Came
    found: ObjectRecord | ThreadRecord | MessageRecord | RunRecord | None = None
