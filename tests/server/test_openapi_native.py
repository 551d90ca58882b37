"""The native API answers as it is documented, whatever it is asked."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import schemathesis

from dayjob.server import native as native_api
from tests.docs.pages import DOCS, rows, section
from tests.server.documented import CHECKS, DOCUMENT, operations, paths_where, requests_of_each, served_beside
from tests.server.native_serving import native

OPERATIONS = 17
ENDED: list[str] = []
WAITING: list[str] = []
OWN = {route.path for route in native_api.router.routes}  # type: ignore[attr-defined]
PATHS = paths_where(OWN.__contains__)


def test_each_endpoint_is_documented_with_an_example_and_its_refusals() -> None:
    found = list(operations(PATHS))
    assert len(found) == OPERATIONS
    for where, each in found:
        assert each["description"], where
        assert {"4XX", "5XX"} <= set(each["responses"]), where
        if "requestBody" in each:
            name = str(each["requestBody"]["content"]["application/json"]["schema"])
            assert "Body" in name or "ref" in name, where
        good = [answer for status, answer in each["responses"].items() if status.startswith("2")]
        given = [content for answer in good for content in answer.get("content", {}).values()]
        assert all("example" in content for content in given), where
    bodies = DOCUMENT["components"]["schemas"]
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
    """A server with a run in each state that requests can meet."""
    store = f"sqlite:///{tmp_path_factory.mktemp('openapi')}/runs.db"

    @asynccontextmanager
    async def server() -> AsyncIterator[str]:
        async with native(store) as here:
            for job, input in (("count", {"to": 2}), ("fails", {}), ("greet", {"name": "Ann"})):
                ENDED.append(await here.run(job, **input))
                await here.ended(ENDED[-1])
            WAITING.append(await here.run("inquire"))
            WAITING.append(await here.run("pay", amount=500))
            yield str(here.http.base_url)

    with served_beside(server) as url:
        yield url


def test_each_endpoint_stands_in_the_docs() -> None:
    told = [row[0].strip("`") for row in rows(section(DOCS / "api.md", "## Endpoints"))]
    assert sorted(told) == sorted(call for call, _ in operations(PATHS))


SCHEMA = schemathesis.openapi.from_dict({**DOCUMENT, "paths": PATHS})


@SCHEMA.parametrize()
@requests_of_each(15)
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
