"""Messages of a thread over the wire."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from dayjob.kept import MessageRecord
from dayjob.models.scripted import Delay
from dayjob.server import Settings
from tests.server.serving import serving
from tests.until import until


async def test_a_message_has_every_key_and_is_found_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        thread = (await here.client.beta.threads.create()).id
        body = (
            await here.http.post(f"/threads/{thread}/messages", json={"role": "user", "content": "Hé 🙂"})
        ).json()
        assert body == {
            "id": body["id"],
            "object": "thread.message",
            "created_at": body["created_at"],
            "thread_id": thread,
            "status": "completed",
            "incomplete_details": None,
            "completed_at": body["created_at"],
            "incomplete_at": None,
            "role": "user",
            "content": [{"type": "text", "text": {"value": "Hé 🙂", "annotations": []}}],
            "assistant_id": None,
            "run_id": None,
            "attachments": [],
            "metadata": {},
        }
        assert body["id"].startswith("msg_")
        found = await here.client.beta.threads.messages.retrieve(body["id"], thread_id=thread)
        assert found.to_dict() == body


async def test_parts_are_kept_and_text_and_images_are_told_to_the_model(tmp_path: Path) -> None:
    async with serving(tmp_path, ["A cat."]) as here:
        messages = here.client.beta.threads.messages
        assistant = await here.client.beta.assistants.create(model="m")
        thread = (await here.client.beta.threads.create()).id
        url = {"url": "https://example.com/cat.png"}
        made = await messages.create(
            thread,
            role="user",
            content=[
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": url},
                {"type": "image_file", "image_file": {"file_id": "file-1", "detail": "low"}},
            ],
            attachments=[{"file_id": "file-2", "tools": [{"type": "file_search"}]}],
            metadata={"a": "b"},
        )
        assert [part.type for part in made.content] == ["text", "image_url", "image_file"]
        assert made.content[1].image_url.detail == "auto"
        assert made.attachments[0].file_id == "file-2" and made.metadata == {"a": "b"}
        await here.client.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant.id)
        told = here.model.requests[0].messages[0]["content"]
        assert told[:2] == [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {**url, "detail": "auto"}},
        ]


async def test_what_is_not_offered_is_named_in_a_header(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        thread = (await here.client.beta.threads.create()).id
        said = {"role": "user", "content": "x", "attachments": [{"file_id": "f", "tools": []}]}
        made = await here.http.post(f"/threads/{thread}/messages", json=said)
        assert made.headers["dayjob-not-offered"] == "attachments"


async def test_a_part_may_have_the_form_in_which_it_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        thread = (await here.client.beta.threads.create()).id
        said = {"role": "user", "content": [{"type": "text", "text": {"value": "x", "annotations": []}}]}
        made = await here.http.post(f"/threads/{thread}/messages", json={**said, "attachments": None})
        assert made.json()["content"] == said["content"]


async def test_metadata_of_a_message_is_replaced_as_a_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        messages = here.client.beta.threads.messages
        thread = (await here.client.beta.threads.create()).id
        made = await messages.create(thread, role="user", content="x", metadata={"a": "1"})
        changed = await messages.update(made.id, thread_id=thread, metadata={"b": "2"})
        assert changed.metadata == {"b": "2"} and changed.content == made.content
        assert await messages.retrieve(made.id, thread_id=thread) == changed
        same = (await here.http.post(f"/threads/{thread}/messages/{made.id}", json={})).json()
        assert same["metadata"] == {"b": "2"}
        none = (await here.http.post(f"/threads/{thread}/messages/{made.id}", json={"metadata": None})).json()
        assert none["metadata"] == {}


async def test_messages_of_one_second_keep_their_order_and_are_deleted_one_by_one(tmp_path: Path) -> None:
    async with serving(tmp_path, clock=lambda: 1_000.5) as here:
        messages = here.client.beta.threads.messages
        thread = (await here.client.beta.threads.create()).id
        made = [(await messages.create(thread, role="user", content=str(n))).id for n in range(9)]
        assert [each.id async for each in messages.list(thread, limit=2)] == made[::-1]
        assert [each.id async for each in messages.list(thread, limit=4, order="asc")] == made
        assert (await messages.list(thread, limit=1)).data[0].id == made[-1]
        for each in made:
            gone = await messages.delete(each, thread_id=thread)
            assert (gone.id, gone.object, gone.deleted) == (each, "thread.message.deleted", True)
        assert (await messages.list(thread)).data == []
        with pytest.raises(openai.NotFoundError) as refused:
            await messages.delete(made[0], thread_id=thread)
        assert refused.value.body["message"] == f"No message found with id '{made[0]}'."


async def test_the_same_idempotency_key_adds_one_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        messages = here.client.beta.threads.messages
        thread = (await here.client.beta.threads.create()).id
        key = {"Idempotency-Key": "k"}
        first = await messages.create(thread, role="user", content="x", extra_headers=key)
        assert await messages.create(thread, role="user", content="x", extra_headers=key) == first
        assert len((await messages.list(thread)).data) == 1


async def test_ids_of_elsewhere_are_found_as_they_are(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        odd = "msg ü?#%2F'\"\u202e"
        record = MessageRecord(odd, b'{"role":"user","content":"x"}', 5.0)
        await here.app.store.create_thread("default", "thread.ö 1", messages=[record])
        messages = here.client.beta.threads.messages
        assert [each.id async for each in messages.list("thread.ö 1")] == [odd]
        found = await here.http.get("/threads/thread.%C3%B6%201/messages")
        assert found.json()["data"][0]["thread_id"] == "thread.ö 1"
        assert (await messages.retrieve(odd, thread_id="thread.ö 1")).id == odd


async def test_a_message_waits_for_the_next_run_where_the_server_was_told_so(tmp_path: Path) -> None:
    replies = [Delay(0.3, "One."), "Two."]
    async with serving(tmp_path, replies, settings=Settings(when_busy="enqueue")) as here:
        threads = here.client.beta.threads
        assistant = await here.client.beta.assistants.create(model="m")
        thread = await threads.create(messages=[{"role": "user", "content": "1?"}])
        first = await threads.runs.create(thread.id, assistant_id=assistant.id)
        await until(lambda: here.model.requests)
        await threads.messages.create(thread.id, role="user", content="2?")
        second = await threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
        assert second.status == "completed" and first.status == "queued"
        assert [each["content"] for each in here.model.requests[0].messages] == ["1?"]
        assert [each["content"] for each in here.model.requests[1].messages] == ["1?", "One.", "2?"]
