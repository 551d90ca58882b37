"""What every model adapter promises, on each of them: the wire, llama.cpp in this process, a script."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema
import pytest

from dayjob.models import Model, ModelRequest
from dayjob.models.anthropic import Anthropic
from dayjob.models.local import Local
from dayjob.models.openai import OpenAI
from dayjob.models.scripted import Delay, Scripted
from tests import messages_wire
from tests.wire import Answer, Request, Wire, calls, says

CITY = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
    "required": ["name", "capital"],
}
COLOURS = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Paris", "Rome"]}},
        },
    },
}


def ask(text: str, **more: Any) -> ModelRequest:
    return ModelRequest("any", [{"role": "user", "content": text}], **more)


def on_the_wire(request: Request) -> Answer:
    body = request.body
    if "tools" in body:
        return calls("get_weather", '{"city":', ' "Paris"}')
    if "response_format" in body:
        wrapped = "answer" in body["response_format"]["json_schema"]["schema"]["properties"]
        return (
            says('{"answer": ["red",', ' "blue"]}') if wrapped else says('{"name": "Paris", "capital": true}')
        )
    if body.get("max_tokens"):
        return says("This was", " cut", finish="length")
    if "slowly" in body["messages"][-1]["content"]:
        return says(*["word "] * 1000, seconds_between=0.1)
    return says("Hello", " there", ".")


def on_the_messages_wire(request: Request) -> Answer:
    body = request.body
    if "tools" in body:
        return messages_wire.calls("get_weather", '{"city":', ' "Paris"}')
    if "output_config" in body:
        wrapped = "answer" in body["output_config"]["format"]["schema"]["properties"]
        return (
            messages_wire.says('{"answer": ["red",', ' "blue"]}')
            if wrapped
            else messages_wire.says('{"name": "Paris", "capital": true}')
        )
    if body["max_tokens"] < 10:
        return messages_wire.says("This was", " cut", reason="max_tokens")
    if "slowly" in body["messages"][-1]["content"][-1]["text"]:
        return messages_wire.says(*["word "] * 1000, seconds_between=0.1)
    return messages_wire.says("Hello", " there", ".")


def in_the_script(request: ModelRequest) -> Any:
    if request.tools:
        return {"tool": "get_weather", "arguments": {"city": "Paris"}}
    if request.schema is not None:
        return {"name": "Paris", "capital": True} if request.schema is CITY else ["red", "blue"]
    if "slowly" in request.messages[-1]["content"]:
        return Delay(100, "late")
    return "Hello there, this is a reply of some words."


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    """One for all tests, since loading takes its time; each test has an event loop of its own."""
    model = Local()
    yield model
    asyncio.run(model.close())


@pytest.fixture(params=["openai", "anthropic", "local", "scripted"])
async def model(request: pytest.FixtureRequest) -> AsyncIterator[Model]:
    if request.param == "local":
        yield request.getfixturevalue("local")
    elif request.param == "scripted":
        yield Scripted(in_the_script)
    elif request.param == "anthropic":
        async with Wire(on_the_messages_wire) as wire:
            claude = Anthropic("claude-test", base_url=wire.url, api_key="sk-test")
            yield claude
            await claude.close()
    else:
        async with Wire(on_the_wire) as wire:
            adapter = OpenAI("gpt-test", base_url=wire.url, api_key="sk-test")
            yield adapter
            await adapter.close()


async def test_reply_is_text_and_its_deltas_join_to_it(model: Model) -> None:
    deltas: list[str] = []
    reply = await model.reply(ask("Say hello.", max_tokens=None), deltas.append)
    assert reply.text
    assert reply.finish == "stop"
    assert reply.tool_calls == ()
    assert len(deltas) > 1
    assert "".join(deltas) == reply.text


async def test_deltas_arrive_on_the_thread_of_the_event_loop(model: Model) -> None:
    threads: set[int] = set()
    await model.reply(ask("Say hello."), lambda _: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


async def test_usage_is_counted_and_the_model_named(model: Model) -> None:
    reply = await model.reply(ask("Say hello."), lambda _: None)
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens > 0
    assert reply.model
    assert reply.dollars is None or reply.dollars == 0.0


@pytest.mark.parametrize("schema", [CITY, COLOURS], ids=["object", "list"])
async def test_answer_to_a_schema_is_json_that_fits_it(model: Model, schema: dict[str, Any]) -> None:
    deltas: list[str] = []
    request = ask("Tell me about Paris, the capital of France.", schema=schema, max_tokens=100)
    reply = await model.reply(request, deltas.append)
    jsonschema.validate(json.loads(reply.text), schema)
    assert "".join(deltas) == reply.text


async def test_tool_call_has_an_id_and_arguments_that_fit(model: Model) -> None:
    request = ask(
        "How is the weather in Paris?",
        tools=[WEATHER],
        max_tokens=100,
        options={"tool_choice": "required"},
    )
    reply = await model.reply(request, lambda _: None)
    again = await model.reply(request, lambda _: None)
    (call,) = reply.tool_calls
    assert reply.finish == "tool_calls"
    assert call.id
    assert call.id != again.tool_calls[0].id or isinstance(model, OpenAI | Anthropic)
    assert call.name == "get_weather"
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])


async def test_conversation_with_tool_results_goes_on(model: Model) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is the weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees."},
        {"role": "user", "content": "So, is it sunny?"},
    ]
    reply = await model.reply(ModelRequest("any", messages), lambda _: None)
    assert reply.text


async def test_answer_over_max_tokens_is_cut(model: Model) -> None:
    reply = await model.reply(ask("Write a long story.", max_tokens=5), lambda _: None)
    assert reply.finish == "length"
    assert reply.text
    assert reply.usage.output_tokens <= 5


async def test_cancelled_reply_stops_at_once_and_the_next_one_works(model: Model) -> None:
    deltas: list[str] = []
    task = asyncio.create_task(model.reply(ask("Tell a very long story, slowly."), deltas.append))
    done, _ = await asyncio.wait({task}, timeout=0.5)
    assert not done
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task
    heard = len(deltas)
    async with asyncio.timeout(20):
        assert (await model.reply(ask("Say hello."), lambda _: None)).text
    assert len(deltas) == heard


async def test_several_replies_at_once_keep_apart(model: Model) -> None:
    heard: list[list[str]] = [[] for _ in range(6)]
    requests = [ask(f"Say the number {n}.", max_tokens=20) for n in range(6)]
    replies = await asyncio.gather(
        *(model.reply(request, deltas.append) for request, deltas in zip(requests, heard, strict=True))
    )
    assert [reply.text for reply in replies] == ["".join(deltas) for deltas in heard]


async def test_error_of_the_listener_is_its_own(model: Model) -> None:
    def deaf(text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await model.reply(ask("Say hello."), deaf)


async def test_closing_twice_is_no_error(model: Model) -> None:
    if isinstance(model, Local):  # the others share that one
        model = Local()
    await model.close()
    await model.close()
