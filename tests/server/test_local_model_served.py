"""`dayjob serve --model local:` and the official clients: no key, no network, and a model that really speaks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.clients.nodejs import VERSIONS, node
from tests.server.serving import function, strict_sync

WEATHER: Any = function("weather", city={"enum": ["Rome", "Oslo"]})
MOST_CALLS = 5
"""A small model may want to know it again before it answers."""


def test_the_python_client_polls_streams_and_hands_in_outputs(served: Any) -> None:
    with served("--model", "local:") as (_, url), strict_sync(f"{url}/v1", "any") as client:
        runs, who = client.beta.threads.runs, client.beta.assistants.create(model="gpt-4o").id
        polled = thread(client, "Say hello.")
        assert runs.create_and_poll(thread_id=polled, assistant_id=who).status == "completed"
        assert said(client, polled)

        streamed = thread(client, "Say hello.")
        with runs.stream(thread_id=streamed, assistant_id=who) as stream:
            deltas = list(stream.text_deltas)
        assert len(deltas) > 1
        assert "".join(deltas) == said(client, streamed) == said(client, polled)

        asking = thread(client, "What is the weather in Rome?")
        choice: Any = {"type": "function", "function": {"name": "weather"}}
        run = runs.create_and_poll(thread_id=asking, assistant_id=who, tools=[WEATHER], tool_choice=choice)
        assert run.required_action is not None
        for _ in range(MOST_CALLS):
            if run.required_action is None:
                break
            calls = run.required_action.submit_tool_outputs.tool_calls
            assert {each.function.name for each in calls} == {"weather"}
            assert {json.loads(each.function.arguments)["city"] for each in calls} <= {"Rome", "Oslo"}
            outputs: Any = [{"tool_call_id": each.id, "output": "sunny"} for each in calls]
            run = runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=asking, tool_outputs=outputs)
        assert run.status == "completed"
        assert run.usage is not None and run.usage.total_tokens > 0


def thread(client: OpenAI, text: str) -> str:
    return client.beta.threads.create(messages=[{"role": "user", "content": text}]).id


def said(client: OpenAI, on: str) -> str:
    """The newest message."""
    content: Any = client.beta.threads.messages.list(on, limit=1).data[0].content
    return str(content[0].text.value)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_javascript_client_polls_streams_and_hands_in_outputs(served: Any, version: str) -> None:
    with served("--model", "local:") as (_, url):
        told = await node("first_steps.mjs", version, f"{url}/v1", "any")
    assert told["polled"]["status"] == told["streamed"]["status"] == "completed"
    assert told["polled"]["said"] == told["streamed"]["said"] != ""
    assert told["streamed"]["deltas"] > 1
    assert (told["withATool"]["status"], told["withATool"]["name"]) == ("completed", "weather")
    assert told["withATool"]["arguments"]["city"] in ("Rome", "Oslo")
