"""Asking over HTTP: an endpoint and its connections, and answers that come as server-sent events."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import finalize

import orjson

from dayjob.errors import ModelError, ModelNotConfigured, ModelRefused, ModelTimeout, ModelUnavailable
from dayjob.models.endpoints import is_http, shown

if TYPE_CHECKING:
    from aiohttp import BaseConnector, ClientResponse, ClientSession

HEADERS = {"accept": "application/json", "content-type": "application/json"}
CONNECT_SECONDS = 10.0
MOST_CONNECTIONS = 1_000
LARGE_BYTES = 1_000_000
"""A body from here on is sent in parts, so that the event loop goes on meanwhile; of an error no more is read."""
LAST_BYTES_SECONDS = 0.1
"""So long is waited for the end of an answer after its last event: without it the connection is of no more use."""

Event = tuple[bytes, bytes]
"""A name, which may be empty, and data."""


class Endpoint:
    """An address that is asked, with the key to it.

    An event loop has its own connections, since they cannot move to another, and keeps them. Nothing
    is retried. `vendor` begins the names of the variables that set it up; `seconds` is the longest silence.
    A name and password in the address go in the place of the key.
    """

    def __init__(
        self,
        vendor: str,
        base_url: str,
        *,
        key: str,
        key_name: str,
        headers: Mapping[str, str],
        seconds: float,
    ) -> None:
        self.vendor = vendor
        self.base_url = base_url
        self.key = key.strip()
        self.key_name = key_name
        self.seconds = seconds
        self._headers = {**HEADERS, "authorization": self.key and f"Bearer {self.key}", **headers}
        self._client: ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._letting_go: finalize[..., Endpoint] | None = None

    @property
    def where(self) -> str:
        return shown(self.base_url)

    def check(self, model: str, *, default_url: str, example: str) -> None:
        """Raises ModelNotConfigured, which tells what to set. `default_url` is asked with a key alone."""
        if not self.key and self.base_url == default_url:
            raise ModelNotConfigured(
                f"{model} needs a key: set {self.vendor}_API_KEY, or {self.vendor}_BASE_URL for an endpoint "
                "that needs none"
            )
        if not re.fullmatch(r"[!-~]*", self.key):
            raise ModelNotConfigured(
                f"the key in {self.key_name} holds characters that no key has "
                "(a space, a line end, a curly quote, …)"
            )
        if not is_http(self.base_url):
            raise ModelNotConfigured(
                f"{self.vendor}_BASE_URL is {self.base_url!r}: expected an address such as {example}"
            )

    async def post(self, path: str, body: Mapping[str, Any]) -> Stream:
        """The answer as soon as it begins; the caller closes it. Raises ModelError."""
        content = to_json(body)
        client = await self._connected()
        data = content if len(content) < LARGE_BYTES else io.BytesIO(content)
        try:
            # the library's own times are of a connection and of an answer: not of a name, a proxy, or what is sent
            async with asyncio.timeout(self.seconds + CONNECT_SECONDS):
                response = await client.post(self.base_url.rstrip("/") + path, data=data)
        except Exception as error:  # not all is the library's: what TLS finds may come as it is
            raise self.broken(error) from None
        return Stream(self, response)

    def broken(self, error: Exception, when: str = "") -> ModelError:
        """What became of a request that got no whole answer; `when` tells how much had come, if it had begun."""
        import aiohttp

        connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        if isinstance(error, TimeoutError) and not connecting:
            return ModelTimeout(f"{self.where} sent nothing for {self.seconds:g} seconds{when}")
        reason = str(error) or type(error).__name__
        if when:
            return ModelUnavailable(f"the stream from {self.where} broke off{when}: {reason}")
        if isinstance(error, TimeoutError):
            reason = "no answer to the connection"
        unreachable = ModelUnavailable(f"{self.where} cannot be reached: {reason}")
        unreachable.may_be_billed = not connecting
        return unreachable

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.close()
        self._let_go()

    async def _connected(self) -> ClientSession:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            await asyncio.to_thread(importlib.import_module, "aiohttp")  # which takes time
            if self._client is None or self._loop is not loop:
                self._let_go()
                self._client, self._loop = self._connect(), loop
                self._letting_go = finalize(self, _let_go, self._client, loop)
        return self._client

    def _let_go(self) -> None:
        if self._letting_go is not None:
            self._letting_go()

    def _connect(self) -> ClientSession:
        import aiohttp

        told = {name: value for name, value in self._headers.items() if value}
        if "@" in urlsplit(self.base_url).netloc:
            told.pop("authorization", None)
        return aiohttp.ClientSession(
            headers={"user-agent": f"dayjob/{version('dayjob')}", **told},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=min(self.seconds, CONNECT_SECONDS), sock_read=self.seconds
            ),
            connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=bool(getproxies()),  # else it would look for one in a thread, at each request
        )


def _let_go(client: ClientSession, loop: asyncio.AbstractEventLoop) -> None:
    """Ends the connections of a client that nobody closed, as silently as those of any other object."""
    connector = client.connector
    client.detach()
    if connector is None:
        return
    if loop.is_running() and not _is_here(loop):
        loop.call_soon_threadsafe(_end, connector)
    else:
        _end(connector)


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _end(connector: BaseConnector) -> None:
    closing = _closed(connector)
    with suppress(StopIteration):
        closing.send(None)  # which closes them; the rest of it would wait until they are closed
    closing.close()


async def _closed(connector: BaseConnector) -> None:
    await connector.close()


class Stream:
    """An answer that is coming in: events, or what is wrong."""

    def __init__(self, endpoint: Endpoint, response: ClientResponse) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._endpoint = endpoint
        self._response = response
        self._events = Events()

    async def read(self, heard: int) -> list[Event]:
        """The next events, and none at the end. Raises ModelError, which tells how many characters were `heard`."""
        try:
            while not self._events.over:
                piece = await self._response.content.readany()
                if not piece:
                    return []
                if events := self._events.take(piece):
                    return events
        except Exception as error:
            raise self._endpoint.broken(error, f" after {heard} characters") from None
        await self._last_bytes()
        return []

    async def _last_bytes(self) -> None:
        """A connection can be kept once its answer was read to the end."""
        with suppress(Exception):
            async with asyncio.timeout(LAST_BYTES_SECONDS):
                while await self._response.content.readany():
                    pass

    async def problem(self) -> Any:
        """The whole body of an error: its JSON, or else its text; empty if it does not come."""
        body = bytearray()
        try:
            while len(body) < LARGE_BYTES and (piece := await self._response.content.readany()):
                body += piece
        except Exception:
            return ""
        text = body.decode(errors="replace").strip()
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    async def aclose(self) -> None:
        self._response.close()


class Events:
    """Reads server-sent events out of pieces that may end anywhere, until one says [DONE].

    Ids and times to retry after are passed over, and so is an event that is not whole at the end.
    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self) -> None:
        self.over = False
        self._rest: list[bytes] = []
        self._half_a_line_end = False

    def take(self, piece: bytes) -> list[Event]:
        """The events that a piece completes."""
        if self._half_a_line_end:
            piece = piece.removeprefix(b"\n")
        self._half_a_line_end = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._rest.append(piece)
        if b"\n" not in piece:
            return []
        *blocks, rest = b"".join(self._rest).split(b"\n\n")
        self._rest = [rest]
        events = []
        for block in blocks:
            event = _event_in(block)
            if event is None:
                continue
            if event[1].startswith(b"[DONE]"):
                self.over = True
                break
            events.append(event)
        return events


def _event_in(block: bytes) -> Event | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return b"", block[6:]
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return (name, b"\n".join(data)) if name or data else None


# --- JSON and headers ------------------------------------------------------------------------------


def to_json(body: Mapping[str, Any]) -> bytes:
    """A request's JSON. Raises ModelRefused for what has none.

    orjson would write a number that is not finite as null, and refuses one of many digits.
    """
    try:
        data = orjson.dumps(body)
        if b"null" not in data:
            return data
    except TypeError:
        pass
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as problem:
        raise ModelRefused(f"the request cannot be written as JSON: {problem}") from None


def of_json(data: bytes) -> Any:
    """What an event says. Raises ValueError. orjson refuses NaN, and halves of characters, which some send."""
    try:
        return orjson.loads(data)
    except ValueError:
        try:
            return json.loads(data.decode())
        except RecursionError as problem:
            raise ValueError(str(problem)) from None


def headers_in(lines: str) -> dict[str, str]:
    """`Name: value` a line, as the vendors' own clients take them: what a gateway on the way may want."""
    pairs = (line.partition(":") for line in lines.split("\n"))
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}
