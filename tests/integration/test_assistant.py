"""The built-in job: what it sends, what it leaves on the thread, and what its client is asked to do."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import orjson
import pytest

from dayjob import Dayjob, Run, RunFailed, job, tool
from dayjob.assistant import AssistantRun, assistant_job
from dayjob.errors import InputError, UnknownAction
from dayjob.jobs import Request
from dayjob.kept import MessageRecord, Page
from dayjob.keys import message_id
from dayjob.models import ModelReply, ModelRequest, Usage
from dayjob.models.scripted import Scripted
from dayjob.runs import Action, Kind, Outcome, RunRecord, Status, StepRecord
from dayjob.server.wire import calls_required, run_object, step_objects
from dayjob.testing import CrashLab, Death, Moment
from dayjob.tools import ClientTool
from tests.ledger import executed
from tests.until import until

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@tool(effect="read")
async def clock(place: str) -> str:
    """The time somewhere."""
    executed[f"clock {place}"] += 1
    return f"noon in {place}"


assistant = assistant_job([clock])


def asked(**wanted: Any) -> Request:
    return assistant(AssistantRun("asst_1", "gpt-4o", **wanted))


def calls(*named: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"tool": name, "arguments": arguments} for name, arguments in named]


def app_with(url: str, model: Any) -> Dayjob:
    return Dayjob(f"{url}?synchronous=off", model=model)


async def say(app: Dayjob, *texts: str) -> str:
    thread = app.thread()
    for text in texts:
        await thread.append(text)
    return thread.id


async def messages(app: Dayjob, thread: str) -> list[MessageRecord]:
    found: list[MessageRecord] = (await app.store.messages_page(thread, Page(100, ascending=True))).rows
    return found


def told(request: ModelRequest) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in request.messages]


async def test_it_sends_the_thread_as_it_is_and_adds_no_prompt(url: str) -> None:
    model = Scripted(["Hello.", "Fine."])
    async with app_with(url, model) as app:
        thread = await say(app, "Hi.")
        assert await (await app.submit(asked(), thread=thread)).result() == "Hello."
        await app.thread(thread).append("And you?")
        await (await app.submit(asked(instructions="Be brief."), thread=thread)).result()
    assert told(model.requests[0]) == [("user", "Hi.")]
    said = [("user", "Hi."), ("assistant", "Hello."), ("user", "And you?")]
    assert told(model.requests[1]) == [("system", "Be brief."), *said]
    assert model.requests[0].options == {}


async def test_only_what_was_given_goes_to_the_model(url: str) -> None:
    model = Scripted([calls(("weather", {"city": "Rome"})), "Sunny."])
    wanted = {"temperature": 0.0, "tool_choice": "required", "parallel_tool_calls": False, "tools": [WEATHER]}
    async with app_with(url, model) as app:
        handle = await app.submit(asked(**wanted), thread=await say(app, "Rome?"))
        (action,) = await until(lambda: app.actions(handle.id))
        await app.answer(handle.id, action.id, "sunny")
        assert await handle.result() == "Sunny."
    assert model.requests[0].options == {
        "temperature": 0.0, "tool_choice": "required", "parallel_tool_calls": False,
    }  # fmt: skip
    assert "tool_choice" not in model.requests[1].options  # else it could never answer
    assert model.requests[0].tools == [WEATHER]


async def test_the_last_messages_are_counted_by_what_people_read(url: str) -> None:
    model = Scripted([calls(("clock", {"place": "Rome"})), "Noon.", "Bye."])
    tools = [clock.definition]
    async with app_with(url, model) as app:
        thread = await say(app, "Hi.", "Time?")
        await (await app.submit(asked(tools=tools), thread=thread)).result()
        await app.thread(thread).append("Thanks.")
        last = {"type": "last_messages", "last_messages": 2}
        await (await app.submit(asked(truncation_strategy=last), thread=thread)).result()
        assert len(await messages(app, thread)) == 5
    assert told(model.requests[2]) == [("assistant", "Noon."), ("user", "Thanks.")]
    assert model.requests[1].messages[-1]["content"] == "noon in Rome"


async def test_tools_of_the_server_are_called_here_and_the_others_by_the_client(url: str) -> None:
    model = Scripted([calls(("clock", {"place": "Oslo"}), ("weather", {"city": "Oslo"})), "Noon, snow."])
    async with app_with(url, model) as app:
        thread = await say(app, "Oslo?")
        handle = await app.submit(asked(tools=[WEATHER, clock.definition]), thread=thread)
        (action,) = await until(lambda: app.actions(handle.id))
        run = await until(lambda: in_status(app, handle.id, Status.REQUIRES_ACTION))
        (call,) = calls_required(run, await app.steps(run.id))
        assert (call.name, call.arguments, call.row.key) == ("weather", '{"city":"Oslo"}', action.key)
        assert run_object(run, await app.steps(run.id))["status"] == "requires_action"
        await app.answer_all(run.id, {action.id: "snow"})
        assert await handle.result() == "Noon, snow."
        steps = step_objects(await app.get(run.id), await app.steps(run.id))
        outputs = [call["function"]["output"] for call in steps[0]["step_details"]["tool_calls"]]
        assert (outputs, steps[0]["status"], len(steps)) == (["noon in Oslo", "snow"], "completed", 2)


async def in_status(app: Dayjob, run: str, status: Status) -> RunRecord | None:
    record = await app.get(run)
    return record if record.status == status else None


async def test_answers_given_together_are_all_taken_or_none(url: str) -> None:
    model = Scripted([calls(("weather", {"city": "A"}), ("weather", {"city": "B"})), "Both."])
    async with app_with(url, model) as app:
        handle = await app.submit(asked(tools=[WEATHER]), thread=await say(app, "A, B?"))
        actions: list[Action] = await until(lambda: two(app, handle.id))
        with pytest.raises(UnknownAction):
            await app.answer_all(handle.id, {actions[0].id: "sun", "act/7/weather": "rain"})
        assert len(await app.actions(handle.id)) == 2
        await app.answer_all(handle.id, {action.id: "sun" for action in actions})
        assert await handle.result() == "Both."


async def two(app: Dayjob, run: str) -> list[Action]:
    found = await app.actions(run)
    return found if len(found) == 2 else []


async def test_what_was_said_until_the_run_was_cancelled_is_kept(url: str) -> None:
    class Slow(Scripted):
        async def reply(self, request: ModelRequest, on_text: Any) -> ModelReply:
            on_text("The answer ")
            await asyncio.sleep(3600)
            raise AssertionError

    async with app_with(url, Slow([])) as app:
        thread = await say(app, "Why?")
        heard: list[str] = []
        app.subscribe(lambda name, fields: heard.append(fields["text"]) if name == "step.text" else None)
        handle = await app.submit(asked(), thread=thread)
        await until(lambda: heard)
        await handle.cancel()
        await until(lambda: in_status(app, handle.id, Status.CANCELLED))
        _, said = await messages(app, thread)
        (row,) = [step for step in await app.steps(handle.id) if step.kind == Kind.MODEL]
        assert row.outcome == Outcome.SUPERSEDED
        assert said.id == message_id(handle.id, row.key, row.attempt)
        assert orjson.loads(said.details or b"") == {"incomplete": "run_cancelled"}
        assert orjson.loads(said.message)["content"] == "The answer "
        (step,) = step_objects(await app.get(handle.id), await app.steps(handle.id))
        assert (step["status"], step["step_details"]["message_creation"]) == (
            "cancelled",
            {"message_id": said.id},
        )


async def test_a_message_has_the_id_of_its_step_and_stands_once_wherever_the_worker_dies(
    lab: CrashLab,
) -> None:
    def reply(request: ModelRequest) -> Any:
        return "Noon." if request.messages[-1]["role"] == "tool" else calls(("clock", {"place": "Rome"}))

    ended, write = None, 0
    async with Dayjob(lab.store, worker=False) as app:
        while ended is None or ended.death is not None:
            write += 1
            thread = await say(app, "Time?")
            death = Death(write, [*Moment][write % 3])
            ended = await lab.run(
                asked(tools=[clock.definition]), death=death, model=Scripted(reply), thread=thread
            )
            assert ended.output == "Noon.", ended.run.reason
            assert [each.id for each in await messages(app, thread)][1:] == [id_of(ended.run, ended.steps)]
            assert len(await app.store.thread_messages(thread)) == 4
    assert write > 8


def id_of(run: RunRecord, steps: Any) -> str:
    row: StepRecord = [step for step in steps if step.kind == Kind.MODEL][-1]
    return message_id(run.id, row.key, row.attempt)


async def test_what_broke_off_for_good_is_kept_as_failed(url: str) -> None:
    class Breaks(Scripted):
        async def reply(self, request: ModelRequest, on_text: Any) -> ModelReply:
            on_text("It ")
            raise ValueError("a bug")

    async with app_with(url, Breaks([])) as app:
        thread = await say(app, "Why?")
        with pytest.raises(RunFailed):
            await (await app.submit(asked(), thread=thread)).result()
        _, said = await messages(app, thread)
        assert orjson.loads(said.details or b"") == {"incomplete": "run_failed"}


async def test_an_answer_that_is_cut_off_is_kept_and_says_so(url: str) -> None:
    cut = ModelReply("Once upon", usage=Usage(3, 2), dollars=0.0, finish="length")
    async with app_with(url, Scripted([cut])) as app:
        thread = await say(app, "A story!")
        handle = await app.submit(asked(), thread=thread)
        await until(lambda: is_over(app, handle.id))
        _, said = await messages(app, thread)
        assert orjson.loads(said.details or b"") == {"incomplete": "max_tokens"}
        assert run_object(await app.get(handle.id))["incomplete_details"] == {
            "reason": "max_completion_tokens"
        }


async def is_over(app: Dayjob, run: str) -> bool:
    return (await app.get(run)).status.is_terminal


async def test_a_model_call_is_appended_only_where_there_is_a_thread(url: str) -> None:
    @job
    async def speak(run: Run) -> str:
        return (await run.model("Hi.", append=True)).text

    async with app_with(url, Scripted(["Hello.", "Hello."])) as app:
        assert await (await app.submit(speak())).result() == "Hello."
        thread = await say(app, "Hi.")
        await (await app.submit(speak(), thread=thread)).result()
        assert [orjson.loads(each.message)["content"] for each in await messages(app, thread)] == [
            "Hi.",
            "Hello.",
        ]


def test_a_definition_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="two words"):
        ClientTool.of({"type": "function", "function": {"name": "two words"}})
    bare = ClientTool.of({"type": "function", "function": {"name": "bare"}})
    assert bare.parameters == {"type": "object", "properties": {}}
    assert bare.validate('{"any": 1}') == {"any": 1}


def test_a_run_is_asked_for_in_words_that_are_stored_and_read_again() -> None:
    wanted = AssistantRun("asst_1", "gpt-4o", tools=[WEATHER], response_format={"type": "json_object"})
    assert AssistantRun(**asdict(wanted)) == wanted
    assert wanted.options == {"response_format": {"type": "json_object"}}
