"""A model that says what a test tells it to: from a list, or from a function of the request.

Scripted(["Hello.", ToolCall("1", "find_order", '{"order_id": "A-1042"}'), ModelRateLimited()])
Scripted(lambda request: Delay(0.2, f"You said {request.messages[-1]['content']}."))
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dayjob.errors import InputError, ModelRefused
from dayjob.models import Message, ModelReply, ModelRequest, ToolCall, Usage

PIECES = 8


@dataclass(frozen=True, slots=True)
class Delay:
    """Waits before the reply `then`: what a slow model does, and where a test may cancel it."""

    seconds: float
    then: Any


class Scripted:
    """Replies from a list, in the order in which calls begin, or from a function, sync or async.

    A reply is a text, a `ToolCall` or a list of them (or dicts `{"tool": name, "arguments": {…}}`),
    an error to raise, a `Delay`, a whole `ModelReply`, or any other JSON value or pydantic model,
    said as JSON (for `returns=`). A list that runs out is a `ModelRefused` naming the call.

    `price` is dollars a call, a function of the usage, or None for a model of unknown price. A limit of
    dollars asks it beforehand too, with the most that the usage may be. Tokens
    are a guess that costs nothing to make: a quarter of the characters of the last message, and of
    the reply. `requests` holds what the model was told, unless `keep_requests` is false.
    """

    def __init__(
        self,
        reply: Sequence[Any] | Callable[[ModelRequest], Any],
        price: float | Callable[[Usage], float | None] | None = 0.0,
        name: str = "scripted",
        *,
        keep_requests: bool = True,
    ) -> None:
        if isinstance(reply, str) or not (callable(reply) or isinstance(reply, Sequence)):
            raise InputError(f"Scripted: reply={reply!r}: expected a list, or a function of the request")
        self.name = name
        self.requests: list[ModelRequest] = []
        self._reply = reply
        self._price = price
        self._keep_requests = keep_requests
        self._calls = 0

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        self._calls += 1
        if self._keep_requests:
            self.requests.append(request)
        said = self._next(request)
        while True:
            if inspect.isawaitable(said):
                said = await said
            elif isinstance(said, Delay):
                await asyncio.sleep(said.seconds)
                said = said.then
            else:
                break
        reply = self._as_reply(said, request)
        for piece in _pieces(reply.text):
            on_text(piece)
        return reply

    def price(self, request: ModelRequest, usage: Usage) -> float | None:
        return self._price(usage) if callable(self._price) else self._price

    async def close(self) -> None:
        pass

    def _next(self, request: ModelRequest) -> Any:
        if callable(self._reply):
            return self._reply(request)
        if self._calls > len(self._reply):
            raise ModelRefused(
                f"{self.name}: this is call {self._calls}, but the script has only {len(self._reply)} replies"
            )
        return self._reply[self._calls - 1]

    def _as_reply(self, said: Any, request: ModelRequest) -> ModelReply:
        if type(said) is str:
            return self._speech(said, request)
        if isinstance(said, BaseException) or _is_error_class(said):
            raise said
        if isinstance(said, ModelReply):
            return said
        if calls := self._tool_calls(said):
            return self._speech("", request, calls)
        return self._speech(_json(said, self.name), request)

    def _speech(self, text: str, request: ModelRequest, calls: tuple[ToolCall, ...] = ()) -> ModelReply:
        """What was said, cut to `max_tokens` as a real model would be."""
        limit = math.inf if request.max_tokens is None else 4 * request.max_tokens
        too_long = len(text) > limit
        if too_long:
            text = text[: int(limit)]
        spoken = len(text) + sum(len(call.name) + len(call.arguments) for call in calls)
        usage = Usage(_tokens(_last_length(request.messages)), _tokens(spoken))
        return ModelReply(
            text,
            calls,
            usage,
            self.price(request, usage),
            "length" if too_long else "tool_calls" if calls else "stop",
            self.name,
        )

    def _tool_calls(self, said: Any) -> tuple[ToolCall, ...]:
        """The calls that `said` stands for; none when it is something else."""
        each = said if isinstance(said, list) else [said]
        if not all(isinstance(call, ToolCall) or _is_call(call) for call in each):
            return ()
        return tuple(
            call
            if isinstance(call, ToolCall)
            else ToolCall(
                f"call_{self._calls}_{number}",
                call["tool"],
                orjson.dumps(call.get("arguments", {})).decode(),
            )
            for number, call in enumerate(each, 1)
        )


def _is_call(said: Any) -> bool:
    return isinstance(said, dict) and "tool" in said and said.keys() <= {"tool", "arguments"}


def _is_error_class(said: Any) -> bool:
    return isinstance(said, type) and issubclass(said, BaseException)


def _json(value: Any, name: str) -> str:
    if value is None:
        raise InputError(f'{name}: the script gave None; for the JSON value, say "null"')
    if hasattr(value, "model_dump_json"):
        return str(value.model_dump_json())
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        raise InputError(
            f"{name}: the script gave {type(value).__name__}: expected a str, tool calls, an "
            "error, a Delay, a ModelReply, a JSON value or a pydantic model"
        ) from None


def _last_length(messages: Sequence[Message]) -> int:
    """Of the last message only: counting the whole conversation would make each turn dearer."""
    content = messages[-1].get("content") if messages else None
    return len(content) if isinstance(content, str) else 0


def _tokens(characters: int) -> int:
    return max(1, (characters + 3) // 4)


def _pieces(text: str) -> Iterator[str]:
    """The text cut at spaces: word by word when it is short, in eight parts when it is long."""
    step = max(1, len(text) // PIECES)
    start = 0
    while start < len(text):
        end = text.find(" ", start + step)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end
