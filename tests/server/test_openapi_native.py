"""The native API answers as it is documented, whatever it is asked."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as oa

from dayjob import Dayjob
from dayjob.server import Settings, create_server
from dayjob.server import native as native_api
from tests.docs.pages import DOCS, rows, section
from tests.server.native_serving import native

OPERATIONS = 17
ENDED: list[str] = []
WAITING: list[str] = []
SERVER = create_server(Dayjob(worker=False), Settings())


def documented() -> dict[str, Any]:
    paths = {route.path for route in native_api.router.routes}  # type: ignore[attr-defined]
    return {path: each for path, each in SERVER.openapi()["paths"].items() if path in paths}


def test_each_endpoint_is_documented_with_an_example_and_its_refusals() -> None:
    operations = [(path, verb, each) for path, verbs in documented().items() for verb, each in verbs.items()]
    assert len(operations) == OPERATIONS
    for path, verb, each in operations:
        where = f"{verb} {path}"
        assert each["description"], where
        assert {"4XX", "5XX"} <= set(each["responses"]), where
        if "requestBody" in each:
            name = str(each["requestBody"]["content"]["application/json"]["schema"])
            assert "Body" in name or "ref" in name, where
        good = [answer for status, answer in each["responses"].items() if status.startswith("2")]
        given = [content for answer in good for content in answer.get("content", {}).values()]
        assert all("example" in content for content in given), where
    bodies = SERVER.openapi()["components"]["schemas"]
    for name in (
        "RunRequest",
        "NewAnswer",
        "Approval",
        "Rejection",
        "Cancellation",
        "Resumption",
        "NewEvent",
    ):
        assert bodies[name]["examples"], name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a run in each state that requests can meet, on a loop of its own."""
    folder: Path = tmp_path_factory.mktemp("openapi")
    loop = asyncio.new_event_loop()
    told: Future[str] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with native(f"sqlite:///{folder}/runs.db") as here:
            for job, input in (("count", {"to": 2}), ("fails", {}), ("greet", {"name": "Ann"})):
                ENDED.append(await here.run(job, **input))
                await here.ended(ENDED[-1])
            WAITING.append(await here.run("inquire"))
            WAITING.append(await here.run("pay", amount=500))
            told.set_result(str(here.http.base_url))
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield told.result(30)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_each_endpoint_stands_in_the_docs() -> None:
    told = [row[0].strip("`") for row in rows(section(DOCS / "api.md", "## Endpoints"))]
    calls = [f"{verb.upper()} {path}" for path, verbs in documented().items() for verb in verbs]
    assert sorted(told) == sorted(calls)


SCHEMA = schemathesis.openapi.from_dict({**SERVER.openapi(), "paths": documented()})
CHECKS = [
    checks.not_a_server_error, oa.status_code_conformance, oa.content_type_conformance,
    oa.response_schema_conformance, oa.response_headers_conformance,
]  # fmt: skip


@SCHEMA.parametrize()
@settings(
    max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_no_answer_is_undocumented(case: Any, base: str) -> None:
    chance = random.Random(repr(case.body) + repr(case.query))
    if "run" in case.path_parameters and chance.random() < 0.7:
        streams = case.method == "GET" and case.operation.path.endswith("/events")
        case.path_parameters["run"] = chance.choice(ENDED if streams else ENDED + WAITING)
    if isinstance(case.body, dict) and "job" in case.body and chance.random() < 0.7:
        case.body["job"], case.body["input"] = "greet", {"name": "Ann"}
    case.call_and_validate(
        base_url=base, checks=CHECKS, timeout=20, headers={"authorization": "Bearer default"}
    )
