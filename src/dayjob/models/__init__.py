"""The seam to language models: messages in, reply out.

A model is any object with a `name` and an async `reply`. The adapters here translate and decide
nothing: retries, journaling, validation of `returns=` and the price belong to the caller.

    openai:NAME     OpenAI and every compatible endpoint
    anthropic:NAME  Claude, by Anthropic's own API
    local:          the packaged SmolLM2, or local:/path/to/model.gguf
    Scripted(…)     replies from a list or a function (tests)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from dayjob.errors import InputError

Message = dict[str, Any]
"""A chat-style message: `role`, `content`, and what the Chat Completions format adds to them."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for; `arguments` is the model's own JSON text, not yet validated."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them; `cached_tokens` are among the input tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Exactly what an adapter is given; its canonical JSON is what the journal can rebuild.

    `tools` are function tools in the Chat Completions format. `schema` is the JSON schema of the
    answer wanted, or None for free text. `options` are passed on as they are (temperature, seed, …).
    """

    model: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    schema: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What an adapter gives back.

    `finish` is one of "stop", "length", "tool_calls", "content_filter". `dollars` is None when the
    price is unknown: never a guess. `model` is the name that the provider reports.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    dollars: float | None = None
    finish: str = "stop"
    model: str = ""


class Model(Protocol):
    """Messages in, reply out.

    `reply` calls `on_text` with each piece of text as it arrives. It raises a `ModelError` (whose
    `retryable` and `retry_after` tell what may be tried) and closes its connection when it is
    cancelled.
    """

    @property
    def name(self) -> str: ...

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply: ...

    async def close(self) -> None: ...


@runtime_checkable
class Priced(Protocol):
    """A model that can say beforehand what a call costs; a run with a limit of dollars calls no other.

    `price` is the most that the request may cost with that usage, None when the price is unknown.
    """

    def price(self, request: ModelRequest, usage: Usage) -> float | None: ...


def open_model(model: str | Model) -> Model:
    """The model that a string such as "openai:gpt-5-mini" or "local:" names; an object is returned as it is."""
    if not isinstance(model, str):
        return model
    provider, colon, name = model.partition(":")
    if provider == "openai" and name:
        from dayjob.models.openai import OpenAI  # noqa: PLC0415

        return OpenAI(name)
    if provider == "anthropic" and name:
        from dayjob.models.anthropic import Anthropic  # noqa: PLC0415

        return Anthropic(name)
    if provider == "local" and colon:
        from dayjob.models.local import Local  # noqa: PLC0415

        return Local(name or None)
    raise InputError(
        f"model: {model!r} is not a model's name; expected openai:NAME, anthropic:NAME, local: "
        "or local:/path/to/model.gguf"
    )
