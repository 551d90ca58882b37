"""OpenAI, and every endpoint that speaks its Chat Completions: vLLM, llama.cpp, Ollama, Groq, …

Where endpoints differ, what works most widely was chosen:

- The limit on the answer is `max_completion_tokens` for OpenAI and Azure, whose reasoning models
  refuse `max_tokens`; it is `max_tokens` elsewhere, since older servers know no other and drop what
  they do not know.
- A schema goes as `response_format`. OpenAI and Azure promise an answer that fits only under
  `strict`, which takes a part of JSON Schema and wants every property required: a schema within
  that part is sent closed and strict (what fits it closed fits it open), any other as it is and
  not strict. Elsewhere nothing is strict: servers that constrain do so anyway, and some refuse the
  word. A root that is no object, which most refuse, goes inside one; the answer comes out of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from dayjob.errors import ModelError, ModelNotConfigured, ModelRefused, ModelUnavailable
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.models.endpoints import (
    connection_error,
    detail_of,
    is_http,
    needs_wrapping,
    passing_error,
    shown,
    unwrapped,
    wrapped,
)
from dayjob.models.prices import dollars

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream, OpenAIError

Json = dict[str, Any]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
OPENAI_HOSTS = ("api.openai.com", ".api.openai.com", ".openai.azure.com")
CONNECT_SECONDS = 10.0

FINISHES = {
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}

STRICT_TYPES = {"type", "anyOf", "$ref", "enum", "const"}
STRICT_KEYWORDS = STRICT_TYPES | {
    *("title", "description", "default", "$defs", "properties", "required", "additionalProperties"),
    *("items", "minItems", "maxItems", "pattern", "format", "multipleOf"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
STRICT_FORMATS = {
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"),
}


class OpenAI:
    """A model of OpenAI or of a compatible endpoint.

    `api_key` and `base_url` default to OPENAI_API_KEY and OPENAI_BASE_URL; only OpenAI itself needs
    a key. `timeout` is the longest silence in seconds: a stream lasts as long as something comes.
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
        self.name = f"openai:{name}"
        self._model = name
        self._key_name = "OPENAI_API_KEY" if api_key is None else "api_key="
        self._key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
        given_url = os.environ.get("OPENAI_BASE_URL", "") if base_url is None else base_url
        self._base_url = given_url.strip() or DEFAULT_BASE_URL
        self._timeout = timeout
        self._client: AsyncOpenAI | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting = threading.Lock()

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        client = await self._connected()
        answer = _Answer(wrapped=needs_wrapping(request.schema))
        async with aclosing(self._texts(client, request, answer)) as texts:
            async for text in texts:
                on_text(text)
        return await self._finished(answer)

    def price(self, request: ModelRequest, usage: Usage) -> float | None:
        tier = request.options.get("service_tier")
        return dollars(self._model, usage, base_url=self._base_url, tier=tier)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.close()

    async def _connected(self) -> AsyncOpenAI:
        """The client of this event loop: connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._check_configuration()
            return await asyncio.to_thread(self._connect, loop)
        return self._client

    def _check_configuration(self) -> None:
        if not self._key and self._base_url == DEFAULT_BASE_URL:
            raise ModelNotConfigured(
                f"{self.name} needs a key: set OPENAI_API_KEY, or OPENAI_BASE_URL for an endpoint "
                "that needs none"
            )
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ModelNotConfigured(
                f"the key in {self._key_name} holds characters that no key has "
                "(a space, a line end, a curly quote, …)"
            )
        if not is_http(self._base_url):
            raise ModelNotConfigured(
                f"OPENAI_BASE_URL is {self._base_url!r}: expected an address such as http://127.0.0.1:8000/v1"
            )

    def _connect(self, loop: asyncio.AbstractEventLoop) -> AsyncOpenAI:
        """The one place where the SDK is imported: that takes a second, hence in a thread."""
        import openai

        with self._connecting:
            if self._client is None or self._loop is not loop:
                self._loop = loop
                self._client = openai.AsyncOpenAI(
                    # The SDK insists on a key; without one of ours, `_open` sends none.
                    api_key=self._key or "none",
                    base_url=self._base_url,
                    timeout=openai.Timeout(self._timeout, connect=min(self._timeout, CONNECT_SECONDS)),
                    max_retries=0,
                )
            return self._client

    async def _texts(
        self, client: AsyncOpenAI, request: ModelRequest, answer: _Answer
    ) -> AsyncGenerator[str, None]:
        from openai import OpenAIError

        try:
            stream = await self._open(client, request)
        except OpenAIError as error:
            raise self._translated(error) from None
        try:
            async with stream:
                async for chunk in stream:
                    for text in answer.take(chunk):
                        yield text
            for text in answer.unwrap():
                yield text
        except OpenAIError as error:
            raise self._translated(error, f" after {answer.length} characters") from None
        except (ValueError, TypeError, AttributeError, LookupError):
            # The SDK checks nothing that it receives, so what is wrong shows only on use.
            raise ModelUnavailable(f"{self._where} sent something that is no chat completion chunk") from None
        if answer.finish is None:
            raise ModelUnavailable(self._unfinished(answer, stream))

    async def _open(self, client: AsyncOpenAI, request: ModelRequest) -> AsyncStream[object]:
        from openai import AsyncStream, Omit

        # `post` and not `chat.completions.create`: that one refuses options it does not know, and
        # walks through the whole conversation to rewrite what is already in its final form. Chunks
        # come as the dicts that they are: making objects of them takes longer than all the rest.
        return await client.post(
            "/chat/completions",
            body=self._body(request),
            cast_to=object,
            stream=True,
            stream_cls=AsyncStream[object],
            options={} if self._key else {"headers": {"Authorization": Omit()}},
        )

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            **request.options,
            "model": self._model,
            "messages": list(request.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = list(request.tools)
        if request.schema is not None:
            body["response_format"] = _response_format(request.schema, self._is_openai)
        if request.max_tokens is not None:
            limit = "max_completion_tokens" if self._is_openai else "max_tokens"
            body[limit] = request.max_tokens
        return body

    async def _finished(self, answer: _Answer) -> ModelReply:
        return ModelReply(
            text="".join(answer.texts),
            tool_calls=tuple(call.finished() for call in answer.calls),
            usage=answer.usage or Usage(),
            dollars=await asyncio.to_thread(self._dollars, answer),
            finish=answer.finished(),
            model=answer.model or self._model,
        )

    def _dollars(self, answer: _Answer) -> float | None:
        if answer.usage is None:
            return None
        for model in (answer.model, self._model):
            price = dollars(model, answer.usage, base_url=self._base_url, tier=answer.tier)
            if price is not None:
                return price
        return None

    @property
    def _is_openai(self) -> bool:
        host = urlsplit(self._base_url).hostname or ""
        return any(host == known or (known[0] == "." and host.endswith(known)) for known in OPENAI_HOSTS)

    @property
    def _where(self) -> str:
        return shown(self._base_url)

    def _unfinished(self, answer: _Answer, stream: AsyncStream[object]) -> str:
        if answer.began:
            return f"the stream from {self._where} broke off after {answer.length} characters"
        kind = stream.response.headers.get("content-type", "something of no type")
        return (
            f"{self._where} answered with {kind} and no chat completion chunk; "
            "is the address right? (it usually ends in /v1)"
        )

    def _translated(self, error: OpenAIError, when: str = "") -> ModelError:
        import openai

        match error:
            case openai.APIConnectionError():
                silent = isinstance(error, openai.APITimeoutError)
                return connection_error(error, self._where, self._timeout, when, silent=silent)
            case openai.APIStatusError():
                return self._refused(error.status_code, error.body, error.response.headers)
            case openai.APIError():
                # An error inside the stream: the status was 200, its own code says more.
                broken = self._refused(_status_in(error.body), error.body, {})
                broken.may_be_billed = True
                return broken
        return ModelUnavailable(f"{self._where}: {self._detail(str(error))}")

    def _refused(self, status: int, body: object, headers: Mapping[str, str]) -> ModelError:
        detail = self._detail(body)
        if status == 429 and _code_in(body) == "insufficient_quota":
            return ModelRefused(f"no credit is left for the key at {self._where}{detail}")
        passing = passing_error(status, self._where, detail, headers)
        if passing is not None:
            return passing
        return ModelRefused(f"{self._advice(status)} ({status}){detail}")

    def _advice(self, status: int) -> str:
        if status == 401 and not self._key:
            return f"{self._where} wants a key: set OPENAI_API_KEY"
        if status == 401:
            return f"the key in {self._key_name} was refused by {self._where}"
        if status == 403:
            return f"{self._where} does not let this key use {self._model}"
        if status == 404:
            return (
                f"{self._where} has no model {self._model!r}, or is not the right address "
                "(it usually ends in /v1)"
            )
        return f"{self._where} refused the request"

    def _detail(self, body: object) -> str:
        return detail_of(_message_in(body), self._key)


class _Answer:
    """A reply in the making: what the chunks brought so far."""

    def __init__(self, wrapped: bool) -> None:
        self.wrapped = wrapped
        self.began = False
        self.texts: list[str] = []
        self.length = 0
        self.calls: list[_Call] = []
        self.usage: Usage | None = None
        self.finish: str | None = None
        self.refused = False
        self.model = ""
        self.tier: str | None = None

    def take(self, chunk: Any) -> Iterator[str]:
        """The pieces of text in a chunk, which may be anything: the SDK does not check it."""
        self.model = str(chunk.get("model") or self.model)
        self.began = True
        self.tier = chunk.get("service_tier") or self.tier
        if usage := chunk.get("usage"):
            self.usage = _usage(usage)
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue
            self.finish = choice.get("finish_reason") or self.finish
            if delta := choice.get("delta"):
                yield from self._take_delta(delta)

    def _take_delta(self, delta: Json) -> Iterator[str]:
        for piece in delta.get("tool_calls") or ():
            self._call(piece).take(piece)
        self.refused = self.refused or bool(delta.get("refusal"))
        for text in (delta.get("content"), delta.get("refusal")):
            if text:
                if not isinstance(text, str):
                    raise TypeError("text is no string")
                self.texts.append(text)
                self.length += len(text)
                if not self.wrapped:
                    yield text

    def unwrap(self) -> Iterator[str]:
        """The answer in one piece, out of the object that `_response_format` put around it."""
        if self.wrapped and self.texts:
            self.texts = [unwrapped("".join(self.texts))]
            yield self.texts[0]

    def _call(self, piece: Json) -> _Call:
        """The call that a piece continues.

        Some endpoints repeat the id, some leave out the index, some give every call the index 0:
        so a new id is a new call, and only without an id the index tells.
        """
        id, index = piece.get("id"), piece.get("index")
        for call in reversed(self.calls):
            if call.id == id if id else call.index == index:
                return call
        self.calls.append(_Call(id or f"call_{uuid4().hex[:24]}", index))
        return self.calls[-1]

    def finished(self) -> str:
        if self.refused:
            return "content_filter"
        finish = FINISHES.get(self.finish or "", "stop")
        return "tool_calls" if self.calls and finish == "stop" else finish


class _Call:
    """A tool call in the making."""

    def __init__(self, call_id: str, index: int | None) -> None:
        self.id = call_id
        self.index = index
        self.name = ""
        self.arguments: list[str] = []

    def take(self, piece: Json) -> None:
        function = piece.get("function") or {}
        self.name = self.name or str(function.get("name") or "")
        arguments = function.get("arguments") or ""
        # Some endpoints send an object instead of its text.
        self.arguments.append(arguments if isinstance(arguments, str) else json.dumps(arguments))

    def finished(self) -> ToolCall:
        return ToolCall(self.id, self.name, "".join(self.arguments))


def _usage(given: Json) -> Usage:
    details = given.get("prompt_tokens_details") or {}
    return Usage(
        input_tokens=int(given.get("prompt_tokens") or 0),
        output_tokens=int(given.get("completion_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def _response_format(schema: Mapping[str, Any], is_openai: bool) -> dict[str, Any]:
    sent = wrapped(schema) if needs_wrapping(schema) else schema
    strict = is_openai and all(map(_fits_strict, _nodes(sent)))
    return {
        "type": "json_schema",
        "json_schema": {
            "name": re.sub(r"[^a-zA-Z0-9_-]+", "_", str(schema.get("title") or "answer"))[:64],
            "schema": _closed(sent) if strict else sent,
            "strict": strict,
        },
    }


def _fits_strict(node: Mapping[str, Any]) -> bool:
    """https://platform.openai.com/docs/guides/structured-outputs#supported-schemas"""
    if not node.keys() <= STRICT_KEYWORDS or not node.keys() & STRICT_TYPES:
        return False
    if "object" in _types(node):
        return "properties" in node and node.get("additionalProperties", False) is False
    if "array" in _types(node):
        return "items" in node
    return node.get("format", "date") in STRICT_FORMATS


