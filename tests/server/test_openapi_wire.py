"""The wire, and what else the server has, answer as it is documented, whatever they are asked."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from dayjob.assistant import JOB, AssistantRun
from dayjob.errors import ModelRefused
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.server.described import TAGS
from tests.server.documented import CHECKS, DOCUMENT, operations, paths_where, requests_of_each, served_beside
from tests.server.serving import Serving, function, serving
from tests.server.test_openapi_native import OWN

PATHS = paths_where(lambda path: path not in OWN)
STATES = {
    "completed": "hi", "failed": "fail", "incomplete": "be cut off", "cancelled": "call", "requires_action": "call",
    "expired": "call",
}  # fmt: skip
"""By the state that a run is to end in: what is said to it."""
STREAMED = (
    "POST /v1/threads/runs", "POST /v1/threads/{thread_id}/runs", "GET /v1/threads/{thread_id}/runs/{run_id}/stream",
    "POST /v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
)  # fmt: skip
CUT = ModelReply("Once upon", (), Usage(5, 2), 0.0, "length", "scripted")
KEPT: list[dict[str, str]] = []
"""What most requests are about: the ids of a run in each state, and of what belongs to it."""
SPARE: list[dict[str, str]] = []
"""The like, for requests that take it away."""


# --- the document, as it is read -------------------------------------------------------------------


def test_each_operation_has_a_summary_a_description_a_known_tag_and_its_refusals() -> None:
    for where, each in operations(DOCUMENT["paths"]):
        assert each["summary"] and each["description"], where
        assert set(each["tags"]) <= set(TAGS), where
        assert {"4XX", "5XX"} <= set(each["responses"]), where
        assert "422" not in each["responses"], where
    used = {tag for _, each in operations(DOCUMENT["paths"]) for tag in each["tags"]}
    assert used == set(TAGS)
    assert [tag["name"] for tag in DOCUMENT["tags"]] == list(TAGS)


def test_each_body_has_an_example_and_no_type_has_the_name_of_a_module() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert not [name for name in schemas if "__" in name]
    assert not [
        name for name in schemas if f"{name}Object" in schemas and schemas[name] == schemas[f"{name}Object"]
    ]
    for where, each in operations(DOCUMENT["paths"]):
        body = each.get("requestBody", {}).get("content", {}).get("application/json")
        for name in re.findall(r"schemas/(\w+)", str(body)):
            assert schemas[name]["examples"], where


def test_what_may_be_streamed_is_documented_as_a_stream() -> None:
    streams = [
        where
        for where, each in operations(PATHS)
        if "text/event-stream" in each["responses"]["200"]["content"]
    ]
    assert sorted(streams) == sorted(STREAMED)


# --- the server, as it answers ---------------------------------------------------------------------


def reply(request: ModelRequest) -> Any:
    said = request.messages[-1]["content"]
    return {
        "fail": ModelRefused("the key was refused by x (401)"), "be cut off": CUT,
        "call": ToolCall("call_1", "f", "{}"),
    }.get(said, "Hello.")  # fmt: skip


async def seeded(here: Serving, state: str, said: str) -> dict[str, str]:
    """A run in this state, with its assistant, its thread, a message, a step and a file."""
    threads = here.client.beta.threads
    assistant = await here.client.beta.assistants.create(model="m", tools=[function("f")])
    thread = await threads.create(messages=[{"role": "user", "content": said}])
    if state == "expired":
        asked = AssistantRun(assistant.id, "m", tools=[function("f")])
        run = (await here.app.submit(here.app.jobs[JOB](asked), thread=thread.id, expires=0.5)).id
        await here.app.until_settled(run, 20)
    else:
        run = (await threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)).id
    if state == "cancelled":
        await threads.runs.cancel(run, thread_id=thread.id)
        await here.app.until_settled(run, 20)
    assert (await threads.runs.retrieve(run, thread_id=thread.id)).status == state
    steps = (await threads.runs.steps.list(run, thread_id=thread.id)).data
    return {
        "assistant_id": assistant.id,
        "thread_id": thread.id,
        "run_id": run,
        "message_id": (await threads.messages.list(thread.id)).data[0].id,
        "step_id": steps[0].id if steps else "step_none",
        "id": (await here.client.files.create(file=("a.txt", b"hello"), purpose="vision")).id,
        "model": "scripted",
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with all that requests can meet, and a key for it."""
    folder: Path = tmp_path_factory.mktemp("openapi")
    secrets = []

    @asynccontextmanager
    async def server() -> AsyncIterator[str]:
        async with serving(folder, reply) as here:
            for state, said in STATES.items():
                KEPT.append(await seeded(here, state, said))
                SPARE.append(await seeded(here, state, said))
            secrets.append(here.secret)
            yield here.url.removesuffix("/v1")

    with served_beside(server) as url:
        yield url, secrets[0]


SCHEMA = schemathesis.openapi.from_dict({**DOCUMENT, "paths": PATHS})


@SCHEMA.parametrize()
@requests_of_each(20)
def test_no_answer_is_undocumented(case: Any, base: tuple[str, str]) -> None:
    chance = random.Random(repr(case.body) + repr(case.query) + repr(case.path_parameters))
    takes_away = case.method == "DELETE" or case.operation.path.endswith("/cancel")
    ids = chance.choice(SPARE if takes_away else KEPT)
    if chance.random() < 0.8:
        for name in case.path_parameters:
            case.path_parameters[name] = ids[name]
        if isinstance(case.body, dict) and "assistant_id" in case.body:
            case.body["assistant_id"] = ids["assistant_id"]
        if isinstance(case.body, dict) and "tool_outputs" in case.body and chance.random() < 0.5:
            case.body["tool_outputs"] = [{"tool_call_id": "call_1", "output": "x"}]
    url, key = base
    case.call_and_validate(
        base_url=url, checks=CHECKS, timeout=20, headers={"authorization": f"Bearer {key}"}
    )


async def test_vector_stores_are_answered_with_501_and_are_not_in_the_document(tmp_path: Path) -> None:
    assert not [path for path in PATHS if "vector_stores" in path]
    async with serving(tmp_path, worker=False) as here:
        for path in ("/vector_stores", "/vector_stores/vs_1", "/vector_stores/vs_1/files/file-1"):
            for method in ("GET", "POST", "DELETE"):
                answer = await here.http.request(method, path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_supported")
                assert answer.headers["x-should-retry"] == "false"
