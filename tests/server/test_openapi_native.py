"""The native API answers as it is documented, whatever it is asked."""

from __future__ import annotations

from typing import Any

from dayjob import Dayjob
from dayjob.server import Settings, create_server

OPERATIONS = 16
SERVER = create_server(Dayjob(worker=False), Settings())


def documented() -> dict[str, Any]:
    return {path: each for path, each in SERVER.openapi()["paths"].items() if path.startswith("/api/")}


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
    for name in ("NewRun", "NewAnswer", "Approval", "Rejection", "Cancellation", "Resumption", "NewEvent"):
        assert bodies[name]["examples"], name
