"""`/v1/models`, `/v1/vector_stores` and `/health`."""

from __future__ import annotations

from typing import Any

import openai
import pytest


async def test_models_are_the_names_that_were_mapped_and_the_servers_own(serving: Any) -> None:
    served = await serving(models={"gpt-4o": "openai:gpt-5-mini", "org/small": "local:"})
    client = await served.openai()
    assert [model.id async for model in client.models.list()] == ["gpt-4o", "org/small", "scripted"]
    assert (await client.models.retrieve("org/small")).object == "model"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve("gpt-9")
    assert unknown.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["", "/vs_1", "/vs_1/files/file-1/content", "/vs_1/file_batches/b/cancel"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_vector_stores_are_said_to_be_missing(serving: Any, path: str, method: str) -> None:
    served = await serving()
    body = {"json": {"name": "x"}} if method == "POST" else {}
    answer = await (await served.http()).request(method, f"/v1/vector_stores{path}", **body)
    assert answer.status_code == 501
    assert answer.json()["error"]["code"] == "not_supported"
    assert answer.headers["x-should-retry"] == "false"


async def test_the_official_client_does_not_try_vector_stores_again(serving: Any) -> None:
    served = await serving()
    client = (await served.openai()).with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError, match="not supported"):
        await client.vector_stores.create(name="x")
    entries = [entry async for entry in _audit(served)]
    assert len(entries) == 1


async def _audit(served: Any) -> Any:
    from tests.until import until

    found = await until(lambda: served.app.store.audit("default"), what="the audit log")
    for entry in found:
        yield entry


async def test_health_says_whether_the_store_answers(serving: Any) -> None:
    served = await serving()
    assert (await (await served.http()).get("/health")).json() == {"status": "ok"}
