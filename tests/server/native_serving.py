"""A server of the native API in this process, on a free loopback port, with two callers of two projects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from dayjob import Call, Dayjob, Run, job, tool
from dayjob.app import PROJECT
from dayjob.kept import KeyRecord
from dayjob.models.scripted import Scripted
from dayjob.server import Settings, create_server
from dayjob.server.access import hash_of
from dayjob.server.listening import bound, listening, url_of

OTHERS = "others"


@tool(effect="write", approve=lambda amount, **_: amount > 100)
async def refund(call: Call, order: str, amount: float) -> str:
    """Gives money back."""
    return f"{amount:g} for {order}"


@job
async def greet(run: Run, name: str, times: int = 1) -> str:
    """Greets somebody."""
    return " ".join([(await run.model(f"Greet {name}")).text for _ in range(times)])


@job
async def inquire(run: Run, question: str = "How old?") -> int:
    return await run.ask(question, returns=int)


@job
async def pay(run: Run, amount: float) -> str:
    return await run.tool(refund, order="A-1", amount=amount)


@job
async def listen(run: Run) -> dict[str, Any]:
    return await run.event("paid", returns=dict[str, Any])


@job
async def count(run: Run, to: int) -> int:
    async def one(inside: Run, number: int) -> int:
        return await inside.step(lambda: number, name="a/b#c%")

    return sum(await run.map(one, list(range(to)), limit=1))


@job
async def nest(run: Run, depth: int) -> Any:
    def nested() -> Any:
        value: Any = "core"
        for _ in range(depth):
            value = [value]
        return value

    return await run.step(nested)


@job
async def write(run: Run, characters: int) -> int:
    return len(await run.step(lambda: "x" * characters))


@job
async def fails(run: Run) -> None:
    await run.step(lambda: 1, name="fine")
    raise ValueError("no good")


@job
async def parent(run: Run) -> int:
    return await (await run.start(count(to=2))).result()


JOBS = (greet, inquire, pay, listen, count, nest, write, fails, parent)


@dataclass
class Native:
    """A server that runs; `http` is the client of the default project, `others` that of another one."""

    app: Dayjob
    http: httpx2.AsyncClient
    others: httpx2.AsyncClient

    async def run(self, job: str, http: httpx2.AsyncClient | None = None, **input: Any) -> str:
        answer = await (http or self.http).post("/api/runs", json={"job": job, "input": input})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def ended(self, run: str) -> dict[str, Any]:
        await self.app.until_settled(run, 20)
        found: dict[str, Any] = (await self.http.get(f"/api/runs/{run}")).json()
        return found

    @asynccontextmanager
    async def stream(self, run: str, **options: Any) -> AsyncIterator[AsyncIterator[Event]]:
        async with self.http.stream("GET", f"/api/runs/{run}/events", **options) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield events_in(answer.aiter_lines())

    async def events(self, run: str, **options: Any) -> list[Event]:
        async with asyncio.timeout(20), self.stream(run, **options) as events:
            return [event async for event in events]


@dataclass
class Event:
    name: str = ""
    id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


async def events_in(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    event = Event()
    async for line in lines:
        name, _, value = line.partition(": ")
        if line == "" and event.name:
            yield event
            event = Event()
        elif name == "event":
            event.name = value
        elif name == "id":
            event.id = value
        elif name == "data":
            event.data = json.loads(value)


@asynccontextmanager
async def native(
    url: str, model: Any = None, worker: bool = True, jobs: Iterable[Any] = JOBS, **settings: Any
) -> AsyncIterator[Native]:
    model = model or Scripted(lambda request: "Hello there, good friend")
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(Dayjob(url, model=model, jobs=jobs, worker=worker))
        base = await stack.enter_async_context(serving(app, **settings))
        clients = [
            await stack.enter_async_context(
                httpx2.AsyncClient(base_url=base, timeout=20, headers={"authorization": f"Bearer {project}"})
            )
            for project in (PROJECT, OTHERS)
        ]
        yield Native(app, *clients)


@asynccontextmanager
async def serving(app: Dayjob, **settings: Any) -> AsyncIterator[str]:
    """A server over the app, with a key for each of two projects: its secret is the project's name."""
    known = {key.id for key in await app.store.api_keys()}
    for project in (PROJECT, OTHERS):
        key = KeyRecord(f"key_{project}", hash_of(project), project, project, "admin", project, 1.0)
        if key.id not in known:
            await app.store.add_key(key)
    listener = bound("127.0.0.1", 0)
    try:
        async with listening(create_server(app, Settings(**settings)), listener):
            yield url_of(listener)
    finally:
        listener.close()
