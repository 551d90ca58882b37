"""Runs that may use only so many tokens end incomplete, and say which limit it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from tests.server.serving import Serving, function, serving

LONG = "word " * 400
OUTPUTS = [{"tool_call_id": "call_1", "output": "rain"}]


async def asked(here: Serving, content: str = "Hello?", **assistant: Any) -> dict[str, Any]:
    """A run to be made: its assistant, and its thread in which something was said."""
    made = await here.client.beta.assistants.create(**{"model": "gpt-4o", **assistant})
    thread = await here.client.beta.threads.create(messages=[{"role": "user", "content": content}])
    return {"assistant_id": made.id, "thread_id": thread.id}


async def test_an_answer_is_cut_off_at_max_completion_tokens_and_kept(tmp_path: Path) -> None:
    async with serving(tmp_path, [LONG]) as here:
        run = await here.client.beta.threads.runs.create_and_poll(
            **await asked(here), max_completion_tokens=300
        )
        assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
        assert (run.max_completion_tokens, run.usage.completion_tokens) == (300, 300)
        assert here.model.requests[0].max_tokens == 300
        [said, _] = (await here.client.beta.threads.messages.list(run.thread_id)).data
        assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_tokens")
        assert said.content[0].text.value == LONG[:1_200]


async def test_an_answer_within_the_limits_completes_the_run(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hi."]) as here:
        run = await here.client.beta.threads.runs.create_and_poll(
            **await asked(here), max_completion_tokens=256, max_prompt_tokens=1_000
        )
        assert (run.status, run.incomplete_details) == ("completed", None)


async def test_all_answers_of_a_run_are_counted_together(tmp_path: Path) -> None:
    calls = ToolCall("call_1", "weather", "{}")
    usage = Usage(10, 256)

    def reply(request: ModelRequest) -> Any:
        return ModelReply("", (calls,), usage, 0.0, "tool_calls", "scripted")

    async with serving(tmp_path, reply) as here:
        runs = here.client.beta.threads.runs
        run = await runs.create_and_poll(
            **await asked(here, tools=[function("weather")]), max_completion_tokens=256
        )
        assert run.status == "requires_action"
        done = await runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=OUTPUTS
        )
        assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
        assert len(here.model.requests) == 1


async def test_a_prompt_that_may_be_longer_than_max_prompt_tokens_is_not_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, ["never"]) as here:
        run = await here.client.beta.threads.runs.create_and_poll(**await asked(here), max_prompt_tokens=20)
        assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_prompt_tokens")
        assert here.model.requests == []
        await here.client.beta.threads.messages.create(run.thread_id, role="user", content="Still there?")


async def test_as_much_of_a_long_thread_is_told_as_max_prompt_tokens_allow(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hi."]) as here:
        run = await asked(here, tools=[function("weather")])
        for number in range(50):
            content = f"{number}: {'word ' * 20}"
            await here.client.beta.threads.messages.create(run["thread_id"], role="user", content=content)
        done = await here.client.beta.threads.runs.create_and_poll(**run, max_prompt_tokens=4_000)
        assert done.status == "completed"
        told = [message["content"] for message in here.model.requests[0].messages]
        assert 3 < len(told) < 20 and told[-1].startswith("49: ")


async def test_a_message_that_is_too_long_for_max_prompt_tokens_is_not_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, ["never"]) as here:
        run = await asked(here, content=LONG)
        done = await here.client.beta.threads.runs.create_and_poll(**run, max_prompt_tokens=300)
        assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_prompt_tokens")
        assert here.model.requests == []


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"max_completion_tokens": 300}, "max_completion_tokens"), ({"max_prompt_tokens": 20}, "max_prompt_tokens")],
)  # fmt: skip
async def test_a_stream_tells_that_a_limit_was_reached(
    tmp_path: Path, limit: dict[str, int], reason: str
) -> None:
    async with serving(tmp_path, [LONG]) as here:
        stream = await here.client.beta.threads.runs.create(**await asked(here), stream=True, **limit)
        events = [event async for event in stream]
        names = [event.event for event in events]
        assert names[-1] == "thread.run.incomplete"
        assert events[-1].data.incomplete_details.reason == reason
        cut = [event.data for event in events if event.event == "thread.message.incomplete"]
        assert [each.incomplete_details.reason for each in cut] == (
            ["max_tokens"] if reason == "max_completion_tokens" else []
        )


@pytest.mark.parametrize("tokens", [0, -1, 10**9 + 1])
async def test_a_limit_that_cannot_be_is_refused(tmp_path: Path, tokens: int) -> None:
    async with serving(tmp_path, worker=False) as here:
        with pytest.raises(openai.BadRequestError, match="max_prompt_tokens"):
            await here.client.beta.threads.runs.create(**await asked(here), max_prompt_tokens=tokens)
