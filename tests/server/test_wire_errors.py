"""What clients of the wire are told when something is wrong with what they ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import function, serving

RUN = {"assistant_id": "asst"}
USER = {"role": "user", "content": "x"}
LONG = {str(n): "x" for n in range(17)}


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/assistants", {}, "model", "body -> model field required"),
        ("/assistants", {"model": ""}, "model", "Invalid 'model': expected a string that is not empty."),
        ("/assistants", {"model": 7}, "model", "Invalid 'model': expected a string."),
        ("/assistants", {"model": "m", "name": "x" * 257}, "name",
         "Invalid 'name': expected at most 256 characters, but got 257."),
        ("/assistants", {"model": "m", "description": "x" * 513}, "description", "at most 512 characters"),
        ("/assistants", {"model": "m", "instructions": "x" * 256_001}, "instructions",
         "Invalid 'instructions': expected at most 256000 characters, but got 256001."),
        ("/assistants", {"model": "m", "metadata": LONG}, "metadata",
         "Invalid 'metadata': expected at most 16, but got more."),
        ("/assistants", {"model": "m", "metadata": {"k" * 65: "x"}}, "metadata." + "k" * 65, "at most 64 characters"),
        ("/assistants", {"model": "m", "metadata": {"k": "x" * 513}}, "metadata.k", "at most 512 characters"),
        ("/assistants", {"model": "m", "metadata": {"k": 1}}, "metadata.k", "Invalid 'metadata.k': expected a string."),
        ("/assistants", {"model": "m", "metadata": []}, "metadata", "Invalid 'metadata': expected an object."),
        ("/assistants", {"model": "m", "temperature": 2.1}, "temperature",
         "Invalid 'temperature': expected a value <= 2.0, but got 2.1."),
        ("/assistants", {"model": "m", "top_p": -1}, "top_p", "Invalid 'top_p': expected a value >= 0.0, but got -1."),
        ("/assistants", {"model": "m", "tools": [{"type": "retrieval"}]}, "tools.0",
         "Invalid value: 'retrieval'. Supported values are: 'function', 'code_interpreter', 'file_search'."),
        ("/assistants", {"model": "m", "tools": [{"type": "function"}]}, "tools.0.function",
         "body -> tools -> 0 -> function field required"),
        ("/assistants", {"model": "m", "tools": [function("no name")]}, "tools.0", "no name"),
        ("/assistants", {"model": "m", "tools": [function("f")] * 2}, "tools", "'f' stands for more than one"),
        ("/assistants", {"model": "m", "tools": [{"type": "file_search"}] * 129}, "tools", "at most 128"),
        ("/assistants", {"model": "m", "response_format": {"type": "xml"}}, "response_format",
         "Invalid 'response_format'"),
        ("/assistants", {"model": "m", "reasoning_effort": "huge"}, "reasoning_effort", "Invalid value: 'huge'."),
        ("/assistants", {"model": "m", "tool_resources": {"file_search": {"vector_stores": [{}]}}}, "tool_resources",
         "this server has no vector stores"),
        ("/assistants", {"model": "m", "tool_resources": {"file_search": {"vector_store_ids": ["a", "b"]}}},
         "tool_resources.file_search.vector_store_ids", "at most 1, but got more"),
        ("/assistants", [], None, "Invalid body: expected an object."),
        ("/threads", {"messages": [{"role": "system", "content": "x"}]}, "messages.0.role",
         "Invalid value: 'system'. Supported values are: 'user' or 'assistant'."),
        ("/threads/T/messages", {"role": "user"}, "content", "body -> content field required"),
        ("/threads/T/messages", {"role": "user", "content": ""}, "content", "Message content must be non-empty."),
        ("/threads/T/messages", {"role": "user", "content": []}, "content", "expected at least 1"),
        ("/threads/T/messages", {"role": "user", "content": [{"type": "video"}]}, "content.0",
         "Invalid value: 'video'."),
        ("/threads/T/messages", {"role": "user", "content": [{"type": "text"}]}, "content.0.text",
         "body -> content -> 0 -> text field required"),
        ("/threads/T/runs", {}, "assistant_id", "body -> assistant_id field required"),
        ("/threads/T/runs", {**RUN, "tools": [{"type": "file_search"}] * 21}, "tools", "at most 20"),
        ("/threads/T/runs", {**RUN, "tool_choice": "maybe"}, "tool_choice", "Invalid 'tool_choice'"),
        ("/threads/T/runs", {**RUN, "truncation_strategy": {"type": "last_messages", "last_messages": 0}},
         "truncation_strategy.last_messages", "expected a value >= 1, but got 0"),
        ("/threads/T/runs", {**RUN, "truncation_strategy": {"type": "last_messages"}}, "truncation_strategy",
         "'last_messages' needs the number of them"),
        ("/threads/T/runs", {**RUN, "additional_messages": [{**USER, "metadata": LONG}]},
         "additional_messages.0.metadata", "at most 16"),
    ],
)  # fmt: skip
async def test_a_wrong_body_is_refused_by_the_name_of_its_field(
    tmp_path: Path, path: str, body: Any, param: str | None, message: str
) -> None:
    async with serving(tmp_path) as here:
        thread = (await here.http.post("/threads")).json()["id"]
        answer = await here.http.post(path.replace("T", thread), json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert message in error["message"]


async def test_as_many_tools_are_taken_as_the_wire_allows(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: "Hello.") as here:
        tools = [function(f"f{number}") for number in range(128)]
        made = (
            await here.http.post("/assistants", json={"model": "m", "instructions": "x", "tools": tools})
        ).json()
        assert len(made["tools"]) == 128
        for given, count in (({}, 128), ({"tools": tools[:20]}, 20)):
            run = await here.client.beta.threads.create_and_run_poll(assistant_id=made["id"], **given)
            assert (run.status, len(run.tools)) == ("completed", count)
            assert len(here.model.requests[-1].tools) == count


async def test_what_is_no_json_or_no_page_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        kind = {"content-type": "application/json"}
        answer = await here.http.post("/assistants", content=b"{", headers=kind)
        assert (
            answer.status_code == 400 and "could not parse the JSON body" in answer.json()["error"]["message"]
        )
        answer = await here.http.post("/assistants", content=b'{"model": "\\ud800"}', headers=kind)
        assert answer.status_code == 400
        deep = b'{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":{"a":"\\ud800"}}}]}'
        assert (await here.http.post("/assistants", content=deep, headers=kind)).status_code == 400
        for query, message in (
            ("limit=0", "Invalid 'limit': expected a value >= 1, but got 0."),
            ("limit=101", "Invalid 'limit': expected a value <= 100, but got 101."),
            ("limit=x", "Invalid 'limit': expected an integer."),
            ("order=up", "Invalid value: 'up'. Supported values are: 'asc' or 'desc'."),
        ):
            answer = await here.http.get(f"/assistants?{query}")
            assert answer.status_code == 400 and answer.json()["error"]["message"] == message
        for query in ("after=", "before=&after=", "include[]=x&foo=bar"):
            assert (await here.http.get(f"/assistants?{query}")).status_code == 200
        assert (await here.http.get("/nowhere")).json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("id", ["foo", "asst_1", "thread_0", "ü%20x", "%00", "a" * 3_000])
async def test_an_id_of_any_form_that_is_not_there_is_not_found(tmp_path: Path, id: str) -> None:
    async with serving(tmp_path) as here:
        thread = (await here.http.post("/threads")).json()["id"]
        for method, path in (
            ("GET", "/assistants/X"), ("POST", "/assistants/X"), ("DELETE", "/assistants/X"),
            ("GET", "/threads/X"), ("POST", "/threads/X"), ("DELETE", "/threads/X"),
            ("GET", "/threads/X/messages"), ("GET", f"/threads/{thread}/messages/X"),
            ("POST", f"/threads/{thread}/messages/X"), ("DELETE", f"/threads/{thread}/messages/X"),
            ("GET", "/threads/X/runs"), ("GET", f"/threads/{thread}/runs/X"),
            ("POST", f"/threads/{thread}/runs/X"), ("POST", f"/threads/{thread}/runs/X/cancel"),
            ("GET", f"/threads/{thread}/runs/X/steps"), ("GET", f"/threads/{thread}/runs/X/steps/Y"),
        ):  # fmt: skip
            answer = await here.http.request(
                method, path.replace("X", id), json={} if method == "POST" else None
            )
            assert answer.status_code == 404, (method, path, answer.text)
            assert "found with id" in answer.json()["error"]["message"]
