"""Which messages of a conversation are sent: those that fit the model's window, newest first. Pure.

A conversation only grows; what is sent of it is a `View`: its head (the system messages, and the task), a
line that names what was left out, and everything from `start` on. Tool calls are never parted from their
results. The start stays where it is until the window is full, and then moves by a block, so that from turn
to turn a provider's cache finds the same beginning.

    view = auto(8000).fit(messages, View())
    view.of(messages)

Tokens are estimated from the script of the text, and the estimate is corrected by what the provider
counted. No message is lost by this: a view is only a way to look at a conversation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

import orjson

from dayjob.errors import InputError, WindowTooSmall
from dayjob.models import Message

ROOM_AFTER_A_CUT = 0.6
"""A full window is cut to this share of it, so that many turns pass until the next cut."""
MESSAGE_TOKENS = 4
ATTACHMENT_TOKENS = 1000
"""A part of a message that is no text, such as an image: a guess until the provider has counted."""
LATIN_PER_TOKEN = 4
OTHERS_PER_TOKEN = 2
_SCALES = (0.5, 3.0)

LEFT_OUT = "[Messages {first} to {last} of this conversation are left out here.]"
SUMMARY = "[Messages {first} to {last} of this conversation are left out here. In short:]\n{summary}"

UNANSWERED = "No result: the run was stopped before it came. What the call was to do may have been done."


@dataclass(frozen=True, slots=True)
class View:
    """What is sent of a conversation: its head, and the messages from number `start` (from 0) on.

    `task` is the number of the message that all of it is about, which stays. `summary` stands for what was left
    out; `scale` is how many real tokens an estimated one turned out to be.
    """

    start: int = 0
    task: int = 0
    summary: str = ""
    scale: float = 1.0

    def of(self, messages: Sequence[Message]) -> list[Message]:
        """The messages to send. Calls that were never answered, as a cancelled run leaves them, are told to be."""
        head = head_of(messages, self.task)
        if self.start <= head:
            return _whole(messages, 0)
        task = messages[self.task : self.task + 1] if head <= self.task < self.start else []
        return [*messages[:head], self.left_out(messages), *task, *_whole(messages, self.start)]

    def left_out(self, messages: Sequence[Message]) -> Message:
        """The message in place of those that were left out, which it names by their numbers, counted from 1."""
        told = SUMMARY if self.summary else LEFT_OUT
        first, last = self.named(messages)
        return {"role": "user", "content": told.format(first=first, last=last, summary=self.summary)}

    def named(self, messages: Sequence[Message]) -> tuple[int, int]:
        """The numbers of the first and the last message that are left out, counted from 1."""
        return head_of(messages, self.task) + 1, self.start

    def counted(self, sent: Sequence[Message], input_tokens: int) -> View:
        """The same view with its scale corrected by the provider's count of what was sent."""
        if not input_tokens:
            return self
        low, high = _SCALES
        scale = min(max(input_tokens / max(tokens_in(sent), 1), low), high)
        return replace(self, scale=round(scale, 2))


@dataclass(frozen=True, slots=True)
class Policy:
    """How much of a window a view fills, as a share: over 1 the view has to move on.

    With `summarises_by`, a summary is to stand in place of what is left out; whoever can ask a model makes
    it from `parts` of at most so many tokens, and it is `shortened` to half of that.
    """

    fill: Callable[[Sequence[Message], View], float]
    summarises_by: int = 0

    def parts(self, messages: Sequence[Message], before: View, after: View) -> Iterator[str]:
        """What `after` leaves out and `before` did not, as texts to be summed up one after the other."""
        if not self.summarises_by:
            return
        left_out = messages[max(before.start, head_of(messages, after.task)) : after.start]
        yield from _pieces("\n\n".join(map(_shown, left_out)), self.summarises_by / max(after.scale, 1))

    def shortened(self, summary: str, view: View) -> str:
        return next(_pieces(summary, self.summarises_by / 2 / max(view.scale, 1)), "")

    def fit(self, messages: Sequence[Message], view: View) -> View:
        """The view, moved on if it no longer fits. Raises WindowTooSmall."""
        if self.fill(messages, view) <= 1:
            return view
        cuts = list(_cuts(messages, max(view.start, head_of(messages, view.task))))
        first = bisect_left(cuts, True, key=lambda cut: self._leaves_room(messages, replace(view, start=cut)))
        moved = replace(view, start=cuts[min(first, len(cuts) - 1)]) if cuts else view
        if self.fill(messages, moved) > 1:
            least = len(messages) - max(moved.start, head_of(messages, view.task))
            raise WindowTooSmall(
                f"the window is too small: even the head of the conversation and the last {least} of its "
                f"{len(messages)} messages do not fit. Use a larger one, or shorter tool results"
            )
        return moved

    def _leaves_room(self, messages: Sequence[Message], view: View) -> bool:
        return self.fill(messages, view) <= ROOM_AFTER_A_CUT


