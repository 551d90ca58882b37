"""Threads over the wire."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import openai
import pytest

from dayjob.assistant import JOB, AssistantRun
from dayjob.errors import UnknownRun
from dayjob.models.scripted import Delay
from dayjob.runs import RunRecord
from dayjob.stores import Submitted, open_store
from tests.failing_stores import Around
from tests.server.serving import serving
from tests.until import until


async def test_a_thread_is_made_of_nothing_or_of_messages(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        for body in (b"", b"{}", b"null", b'{"messages":null,"metadata":null,"tool_resources":null}'):
            made = await here.http.post(
                "/threads", content=body, headers={"content-type": "application/json"}
            )
            thread = made.json()
            assert made.status_code == 200, made.text
            assert thread == {
                "id": thread["id"],
                "object": "thread",
                "created_at": thread["created_at"],
                "tool_resources": {},
                "metadata": {},
            }
        assert (await here.http.post("/threads")).status_code == 200
        threads = here.client.beta.threads
        made = await threads.create(
            messages=[{"role": "user", "content": "α"}, {"role": "assistant", "content": "β"}],
            metadata={"user": "7"},
            tool_resources={"code_interpreter": {"file_ids": ["file-1"]}},
        )
        assert made.tool_resources.code_interpreter.file_ids == ["file-1"]
        assert await threads.retrieve(made.id) == made
        said = [each async for each in threads.messages.list(made.id, order="asc")]
        assert [(each.role, each.content[0].text.value) for each in said] == [
            ("user", "α"),
            ("assistant", "β"),
        ]
        assert {each.assistant_id for each in said} == {each.run_id for each in said} == {None}


async def test_a_thread_is_changed_listed_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        threads = here.client.beta.threads
        made = [(await threads.create(metadata={"n": str(n), "also": "x"})).id for n in range(3)]
        changed = await threads.update(made[0], metadata={"n": "9"})
        assert changed.metadata == {"n": "9"}
        assert await threads.retrieve(made[0]) == changed
        page = (await here.http.get("/threads", params={"limit": 2})).json()
        assert [each["id"] for each in page["data"]] == [made[2], made[1]] and page["has_more"]
        gone = await threads.delete(made[0])
        assert (gone.id, gone.object, gone.deleted) == (made[0], "thread.deleted", True)
        for call in (threads.retrieve, threads.delete, threads.messages.list):
            with pytest.raises(openai.NotFoundError) as refused:
                await call(made[0])
            assert refused.value.body["message"] == f"No thread found with id '{made[0]}'."


async def test_a_thread_that_is_deleted_at_work_takes_its_runs_along(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: Delay(60, "too late")) as here:
        threads = here.client.beta.threads
        assistant = await here.client.beta.assistants.create(model="m")
        thread = await threads.create(messages=[{"role": "user", "content": "Hello?"}])
        run = await threads.runs.create(thread.id, assistant_id=assistant.id)
        await until(lambda: here.model.requests)
        assert (await threads.delete(thread.id)).deleted
        for call in (threads.runs.retrieve, threads.runs.cancel):
            with pytest.raises(openai.NotFoundError) as refused:
                await call(run.id, thread_id=thread.id)
            assert refused.value.body["message"] == f"No run found with id '{run.id}'."
        assert await here.app.store.thread_messages(thread.id) == []


async def test_what_is_made_while_its_thread_is_deleted_leaves_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: "Hello.") as here:
        assistant = (await here.http.post("/assistants", json={"model": "m"})).json()["id"]
        user = {"role": "user", "content": "Hello?"}

        async def end() -> tuple[str, list[Any]]:
            thread = (await here.http.post("/threads", json={"messages": [user]})).json()["id"]
            _, *made = await asyncio.gather(
                here.http.delete(f"/threads/{thread}"),
                here.http.post(f"/threads/{thread}/runs", json={"assistant_id": assistant}),
                here.http.post(f"/threads/{thread}/messages", json=user),
            )
            return thread, [each.json() for each in made]

        for thread, made in [await end() for _ in range(20)]:
            assert (await here.http.get(f"/threads/{thread}")).status_code == 404
            for run in (each for each in made if each.get("object") == "thread.run"):
                with contextlib.suppress(UnknownRun):
                    await here.app.until_settled(run["id"], 10)
                    assert not await here.app.store.get(run["id"]), run["id"]
            assert await here.app.store.thread_messages(thread) == []


class Deleting(Around):
    """A store in which the thread of each run is deleted right before the run is made."""

    async def submit_and_claim(self, run: RunRecord, *more: Any) -> Submitted:
        assert run.thread is not None
        await self.store.delete_thread(run.thread)
        return await self.store.submit_and_claim(run, *more)


async def test_a_run_whose_thread_is_deleted_meanwhile_is_refused_and_does_not_make_it_anew(
    tmp_path: Path,
) -> None:
    store = Deleting(open_store(f"sqlite:///{tmp_path / 'jobs.db'}"))
    async with serving(tmp_path, ["Hi."], store=store) as here:
        assistant = (await here.http.post("/assistants", json={"model": "m"})).json()["id"]
        more = [{"role": "user", "content": "x"}]
        asked = {"assistant_id": assistant, "additional_messages": more}
        for path, body in (
            ("/v1/threads/T/runs", asked),
            ("/v1/threads/T/runs", {**asked, "stream": True}),
            ("/api/runs", {"job": "assistant", "input": {"request": {"assistant": "a", "model": "m"}}}),
        ):
            thread = (await here.http.post("/threads")).json()["id"]
            named = {**body, "thread": thread} if path == "/api/runs" else body
            url = here.url.removesuffix("/v1") + path.replace("T", thread)
            answer = await here.http.post(url, json=named)
            assert answer.status_code == 404, answer.text
            assert answer.json()["error"]["message"] == f"No thread found with id '{thread}'."
            assert await store.thread(thread) is None
            assert (await store.active_runs(thread), await store.thread_messages(thread)) == ([], [])
        handle = await here.app.submit(
            here.app.jobs[JOB](AssistantRun("a", "m", instructions="x")), thread="new"
        )
        assert await handle.result(20) == "Hi."
        assert await store.thread("new") is not None
    await store.close()


async def test_one_project_sees_nothing_of_another(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hi."]) as here:
        one, other = await here.client_of("one"), await here.client_of("other")
        assistant = await one.beta.assistants.create(model="m")
        run = await one.beta.threads.create_and_run_poll(
            assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "Hello?"}]}
        )
        threads, thread = other.beta.threads, run.thread_id
        [answer, *_] = [each async for each in one.beta.threads.messages.list(thread)]
        [step] = [each async for each in one.beta.threads.runs.steps.list(run.id, thread_id=thread)]
        own = await threads.create()
        for call in (
            lambda: threads.retrieve(thread),
            lambda: threads.update(thread, metadata={}),
            lambda: threads.delete(thread),
            lambda: threads.messages.list(thread),
            lambda: threads.messages.create(thread, role="user", content="?"),
            lambda: threads.messages.retrieve(answer.id, thread_id=thread),
            lambda: threads.messages.retrieve(answer.id, thread_id=own.id),
            lambda: threads.messages.update(answer.id, thread_id=thread),
            lambda: threads.messages.delete(answer.id, thread_id=thread),
            lambda: threads.runs.list(thread),
            lambda: threads.runs.create(thread, assistant_id=assistant.id),
            lambda: threads.runs.create(own.id, assistant_id=assistant.id),
            lambda: threads.create_and_run(assistant_id=assistant.id),
            lambda: threads.runs.retrieve(run.id, thread_id=thread),
            lambda: threads.runs.retrieve(run.id, thread_id=own.id),
            lambda: threads.runs.update(run.id, thread_id=thread),
            lambda: threads.runs.cancel(run.id, thread_id=thread),
            lambda: threads.runs.submit_tool_outputs(run.id, thread_id=thread, tool_outputs=[]),
            lambda: threads.runs.steps.list(run.id, thread_id=thread),
            lambda: threads.runs.steps.retrieve(step.id, thread_id=thread, run_id=run.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await call()
        assert (await here.http.get("/threads")).json()["data"] == []
        assert (await one.beta.threads.retrieve(thread)).id == thread
