"""`/api/keys` and `/api/audit`: for admins, and each for its own project."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dayjob.kept import AuditRecord
from dayjob.server.audit import MOST_STRANGERS, STRANGER, Audit
from tests.until import until


async def test_an_admin_makes_lists_and_revokes_keys(serving: Any) -> None:
    served = await serving()
    admin = await served.http(await served.key("a"))
    made = (await admin.post("/api/keys", json={"name": "reporter"})).json()
    assert (made["name"], made["project"], made["role"]) == ("reporter", "a", "member")
    assert made["secret"].startswith(made["start"])
    member = await served.http(made["secret"])
    assert (await member.get("/v1/models")).status_code == 200
    listed = (await admin.get("/api/keys")).json()["data"]
    assert [key["name"] for key in listed] == ["test", "reporter"]
    assert not any("hash" in key or "secret" in key for key in listed)
    assert (await admin.delete(f"/api/keys/{made['id']}")).status_code == 200
    assert (await member.get("/v1/models")).status_code == 401


async def test_a_member_administers_nothing(serving: Any) -> None:
    served = await serving()
    member = await served.http(await served.key("a", "member"))
    for method, path, body in (
        ("GET", "/api/keys", None), ("POST", "/api/keys", {"name": "x", "role": "admin"}),
        ("DELETE", "/api/keys/key_1", None), ("GET", "/api/audit", None),
    ):  # fmt: skip
        answer = await member.request(method, path, json=body)
        assert answer.status_code == 403, (method, path)
        assert answer.json()["error"]["code"] == "insufficient_role"


async def test_an_admin_of_one_project_sees_and_revokes_no_key_of_another(serving: Any) -> None:
    served = await serving()
    a, b = await served.http(await served.key("a")), await served.http(await served.key("b"))
    [other] = (await b.get("/api/keys")).json()["data"]
    assert [key["project"] for key in (await a.get("/api/keys")).json()["data"]] == ["a"]
    assert (await a.delete(f"/api/keys/{other['id']}")).status_code == 404
    assert (await b.get("/api/keys")).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "x", "role": "god"}, {"name": "x" * 101}, {"name": "\x1b[8m"}]
)
async def test_a_key_that_is_asked_for_wrongly_is_refused(serving: Any, body: dict[str, Any]) -> None:
    served = await serving()
    answer = await (await served.http()).post("/api/keys", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("name", "role")


async def test_changes_and_refusals_are_audited_and_reading_is_not(serving: Any) -> None:
    served = await serving()
    key = await served.key("a")
    admin = await served.http(key)
    made = await admin.post("/api/keys", json={"name": "x"})
    await admin.get("/v1/models")
    await admin.delete("/api/keys/nothing")
    await (await served.http(made.json()["secret"])).get("/api/audit")
    await (await served.http("dj_wrong-wrong-wrong")).get("/v1/models")

    async def entries() -> Any:
        data = (await admin.get("/api/audit")).json()["data"]
        return data if len(data) == 3 else None

    refused, deleted, created = await until(entries, what="the audit log")
    assert (refused["action"], refused["status"]) == ("GET /api/audit", 403)
    assert (deleted["action"], deleted["status"]) == ("DELETE /api/keys/nothing", 404)
    assert (created["action"], created["status"]) == ("POST /api/keys", 200)
    assert created["request"] == made.headers["x-request-id"]
    [known] = [each for each in await served.app.store.api_keys() if each.name == "test"]
    assert created["who"] == known.id
    [stranger] = await until(lambda: served.app.store.audit("default"), what="the stranger's entry")
    assert (stranger.who, stranger.status) == (STRANGER, 401)


async def test_what_is_waiting_is_written_when_the_server_stops(serving: Any) -> None:
    served = await serving()
    audit = Audit(served.app)
    for n in range(3):
        audit.note("a", AuditRecord(n, "key_1", "POST /", 200, "req_1"))
    await audit.flush()
    assert [entry.at for entry in await served.app.store.audit("a")] == [2, 1, 0]


async def test_knocking_does_not_fill_the_log(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = await serving()
    audit = Audit(served.app)
    for _ in range(1_000):
        audit.note("a", AuditRecord(0.0, STRANGER, "GET /", 401, "req_1"))
    audit.note("a", AuditRecord(0.0, "key_1", "POST /", 200, "req_1"))
    await audit.flush()
    assert len(await served.app.store.audit("a")) == MOST_STRANGERS + 1
    assert "were dropped" in caplog.text


async def test_many_at_once_are_all_written(serving: Any) -> None:
    served = await serving()
    http = await served.http()
    await asyncio.gather(*(http.post("/api/keys", json={"name": f"{n}"}) for n in range(1)))
    key = await served.http(await served.key())
    await asyncio.gather(*(key.delete(f"/api/keys/{n}") for n in range(50)))

    async def count() -> bool:
        return len(await served.app.store.audit("default", 1_000)) == 51

    await until(count, what="the audit log")
