"""A real server on a free port of this machine: in this process, over a scripted model, or as `dayjob serve`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from dayjob import Dayjob
from dayjob.assistant import assistant_job
from dayjob.models.scripted import Scripted
from dayjob.server import Settings, create_server
from dayjob.server.access import Role, new_key
from dayjob.server.listening import bound, listening, url_of
from tests.acceptance.command_line import CommandLine


@dataclass
class Served:
    """A server in this process, its app, and clients for it."""

    app: Dayjob
    server: FastAPI
    settings: Settings
    url: str
    stack: AsyncExitStack

    async def key(self, project: str = "default", role: Role = "admin", name: str = "test") -> str:
        """The secret of a new key, which is known at once."""
        secret, key = new_key(project, role, name, self.app.now())
        await self.app.store.add_key(key)
        self.server.state.desk.door.forget()
        return secret

    async def openai(self, key: str = "any") -> AsyncOpenAI:
        """The official client, which fails on every answer that is not as its types say."""
        client = AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, _strict_response_validation=True
        )
        return await self.stack.enter_async_context(client)

    async def http(self, key: str | None = None, **options: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, **options)
        return await self.stack.enter_async_context(client)


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts a server: `await serving(reply, routes, **settings)`; `routes` may add to it before it starts."""
    async with AsyncExitStack() as stack:

        async def start(
            reply: Any = ("Hello.",),
            routes: Callable[[FastAPI], None] = lambda server: None,
            **settings: Any,
        ) -> Served:
            url = f"sqlite:///{tmp_path / 'dayjob.db'}"
            app = Dayjob(url, Scripted(reply), [assistant_job()])
            await stack.enter_async_context(app)
            told = Settings(**{"files": tmp_path / "files", **settings})
            server = create_server(app, told)
            routes(server)
            listener = bound("127.0.0.1", 0)
            stack.callback(listener.close)
            await stack.enter_async_context(listening(server, listener))
            return Served(app, server, told, url_of(listener), stack)

        yield start


@pytest.fixture
def dayjob(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def served(dayjob: CommandLine) -> Callable[..., Any]:
    """Starts the installed `dayjob serve` on a free port: `with served("FILE") as (process, url)`."""

    @contextmanager
    def start(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
        with dayjob.started("serve", *arguments, "--port", "0", "--json") as process:
            assert process.stdout is not None
            for line in process.stdout:
                told = json.loads(line)
                if told["event"] == "server.started":
                    yield process, told["url"]
                    return
            raise AssertionError(process.communicate()[1])

    return start
