"""Who may do what: every endpoint, asked by everyone, for what is the caller's own and what is another project's."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dayjob import Dayjob
from dayjob.models import ToolCall
from dayjob.server import Settings, create_server
from tests.docs.pages import DOCS, rows, section
from tests.server.native_serving import JOBS
from tests.server.serving import Serving, function, serving
from tests.until import until

TABLE = """
GET    /v1/assistants                                              member   not listed
POST   /v1/assistants                                              member   –
GET    /v1/assistants/{assistant_id}                               member   404
POST   /v1/assistants/{assistant_id}                               member   404
DELETE /v1/assistants/{assistant_id}                               member   404
GET    /v1/threads                                                 member   not listed
POST   /v1/threads                                                 member   –
POST   /v1/threads/runs                                            member   404
GET    /v1/threads/{thread_id}                                     member   404
POST   /v1/threads/{thread_id}                                     member   404
DELETE /v1/threads/{thread_id}                                     member   404
GET    /v1/threads/{thread_id}/messages                            member   404
POST   /v1/threads/{thread_id}/messages                            member   404
GET    /v1/threads/{thread_id}/messages/{message_id}               member   404
POST   /v1/threads/{thread_id}/messages/{message_id}               member   404
DELETE /v1/threads/{thread_id}/messages/{message_id}               member   404
GET    /v1/threads/{thread_id}/runs                                member   404
POST   /v1/threads/{thread_id}/runs                                member   404
GET    /v1/threads/{thread_id}/runs/{run_id}                       member   404
POST   /v1/threads/{thread_id}/runs/{run_id}                       member   404
GET    /v1/threads/{thread_id}/runs/{run_id}/stream                member   404
POST   /v1/threads/{thread_id}/runs/{run_id}/cancel                member   404
POST   /v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs   member   404
GET    /v1/threads/{thread_id}/runs/{run_id}/steps                 member   404
GET    /v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}       member   404
GET    /v1/files                                                   member   not listed
POST   /v1/files                                                   member   –
GET    /v1/files/{id}                                              member   404
DELETE /v1/files/{id}                                              member   404
GET    /v1/files/{id}/content                                      member   404
GET    /v1/models                                                  member   –
GET    /v1/models/{model}                                          member   –
GET    /api/jobs                                                   member   –
GET    /api/jobs/{name}                                            member   –
GET    /api/runs                                                   member   not listed
POST   /api/runs                                                   member   404
GET    /api/runs/{run}                                             member   404
POST   /api/runs/{run}/cancel                                      member   404
POST   /api/runs/{run}/resume                                      member   404
GET    /api/runs/{run}/events                                      member   404
POST   /api/runs/{run}/events                                      member   404
GET    /api/runs/{run}/steps                                       member   404
GET    /api/runs/{run}/step                                        member   404
GET    /api/runs/{run}/actions                                     member   404
POST   /api/runs/{run}/answer                                      member   404
POST   /api/runs/{run}/approve                                     member   404
POST   /api/runs/{run}/reject                                      member   404
GET    /api/actions                                                member   not listed
GET    /api/summary                                                member   not listed
GET    /api/keys                                                   admin    not listed
POST   /api/keys                                                   admin    –
DELETE /api/keys/{id}                                              admin    404
GET    /api/audit                                                  admin    not listed
GET    /health                                                     anyone   –
"""
"""Method, path, who may do it, and what is answered for what is another project's."""


@dataclass(frozen=True)
class Row:
    method: str
    path: str
    who: str
    foreign: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ROWS = [Row(*re.split(r"\s+", line, maxsplit=3)) for line in TABLE.strip().splitlines()]
