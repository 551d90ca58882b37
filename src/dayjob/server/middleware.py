"""What every request goes through before an endpoint sees it, and every answer on its way out.

    Frame   gives the request its id, the answer its headers; answers what nobody foresaw; notes who did what
    Gate    lets the caller in by the key, then takes the body in: its type, its size, its pace

Both are plain ASGI: nothing between an endpoint and its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dayjob.app import PROJECT
from dayjob.errors import DayjobError
from dayjob.kept import AuditRecord
from dayjob.runs import new_id
from dayjob.server.access import ANYONE, Caller, Door
from dayjob.server.audit import STRANGER, Audit
from dayjob.server.errors import Refused, refused_of, unexpected
from dayjob.server.settings import Settings

OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health")
UPLOADS = "/v1/files"
FORM_BYTES = 64_000
"""Beside an uploaded file: the other fields of its form, and what parts them."""
SLOWEST_BYTES_A_SECOND = 16_000
LINGER_SECONDS = 2.0
MOST_PATH = 500
CLIENT_LEFT = 499
"""Stands in the audit log for a request that nobody waited for any more."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
SAFE = ("GET", "HEAD", "OPTIONS")
logger = logging.getLogger("dayjob.server")


class Streams:
    """The open event streams: they end when the server stops, and clients come back with what they saw last."""

    def __init__(self) -> None:
        self.closing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        if self.closing:
            task.cancel()

    def discard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)

    def end(self) -> None:
        self.closing = True
        for task in tuple(self._tasks):
            task.cancel()


class Frame:
    """The outermost. Whatever happens further in is answered, and never with a stack trace."""

    def __init__(self, app: ASGIApp, audit: Audit, streams: Streams, now: Callable[[], float]) -> None:
        self._app = app
        self._audit = audit
        self._streams = streams
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = new_id("req")
        scope.setdefault("state", {})["id"] = id
        body = _Body(scope, receive)
        answer = _Answer(scope, body, send, self._streams, lambda status: self._note(scope, id, status))
        try:
            await self._app(scope, body, answer)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._streams.closing:
                raise
            _this_task().uncancel()  # there is something left to say
            await self._break_off(scope, answer)
        except Exception as problem:
            known = isinstance(problem, DayjobError) and answer.status is None
            if not known:
                logger.exception("%s: %s %r failed", id, scope["method"], scope["path"])
            if answer.status is not None:
                raise  # half an answer is out: only a broken connection says that it is not whole
            refused = refused_of(problem) if isinstance(problem, DayjobError) else unexpected(id)
            await refused.answer()(scope, body, answer)
        finally:
            answer.over()

    async def _break_off(self, scope: Scope, answer: _Answer) -> None:
        """The server stops: a stream ends here, any other request is to be sent again."""
        if answer.status is None:
            refused = Refused("The server is stopping; send the request again.", 503).answer()
            refused.headers["retry-after"] = "1"
            await refused(scope, answer.body, answer)
        elif answer.streams:
            await answer({"type": "http.response.body", "body": scope["state"].get("last_words", b"")})

    def _note(self, scope: Scope, id: str, status: int) -> None:
        if scope["method"] in SAFE and status not in (401, 403):
            return
        caller: Caller | None = scope["state"].get("caller")
        project, who = (caller.project, caller.who) if caller else (PROJECT, STRANGER)
        action = f"{scope['method']} {scope['path'][:MOST_PATH]}"
        self._audit.note(project, AuditRecord(self._now(), who, action, status, id))


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


