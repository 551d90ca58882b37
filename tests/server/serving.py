"""A server in this process, on a free loopback port, and clients that check each answer against their types."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from openai import AsyncOpenAI, OpenAI

from dayjob import Dayjob
from dayjob.app import PROJECT
from dayjob.assistant import assistant_job
from dayjob.models.scripted import Scripted
from dayjob.server import Settings, create_server
from dayjob.server.access import Caller, new_key
from dayjob.server.desk import Desk
from dayjob.tools import Tool


@dataclass
class Serving:
    """A server that runs, and how it is reached. `client` checks strictly; `http` is for what no client sends."""

    app: Dayjob
    model: Scripted
    url: str
    client: AsyncOpenAI
    http: httpx2.AsyncClient
    desk: Desk
    also: list[AsyncOpenAI] = field(default_factory=list)

    async def client_of(self, project: str) -> AsyncOpenAI:
        """A client with a key of its own, for another project."""
        secret, record = new_key(project, "member", "test", self.app.now())
        await self.app.store.add_key(record)
        client = strict(self.url, secret)
        self.also.append(client)
        return client


def strict(url: str, key: str = "anything") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)


def strict_sync(url: str, key: str = "anything") -> OpenAI:
    return OpenAI(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)


@asynccontextmanager
async def serving(
    folder: Path,
    reply: Sequence[Any] | Callable[[Any], Any] = (),
    tools: Sequence[Tool[..., Any]] = (),
    settings: Settings | None = None,
    worker: bool = True,
    model: Scripted | None = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    model = model or Scripted(reply)
    async with Dayjob(
        f"sqlite:///{folder / 'jobs.db'}", model=model, jobs=[assistant_job(tools)], worker=worker, **options
    ) as app:
        server = create_server(app, settings or Settings(files=folder / "files"))
        async with listening(_WithCaller(server, server.state.desk.door)) as port:
            url = f"http://127.0.0.1:{port}/v1"
            async with httpx2.AsyncClient(base_url=url) as http, strict(url) as client:
                here = Serving(app, model, url, client, http, server.state.desk)
                try:
                    yield here
                finally:
                    for each in here.also:
                        await each.close()


@asynccontextmanager
async def listening(server: Any) -> AsyncIterator[int]:
    """Serves on a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            server, log_level="error", lifespan="on", ws="none", timeout_graceful_shutdown=1
        )
        running = uvicorn.Server(config)
        task = asyncio.create_task(running.serve(sockets=[listener]))
        try:
            while not running.started:
                assert not task.done(), task
                await asyncio.sleep(0.005)
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await task


class _WithCaller:
    """Lets callers in where no middleware does."""

    def __init__(self, server: Any, door: Any) -> None:
        self._server, self._door = server, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self._server.user_middleware:
            headers = dict(scope["headers"])
            given = headers.get(b"authorization", b"").decode()
            known: Caller = Caller(PROJECT, "admin", "anyone")
            with contextlib.suppress(Exception):
                known = await self._door.caller(given)
            scope.setdefault("state", {})["caller"] = known
        await self._server(scope, receive, send)


def function(name: str, **properties: Any) -> dict[str, Any]:
    """A function tool as clients describe one."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}