CALL = ToolCall("call_1", "weather", "{}")
OUTPUTS = {"tool_outputs": [{"tool_call_id": CALL.id, "output": "rain"}]}
MESSAGE = {"role": "user", "content": "Hello?"}
BODIES: dict[str, Any] = {
    "POST /v1/assistants": {"model": "m"},
    "POST /v1/assistants/{assistant_id}": {"name": "Another"},
    "POST /v1/threads": {"messages": [MESSAGE]},
    "POST /v1/threads/runs": {"assistant_id": "{assistant_id}"},
    "POST /v1/threads/{thread_id}": {"metadata": {"a": "b"}},
    "POST /v1/threads/{thread_id}/messages": MESSAGE,
    "POST /v1/threads/{thread_id}/messages/{message_id}": {"metadata": {"a": "b"}},
    "POST /v1/threads/{thread_id}/runs": {"assistant_id": "{assistant_id}"},
    "POST /v1/threads/{thread_id}/runs/{run_id}": {"metadata": {"a": "b"}},
    "POST /v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs": OUTPUTS,
    "POST /api/runs": {"job": "inquire", "input": {}, "thread": "{thread_id}"},
    "POST /api/runs/{run}/cancel": {"reason": "enough"},
    "POST /api/runs/{run}/resume": {},
    "POST /api/runs/{run}/events": {"name": "paid", "value": {}},
    "POST /api/runs/{run}/answer": {"action": "ask", "value": 7},
    "POST /api/runs/{run}/approve": {"action": "refund#approve"},
    "POST /api/runs/{run}/reject": {"action": "refund#approve"},
    "POST /api/keys": {"name": "x"},
}
QUERIES = {"GET /api/runs/{run}/step": {"key": "ask"}}
FILTERS: dict[str, dict[str, str]] = {
    "GET /v1/assistants": {"after": "assistant_id", "before": "assistant_id"},
    "GET /v1/threads": {"after": "thread_id", "before": "thread_id"},
    "GET /v1/threads/{thread_id}/messages": {
        "after": "message_id", "before": "message_id", "run_id": "run_id",
    },
    "GET /v1/threads/{thread_id}/runs": {"after": "run_id", "before": "run_id"},
    "GET /v1/threads/{thread_id}/runs/{run_id}/steps": {"after": "step_id", "before": "step_id"},
    "GET /v1/files": {"after": "file", "before": "file"},
    "GET /api/runs": {"after": "run", "before": "run", "thread": "thread_id", "parent": "parent"},
}  # fmt: skip
"""What lists may be asked for by the id of something."""
PLACES = {
    "/v1/files/{id}": "file", "/api/keys/{id}": "key", "/v1/models/{model}": "model", "/api/jobs/{name}": "job",
    "POST /api/runs/{run}/resume": "failed", "GET /api/runs/{run}/events": "failed",
    "POST /api/runs/{run}/events": "listening", "POST /api/runs/{run}/approve": "paying",
    "POST /api/runs/{run}/reject": "paying",
}  # fmt: skip
"""What a place of a path stands for, where its name alone does not say it."""
NO_IDS = ("model", "job")
UNKNOWN = "unknown_{}"


def placed(row: Row) -> str:
    """The path, with each place named for what is put there."""
    for start, name in PLACES.items():
        if str(row).startswith(start) or row.path.startswith(start):
            return re.sub(r"\{\w+\}", f"{{{name}}}", row.path)
    return row.path


def ids_in(row: Row) -> list[str]:
    """What the request names by its id, in its path and in its body."""
    named = re.findall(r"\{(\w+)\}", placed(row) + json.dumps(BODIES.get(str(row))))
    return [name for name in named if name not in NO_IDS]


# --- what there is in a project --------------------------------------------------------------------