class _Body:
    """The body of a request, on its way in. `is_whole`: nothing of it is still to come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self.is_whole = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"

    async def __call__(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self.is_whole = True
        return message


class _Answer:
    """An answer, on its way out."""

    def __init__(
        self, scope: Scope, body: _Body, send: Send, streams: Streams, note: Callable[[int], None]
    ) -> None:
        self.body = body
        self.status: int | None = None
        self.streams = False
        self._task = _this_task()  # not the one that sends: a stream is sent by a task of its own
        self._id: str = scope["state"]["id"]
        self._send = send
        self._open_streams = streams
        self._note = note
        self._closes = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif self._closes and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        self._note(message["status"])
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        headers["x-request-id"] = self._id
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")
        if not self.body.is_whole:
            self._closes = True
            headers["connection"] = "close"
        if headers.get("content-type", "").startswith("text/event-stream"):
            self.streams = True
            self._open_streams.add(self._task)

    def over(self) -> None:
        if self.status is None:
            self._note(CLIENT_LEFT)
        self._open_streams.discard(self._task)

    async def _linger(self) -> None:
        """Reads on for a moment, with the answer out: a connection that is closed on what a client still
        sends is reset, and the answer may be lost with it."""
        with contextlib.suppress(TimeoutError, Refused):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.body.is_whole:
                    await self.body()


class Gate:
    """Lets a request in, with its caller and its whole body; an upload's body passes through as it comes."""

    def __init__(self, app: ASGIApp, door: Door, settings: Settings) -> None:
        self._app = app
        self._door = door
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["path"] not in OPEN_PATHS or scope["method"] not in SAFE:
                caller = await self._door.caller(headers.get("authorization"))
                if caller is ANYONE:
                    self._check_site(headers)
                scope["state"]["caller"] = caller
            body = await self._taken_in(scope, headers, receive)
        except Refused as refused:
            await refused.answer()(scope, receive, send)
            return
        await self._app(scope, body, send)

    def _check_site(self, headers: Headers) -> None:
        """An open server answers this machine's programs, and no web page that a person here happens to look at.

        A page elsewhere is told by its Origin; one whose name was made to point here, by the Host.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not _is_here(host):
            raise Refused(
                f"Host: {host!r} is no name of this machine; create an API key to be called so.", 403
            )
        if origin is not None and origin not in self._settings.origins and urlsplit(origin).netloc != host:
            raise Refused(f"Origin: web pages of {origin} may not call this server; see --origin.", 403)

    async def _taken_in(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        if (encoding := headers.get("content-encoding", "").lower()) not in ("", "identity"):
            raise Refused(f"Content-Encoding: send the body as it is, not as '{encoding[:100]}'.", 415)
        is_upload = scope["method"] == "POST" and scope["path"] == UPLOADS
        limit = self._settings.max_body_bytes
        if is_upload:
            limit = self._settings.max_upload_bytes + FORM_BYTES
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        paced = _paced(receive, limit, self._settings.body_seconds)
        if is_upload:
            return paced
        body = await _whole(paced)
        if body:
            _check_type(headers.get("content-type", ""))
        return _again(body, receive)


@lru_cache(100)
def _is_here(host: str) -> bool:
    """Whether a Host names this machine: an address of it, or a name without a dot, which no stranger can own."""
    name = urlsplit(f"//{host}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return "." not in name or name.endswith(".localhost")


def _paced(receive: Receive, limit: int, seconds: float) -> Callable[[], Awaitable[Message]]:
    """The body, refused when it is too large or too slow."""
    begun, arrived = time.monotonic(), 0

    async def next_piece() -> Message:
        nonlocal arrived
        left = begun + seconds + arrived / SLOWEST_BYTES_A_SECOND - time.monotonic()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            raise Refused("The body of your request did not arrive in time.", 408) from None
        arrived += len(message.get("body", b""))
        if arrived > limit:
            raise _too_large(limit)
        return message

    return next_piece


async def _whole(receive: Callable[[], Awaitable[Message]]) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was taken in; then what else is heard of the client: that it is gone."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


def _check_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = f"'{content_type[:100]}'" if content_type else "none"
        raise Refused(f"Content-Type: expected 'application/json', got {given}.", 415)


def _too_large(limit: int) -> Refused:
    return Refused(f"The body of your request is larger than {limit:,} bytes.", 413)
