"""Runs over the wire."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from dayjob import Dayjob, Run, job
from dayjob.assistant import assistant_job, request_of
from dayjob.errors import ModelRateLimited, ModelRefused
from dayjob.models import ModelReply, ModelRequest, Usage
from dayjob.models.scripted import Delay, Scripted
from dayjob.server import Settings
from tests.server.serving import Serving, function, serving, strict_sync
from tests.until import until


async def test_an_app_written_for_the_assistants_api_gets_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hello, you."]) as here:
        beta = here.client.beta
        assistant = await beta.assistants.create(model="gpt-4o", instructions="Be brief.")
        thread = await beta.threads.create()
        await beta.threads.messages.create(thread.id, role="user", content="Hello?")
        run = await beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
        assert (run.status, run.model, run.instructions) == ("completed", "gpt-4o", "Be brief.")
        messages = [message async for message in beta.threads.messages.list(thread.id)]
        assert [(each.role, each.content[0].text.value) for each in messages] == [
            ("assistant", "Hello, you."),
            ("user", "Hello?"),
        ]
        assert (messages[0].assistant_id, messages[0].run_id) == (assistant.id, run.id)
        steps = [step async for step in beta.threads.runs.steps.list(run.id, thread_id=thread.id)]
        assert [step.step_details.message_creation.message_id for step in steps] == [messages[0].id]
        assert [message["content"] for message in here.model.requests[0].messages] == ["Be brief.", "Hello?"]


async def ready(here: Serving, content: str = "Hello?", **assistant: Any) -> tuple[str, str]:
    """An assistant, and a thread in which something was said."""
    made = await here.client.beta.assistants.create(**{"model": "gpt-4o", **assistant})
    thread = await here.client.beta.threads.create(messages=[{"role": "user", "content": content}])
    return made.id, thread.id


async def test_a_run_has_every_key_from_the_start_and_at_its_end(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hi."]) as here:
        assistant, thread = await ready(here)
        asked = {"assistant_id": assistant, "metadata": {"a": "b"}}
        run = (await here.http.post(f"/threads/{thread}/runs", json=asked)).json()
        assert run == {
            "id": run["id"],
            "object": "thread.run",
            "created_at": run["created_at"],
            "thread_id": thread,
            "assistant_id": assistant,
            "status": "queued",
            "required_action": None,
            "last_error": None,
            "expires_at": run["expires_at"],
            **dict.fromkeys(
                ("started_at", "cancelled_at", "failed_at", "completed_at", "incomplete_details")
            ),
            "model": "gpt-4o",
            "instructions": "",
            "tools": [],
            "metadata": {"a": "b"},
            "temperature": 1.0,
            "top_p": 1.0,
            "usage": None,
            "max_prompt_tokens": None,
            "max_completion_tokens": None,
            "truncation_strategy": {"type": "auto", "last_messages": None},
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "response_format": "auto",
        }
        assert run["expires_at"] in (run["created_at"] + 600, run["created_at"] + 601)
        done = await here.client.beta.threads.runs.poll(run["id"], thread_id=thread)
        assert (done.status, done.expires_at, done.usage.total_tokens) == ("completed", None, 3)
        assert done.started_at and done.completed_at
        [listed] = (await here.client.beta.threads.runs.list(thread)).data
        assert listed == done


async def test_what_a_run_says_takes_the_place_of_what_its_assistant_says(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: "Hi.") as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(
            here, instructions="A.", temperature=0.2, top_p=0.1, tools=[function("f")], reasoning_effort="low"
        )
        plain = await runs.create_and_poll(thread_id=thread, assistant_id=assistant, instructions=None)
        assert (plain.instructions, plain.temperature, plain.tools[0].function.name) == ("A.", 0.2, "f")
        own = await runs.create_and_poll(
            thread_id=thread,
            assistant_id=assistant,
            model="other",
            instructions="B.",
            additional_instructions="C.",
            additional_messages=[{"role": "user", "content": "More?", "metadata": {"m": "1"}}],
            tools=[],
            temperature=0.0,
            top_p=1.0,
            reasoning_effort="high",
            response_format={"type": "json_object"},
            truncation_strategy={"type": "last_messages", "last_messages": 1},
            max_prompt_tokens=300,
            max_completion_tokens=300,
            tool_choice="required",
            parallel_tool_calls=False,
        )
        assert (own.model, own.instructions, own.temperature, own.tools) == ("other", "B.\n\nC.", 0.0, [])
        assert (own.truncation_strategy.last_messages, own.max_prompt_tokens) == (1, 300)
        assert (own.tool_choice, own.parallel_tool_calls) == ("required", False)
        first, second = here.model.requests
        assert first.options == {"temperature": 0.2, "top_p": 0.1, "reasoning_effort": "low"}
        assert second.options == {
            "temperature": 0.0,
            "top_p": 1.0,
            "reasoning_effort": "high",
            "response_format": {"type": "json_object"},
        }
        assert [each["content"] for each in second.messages] == ["B.\n\nC.", "More?"]
        said = (await here.client.beta.threads.messages.list(thread)).data
        assert [each.content[0].text.value for each in said] == ["Hi.", "More?", "Hi.", "Hello?"]
        assert said[1].metadata == {"m": "1"}
        of_run = (await here.client.beta.threads.messages.list(thread, run_id=own.id)).data
        assert [each.id for each in of_run] == [said[0].id]


async def test_a_number_of_messages_counts_only_where_it_is_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, ["First.", "Second."]) as here:
        assistant = await here.client.beta.assistants.create(model="m")
        thread = await here.client.beta.threads.create(messages=[{"role": "user", "content": "a"}] * 3)
        for type in ("auto", "last_messages"):
            await here.client.beta.threads.runs.create_and_poll(
                thread_id=thread.id,
                assistant_id=assistant.id,
                truncation_strategy={"type": type, "last_messages": 2},  # type: ignore[typeddict-item]
            )
        assert [len(request.messages) for request in here.model.requests] == [3, 2]


async def test_a_thread_and_its_run_are_made_together(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hi.", "Ho."]) as here:
        threads = here.client.beta.threads
        assistant, _ = await ready(here)
        run = await threads.create_and_run_poll(
            assistant_id=assistant,
            thread={"messages": [{"role": "user", "content": "Hello?"}], "metadata": {"a": "b"}},
            tool_resources={"code_interpreter": {"file_ids": ["file-1"]}},
        )
        thread = await threads.retrieve(run.thread_id)
        assert (run.status, thread.metadata) == ("completed", {"a": "b"})
        assert thread.tool_resources.code_interpreter.file_ids == ["file-1"]
        key = {"Idempotency-Key": "k"}
        hello = {"messages": [{"role": "user", "content": "Hello?"}]}
        first = await threads.create_and_run(assistant_id=assistant, thread=hello, extra_headers=key)
        again = await threads.create_and_run(assistant_id=assistant, thread=hello, extra_headers=key)
        assert (again.id, again.thread_id) == (first.id, first.thread_id)


async def test_the_same_idempotency_key_makes_one_run(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        more = [{"role": "user", "content": "More?"}]
        asked = {
            "assistant_id": assistant,
            "additional_messages": more,
            "extra_headers": {"Idempotency-Key": "k"},
        }
        first = await runs.create(thread, **asked)
        assert (await runs.create(thread, **asked)).id == first.id
        assert len((await here.client.beta.threads.messages.list(thread)).data) == 2
        with pytest.raises(openai.BadRequestError):
            await runs.create(thread, **{**asked, "temperature": 1})


async def test_metadata_of_a_run_is_replaced_as_a_whole(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        run = await runs.create(thread, assistant_id=assistant, metadata={"a": "1"})
        assert (await runs.update(run.id, thread_id=thread, metadata={"b": "2"})).metadata == {"b": "2"}
        assert (await runs.retrieve(run.id, thread_id=thread)).metadata == {"b": "2"}


async def test_runs_are_listed_in_pages_and_only_those_of_assistants(tmp_path: Path) -> None:
    @job
    async def other(run: Run) -> None: ...

    async with serving(tmp_path, lambda request: "Hi.") as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        foreign = await here.app.submit(other(), thread=thread)
        await foreign.result()
        made = [(await runs.create_and_poll(thread_id=thread, assistant_id=assistant)).id for _ in range(5)]
        assert [each.id async for each in runs.list(thread, limit=2)] == made[::-1]
        assert [each.id async for each in runs.list(thread, limit=2, order="asc")] == made
        with pytest.raises(openai.NotFoundError):
            await runs.retrieve(foreign.id, thread_id=thread)


async def test_a_client_that_polls_is_told_at_once_when_the_run_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: Delay(0.15, "Hi.")) as here:
        assistant, thread = await ready(here)
        begun = time.monotonic()
        run = await here.client.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant)
        assert run.status == "completed" and time.monotonic() - begun < 0.9
        made = await here.http.post(f"/threads/{thread}/runs", json={"assistant_id": assistant})
        plain = await here.http.get(f"/threads/{thread}/runs/{made.json()['id']}")
        assert plain.json()["status"] in ("queued", "in_progress")
        assert int(plain.headers["openai-poll-after-ms"]) > 0


async def test_hundreds_wait_and_leave_nothing_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: Delay(0.3, "Hi.")) as here:
        assistant, thread = await ready(here)
        run = (await here.http.post(f"/threads/{thread}/runs", json={"assistant_id": assistant})).json()
        path = f"/threads/{thread}/runs/{run['id']}"
        held = {"X-Stainless-Poll-Helper": "true"}
        async with httpx2.AsyncClient(
            base_url=here.url,
            limits=httpx2.Limits(max_connections=300),
            timeout=30,
            headers=here.http.headers,
        ) as many:

            async def poll() -> None:
                while (await many.get(path, headers=held)).json()["status"] != "completed":
                    pass

            await asyncio.gather(*(poll() for _ in range(300)))
        watches = here.desk.watches
        await until(lambda: not watches._of_run and not here.app.events._of_run)


async def test_a_run_that_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        assistant, thread = await ready(here)
        runs = here.client.beta.threads.runs
        made = await runs.create(thread, assistant_id=assistant)
        waiting = asyncio.create_task(runs.poll(made.id, thread_id=thread))
        async with Dayjob(here.app.store.url, model=Scripted(["Hi."]), jobs=[assistant_job()]):
            assert (await waiting).status == "completed"


@pytest.mark.parametrize(
    ("models", "any", "answers"),
    [({"gpt-4o": "b"}, True, "b"), ({}, True, None), ({"x": "b"}, False, "refused")],
)
async def test_the_name_of_a_model_is_mapped_to_the_one_that_answers(
    tmp_path: Path, models: dict[str, str], any: bool, answers: str | None
) -> None:
    settings = Settings(models=models, answers_any=any)
    async with serving(tmp_path, worker=False, settings=settings) as here:
        assistant, thread = await ready(here)
        if answers == "refused":
            with pytest.raises(openai.BadRequestError, match=r"'gpt-4o'.*--map gpt-4o=") as refused:
                await here.client.beta.threads.runs.create(thread, assistant_id=assistant)
            assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
            return
        run = await here.client.beta.threads.runs.create(thread, assistant_id=assistant)
        assert run.model == "gpt-4o"
        assert request_of(await here.app.get(run.id)).answers == answers


# --- how runs end ----------------------------------------------------------------------------------


async def test_a_run_is_cancelled_while_it_is_queued(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        run = await runs.create(thread, assistant_id=assistant)
        assert (await runs.cancel(run.id, thread_id=thread)).status == "cancelled"
        await runs.create(thread, assistant_id=assistant)


async def test_a_run_is_cancelled_while_it_works_and_what_it_said_stays(tmp_path: Path) -> None:
    speaking = Speaking()
    async with serving(tmp_path, model=speaking) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        run = await runs.create(thread, assistant_id=assistant)
        await speaking.began.wait()
        asked = await runs.cancel(run.id, thread_id=thread)
        assert asked.status in ("cancelling", "cancelled")
        done = await runs.poll(run.id, thread_id=thread)
        assert done.status == "cancelled" and done.cancelled_at and done.expires_at
        [said, _] = (await here.client.beta.threads.messages.list(thread)).data
        assert (said.status, said.content[0].text.value) == ("incomplete", "Once upon")
        assert said.incomplete_details.reason == "run_cancelled"
        [step] = (await runs.steps.list(run.id, thread_id=thread)).data
        assert step.status == "cancelled" and step.cancelled_at
        with pytest.raises(openai.BadRequestError) as refused:
            await runs.cancel(run.id, thread_id=thread)
        assert refused.value.body["message"] == "Cannot cancel run with status 'cancelled'."


async def test_a_run_that_is_over_is_not_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hi."]) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        run = await runs.create_and_poll(thread_id=thread, assistant_id=assistant)
        with pytest.raises(openai.BadRequestError) as refused:
            await runs.cancel(run.id, thread_id=thread)
        assert refused.value.body["message"] == "Cannot cancel run with status 'completed'."


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelRefused("the key in OPENAI_API_KEY was refused by x (401)"), "server_error"),
        (ModelRefused("x refused the request (400): too long"), "invalid_prompt"),
        (ModelRateLimited("x asks to slow down (429)"), "rate_limit_exceeded"),
    ],
)
async def test_a_failed_run_tells_why(tmp_path: Path, error: Exception, code: str) -> None:
    async with serving(tmp_path, lambda request: error) as here:
        assistant, thread = await ready(here)
        run = await here.client.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant)
        assert run.status == "failed" and run.failed_at
        assert run.last_error.code == code and str(error) in run.last_error.message


async def test_a_run_that_has_nothing_to_send_fails_for_its_prompt(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda request: "Hello.") as here:
        beta = here.client.beta
        mute = await beta.assistants.create(model="m")
        thread = (await beta.threads.create()).id
        run = await beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=mute.id)
        assert (run.status, run.last_error.code) == ("failed", "invalid_prompt")
        assert "the thread has no message, and the assistant no instructions" in run.last_error.message
        told = await beta.threads.runs.create_and_poll(
            thread_id=thread, assistant_id=mute.id, instructions="Greet."
        )
        assert told.status == "completed"


async def test_an_answer_that_was_cut_off_makes_the_run_incomplete(tmp_path: Path) -> None:
    cut = ModelReply("Once upon", (), Usage(5, 2), 0.0, "length", "scripted")
    async with serving(tmp_path, [cut]) as here:
        assistant, thread = await ready(here)
        run = await here.client.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant)
        [said, _] = (await here.client.beta.threads.messages.list(thread)).data
        assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_tokens")
        assert said.content[0].text.value == "Once upon"
        if run.status != "failed":  # until a job can end its run early
            assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
            assert run.usage.total_tokens == 7


async def test_an_expired_run_takes_no_outputs(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        run = await runs.create(thread, assistant_id=assistant)
        with sqlite3.connect(tmp_path / "jobs.db") as connection:
            connection.execute("UPDATE runs SET status = 'expired', ended = created")
        connection.close()
        assert (await runs.poll(run.id, thread_id=thread)).status == "expired"
        outputs = [{"tool_call_id": "call_1", "output": "x"}]
        with pytest.raises(openai.BadRequestError) as refused:
            await runs.submit_tool_outputs(run.id, thread_id=thread, tool_outputs=outputs)
        assert refused.value.body["message"] == 'Runs in status "expired" do not accept tool outputs.'


async def test_a_run_goes_on_though_its_assistant_is_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, [Delay(0.1, "Hi.")]) as here:
        runs = here.client.beta.threads.runs
        assistant, thread = await ready(here)
        run = await runs.create(thread, assistant_id=assistant)
        await here.client.beta.assistants.delete(assistant)
        done = await runs.poll(run.id, thread_id=thread)
        assert (done.status, done.assistant_id) == ("completed", assistant)
        with pytest.raises(openai.NotFoundError, match=f"No assistant found with id '{assistant}'"):
            await runs.create(thread, assistant_id=assistant)


async def test_a_thread_has_one_run_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        threads = here.client.beta.threads
        assistant, thread = await ready(here)
        [first] = (await threads.messages.list(thread)).data
        run = await threads.runs.create(thread, assistant_id=assistant)
        with pytest.raises(openai.BadRequestError) as refused:
            await threads.runs.create(
                thread, assistant_id=assistant, additional_messages=[{"role": "user", "content": "x"}]
            )
        assert refused.value.body["message"] == f"Thread {thread} already has an active run {run.id}."
        with pytest.raises(openai.BadRequestError) as refused:
            await threads.messages.create(thread, role="user", content="x")
        assert refused.value.body == {
            "message": f"Can't add messages to {thread} while a run {run.id} is active.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        with pytest.raises(openai.BadRequestError):
            await threads.messages.delete(first.id, thread_id=thread)
        assert len((await threads.messages.list(thread)).data) == 1


def test_the_sync_client_is_served_too(tmp_path: Path) -> None:
    async def use() -> str:
        async with serving(tmp_path, ["Hi."]) as here:
            return await asyncio.to_thread(_ask, here.url, here.secret)

    assert asyncio.run(use()) == "Hi."


def _ask(url: str, key: str) -> str:
    with strict_sync(url, key) as client:
        assistant = client.beta.assistants.create(model="m")
        thread = client.beta.threads.create()
        client.beta.threads.messages.create(thread.id, role="user", content="Hello?")
        client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
        return str(client.beta.threads.messages.list(thread.id).data[0].content[0].text.value)


class Speaking(Scripted):
    """A model that says a little, and then nothing."""

    def __init__(self) -> None:
        super().__init__(["never"])
        self.began = asyncio.Event()

    async def reply(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        on_text("Once upon")
        self.began.set()
        await asyncio.sleep(60)
        return await super().reply(request, on_text)