@dataclass
class Project:
    """What a project has, each thing made when it is asked for by its name."""

    http: httpx2.AsyncClient
    things: dict[str, str] = field(default_factory=dict)

    async def id(self, name: str) -> str:
        if name not in self.things:
            make: Callable[[], Awaitable[str]] = getattr(self, f"_{name}")
            self.things[name] = await make()
        return self.things[name]

    async def _made(self, path: str, body: Any = None, **more: Any) -> str:
        answer = await self.http.post(path, json=body, **more)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    async def _assistant_id(self) -> str:
        return await self._made("/v1/assistants", {"model": "m", "tools": [function("weather")]})

    async def _thread_id(self) -> str:
        return await self._made("/v1/threads", {"messages": [MESSAGE]})

    async def _message_id(self) -> str:
        messages = await self.http.get(f"/v1/threads/{await self.id('thread_id')}/messages")
        return str(messages.json()["data"][0]["id"])

    async def _run_id(self) -> str:
        path = f"/v1/threads/{await self.id('thread_id')}/runs"
        run = await self._made(path, {"assistant_id": await self.id("assistant_id")})
        polls = {"x-stainless-poll-helper": "true"}

        async def waits() -> bool:
            answer = await self.http.get(f"{path}/{run}", headers=polls)
            return bool(answer.json()["status"] == "requires_action")

        await until(waits)
        return run

    async def _step_id(self) -> str:
        path = f"/v1/threads/{await self.id('thread_id')}/runs/{await self.id('run_id')}/steps"
        return str((await self.http.get(path)).json()["data"][0]["id"])

    async def _file(self) -> str:
        form = {"files": {"file": ("a.txt", b"hello")}, "data": {"purpose": "assistants"}}
        return await self._made("/v1/files", **form)

    async def _key(self) -> str:
        return await self._made("/api/keys", {"name": "another"})

    async def _run(self) -> str:
        return await self._run_of("inquire", "actions")

    async def _paying(self) -> str:
        return await self._run_of("pay", "actions", amount=500)

    async def _listening(self) -> str:
        return await self._run_of("listen", "steps")

    async def _failed(self) -> str:
        return await self._ended("fails")

    async def _parent(self) -> str:
        return await self._ended("parent")

    async def _model(self) -> str:
        return "scripted"

    async def _job(self) -> str:
        return "inquire"

    async def _run_of(self, job: str, until_it_has: str, **input: Any) -> str:
        run = await self._made("/api/runs", {"job": job, "input": input})

        async def has() -> bool:
            return bool((await self.http.get(f"/api/runs/{run}/{until_it_has}")).json()["data"])

        await until(has)
        return run

    async def _ended(self, job: str) -> str:
        run = await self._made("/api/runs", {"job": job, "input": {}})

        async def ended() -> bool:
            return bool((await self.http.get(f"/api/runs/{run}")).json()["ended"])

        await until(ended)
        return run


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    def but_for(self, ids: dict[str, str]) -> Answer:
        """The answer, with the ids of the request named for what they are."""
        text = self.text
        for name, id in ids.items():
            text = text.replace(id, name)
        return Answer(self.status, text)


async def ask(http: httpx2.AsyncClient, row: Row, ids: dict[str, str], **query: str) -> Answer:
    """Asks for what a row says, of things with these ids. Of a stream, only the head is read."""
    how: dict[str, Any] = {"params": {**QUERIES.get(str(row), {}), **query}}
    if str(row) == "POST /v1/files":
        how |= {"files": {"file": ("a.txt", b"hello")}, "data": {"purpose": "assistants"}}
    elif (body := BODIES.get(str(row))) is not None:
        how["json"] = json.loads(filled(json.dumps(body), ids))
    async with http.stream(row.method, filled(placed(row), ids), **how) as answer:
        streams = answer.headers.get("content-type", "").startswith("text/event-stream")
        return Answer(answer.status_code, "" if streams else (await answer.aread()).decode())


def filled(text: str, ids: dict[str, str]) -> str:
    for name, id in ids.items():
        text = text.replace(f"{{{name}}}", id)
    return text


# --- who asks --------------------------------------------------------------------------------------


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, lambda request: CALL, jobs=JOBS) as started:
        yield started


async def as_one_with(here: Serving, key: str | None) -> httpx2.AsyncClient:
    """A client that comes with this key."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    base = here.url.removesuffix("/v1")
    return await here.stack.enter_async_context(
        httpx2.AsyncClient(base_url=base, headers=headers, timeout=20, verify=False)
    )


async def project(here: Serving, name: str) -> Project:
    return Project(await as_one_with(here, await here.key(name, "admin")))


def test_every_endpoint_stands_in_the_table() -> None:
    paths = create_server(Dayjob(worker=False), Settings()).openapi()["paths"]
    served = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert sorted(map(str, ROWS)) == sorted(served)
    assert sorted(BODIES) == sorted(set(BODIES) & set(map(str, ROWS)))
    assert set(FILTERS) <= set(map(str, ROWS))


def test_the_docs_tell_the_same_table() -> None:
    told = rows(section(DOCS / "server.md", "### Who may do what"))
    assert told == [[f"`{row}`", row.who, row.foreign] for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_each_may_do_what_the_table_says_and_no_more(here: Serving, row: Row) -> None:
    mine = await project(here, "mine")
    ids = {name: await mine.id(name) for name in [*ids_in(row), *NO_IDS]}
    for key in (None, "dj_wrong-wrong-wrong-wrong", await here.key("mine", "admin", revoked=True)):
        answer = await ask(await as_one_with(here, key), row, ids)
        assert answer.status == (200 if row.who == "anyone" else 401)
    member = await ask(await as_one_with(here, await here.key("mine", "member")), row, ids)
    if row.who == "admin":
        assert (member.status, json.loads(member.text)["error"]["code"]) == (403, "insufficient_role")
    else:
        assert member.status in (200, 201, 204), member.text
    again = await project(here, "mine")
    admin = await ask(again.http, row, {name: await again.id(name) for name in ids})
    assert admin.status in (200, 201, 204), admin.text


# --- what is another project's ---------------------------------------------------------------------


def others_among(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Each choice of the things that a request names, of which at least one is not the caller's own."""
    for count in range(1, len(names) + 1):
        yield from itertools.combinations(names, count)


