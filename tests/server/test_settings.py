"""How a server behaves is its settings: threads that are busy, runs that expire, and lists that clients asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from dayjob.models import ModelRequest, ToolCall
from dayjob.models.scripted import Delay
from dayjob.server import Settings
from tests.server.serving import Serving, function, serving
from tests.server.test_runs import Speaking

CALL = ToolCall("call_1", "weather", "{}")
OUTPUTS = [{"tool_call_id": "call_1", "output": "rain"}]


async def ready(here: Serving, **assistant: Any) -> dict[str, str]:
    made = await here.client.beta.assistants.create(**{"model": "m", **assistant})
    thread = await here.client.beta.threads.create(messages=[{"role": "user", "content": "One."}])
    return {"assistant_id": made.id, "thread_id": thread.id}


async def texts(here: Serving, thread: str) -> list[str]:
    messages = (await here.client.beta.threads.messages.list(thread, order="asc")).data
    return [each.content[0].text.value for each in messages]


# --- when a thread is busy -------------------------------------------------------------------------


async def test_a_message_for_a_busy_thread_is_taken_and_answered_by_the_next_run(tmp_path: Path) -> None:
    def reply(request: ModelRequest) -> Any:
        return CALL if request.messages[-1]["content"] == "One." else f"To {request.messages[-1]['content']}"

    async with serving(tmp_path, reply, settings=Settings(when_busy="enqueue")) as here:
        threads = here.client.beta.threads
        asked = await ready(here, tools=[function("weather")])
        run = await threads.runs.create_and_poll(**asked)
        assert run.status == "requires_action"
        await threads.messages.create(run.thread_id, role="user", content="Two.")
        done = await threads.runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS
        )
        assert done.status == "completed"
        assert (await texts(here, run.thread_id)) == ["One.", "Two.", "To rain"]
        assert (await threads.runs.create_and_poll(**asked)).status == "completed"
        assert (await texts(here, run.thread_id))[-1] == "To Two."


async def test_a_second_run_of_a_thread_waits_for_its_turn(tmp_path: Path) -> None:
    settings = Settings(when_busy="enqueue")
    async with serving(tmp_path, [Delay(0.2, "First."), "Second."], settings=settings) as here:
        runs = here.client.beta.threads.runs
        asked = await ready(here)
        first = await runs.create(**asked)
        second = await runs.create(**asked, additional_messages=[{"role": "user", "content": "And?"}])
        assert second.status == "queued"
        assert (await runs.poll(second.id, thread_id=asked["thread_id"])).status == "completed"
        assert (await runs.retrieve(first.id, thread_id=asked["thread_id"])).status == "completed"
        assert [each.id async for each in runs.list(asked["thread_id"])] == [second.id, first.id]
        assert (await texts(here, asked["thread_id"]))[-1] == "Second."


async def test_a_run_that_waits_for_its_turn_is_streamed_and_may_be_cancelled(tmp_path: Path) -> None:
    settings = Settings(when_busy="enqueue")
    async with serving(tmp_path, [Delay(0.2, "First."), "Third."], settings=settings) as here:
        runs = here.client.beta.threads.runs
        asked = await ready(here)
        await runs.create(**asked)
        second = await runs.create(**asked)
        stream = await runs.create(**asked, stream=True)
        assert (await runs.cancel(second.id, thread_id=asked["thread_id"])).status == "cancelled"
        names = [event.event async for event in stream]
        assert names[:3] == ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
        assert names[-1] == "thread.run.completed"
        assert (await texts(here, asked["thread_id"]))[-1] == "Third."


# --- when runs expire ------------------------------------------------------------------------------


async def test_a_run_whose_client_is_late_expires_and_takes_no_outputs(tmp_path: Path) -> None:
    settings = Settings(expires_seconds=2)
    async with serving(tmp_path, lambda request: CALL, settings=settings) as here:
        runs = here.client.beta.threads.runs
        asked = await ready(here, tools=[function("weather")])
        run = await runs.create_and_poll(**asked)
        assert run.status == "requires_action" and run.expires_at in (run.created_at + 2, run.created_at + 3)
        await here.app.until_settled(run.id, 20)
        late = await runs.retrieve(run.id, thread_id=run.thread_id)
        assert (late.status, late.required_action, late.expires_at) == ("expired", None, run.expires_at)
        [step] = (await runs.steps.list(run.id, thread_id=run.thread_id)).data
        assert step.status == "expired" and step.expired_at
        with pytest.raises(openai.BadRequestError) as refused:
            await runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS)
        assert refused.value.body == {
            "message": 'Runs in status "expired" do not accept tool outputs.',
            "type": "invalid_request_error", "param": None, "code": None,
        }  # fmt: skip
        await runs.create(**asked)


async def test_a_run_that_expires_while_it_speaks_keeps_what_it_said_and_tells_its_stream(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, model=Speaking(), settings=Settings(expires_seconds=0.6)) as here:
        asked = await ready(here)
        stream = await here.client.beta.threads.runs.create(**asked, stream=True)
        async with asyncio.timeout(20):
            events = [event async for event in stream]
        assert events[-1].event == "thread.run.expired"
        [said, _] = (await here.client.beta.threads.messages.list(asked["thread_id"])).data
        assert (said.status, said.incomplete_details.reason) == ("incomplete", "run_expired")
        assert said.content[0].text.value == "Once upon"


@pytest.mark.parametrize("seconds", [None, 3_000_000])
async def test_a_server_may_leave_runs_any_time_they_need(tmp_path: Path, seconds: int | None) -> None:
    settings = Settings(expires_seconds=seconds)
    async with serving(tmp_path, [CALL, "Rain."], settings=settings) as here:
        runs = here.client.beta.threads.runs
        run = await runs.create_and_poll(**await ready(here, tools=[function("weather")]))
        expected = (None,) if seconds is None else (run.created_at + seconds, run.created_at + seconds + 1)
        assert run.status == "requires_action" and run.expires_at in expected
        done = await runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS
        )
        assert done.status == "completed"


# --- lists of threads ------------------------------------------------------------------------------


async def test_threads_are_listed_in_pages_and_each_project_sees_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        made = [(await here.client.beta.threads.create(metadata={"n": str(n)})).id for n in range(5)]
        await (await here.client_of("another")).beta.threads.create()

        async def page(**query: Any) -> Any:
            return (await here.http.get("/threads", params={"limit": 2, **query})).json()

        first = await page()
        assert ([each["id"] for each in first["data"]], first["has_more"]) == (made[:2:-1], True)
        last = await page(after=first["last_id"], limit=100)
        assert ([each["id"] for each in last["data"]], last["has_more"]) == (made[2::-1], False)
        assert [each["metadata"]["n"] for each in (await page(order="asc"))["data"]] == ["0", "1"]
        assert (await page(before=last["first_id"]))["data"] == first["data"]