def _closed(node: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as `strict` wants it: every object requires all the properties that it names."""
    closed = {key: value for key, value in node.items() if key != "default"}
    if "$ref" in closed and len(closed) > 1:  # a reference must stand alone
        closed["anyOf"] = [{"$ref": closed.pop("$ref")}]
    if "properties" in closed:
        closed["required"] = list(closed["properties"])
        closed["additionalProperties"] = False
    for key in ("properties", "$defs"):
        if key in closed:
            closed[key] = {name: _closed(each) for name, each in closed[key].items()}
    if "anyOf" in node:
        closed["anyOf"] = [_closed(each) for each in node["anyOf"]]
    if "items" in node:
        closed["items"] = _closed(node["items"])
    return closed


def _nodes(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield schema
    for key in ("properties", "$defs"):
        for each in schema.get(key, {}).values():
            yield from _nodes(each)
    for each in schema.get("anyOf", []):
        yield from _nodes(each)
    if isinstance(schema.get("items"), Mapping):
        yield from _nodes(schema["items"])


def _types(node: Mapping[str, Any]) -> list[str]:
    types = node.get("type", [])
    return [types] if isinstance(types, str) else types


def _message_in(body: object) -> str:
    if isinstance(body, Mapping):
        return str(body.get("message") or body.get("detail") or body.get("error") or "")
    return body if isinstance(body, str) else ""


def _code_in(body: object) -> str:
    return str(body.get("code") or body.get("type") or "") if isinstance(body, Mapping) else ""


def _status_in(body: object) -> int:
    """The status that an error inside a stream stands for; 500 when it does not say."""
    code = _code_in(body)
    if code.isdigit() and 400 <= int(code) < 600:
        return int(code)
    return 429 if code in ("rate_limit_exceeded", "insufficient_quota", "rate_limit_error") else 500
