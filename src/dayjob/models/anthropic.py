"""Anthropic's Messages API: Claude, and endpoints that speak it. `anthropic_request` tells what is sent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from dayjob.errors import ModelError, ModelRefused, ModelUnavailable
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.models.anthropic_request import body_of
from dayjob.models.endpoints import detail_of, passing_error, unwrapped
from dayjob.models.http import Endpoint, Stream, headers_in, of_json
from dayjob.models.prices import dollars

Json = dict[str, Any]

DEFAULT_BASE_URL = "https://api.anthropic.com"
API_VERSION = "2023-06-01"
"""What compatible endpoints know, too. The later 2026-10-21 only takes away, `temperature` among other things."""

FINISHES = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",  # a tool of the server's own took too long: what is there is a part
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class Anthropic:
    """A model of Anthropic, or of an endpoint that speaks its Messages API.

    `api_key` and `base_url` default to ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL; only Anthropic itself
    needs a key. `timeout` is the longest silence in seconds: a stream lasts as long as something comes.
    Nothing is retried here.
    """

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.name = f"anthropic:{name}"
        self._model = name
        given_url = os.environ.get("ANTHROPIC_BASE_URL", "") if base_url is None else base_url
        self._endpoint = Endpoint(
            "ANTHROPIC",
            given_url.strip().rstrip("/").removesuffix("/v1") or DEFAULT_BASE_URL,
            key=os.environ.get("ANTHROPIC_API_KEY", "") if api_key is None else api_key,
            key_name="ANTHROPIC_API_KEY" if api_key is None else "api_key=",
            headers={
                **headers_in(os.environ.get("ANTHROPIC_CUSTOM_HEADERS", "")),
                "anthropic-version": API_VERSION,
            },
            seconds=timeout,
        )

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        self._endpoint.check(self.name, default_url=DEFAULT_BASE_URL, example="http://127.0.0.1:8000")
        body, is_wrapped = body_of(request, self._model)
        answer = _Answer(wrapped=is_wrapped)
        async with aclosing(await self._endpoint.post("/v1/messages", body)) as stream:
            if stream.status >= 300:
                raise self._refused(stream.status, await stream.problem(), stream.headers)
            while events := await stream.read(answer.length):
                for name, data in events:
                    for text in self._texts(name, data, answer):
                        on_text(text)
            for text in answer.rest():
                on_text(text)
            if answer.stopped is None:
                raise ModelUnavailable(self._unfinished(answer, stream))
        return await self._finished(answer)

    def price(self, request: ModelRequest, usage: Usage) -> float | None:
        """As if all that is not read from the cache were written to it, which costs more."""
        options = request.options
        written = usage.input_tokens - usage.cached_tokens
        return dollars(
            self._model,
            usage,
            base_url=self._endpoint.base_url,
            tier=_tier({**options, "service_tier": None}),
            cache_writes=written,
            long_cache_writes=written if '"1h"' in json.dumps(options.get("cache_control")) else 0,
        )

    async def close(self) -> None:
        await self._endpoint.close()

    def _texts(self, name: bytes, data: bytes, answer: _Answer) -> list[str]:
        """The pieces of text in an event, which may be anything: what is wrong shows only on use."""
        if name == b"error":
            raise self._broken(data)
        if name in (b"", b"ping") or not data:
            return []
        try:
            return list(answer.take(of_json(data)))
        except (ValueError, TypeError, AttributeError, LookupError):
            raise ModelUnavailable(f"{self._where} sent something that is no event of a message") from None

    def _broken(self, data: bytes) -> ModelError:
        """An error inside the stream: the status was 200, its own type says more."""
        try:
            body = of_json(data)
        except ValueError:
            body = data.decode(errors="replace")
        broken = self._refused(_status_in(body), body, {})
        broken.may_be_billed = True
        return broken

    async def _finished(self, answer: _Answer) -> ModelReply:
        return ModelReply(
            text="".join(answer.texts),
            tool_calls=tuple(call.finished() for call in answer.calls.values()),
            usage=answer.usage or Usage(),
            dollars=await asyncio.to_thread(self._dollars, answer),
            finish=answer.finished(),
            model=answer.model or self._model,
        )

    def _dollars(self, answer: _Answer) -> float | None:
        if answer.usage is None:
            return None
        for model in (answer.model, self._model):
            price = dollars(
                model,
                answer.usage,
                base_url=self._endpoint.base_url,
                tier=_tier(answer.counts),
                cache_writes=answer.count("cache_creation_input_tokens"),
                long_cache_writes=answer.long_cache_writes,
            )
            if price is not None:
                return price
        return None

    @property
    def _where(self) -> str:
        return self._endpoint.where

    def _unfinished(self, answer: _Answer, stream: Stream) -> str:
        if answer.began:
            return f"the stream from {self._where} broke off after {answer.length} characters"
        kind = stream.headers.get("content-type", "something of no type")
        return f"{self._where} answered with {kind} and no event of a message; is the address right?"

    def _refused(self, status: int, body: object, headers: Mapping[str, str]) -> ModelError:
        detail = detail_of(_message_in(body), self._endpoint.key)
        passing = passing_error(status, self._where, detail, headers)
        return passing or ModelRefused(f"{self._advice(status)} ({status}){detail}")

    def _advice(self, status: int) -> str:
        if status == 401 and not self._endpoint.key:
            return f"{self._where} wants a key: set ANTHROPIC_API_KEY"
        if status == 401:
            return f"the key in {self._endpoint.key_name} was refused by {self._where}"
        if status == 402:
            return f"no credit is left for the key at {self._where}"
        if status == 403:
            return f"{self._where} does not let this key use {self._model}"
        if status == 404:
            return f"{self._where} has no model {self._model!r}, or is not the right address"
        if status == 413:
            return f"the request is too large for {self._where}"
        return f"{self._where} refused the request"


# --- the answer ------------------------------------------------------------------------------------


class _Answer:
    """A reply in the making: what the events brought so far."""

    def __init__(self, wrapped: bool) -> None:
        self.wrapped = wrapped
        self.began = False
        self.texts: list[str] = []
        self.length = 0
        self.calls: dict[int, _Call] = {}
        self.counts: Json = {}
        self.stopped: str | None = None
        self.explanation = ""
        self.model = ""

    def take(self, event: Any) -> Iterator[str]:
        """The pieces of text in an event, which may be anything."""
        match event["type"]:
            case "message_start":
                self.began = True
                self.model = str(event["message"].get("model") or "")
                self._count(event["message"].get("usage"))
            case "content_block_start":
                yield from self._begin(event["index"], event["content_block"])
            case "content_block_delta":
                yield from self._go_on(event["index"], event["delta"])
            case "message_delta":
                self.stopped = str(event["delta"].get("stop_reason") or "") or self.stopped
                self.explanation = (event["delta"].get("stop_details") or {}).get("explanation") or ""
                self._count(event.get("usage"))

    def _begin(self, index: int, block: Json) -> Iterator[str]:
        if block["type"] == "tool_use":
            self.calls[index] = _Call(_text(block["id"]), _text(block["name"]), block.get("input"))
        elif block["type"] == "text":
            yield from self._say(block.get("text"))

    def _go_on(self, index: int, delta: Json) -> Iterator[str]:
        if delta["type"] == "text_delta":
            yield from self._say(delta["text"])
        elif delta["type"] == "input_json_delta" and index in self.calls:
            self.calls[index].pieces.append(_text(delta["partial_json"]))

    def _say(self, text: Any) -> Iterator[str]:
        if text:
            self.texts.append(_text(text))
            self.length += len(text)
            if not self.wrapped:
                yield text

    def _count(self, given: Mapping[str, Any] | None) -> None:
        """Each count is of the whole answer so far; what an event leaves out stands."""
        self.counts |= {name: count for name, count in (given or {}).items() if count is not None}
        for name in COUNTS:
            int(self.counts.get(name, 0))

    def rest(self) -> Iterator[str]:
        """What is said only at the end: an answer that came inside an object, or why there is none."""
        if self.wrapped and self.texts:
            self.texts = [unwrapped("".join(self.texts))]
            yield self.texts[0]
        elif self.explanation and not self.texts:
            self.texts = [str(self.explanation)]
            yield self.texts[0]

    def count(self, name: str) -> int:
        return int(self.counts.get(name, 0))

    @property
    def usage(self) -> Usage | None:
        """As ours counts it: all of the input, of which the API tells three parts."""
        if "output_tokens" not in self.counts:
            return None
        read, written = self.count("cache_read_input_tokens"), self.count("cache_creation_input_tokens")
        return Usage(self.count("input_tokens") + read + written, self.count("output_tokens"), read)

    @property
    def long_cache_writes(self) -> int:
        match self.counts.get("cache_creation"):
            case {"ephemeral_1h_input_tokens": int(count)}:
                return count
        return 0

    def finished(self) -> str:
        finish = FINISHES.get(self.stopped or "", "stop")
        return "tool_calls" if self.calls and finish == "stop" else finish


class _Call:
    """A tool call in the making."""

    def __init__(self, call_id: str, name: str, input: Any) -> None:
        self.id = call_id
        self.name = name
        self.input = input
        self.pieces: list[str] = []

    def finished(self) -> ToolCall:
        # A call without arguments has no pieces; some endpoints send the arguments whole, at the start.
        arguments = "".join(self.pieces) or json.dumps(self.input or {}, ensure_ascii=False)
        return ToolCall(self.id, self.name, arguments)


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError("what should be text is none")
    return given


def _tier(told: Mapping[str, Any]) -> str | None:
    """What makes a reply cost something else than the list says: a tier, a speed, a place, a paid tool."""
    if told.get("speed") not in (None, "standard"):
        return f"speed {told['speed']}"
    if told.get("inference_geo") not in (None, "", "global", "not_available"):
        return f"in {told['inference_geo']}"
    paid = told.get("server_tool_use")
    if isinstance(paid, Mapping) and any(paid.values()):
        return "paid tools"
    tier = told.get("service_tier")
    return tier if isinstance(tier, str) else None


# --- errors ----------------------------------------------------------------------------------------


def _message_in(body: object) -> str:
    if isinstance(body, Mapping):
        error = body.get("error")
        if isinstance(error, Mapping):
            return str(error.get("message") or "")
        return str(error or body.get("message") or body.get("detail") or "")
    return body if isinstance(body, str) else ""


def _status_in(body: object) -> int:
    """The status that an error inside a stream stands for; 500 when it does not say."""
    error = body.get("error") if isinstance(body, Mapping) else None
    return STATUSES.get(str(error.get("type")), 500) if isinstance(error, Mapping) else 500
