"""Streams of the Assistants wire: every event in its order, picked up again wherever they broke off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai import AssistantEventHandler, AsyncAssistantEventHandler

from dayjob.models import ModelReply, ModelRequest, Usage
from dayjob.models.scripted import Scripted
from tests.server.serving import Serving, serving, strict_sync
from tests.server.wire_rules import TEXT_RUN, once

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL_RUN = [
    *TEXT_RUN[:5],
    "thread.run.step.delta",
    "thread.run.requires_action",
    "done",
]
RESUMED_RUN = ["thread.run.step.completed", "thread.run.queued", *TEXT_RUN[2:]]


def weather(request: ModelRequest) -> Any:
    if request.messages[-1]["role"] == "tool":
        return f"It is {request.messages[-1]['content']} there."
    return {"tool": "weather", "arguments": {"city": "Rome"}}


async def frames(here: Serving, method: str, path: str, **how: Any) -> AsyncIterator[tuple[str, str, Any]]:
    """The events of a stream as they are on the wire: id, name, data."""
    async with here.http.stream(method, path, timeout=20, **how) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line.startswith(":"):
                continue
            if not line and fields:
                data = fields["data"]
                yield fields.get("id", ""), fields["event"], data if data == "[DONE]" else orjson.loads(data)
                fields = {}
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value


async def assistant(here: Serving, **wanted: Any) -> str:
    return (await here.client.beta.assistants.create(model="gpt-4o", **wanted)).id


async def thread(here: Serving, text: str = "Hi.") -> str:
    return (await here.client.beta.threads.create(messages=[{"role": "user", "content": text}])).id


async def streamed(here: Serving, **wanted: Any) -> list[tuple[str, str, Any]]:
    body = {"assistant_id": await assistant(here, **wanted), "stream": True}
    path = f"/threads/{await thread(here)}/runs"
    return [each async for each in frames(here, "POST", path, json=body)]


async def test_a_run_that_says_something_is_told_in_the_order_of_the_wire(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hello, how are you today?"]) as here:
        events = await streamed(here)
    assert once([name for _, name, _ in events]) == TEXT_RUN
    deltas = [data["delta"]["content"][0] for _, name, data in events if name == "thread.message.delta"]
    assert "".join(delta["text"]["value"] for delta in deltas) == "Hello, how are you today?"
    assert [delta["text"].get("annotations") for delta in deltas] == [[], *[None] * (len(deltas) - 1)]
    (completed,) = [data for _, name, data in events if name == "thread.message.completed"]
    async with serving(tmp_path) as here:
        read = await here.client.beta.threads.messages.retrieve(
            completed["id"], thread_id=completed["thread_id"]
        )
        assert read.to_dict() == completed
        ran = events[-2][2]
        run = await here.client.beta.threads.runs.retrieve(ran["id"], thread_id=ran["thread_id"])
        assert run.to_dict() == ran


async def test_calls_of_the_client_end_the_stream_and_their_outputs_begin_the_next(tmp_path: Path) -> None:
    async with serving(tmp_path, weather) as here:
        events = await streamed(here, tools=[WEATHER])
        assert once([name for _, name, _ in events]) == CALL_RUN
        run = events[-2][2]
        (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        deltas = [
            data["delta"]["step_details"]["tool_calls"][0] for _, name, data in events if "step.delta" in name
        ]
        assert deltas[0]["id"] == call["id"]
        assert "".join(delta["function"]["arguments"] for delta in deltas) == call["function"]["arguments"]
        path = f"/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs"
        body = {"tool_outputs": [{"tool_call_id": call["id"], "output": "sunny"}], "stream": True}
        resumed = [each async for each in frames(here, "POST", path, json=body)]
        assert once([name for _, name, _ in resumed]) == RESUMED_RUN
        step = resumed[0][2]
        assert step["step_details"]["tool_calls"][0]["function"]["output"] == "sunny"
        said = [data for _, name, data in resumed if name == "thread.message.completed"]
        assert said[0]["content"][0]["text"]["value"] == "It is sunny there."


async def test_a_thread_made_with_its_run_comes_first(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hello."]) as here:
        body = {"assistant_id": await assistant(here), "stream": True, "thread": {"messages": []}}
        body["thread"] = {"messages": [{"role": "user", "content": "Hi."}]}
        names = [name async for _, name, _ in frames(here, "POST", "/threads/runs", json=body)]
        assert once(names) == ["thread.created", *TEXT_RUN]


async def test_a_stream_is_picked_up_after_any_event_and_nothing_is_told_twice(tmp_path: Path) -> None:
    async with serving(tmp_path, weather) as here:
        whole = await streamed(here, tools=[WEATHER])
        run = whole[-2][2]
        (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        of_run = f"/threads/{run['thread_id']}/runs/{run['id']}"
        body = {"tool_outputs": [{"tool_call_id": call["id"], "output": "sunny"}], "stream": True}
        whole += [each async for each in frames(here, "POST", f"{of_run}/submit_tool_outputs", json=body)]
        told = [each for each in whole if each[1] != "done"]
        for number, (id, _, _) in enumerate(told):
            rest = [
                each async for each in frames(here, "GET", f"{of_run}/stream", headers={"Last-Event-ID": id})
            ][:-1]
            expected = [name for _, name, _ in told[number + 1 :] if name != "thread.run.requires_action"]
            assert once([name for _, name, _ in rest]) == once(expected), id
            assert text_of(rest) == text_of(told[number + 1 :]), id
        everything = [name async for _, name, _ in frames(here, "GET", f"{of_run}/stream")]
        assert everything[:2] == ["thread.run.created", "thread.run.queued"]


def text_of(events: list[tuple[str, str, Any]]) -> str:
    deltas = [data["delta"]["content"][0] for _, name, data in events if name == "thread.message.delta"]
    return "".join(delta["text"]["value"] for delta in deltas)


async def test_an_id_that_is_none_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, ["Hello."]) as here:
        events = await streamed(here)
        run = events[-2][2]
        path = f"/threads/{run['thread_id']}/runs/{run['id']}/stream"
        for id in ("nonsense", "12", "~", "x~1", "-", "-x"):
            answer = await here.http.get(path, headers={"Last-Event-ID": id})
            assert answer.status_code == 400, id


class Paced(Scripted):
    """Says one word, and the rest when it is told to."""

    def __init__(self) -> None:
        super().__init__([])
        self.go_on = asyncio.Event()

    async def reply(self, request: ModelRequest, on_text: Any) -> ModelReply:
        on_text("Wait ")
        await self.go_on.wait()
        on_text("is over.")
        return ModelReply("Wait is over.", usage=Usage(1, 1), dollars=0.0)


async def test_a_client_that_leaves_does_not_stop_the_run_and_comes_back_in_the_middle(
    tmp_path: Path,
) -> None:
    model = Paced()
    async with serving(tmp_path, model=model) as here:
        body = {"assistant_id": await assistant(here), "stream": True}
        on = await thread(here)
        seen: list[tuple[str, str, Any]] = []
        async for each in frames(here, "POST", f"/threads/{on}/runs", json=body):
            seen.append(each)
            if each[1] == "thread.message.delta":
                break
        path = f"/threads/{on}/runs/{seen[0][2]['id']}/stream"
        asyncio.get_running_loop().call_later(0.1, model.go_on.set)
        rest = [each async for each in frames(here, "GET", path, headers={"Last-Event-ID": seen[-1][0]})]
        assert text_of(seen + rest) == "Wait is over."
        assert once([name for _, name, _ in seen + rest]) == TEXT_RUN


async def test_a_cancelled_run_tells_what_it_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path, model=Paced()) as here:
        body = {"assistant_id": await assistant(here), "stream": True}
        on, run, names = await thread(here), "", list[str]()
        async for _, name, data in frames(here, "POST", f"/threads/{on}/runs", json=body):
            names.append(name)
            if name == "thread.message.delta":
                await here.client.beta.threads.runs.cancel(run, thread_id=on)
            elif name == "thread.run.created":
                run = data["id"]
            elif name == "thread.message.incomplete":
                assert data["incomplete_details"] == {"reason": "run_cancelled"}
                assert data["content"][0]["text"]["value"] == "Wait "
    assert [name for name in names[8:] if name != "thread.run.cancelling"] == [
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
        "done",
    ]


async def test_a_failed_run_tells_why(tmp_path: Path) -> None:
    async with serving(tmp_path, [ValueError("a bug")]) as here:
        events = await streamed(here)
    assert [name for _, name, _ in events][2:] == ["thread.run.in_progress", "thread.run.failed", "done"]
    assert events[-2][2]["last_error"]["code"] == "server_error"


class Heard(AsyncAssistantEventHandler):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.done: list[str] = []

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.text += delta.value
        assert snapshot.value == self.text

    async def on_message_done(self, message: Any) -> None:
        self.done.append(message.content[0].text.value)

    async def on_tool_call_done(self, tool_call: Any) -> None:
        self.done.append(tool_call.function.arguments)


async def test_the_stream_helpers_of_the_python_client_hear_it_all(tmp_path: Path) -> None:
    async with serving(tmp_path, weather) as here:
        heard, on = Heard(), await thread(here)
        who = await assistant(here, tools=[WEATHER])
        async with here.client.beta.threads.runs.stream(
            thread_id=on, assistant_id=who, event_handler=heard
        ) as stream:
            await stream.until_done()
            run = await stream.get_final_run() if hasattr(stream, "get_final_run") else stream.current_run
        assert run is not None and run.required_action is not None
        assert heard.done == ['{"city":"Rome"}']
        (call,) = run.required_action.submit_tool_outputs.tool_calls
        after = Heard()
        async with here.client.beta.threads.runs.submit_tool_outputs_stream(
            run_id=run.id,
            thread_id=on,
            tool_outputs=[{"tool_call_id": call.id, "output": "snow"}],
            event_handler=after,
        ) as stream:
            await stream.until_done()
        assert (after.text, after.done) == ("It is snow there.", ["It is snow there."])


class Nested(AssistantEventHandler):
    """Hands in outputs from inside the handler, as the published examples do."""

    def __init__(self, client: Any, texts: list[str]) -> None:
        super().__init__()
        self.client = client
        self.texts = texts

    def on_event(self, event: Any) -> None:
        if event.event == "thread.run.requires_action":
            calls = event.data.required_action.submit_tool_outputs.tool_calls
            with self.client.beta.threads.runs.submit_tool_outputs_stream(
                run_id=event.data.id, thread_id=event.data.thread_id,
                tool_outputs=[{"tool_call_id": call.id, "output": "fog"} for call in calls],
                event_handler=Nested(self.client, self.texts),
            ) as stream:  # fmt: skip
                stream.until_done()

    def on_text_done(self, text: Any) -> None:
        self.texts.append(text.value)


async def test_outputs_may_be_handed_in_from_inside_a_handler(tmp_path: Path) -> None:
    async with serving(tmp_path, weather) as here:
        on, who = await thread(here), await assistant(here, tools=[WEATHER])
        texts: list[str] = []

        def listen() -> None:
            with (
                strict_sync(here.url, here.secret) as client,
                client.beta.threads.runs.stream(
                    thread_id=on, assistant_id=who, event_handler=Nested(client, texts)
                ) as stream,
            ):
                stream.until_done()

        await asyncio.to_thread(listen)
        assert texts == ["It is fog there."]


@pytest.mark.parametrize("helper", ["create", "create_and_run"])
async def test_plain_streams_of_the_python_client(tmp_path: Path, helper: str) -> None:
    async with serving(tmp_path, ["Hello."]) as here:
        runs, who = here.client.beta.threads, await assistant(here)
        if helper == "create":
            stream: Any = await runs.runs.create(await thread(here), assistant_id=who, stream=True)
        else:
            stream = await runs.create_and_run(
                assistant_id=who, stream=True, thread={"messages": [{"role": "user", "content": "Hi."}]}
            )
        events = [event.event async for event in stream]
        assert once(events)[-3:] == [
            "thread.message.completed",
            "thread.run.step.completed",
            "thread.run.completed",
        ]
