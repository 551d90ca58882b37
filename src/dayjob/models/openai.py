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
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from dayjob.errors import ModelError, ModelRefused, ModelUnavailable
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.models.endpoints import detail_of, needs_wrapping, passing_error, unwrapped, wrapped
from dayjob.models.http import Endpoint, Stream, headers_in, of_json
from dayjob.models.prices import dollars

Json = dict[str, Any]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
OPENAI_HOSTS = ("api.openai.com", ".api.openai.com", ".openai.azure.com")

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
        given_url = os.environ.get("OPENAI_BASE_URL", "") if base_url is None else base_url
        self._endpoint = Endpoint(
            "OPENAI",
            given_url.strip() or DEFAULT_BASE_URL,
            key=os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key,
            key_name="OPENAI_API_KEY" if api_key is None else "api_key=",
            headers={
                "openai-organization": os.environ.get("OPENAI_ORG_ID", ""),
                "openai-project": os.environ.get("OPENAI_PROJECT_ID", ""),
                **headers_in(os.environ.get("OPENAI_CUSTOM_HEADERS", "")),
            },
            seconds=timeout,
        )

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        self._endpoint.check(self.name, default_url=DEFAULT_BASE_URL, example="http://127.0.0.1:8000/v1")
        answer = _Answer(wrapped=needs_wrapping(request.schema))
        async with aclosing(await self._endpoint.post("/chat/completions", self._body(request))) as stream:
            if stream.status >= 300:
                raise self._refused(stream.status, _error_in(await stream.problem()), stream.headers)
            while events := await stream.read(answer.length):
                for _, data in events:
                    for text in self._texts(data, answer):
                        on_text(text)
            for text in answer.unwrap():
                on_text(text)
            if answer.finish is None:
                raise ModelUnavailable(self._unfinished(answer, stream))
        return await self._finished(answer)

    def price(self, request: ModelRequest, usage: Usage) -> float | None:
        tier = request.options.get("service_tier")
        return dollars(self._model, usage, base_url=self._endpoint.base_url, tier=tier)

    async def close(self) -> None:
        await self._endpoint.close()

    def _texts(self, data: bytes, answer: _Answer) -> list[str]:
        """The pieces of text in a chunk, which may be anything: what is wrong shows only on use."""
        try:
            chunk = of_json(data)
            if isinstance(chunk, dict) and (error := chunk.get("error")):
                # The status was 200: the error's own code says more.
                broken = self._refused(_status_in(error), error, {})
                broken.may_be_billed = True
                raise broken
            return list(answer.take(chunk))
        except (ValueError, TypeError, AttributeError, LookupError):
            raise ModelUnavailable(f"{self._where} sent something that is no chat completion chunk") from None

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
            price = dollars(model, answer.usage, base_url=self._endpoint.base_url, tier=answer.tier)
            if price is not None:
                return price
        return None

    @property
    def _is_openai(self) -> bool:
        host = urlsplit(self._endpoint.base_url).hostname or ""
        return any(host == known or (known[0] == "." and host.endswith(known)) for known in OPENAI_HOSTS)

    @property
    def _where(self) -> str:
        return self._endpoint.where

    def _unfinished(self, answer: _Answer, stream: Stream) -> str:
        if answer.began:
            return f"the stream from {self._where} broke off after {answer.length} characters"
        kind = stream.headers.get("content-type", "something of no type")
        return (
            f"{self._where} answered with {kind} and no chat completion chunk; "
            "is the address right? (it usually ends in /v1)"
        )

    def _refused(self, status: int, body: object, headers: Mapping[str, str]) -> ModelError:
        detail = detail_of(_message_in(body), self._endpoint.key)
        if status == 429 and _code_in(body) == "insufficient_quota":
            return ModelRefused(f"no credit is left for the key at {self._where}{detail}")
        passing = passing_error(status, self._where, detail, headers)
        if passing is not None:
            return passing
        return ModelRefused(f"{self._advice(status)} ({status}){detail}")

    def _advice(self, status: int) -> str:
        if status == 401 and not self._endpoint.key:
            return f"{self._where} wants a key: set OPENAI_API_KEY"
        if status == 401:
            return f"the key in {self._endpoint.key_name} was refused by {self._where}"
        if status == 403:
            return f"{self._where} does not let this key use {self._model}"
        if status == 404:
            return (
                f"{self._where} has no model {self._model!r}, or is not the right address "
                "(it usually ends in /v1)"
            )
        return f"{self._where} refused the request"


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
        """The pieces of text in a chunk, which may be anything."""
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


def _error_in(body: object) -> object:
    return body.get("error", body) if isinstance(body, Mapping) else body


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
