"""The native API by a real client: jobs, runs, journals, actions, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.native_serving import Native, native
from tests.until import until


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(f"sqlite:///{tmp_path}/runs.db") as serving:
        yield serving


def refused(answer: httpx2.Response, status: int = 400, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    return str(error["message"])


async def waiting(here: Native, run: str) -> dict[str, Any]:
    async def look() -> Any:
        return (await here.http.get(f"/api/runs/{run}/actions")).json()["data"]

    return (await until(look))[0]


# --- jobs and runs -----------------------------------------------------------------------------------


async def test_a_job_tells_its_input_as_a_schema(here: Native) -> None:
    jobs = (await here.http.get("/api/jobs")).json()["data"]
    assert [each["name"] for each in jobs] == sorted(here.app.jobs)
    told = (await here.http.get("/api/jobs/greet")).json()
    assert told["description"] == "Greets somebody."
    assert told["input"]["required"] == ["name"]
    assert told["input"]["properties"]["times"] == {"type": "integer", "title": "Times", "default": 1}
    refused(await here.http.get("/api/jobs/nothing"), 404)


async def test_a_run_is_made_and_tells_what_it_gave_and_spent(here: Native) -> None:
    body = {
        "job": "greet",
        "input": {"name": "Ann"},
        "tags": ["vip"],
        "limits": {"tokens": 1_000},
        "priority": 3,
    }
    answer = await here.http.post("/api/runs", json=body)
    assert answer.status_code == 201
    assert answer.json()["input"] == {"name": "Ann", "times": 1}
    told = await here.ended(answer.json()["id"])
    assert told["status"] == "completed"
    assert told["output"] == "Hello there, good friend"
    assert told["tags"] == ["vip"]
    assert told["usage"]["output_tokens"] > 0
    assert told["limits"]["tokens"]["limit"] == 1_000
    summary = (await here.http.get("/api/summary")).json()["data"]
    assert [(each["job"], each["completed"]) for each in summary] == [("greet", 1)]


async def test_a_key_gives_the_same_run_however_it_is_sent(here: Native) -> None:
    body = {"job": "inquire", "input": {}}
    one = await here.http.post("/api/runs", json={**body, "key": "k"})
    two = await here.http.post("/api/runs", json=body, headers={"idempotency-key": "k"})
    assert one.json()["id"] == two.json()["id"]
    other = {"job": "inquire", "input": {"question": "?"}, "key": "k"}
    assert "other input" in refused(await here.http.post("/api/runs", json=other))
    both = await here.http.post("/api/runs", json={**body, "key": "k"}, headers={"idempotency-key": "j"})
    refused(both, param="key")


async def test_runs_are_listed_newest_first_in_pages_both_ways(here: Native) -> None:
    made = [await here.run("count", to=1) for _ in range(5)]
    for run in made:
        await here.ended(run)

    async def page(**query: Any) -> Any:
        return (await here.http.get("/api/runs", params={"limit": 2, **query})).json()

    first = await page()
    assert [each["id"] for each in first["data"]] == made[:-3:-1]
    assert first["has_more"]
    second = await page(after=first["last_id"])
    last = await page(after=second["last_id"], status="completed")
    assert [each["id"] for each in last["data"]] == made[:1]
    assert not last["has_more"]
    assert (await page(before=second["first_id"]))["data"] == first["data"]
    assert (await page(after=first["last_id"], status="failed"))["data"] == []


async def test_runs_are_filtered_by_parent_and_tag_and_thread(here: Native) -> None:
    run = await here.run("parent")
    await here.ended(run)
    children = (await here.http.get("/api/runs", params={"parent": run})).json()["data"]
    assert [each["job"] for each in children] == ["count"]
    await here.http.post("/api/runs", json={"job": "count", "input": {"to": 1}, "tags": ["a", "b"]})
    for tag, found in (("b", 1), ("c", 0)):
        assert len((await here.http.get("/api/runs", params={"tag": tag})).json()["data"]) == found
    assert (await here.http.get("/api/runs", params={"thread": "none"})).json()["data"] == []


# --- the journal -------------------------------------------------------------------------------------


async def test_steps_are_paged_by_seq_and_found_by_any_key(here: Native) -> None:
    run = await here.run("count", to=3)
    await here.ended(run)
    steps, after, more = [], 0, True
    while more:
        page = (await here.http.get(f"/api/runs/{run}/steps", params={"limit": 2, "after": after})).json()
        steps += page["data"]
        after, more = page["last_seq"], page["has_more"]
    assert [step["seq"] for step in steps] == list(range(1, 8))
    key = next(step["key"] for step in steps if step["name"] == "a/b#c%")
    assert {"/", "%"} <= set(key)
    found = (await here.http.get(f"/api/runs/{run}/step", params={"key": key})).json()
    assert (found["key"], found["request"]) == (key, None)
    refused(await here.http.get(f"/api/runs/{run}/step", params={"key": key, "attempt": 2}), 404)
    refused(await here.http.get(f"/api/runs/{run}/step", params={"key": "no"}), 404)


async def test_a_models_step_has_its_exact_request(here: Native) -> None:
    run = await here.run("greet", name="Ann")
    await here.ended(run)
    step = (await here.http.get(f"/api/runs/{run}/step", params={"key": "model"})).json()
    assert step["request"]["messages"] == [{"role": "user", "content": "Greet Ann"}]
    assert step["value"]["text"] == "Hello there, good friend"


async def test_open_steps_stand_on_the_last_page(here: Native) -> None:
    run = await here.run("inquire")
    await waiting(here, run)
    page = (await here.http.get(f"/api/runs/{run}/steps")).json()
    assert [(step["key"], step["seq"]) for step in page["data"]] == [("ask", None)]
    assert page["last_seq"] == 0


# --- what is done to runs ----------------------------------------------------------------------------


async def test_a_question_is_answered_and_who_did_is_kept(here: Native) -> None:
    run = await here.run("inquire")
    action = await waiting(here, run)
    assert (await here.http.get("/api/actions")).json()["data"] == [action]
    url = f"/api/runs/{run}/answer"
    assert "not of type 'integer'" in refused(
        await here.http.post(url, json={"action": action["id"], "value": "old"})
    )
    refused(await here.http.post(url, json={"action": "no", "value": 1}), 404)
    refused(await here.http.post(url, json={"action": "ask"}), param="value")
    assert (await here.http.post(url, json={"action": "ask", "value": 7})).status_code == 204
    assert (await here.ended(run))["output"] == 7
    step = (await here.http.get(f"/api/runs/{run}/step", params={"key": "ask"})).json()
    assert step["answered_by"] == "key_default"
    refused(await here.http.post(url, json={"action": "ask", "value": 7}), 404)


@pytest.mark.parametrize(("verb", "status"), [("approve", "completed"), ("reject", "failed")])
async def test_a_call_is_approved_or_rejected(here: Native, verb: str, status: str) -> None:
    run = await here.run("pay", amount=500)
    action = await waiting(here, run)
    assert action["arguments"] == {"order": "A-1", "amount": 500.0}
    body = {"action": action["id"], **({"reason": "too much"} if verb == "reject" else {})}
    assert (await here.http.post(f"/api/runs/{run}/{verb}", json=body)).status_code == 204
    told = await here.ended(run)
    assert told["status"] == status
    assert ("too much" in str(told["reason"])) == (verb == "reject")


async def test_an_event_reaches_the_run_that_waits_for_it(here: Native) -> None:
    run = await here.run("listen")
    url = f"/api/runs/{run}/events"
    assert (await here.http.post(url, json={"name": "paid", "value": {"amount": 20}})).status_code == 204
    assert (await here.ended(run))["output"] == {"amount": 20}
    assert "is over" in refused(await here.http.post(url, json={"name": "paid"}))


async def test_a_run_is_cancelled_once_and_one_that_is_over_stays_so(here: Native) -> None:
    run = await here.run("inquire")
    await waiting(here, run)
    answer = await here.http.post(f"/api/runs/{run}/cancel", json={"reason": "enough"})
    assert answer.json()["status"] in ("cancelling", "cancelled")
    told = await here.ended(run)
    assert (told["status"], told["reason"]) == ("cancelled", "enough")
    again = await here.http.post(f"/api/runs/{run}/cancel")
    assert again.json() == told


async def test_a_run_that_failed_is_resumed_and_one_that_is_not_over_is_not(here: Native) -> None:
    run = await here.run("fails")
    await here.ended(run)
    refused(await here.http.post(f"/api/runs/{run}/resume", json={"from_step": "no"}))
    assert (await here.http.post(f"/api/runs/{run}/resume")).status_code == 200
    assert (await here.ended(run))["reason"]
    other = await here.run("inquire")
    assert "only a run that is over" in refused(await here.http.post(f"/api/runs/{other}/resume"))


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"job": "nothing"}, 404, "job", "'nothing' is not known here"),
        ({}, 400, "job", "required"),
        ({"job": "greet"}, 400, "input", "name: missing"),
        ({"job": "greet", "input": {"name": 1}}, 400, "input", "name: expected str"),
        ({"job": "greet", "input": {"name": "A", "age": 1}}, 400, "input", "age: unknown"),
        ({"job": "greet", "input": []}, 400, "input", ""),
        ({"job": "inquire", "colour": "red"}, 400, "colour", ""),
        ({"job": "inquire", "priority": 2**40}, 400, "priority", ""),
        ({"job": "inquire", "delay": -1}, 400, "delay", ""),
        ({"job": "inquire", "limits": {}}, 400, None, "give at least one"),
        ({"job": "inquire", "limits": {"steps": 0}}, 400, "limits.steps", ""),
        ({"job": "inquire", "thread": "thread_none"}, 404, None, "No thread found"),
        ({"job": "greet", "input": {"name": "\ud800"}}, 400, None, ""),
        ({"job": "greet", "input": {"name": 2**70}}, 400, None, ""),
        ({"job": "inquire", "queue": "\ud800"}, 400, None, ""),
        ({"job": "inquire", "tags": ["\ud800"]}, 400, None, ""),
    ],
)
async def test_a_run_that_cannot_be_is_refused_with_the_field(
    here: Native, body: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    answer = await here.http.post(
        "/api/runs", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    if param is not None:
        assert error["param"] == param
    assert (await here.http.get("/api/runs")).json()["data"] == []


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/api/runs?after=run_x", "after"), ("/api/runs?before=x", "before"), ("/api/runs?limit=0", "limit"),
        ("/api/runs?status=odd", "status"), ("/api/runs?limit=x", "limit"),
    ],
)  # fmt: skip
async def test_a_list_that_cannot_be_is_refused_with_the_field(here: Native, path: str, param: str) -> None:
    refused(await here.http.get(path), 400, param)


async def test_nobody_sees_or_changes_what_is_another_projects(here: Native) -> None:
    asked, paid = await here.run("inquire"), await here.run("pay", amount=500)
    parent = await here.run("parent")
    action, approval = await waiting(here, asked), await waiting(here, paid)
    await here.ended(parent)
    thread = here.app.thread()
    await thread.append("hello")
    await here.http.post("/api/runs", json={"job": "count", "input": {"to": 1}, "thread": thread.id})
    for path in ("", "/steps", "/step?key=ask", "/actions", "/events"):
        refused(await here.others.get(f"/api/runs/{asked}{path}"), 404)
    for path, body in (
        ("answer", {"action": action["id"], "value": 1}), ("cancel", {}), ("resume", {}),
        ("events", {"name": "x"}), ("approve", {"action": "ask"}), ("reject", {"action": "ask"}),
    ):  # fmt: skip
        refused(await here.others.post(f"/api/runs/{asked}/{path}", json=body), 404)
    refused(await here.others.post(f"/api/runs/{paid}/approve", json={"action": approval["id"]}), 404)
    for query in ({}, {"parent": parent}, {"thread": thread.id}, {"job": "inquire"}):
        assert (await here.others.get("/api/runs", params=query)).json()["data"] == []
        assert (await here.http.get("/api/runs", params=query)).json()["data"] != []
    for path in ("actions", "summary"):
        assert (await here.others.get(f"/api/{path}")).json()["data"] == []
        assert (await here.http.get(f"/api/{path}")).json()["data"] != []
    refused(await here.others.get("/api/runs", params={"after": asked}), 400, "after")
    mine = {"job": "count", "input": {"to": 1}, "thread": thread.id}
    refused(await here.others.post("/api/runs", json=mine), 404)
    assert len(await here.app.actions()) == 2
    same = [
        (await http.post("/api/runs", json={"job": "inquire", "input": {}, "key": "k"})).json()["id"]
        for http in (here.http, here.others)
    ]
    assert same[0] != same[1]
