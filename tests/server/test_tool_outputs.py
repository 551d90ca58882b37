"""Runs that wait for what the client's tools give, and steps that tell of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from dayjob import tool
from dayjob.models import ModelRequest, ToolCall
from dayjob.models.scripted import Delay
from tests.server.serving import Serving, function, serving

CALLS = [ToolCall("call_a", "weather", '{"city": "Kraków"}'), ToolCall("call_b", "time", "{}")]
OUTPUTS = [
    {"tool_call_id": "call_b", "output": "noon"},
    {"tool_call_id": "call_a", "output": "rain \u0000 🌧"},
]
TOOLS = [function("weather", city={"type": "string"}), function("time")]


async def waiting(here: Serving, tools: list[dict[str, Any]] = TOOLS) -> Any:
    """A run that requires action."""
    assistant = await here.client.beta.assistants.create(model="m", tools=tools)
    run = await here.client.beta.threads.create_and_run_poll(
        assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "Weather?"}]}
    )
    assert run.status == "requires_action", run
    return run


async def refusal(here: Serving, run: Any, outputs: list[dict[str, Any]]) -> str:
    with pytest.raises(openai.BadRequestError) as refused:
        await here.client.beta.threads.runs.submit_tool_outputs(
            run.id, thread_id=run.thread_id, tool_outputs=outputs
        )
    body: dict[str, Any] = refused.value.body
    assert (body["type"], body["code"]) == ("invalid_request_error", None)
    return str(body["message"])


async def test_two_calls_side_by_side_are_answered_together_in_any_order(tmp_path: Path) -> None:
    async with serving(tmp_path, [CALLS, "It rains at noon."]) as here:
        threads = here.client.beta.threads
        run = await waiting(here)
        assert run.required_action.to_dict() == {
            "type": "submit_tool_outputs",
            "submit_tool_outputs": {
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in CALLS
                ]
            },
        }
        [step] = (await threads.runs.steps.list(run.id, thread_id=run.thread_id)).data
        assert (step.type, step.status, step.completed_at) == ("tool_calls", "in_progress", None)
        assert [call.function.output for call in step.step_details.tool_calls] == [None, None]

        queued = await threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS)
        assert (queued.status, queued.required_action) == ("queued", None)
        done = await threads.runs.poll(run.id, thread_id=run.thread_id)
        assert done.status == "completed"
        told = here.model.requests[1].messages[-2:]
        assert [(each["tool_call_id"], each["content"]) for each in told] == [
            ("call_a", "rain \u0000 🌧"),
            ("call_b", "noon"),
        ]
        said = (await threads.messages.list(run.thread_id)).data
        assert [each.content[0].text.value for each in said] == ["It rains at noon.", "Weather?"]

        steps = [each async for each in threads.runs.steps.list(run.id, thread_id=run.thread_id, limit=1)]
        assert [(each.type, each.status) for each in steps] == [
            ("message_creation", "completed"),
            ("tool_calls", "completed"),
        ]
        assert [call.function.output for call in steps[1].step_details.tool_calls] == [
            "rain \u0000 🌧",
            "noon",
        ]
        assert steps[1].id == step.id and steps[1].usage
        assert steps == [
            await threads.runs.steps.retrieve(each.id, thread_id=run.thread_id, run_id=run.id, include=[])
            for each in steps
        ]
        page = await threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc", after=step.id)
        assert [each.id for each in page.data] == [steps[0].id]
        page = await threads.runs.steps.list(run.id, thread_id=run.thread_id, before=step.id)
        assert [each.id for each in page.data] == [steps[0].id]
        with pytest.raises(openai.BadRequestError, match="'step_x' is not in this list"):
            await threads.runs.steps.list(run.id, thread_id=run.thread_id, after="step_x")


async def test_outputs_that_are_not_those_that_were_asked_for_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, [CALLS, "Done."]) as here:
        run = await waiting(here)
        expected = "Expected tool outputs for call_ids ['call_a', 'call_b'], got "
        assert await refusal(here, run, OUTPUTS[1:]) == expected + "['call_a']"
        assert await refusal(here, run, []) == expected + "[]"
        assert await refusal(here, run, [*OUTPUTS, OUTPUTS[0]]) == expected + "['call_b', 'call_a', 'call_b']"
        other = {"tool_call_id": "call_x", "output": "x"}
        assert await refusal(here, run, [OUTPUTS[0], other]) == expected + "['call_b', 'call_x']"
        body = {"tool_outputs": [{"output": "x"}]}
        path = f"/threads/{run.thread_id}/runs/{run.id}/submit_tool_outputs"
        answer = await here.http.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "body -> tool_outputs -> 0 -> tool_call_id field required"
        assert (await here.client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)) == run


async def test_the_same_outputs_sent_again_are_no_error_and_others_are(tmp_path: Path) -> None:
    async with serving(tmp_path, [CALLS, Delay(0.2, "Done.")]) as here:
        runs = here.client.beta.threads.runs
        run = await waiting(here)
        sent = [
            runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS) for _ in range(3)
        ]
        answers = await asyncio.gather(*sent)
        assert {each.status for each in answers} <= {"queued", "in_progress"}
        others = [{**OUTPUTS[0], "output": "midnight"}, OUTPUTS[1]]
        told = await refusal(here, run, others)
        assert told in [
            f'Runs in status "{status}" do not accept tool outputs.' for status in ("queued", "in_progress")
        ]
        assert (await runs.poll(run.id, thread_id=run.thread_id)).status == "completed"
        again = await runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS)
        assert again.status == "completed"
        assert await refusal(here, run, others) == 'Runs in status "completed" do not accept tool outputs.'
        assert len(here.model.requests) == 2


async def test_a_run_may_ask_again_and_again_with_the_same_ids(tmp_path: Path) -> None:
    call = ToolCall("call_1", "time", "{}")
    async with serving(tmp_path, [[call, call], call, call, "Done."]) as here:
        runs = here.client.beta.threads.runs
        run = await waiting(here)
        twice = [{"tool_call_id": "call_1", "output": "1"}, {"tool_call_id": "call_1", "output": "2"}]
        run = await runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=twice
        )
        assert run.status == "requires_action"
        once = [{"tool_call_id": "call_1", "output": "3"}]
        for status in ("requires_action", "completed"):
            run = await runs.submit_tool_outputs_and_poll(
                run_id=run.id, thread_id=run.thread_id, tool_outputs=once
            )
            assert run.status == status
        told = [each["content"] for each in here.model.requests[3].messages if each["role"] == "tool"]
        assert told == ["1", "2", "3", "3"]


async def test_the_servers_own_tools_are_called_here_and_only_the_others_by_the_client(
    tmp_path: Path,
) -> None:
    @tool(effect="read")
    async def stock(item: str) -> int:
        """How many are left."""
        return 7

    calls = [ToolCall("call_1", "stock", '{"item": "bolt"}'), ToolCall("call_2", "time", "{}")]
    async with serving(tmp_path, [calls, "Seven at noon."], tools=[stock]) as here:
        runs = here.client.beta.threads.runs
        run = await waiting(here, [function("stock", item={"type": "string"}), function("time")])
        asked = run.required_action.submit_tool_outputs.tool_calls
        assert [(each.id, each.function.name) for each in asked] == [("call_2", "time")]
        run = await runs.submit_tool_outputs_and_poll(
            run_id=run.id,
            thread_id=run.thread_id,
            tool_outputs=[{"tool_call_id": "call_2", "output": "noon"}],
        )
        assert run.status == "completed"
        steps = (await runs.steps.list(run.id, thread_id=run.thread_id)).data
        assert [each.function.output for each in steps[1].step_details.tool_calls] == ["7", "noon"]


async def test_a_run_that_waits_for_outputs_is_cancelled_and_frees_its_thread(tmp_path: Path) -> None:
    async with serving(tmp_path, [CALLS, "Still here."]) as here:
        runs = here.client.beta.threads.runs
        run = await waiting(here)
        with pytest.raises(openai.BadRequestError, match="while a run"):
            await here.client.beta.threads.messages.create(run.thread_id, role="user", content="x")
        assert (await runs.cancel(run.id, thread_id=run.thread_id)).status in ("cancelling", "cancelled")
        done = await runs.poll(run.id, thread_id=run.thread_id)
        assert (done.status, done.required_action) == ("cancelled", None)
        [step] = (await runs.steps.list(run.id, thread_id=run.thread_id)).data
        assert (step.status, bool(step.cancelled_at)) == ("cancelled", True)
        assert await refusal(here, run, OUTPUTS) == 'Runs in status "cancelled" do not accept tool outputs.'
        following = await runs.create_and_poll(thread_id=run.thread_id, assistant_id=run.assistant_id)
        assert following.status == "completed"


async def test_a_run_that_is_not_waiting_takes_no_outputs(tmp_path: Path) -> None:
    async with serving(tmp_path, worker=False) as here:
        assistant = await here.client.beta.assistants.create(model="m")
        run = await here.client.beta.threads.create_and_run(assistant_id=assistant.id)
        for outputs in (OUTPUTS, []):
            assert await refusal(here, run, outputs) == 'Runs in status "queued" do not accept tool outputs.'


async def test_outputs_outlive_the_server(tmp_path: Path) -> None:
    def reply(request: ModelRequest) -> Any:
        return "Done." if request.messages[-1]["role"] == "tool" else CALLS

    async with serving(tmp_path, reply) as here:
        run = await waiting(here)
    async with serving(tmp_path, reply) as here:
        runs = here.client.beta.threads.runs
        assert await runs.retrieve(run.id, thread_id=run.thread_id) == run
        done = await runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS
        )
        assert done.status == "completed"
