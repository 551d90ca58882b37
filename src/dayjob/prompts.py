"""Prompts stored once: a prompt is a chain of message hashes, and shares its beginning with an earlier one.

A model step stores `keep_n` hashes of a base step's prompt and only the hashes after them; each
message stands once in the store. The longest common prefix is found by comparing with a kept copy,
so only new messages are serialised and hashed. The fingerprint is a chained hash, so that it too is
extended, not computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from dayjob.errors import InputError, NotJSON, ValueTooLarge
from dayjob.values import Redactor, canonical, digest, within_limit

HASH_BYTES = 16
MAX_LINKS = 64
"""So many links until a prompt is stored whole again: reading one back never walks further."""


class Prompt:
    """A prompt that was sent: copies of its messages, their hashes, and the step that stores it."""

    links: int
    __slots__ = ("base", "chain", "hashes", "head", "keep", "links", "messages", "new", "sent", "stored_by")

    def __init__(
        self,
        head: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        earlier: Prompt | None,
        redact: Redactor,
    ) -> None:
        """Raises NotJSON or ValueTooLarge naming the message at fault, InputError for one that is no dict."""
        head_bytes = redact(canonical(head))
        self.head = digest(head_bytes)
        keep = _common(messages, earlier.messages) if earlier is not None else 0
        self.messages: list[Any] = earlier.messages[:keep] if earlier is not None else []
        self.hashes: list[bytes] = earlier.hashes[:keep] if earlier is not None else []
        self.chain: list[bytes] = earlier.chain[:keep] if earlier is not None else []
        self.new: list[tuple[bytes, bytes]] = []
        for index in range(keep, len(messages)):
            given = _message_bytes(messages[index], index)
            data = redact(given)
            hash = digest(data)
            self.new.append((hash, data))
            self.messages.append(_copy(messages[index], given))
            self.hashes.append(hash)
            self.chain.append(digest((self.chain[-1] if self.chain else b"") + hash))
        self.sent = self.head
        self.stored_by: str | None = None
        linked = earlier is not None and earlier.stored_by is not None and keep and earlier.links < MAX_LINKS
        self.base = earlier.stored_by if linked and earlier is not None else None
        self.keep = keep if linked else 0
        self.links = earlier.links + 1 if linked and earlier is not None else 0
        if earlier is None or earlier.head != self.head:
            self.new.append((self.head, head_bytes))

    @property
    def fingerprint(self) -> bytes:
        return digest(self.head + (self.chain[-1] if self.chain else b""))

    def send_with(self, head: Mapping[str, Any], redact: Redactor) -> None:
        """What was sent has another head than what was asked for: stored so, and no part of the fingerprint."""
        data = redact(canonical(head))
        self.sent = digest(data)
        self.new.append((self.sent, data))

    @property
    def stored_hashes(self) -> bytes:
        """What the step's row holds: the head's hash, then those that the base does not have."""
        return self.sent + b"".join(self.hashes[self.keep :])


def split_hashes(stored: bytes) -> tuple[bytes, list[bytes]]:
    """The head's hash and the message hashes of a step's row."""
    pieces = [stored[start : start + HASH_BYTES] for start in range(0, len(stored), HASH_BYTES)]
    return pieces[0], pieces[1:]


def request_json(head: bytes, messages: Sequence[bytes]) -> bytes:
    """The canonical JSON of a request, from its stored parts."""
    fields = orjson.loads(head)
    fields["messages"] = orjson.Fragment(b"[" + b",".join(messages) + b"]")
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)


def _common(messages: Sequence[Any], kept: Sequence[Any]) -> int:
    shorter = min(len(messages), len(kept))
    if list(messages[:shorter]) == kept[:shorter]:
        return shorter
    return next(index for index in range(shorter) if messages[index] != kept[index])


def _message_bytes(message: Any, index: int) -> bytes:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"messages[{index}]: expected a dict with a role, got {type(message).__name__}")
    try:
        return within_limit(canonical(message))
    except (NotJSON, ValueTooLarge) as problem:
        raise type(problem)(f"messages[{index}]: {problem}") from None


def _copy(message: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """A copy that later changes of the message cannot reach; flat ones share their strings, which compare fast."""
    if all(type(value) is str for value in message.values()):
        return dict(message)
    copied: dict[str, Any] = orjson.loads(data)
    return copied