def last_messages(count: int) -> Policy:
    """The head, and at most the last `count` messages."""
    _check("last_messages", "count", count)
    return Policy(
        lambda messages, view: (len(messages) - max(view.start, head_of(messages, view.task))) / count
    )


def auto(tokens: int) -> Policy:
    """The head, and as many of the last messages as fit into a prompt of so many tokens."""
    _check("auto", "tokens", tokens)
    return Policy(lambda messages, view: tokens_in(view.of(messages)) * view.scale / tokens)


def summarise(tokens: int) -> Policy:
    """Like `auto`, with a summary in place of what was left out: one more model call at each cut."""
    return replace(auto(tokens), summarises_by=-(-tokens // 2))


def tokens_in(messages: Sequence[Message]) -> int:
    """About how many tokens messages are: a token for four Latin letters, two others, or one that is wide."""
    return sum(MESSAGE_TOKENS + _tokens(message) for message in messages)


def head_of(messages: Sequence[Message], task: int = 0) -> int:
    """How many messages stay in any case: the system messages at the beginning, and the task if it follows them.

    The first message of a long thread is not what a run is about, and may be as long as it likes.
    """
    first = next((n for n, each in enumerate(messages) if each["role"] != "system"), len(messages))
    is_task = first < len(messages) and messages[first]["role"] == "user" and task <= first
    return first + is_task


def _cuts(messages: Sequence[Message], after: int) -> Iterator[int]:
    """Where a conversation may be cut, beyond `after`: not before the result of a call."""
    for number in range(after + 1, len(messages)):
        if messages[number]["role"] != "tool":
            yield number


def _whole(messages: Sequence[Message], start: int) -> list[Message]:
    """The messages from `start` on, with a result right after each call, and none without its call."""
    kept: list[Message] = []
    for number in range(start, len(messages)):
        message = messages[number]
        if message["role"] != "tool":
            kept.append(message)
            if calls := message.get("tool_calls"):
                kept += _results(calls, messages, number + 1)
    return kept


def _results(calls: Sequence[Any], messages: Sequence[Message], start: int) -> list[Message]:
    """The result of each call: what follows at once, or else is found before the model speaks again."""
    ids = [call["id"] for call in calls]
    next_ones = list(messages[start : start + len(ids)])
    if [each.get("tool_call_id") for each in next_ones] == ids:
        return next_ones
    until_it_speaks = takewhile(lambda each: each["role"] != "assistant", islice(messages, start, None))
    given = [each for each in until_it_speaks if each["role"] == "tool"]
    results = []
    for id in ids:
        found = next((each for each in given if each.get("tool_call_id") == id), None)
        if found is not None:
            given.remove(found)
        results.append(found or {"role": "tool", "tool_call_id": id, "content": UNANSWERED})
    return results


def _pieces(text: str, tokens: float) -> Iterator[str]:
    """A text in pieces of at most so many tokens."""
    most = max(int(tokens), 1)
    while text:
        piece = text[: most * LATIN_PER_TOKEN]
        while (counted := _in_text(piece)) > most:
            piece = piece[: len(piece) * most // counted]
        yield piece
        text = text[len(piece) :]


def _shown(message: Message) -> str:
    calls = message.get("tool_calls")
    told = orjson.dumps([call["function"] for call in calls]).decode() if calls else ""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    return f"{message['role']}: {text}{told}"


def _tokens(message: Message) -> int:
    content = message.get("content") or ""
    if isinstance(content, str):
        counted = _in_text(content)
    else:
        counted = sum(_in_text(part["text"]) if "text" in part else ATTACHMENT_TOKENS for part in content)
    calls = message.get("tool_calls")
    return counted + (_in_text(orjson.dumps(calls).decode()) if calls else 0)


def _in_text(text: str) -> int:
    """By how many bytes UTF-8 takes for a letter: one is Latin, three or more are wide."""
    if text.isascii():
        return -(-len(text) // LATIN_PER_TOKEN)
    latin = len(text.encode("ascii", "ignore"))
    others = len(text) - latin
    wide = min(len(text.encode("utf-8", "replace")) - latin - 2 * others, others)
    return -(-latin // LATIN_PER_TOKEN) + -(-(others - wide) // OTHERS_PER_TOKEN) + wide


def _check(policy: str, name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{policy}: {name}={value!r}: expected a whole number from 1")
