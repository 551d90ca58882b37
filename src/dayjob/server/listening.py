"""A server on a socket: uvicorn, without its signals, its banner and its log."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dayjob.errors import InputError
from dayjob.server.middleware import Streams

BACKLOG = 2_048
KEEP_ALIVE_SECONDS = 75
HEAD_SECONDS = 20.0
HEAD_BYTES = 65_536
TOO_LARGE = "The head of the request is too large."
STOP_SECONDS = 5
MOST_CONNECTIONS = 10_000
FILES_ELSE = 100
"""Of the files that a process may open so many are for the store, the models and the uploads."""


def bound(host: str, port: int) -> socket.socket:
    """A socket on that address, of which no connection is taken yet. Raises InputError naming the flag."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as problem:
        raise InputError(f"--host: {host!r} is no address of this machine: {problem}") from None
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as problem:
        listener.close()
        flag = "--host" if problem.errno == errno.EADDRNOTAVAIL else "--port"
        raise InputError(f"{flag}: {host}:{port}: {_words(problem)}") from None
    return listener


def _words(problem: OSError) -> str:
    """Without the address, which asyncio and Python add or not."""
    return os.strerror(problem.errno) if problem.errno else str(problem)


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_on_loopback(listener: socket.socket) -> bool:
    """Whether it is reached from this machine only."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


@contextlib.asynccontextmanager
async def listening(
    server: FastAPI, listener: socket.socket, head_seconds: float = HEAD_SECONDS
) -> AsyncIterator[Listening]:
    """Takes connections while open; each has so many seconds to say what it wants.

    One is closed whose client takes nothing of an answer for as long as the server's settings say. Leaving ends
    streams, and lets requests in progress finish.
    """
    opened = Listening(server, listener, head_seconds)
    await opened.start()
    try:
        yield opened
    finally:
        await opened.stop()


class Listening:
    """A server that takes connections."""

    def __init__(self, server: FastAPI, listener: socket.socket, head_seconds: float) -> None:
        self._streams: Streams = server.state.streams
        self._listener = listener
        protocol = cast(
            type[asyncio.Protocol], partial(_Protocol, head_seconds, server.state.stalled_seconds)
        )
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                server, http=protocol, ws="none", lifespan="on", log_config=None, log_level="critical",
                access_log=False, server_header=False, proxy_headers=False, backlog=BACKLOG,
                limit_concurrency=_most_connections(), timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )  # fmt: skip
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises InputError when another process took the address since the socket was bound."""
        try:
            self._listener.listen(BACKLOG)
        except OSError as problem:
            raise InputError(f"--port: {url_of(self._listener)}: {_words(problem)}") from None
        self._serving = asyncio.create_task(self._uvicorn.serve([self._listener]))
        while not self._uvicorn.started and not self._serving.done():
            await asyncio.sleep(0.005)
        if self._serving.done():
            await self._serving

    async def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._streams.end()
        if self._serving is not None:
            await self._serving


def _most_connections() -> int:
    """As many as there may be files open, less those needed elsewhere."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if allowed < 0 else max(min(allowed - FILES_ELSE, MOST_CONNECTIONS), 10)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's business."""
        yield


class _Protocol(HttpToolsProtocol):
    """Refuses a head that is too large, and closes a connection on which no request begins in time, or of whose
    answer nothing is taken any more.

    uvicorn would take a head of any size, wait for ever, hold what is not taken, and never tell an answer that
    its client is gone if a next request had come by then.
    """

    def __init__(self, head_seconds: float, stalled_seconds: float, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        self._head_seconds = head_seconds
        self._head_bytes = 0
        self._is_in_head = False
        self._answering: RequestResponseCycle | None = None
        self._stalled_seconds = stalled_seconds
        self._giving_up: asyncio.TimerHandle | None = None
        self._stalling: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        joined = _Joined(cast(asyncio.Transport, transport), self.loop)
        joined.set_write_buffer_limits(0)  # so that whatever is not taken at once is watched
        super().connection_made(cast(asyncio.Transport, joined))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            if self._is_answering():  # there is no place for another answer
                self.transport.close()
            else:
                self.send_400_response(TOO_LARGE)
        elif self._is_answering():
            self._stop_waiting()
        elif self._giving_up is None:
            self._await_head()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # else it stands behind the body, and changes no more what was asked
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._head_bytes = False, 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise ValueError(TOO_LARGE)  # which uvicorn answers by a 400
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def _watch(self, left: int) -> None:
        self._stalling = self.loop.call_later(self._stalled_seconds, self._abort_if_still, left)

    def _stop_watching(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None

    def _abort_if_still(self, left: int) -> None:
        still = self.transport.get_write_buffer_size()
        if still < left:  # slow is not gone
            self._watch(still)
        else:
            self.transport.abort()

    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        self._giving_up = self.loop.call_later(self._head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._giving_up = None
        if not (self.transport.is_closing() or self._is_answering()):
            self.transport.close()


class _Joined:
    """A transport on which the head of an answer goes out with what follows it at once, if anything does.

    Each send wakes the client, and that takes longer than making a small answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/1."):
            self._head = data
            self._loop.call_soon(self._send_head)
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data)

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def _send_head(self) -> None:
        if self._head:
            self.write(b"")