async def seen(of: Project) -> dict[str, Any]:
    """All that its own callers see of a project. The journal of a run that waits does not move by itself."""
    found = {}
    for row in ROWS:
        if row.method == "GET" and row.path not in ("/health", "/api/audit"):
            found[str(row)] = await ask(
                of.http, row, {name: await of.id(name) for name in [*ids_in(row), *NO_IDS]}
            )
    return found


async def test_what_is_another_projects_is_answered_as_what_is_nowhere_and_stays_as_it_is(
    here: Serving,
) -> None:
    theirs, mine = await project(here, "theirs"), await project(here, "mine")
    for row in ROWS:
        for name in ids_in(row):
            await theirs.id(name)
    before = await seen(theirs)
    members = await as_one_with(here, await here.key("mine", "member"))
    for row in ROWS:
        names = list(dict.fromkeys(ids_in(row)))
        own = {name: await mine.id(name) for name in [*names, *NO_IDS]}
        for others in others_among(names):
            there = {name: await theirs.id(name) for name in others}
            nowhere = {name: UNKNOWN.format(name) for name in others}
            for http in (mine.http, members):
                foreign = (await ask(http, row, {**own, **there})).but_for(there)
                unknown = (await ask(http, row, {**own, **nowhere})).but_for(nowhere)
                assert foreign == unknown, (row, others)
                expected = 403 if row.who == "admin" and http is members else 404
                assert foreign.status == expected and row.foreign == "404", (row, others)
    assert await seen(theirs) == before


async def test_a_list_tells_nothing_of_what_is_another_projects(here: Serving) -> None:
    theirs, mine = await project(here, "theirs"), await project(here, "mine")
    await seen(theirs)
    await theirs.id("parent")
    ids = set(theirs.things.values()) - {"scripted", "inquire"}
    await seen(mine)
    for row in ROWS:
        own = {name: await mine.id(name) for name in [*ids_in(row), *NO_IDS]}
        if row.foreign == "not listed":
            answer = await ask(mine.http, row, own)
            assert answer.status == 200
            assert not [id for id in ids if id in answer.text], row
        for filter, name in FILTERS.get(str(row), {}).items():
            there, nowhere = await theirs.id(name), UNKNOWN.format(name)
            foreign = (await ask(mine.http, row, own, **{filter: there})).but_for({name: there})
            unknown = (await ask(mine.http, row, own, **{filter: nowhere})).but_for({name: nowhere})
            assert foreign == unknown, (row, filter)


async def test_the_summary_and_the_log_of_a_project_are_its_own(here: Serving) -> None:
    theirs, mine = await project(here, "theirs"), await project(here, "mine")
    await theirs.id("failed")
    assert (await mine.http.get("/api/summary")).json()["data"] == []
    await mine.id("assistant_id")

    async def logged() -> Any:
        return (await mine.http.get("/api/audit")).json()["data"]

    entries = await until(logged)
    assert {entry["action"] for entry in entries} == {"POST /v1/assistants"}


MAKING = [row for row in ROWS if row.method == "POST" and row.path in (
    "/v1/assistants", "/v1/threads", "/v1/threads/runs", "/v1/files", "/api/runs",
)]  # fmt: skip


@pytest.mark.parametrize("row", MAKING, ids=str)
async def test_the_same_idempotency_key_in_two_projects_makes_two_things(here: Serving, row: Row) -> None:
    made = []
    for name in ("theirs", "mine"):
        own = await project(here, name)
        ids = {name: await own.id(name) for name in ids_in(row)}
        own.http.headers["idempotency-key"] = "the same"
        made += [json.loads((await ask(own.http, row, ids)).text)["id"] for _ in range(2)]
    assert made[0] == made[1] != made[2] == made[3]
