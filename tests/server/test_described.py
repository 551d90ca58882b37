"""The OpenAPI document tells what each endpoint of the wire answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.server.serving import serving


def refs(value: Any) -> set[str]:
    return set(re.findall(r"'#/components/schemas/([^']+)'", str(value)))


async def test_every_answer_of_the_wire_is_described_and_every_reference_resolves(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        document = (await here.http.get("/../openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert refs(document) <= set(schemas)
    wire = [
        (path, method, operation["responses"]["200"]["content"]["application/json"]["schema"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith(("/v1/assistants", "/v1/threads")) and not path.endswith("/stream")
    ]
    assert len(wire) == 24 and all(schema for _, _, schema in wire)
