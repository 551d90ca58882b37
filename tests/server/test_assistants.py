"""Assistants over the wire: made, found, changed, listed, deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.serving import function, serving

INSTRUCTIONS = "ü" * 256_000


async def test_an_assistant_is_kept_with_all_that_was_said(tmp_path: Path) -> None:
    tools = [function("find_order", order_id={"type": "string"}), {"type": "code_interpreter"}]
    said: dict[str, Any] = {
        "model": "gpt-4o",
        "name": "Ædjunkt 🤖",
        "description": "",
        "instructions": INSTRUCTIONS,
        "tools": tools,
        "tool_resources": {"code_interpreter": {"file_ids": ["file-1"]}},
        "metadata": {"team": "billing", "": "x"},
        "temperature": 0,
        "top_p": 0.5,
        "response_format": {"type": "json_object"},
    }
    async with serving(tmp_path) as here:
        made = await here.client.beta.assistants.create(**said, reasoning_effort="low")
        assert made.id.startswith("asst_") and made.object == "assistant"
        assert {name: made.to_dict()[name] for name in said} == said
        assert await here.client.beta.assistants.retrieve(made.id) == made
        body = (await here.http.get(f"/assistants/{made.id}")).json()
        assert list(body) == [
            *("id", "object", "created_at", "name", "description", "model", "instructions", "tools"),
            *("tool_resources", "metadata", "temperature", "top_p", "response_format"),
        ]


async def test_what_is_not_said_has_its_default_and_null_is_nothing_said(tmp_path: Path) -> None:
    nulls = dict.fromkeys(
        ("name", "description", "instructions", "tools", "tool_resources", "metadata", "temperature", "top_p",
         "response_format", "reasoning_effort"),
    )  # fmt: skip
    async with serving(tmp_path) as here:
        for body in ({"model": "m"}, {"model": "m", **nulls, "file_ids": ["v1"]}):
            made = (await here.http.post("/assistants", json=body)).json()
            assert made == {
                "id": made["id"],
                "object": "assistant",
                "created_at": made["created_at"],
                **dict.fromkeys(("name", "description", "instructions")),
                "model": "m",
                "tools": [],
                "tool_resources": {},
                "metadata": {},
                "temperature": 1.0,
                "top_p": 1.0,
                "response_format": "auto",
            }


async def test_only_what_is_given_is_changed_and_metadata_as_a_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        assistants = here.client.beta.assistants
        made = await assistants.create(
            model="a", name="n", instructions="i", temperature=0.3, metadata={"a": "1", "b": "2"}
        )
        changed = await assistants.update(made.id, model="b", metadata={"c": "3"})
        assert (changed.model, changed.name, changed.instructions) == ("b", "n", "i")
        assert (changed.metadata, changed.created_at) == ({"c": "3"}, made.created_at)
        changed = await assistants.update(made.id, name=None, instructions=None)
        assert (changed.name, changed.instructions, changed.temperature) == (None, None, 0.3)
        same = (await here.http.post(f"/assistants/{made.id}", json={"model": None})).json()
        assert same["model"] == "b"
        assert (await here.http.post(f"/assistants/{made.id}")).json() == same
        assert await assistants.retrieve(made.id) == changed


async def test_of_two_changes_at_once_none_is_lost(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        assistants, threads = here.client.beta.assistants, here.client.beta.threads
        assistant, thread = await assistants.create(model="m"), await threads.create()
        files = {"code_interpreter": {"file_ids": ["file-1"]}}
        await asyncio.gather(
            assistants.update(assistant.id, name="n"),
            assistants.update(assistant.id, instructions="i"),
            threads.update(thread.id, metadata={"a": "1"}),
            threads.update(thread.id, tool_resources=files),
        )
        found, kept = await assistants.retrieve(assistant.id), await threads.retrieve(thread.id)
        assert (found.name, found.instructions) == ("n", "i")
        assert kept.to_dict()["metadata"] == {"a": "1"} and kept.to_dict()["tool_resources"] == files


async def test_one_that_is_nested_as_deeply_as_can_be_stored_is_listed_with_the_others(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as here:
        for deep in range(240, 260):
            parameters = '{"a":' * deep + '"ü"' + "}" * deep
            tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}'
            body = f'{{"model": "m", "tools": [{tool}]}}'.encode()
            kind = {"content-type": "application/json"}
            made = await here.http.post("/assistants", content=body, headers=kind)
            listed = await here.http.get("/assistants", params={"limit": 1})
            assert (listed.status_code, made.status_code in (200, 400)) == (200, True)
        assert made.status_code == 400
        assert "ü" in listed.text


async def test_a_deleted_assistant_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        assistants = here.client.beta.assistants
        made = await assistants.create(model="m")
        gone = await assistants.delete(made.id)
        assert (gone.id, gone.object, gone.deleted) == (made.id, "assistant.deleted", True)
        for call in (assistants.retrieve, assistants.update, assistants.delete):
            with pytest.raises(openai.NotFoundError) as refused:
                await call(made.id)
            assert refused.value.body == {
                "message": f"No assistant found with id '{made.id}'.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }


async def test_pages_hold_every_assistant_once_though_all_were_made_in_one_second(tmp_path: Path) -> None:
    async with serving(tmp_path, clock=lambda: 1_000.5) as here:
        assistants = here.client.beta.assistants
        made = [(await assistants.create(model="m", name=str(number))).id for number in range(7)]
        assert [each.id async for each in assistants.list(limit=3)] == made[::-1]
        assert [each.id async for each in assistants.list(limit=2, order="asc")] == made
        page = await assistants.list(limit=2, before=made[3])
        assert [each.id for each in page.data] == [made[5], made[4]]
        body = (await here.http.get("/assistants", params={"limit": 2, "after": made[3]})).json()
        assert (body["first_id"], body["last_id"], body["has_more"]) == (made[2], made[1], True)
        for field in ("after", "before"):
            with pytest.raises(openai.BadRequestError) as refused:
                await assistants.list(**{field: "asst_of_nobody"})
            assert refused.value.body["param"] == field and "asst_of_nobody" in refused.value.body["message"]


async def test_who_deletes_what_is_on_each_page_comes_to_the_end_of_the_list(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        beta = here.client.beta
        thread = (await beta.threads.create()).id
        for number in range(7):
            how = {"Idempotency-Key": str(number)} if number % 2 else {}  # ids that say nothing of their time
            await beta.assistants.create(model="m", extra_headers=how)
            await beta.threads.messages.create(thread, role="user", content="x", extra_headers=how)
        async for each in beta.assistants.list(limit=2):
            await beta.assistants.delete(each.id)
        async for said in beta.threads.messages.list(thread, limit=2, order="asc"):
            await beta.threads.messages.delete(said.id, thread_id=thread)
        assert (await beta.assistants.list()).data == (await beta.threads.messages.list(thread)).data == []


async def test_one_project_sees_nothing_of_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        one, other = await here.client_of("one"), await here.client_of("other")
        made = await one.beta.assistants.create(model="m")
        assert [each.id async for each in one.beta.assistants.list()] == [made.id]
        assert [each.id async for each in other.beta.assistants.list()] == []
        for call in (
            other.beta.assistants.retrieve,
            other.beta.assistants.update,
            other.beta.assistants.delete,
        ):
            with pytest.raises(openai.NotFoundError):
                await call(made.id)


async def test_the_same_idempotency_key_makes_one_assistant(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        one, other = await here.client_of("one"), await here.client_of("other")
        key = {"Idempotency-Key": "k"}
        first = await one.beta.assistants.create(model="m", extra_headers=key)
        again = await one.beta.assistants.create(model="m", extra_headers=key)
        foreign = await other.beta.assistants.create(model="m", extra_headers=key)
        assert first == again and foreign.id != first.id


async def test_tools_that_are_not_offered_are_named_in_a_header(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        tools = [{"type": "file_search"}, {"type": "code_interpreter"}, function("f")]
        made = await here.http.post("/assistants", json={"model": "m", "tools": tools})
        assert made.headers["dayjob-not-offered"] == "code_interpreter, file_search"
        made = await here.http.post("/assistants", json={"model": "m", "tools": tools[2:]})
        assert "dayjob-not-offered" not in made.headers
