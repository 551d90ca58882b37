"""A server in this process, on a free loopback port, and clients that check each answer against their types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from dayjob import Dayjob
from dayjob.app import PROJECT
from dayjob.assistant import assistant_job
from dayjob.jobs import Job
from dayjob.models.scripted import Scripted
from dayjob.server import Settings, create_server
from dayjob.server.access import Role, new_key
from dayjob.server.desk import Desk
from dayjob.server.images import seeing
from dayjob.server.listening import bound, listening, url_of
from dayjob.tools import Tool


@dataclass
class Serving:
    """A server that runs, and how it is reached. `client` checks strictly; `http` is for what no client sends."""

    app: Dayjob
    model: Scripted
    url: str
    secret: str
    client: AsyncOpenAI
    http: httpx2.AsyncClient
    desk: Desk
    server: FastAPI
    stack: AsyncExitStack

    async def client_of(self, project: str) -> AsyncOpenAI:
        """A client with a key of its own, for another project."""
        return await self.stack.enter_async_context(strict(self.url, await self.key(project)))

    async def key(self, project: str = PROJECT, role: Role = "member", revoked: bool = False) -> str:
        """The secret of a new key, which is known at once."""
        secret, record = new_key(project, role, "test", self.app.now())
        await self.app.store.add_key(record)
        if revoked:
            await self.app.store.revoke_key(record.id)
        self.desk.door.forget()
        return secret


def strict(url: str, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)


def strict_sync(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)


@asynccontextmanager
async def serving(
    folder: Path,
    reply: Sequence[Any] | Callable[[Any], Any] = (),
    tools: Sequence[Tool[..., Any]] = (),
    settings: Settings | None = None,
    worker: bool = True,
    model: Scripted | None = None,
    jobs: Sequence[Job] = (),
    store: Any = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    model = model or Scripted(reply)
    async with AsyncExitStack() as stack:
        settings = settings or Settings(files=folder / "files")
        known = [assistant_job(tools, seeing(settings.files)), *jobs]
        store = store or f"sqlite:///{folder / 'jobs.db'}"
        app = Dayjob(store, model=model, jobs=known, worker=worker, **options)
        await stack.enter_async_context(app)
        secret, record = new_key(PROJECT, "admin", "test", app.now())
        await app.store.add_key(record)
        server = create_server(app, settings)
        listener = bound("127.0.0.1", 0)
        stack.callback(listener.close)
        await stack.enter_async_context(listening(server, listener))
        url = f"{url_of(listener)}/v1"
        headers = {"authorization": f"Bearer {secret}"}
        http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, headers=headers, timeout=20))
        client = await stack.enter_async_context(strict(url, secret))
        yield Serving(app, model, url, secret, client, http, server.state.desk, server, stack)


def function(name: str, **properties: Any) -> dict[str, Any]:
    """A function tool as clients describe one."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}
