"""The autonomous agent: what it does turn by turn, why it ends, and that no crash changes either."""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from dayjob import (
    Call,
    Dayjob,
    Limits,
    Run,
    RunCancelled,
    RunFailed,
    RunIncomplete,
    StepError,
    job,
    tool,
)
from dayjob.context import UNANSWERED, last_messages, summarise, tokens_in
from dayjob.conversation import SUMMARISE
from dayjob.jobs import Job
from dayjob.mcp import McpServer
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.models.scripted import Scripted
from dayjob.patterns import agent, auto
from dayjob.patterns.agent import CUT_OFF, CUT_SHORT, LOOP, NOT_DONE
from dayjob.reflection import GO_ON, PLAN, REFLECT, REVISE
from dayjob.runs import Kind, Outcome, Status
from dayjob.testing import CrashLab, Death, Moment
from tests.ledger import everywhere, executed
from tests.until import until

SHOP = Path(__file__).with_name("mcp_server.py")


@tool(effect="read")
async def look(place: str) -> str:
    """Look somewhere.

    Args:
        place: Where to look.
    """
    executed[f"look {place}"] += 1
    return f"in {place}: a key"


@tool
async def pay(call: Call, amount: int) -> str:
    executed[f"pay {amount}"] += 1
    return f"paid {amount}"


@tool(effect="read")
async def broken(place: str) -> str:
    executed[f"broken {place}"] += 1
    raise ValueError(f"{place} is closed")


def plain(number: int) -> int:
    """Doubles a number."""
    executed[f"plain {number}"] += 1
    return 2 * number


TOOLS = [look, pay, broken, plain]


def calls(*named: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"tool": name, "arguments": arguments} for name, arguments in named]


def agent_job(**how: Any) -> Job:
    async def work(run: Run, task: str = "Find the key.") -> str:
        return await agent(run, "You find things.", task, **{"tools": TOOLS, **how})

    return Job(work, "work", "v1")


def app_with(url: str, model: Any, *jobs: Job) -> Dayjob:
    return Dayjob(f"{url}?synchronous=off", model=model, jobs=jobs)


async def reasons(app: Dayjob, run: str) -> list[str]:
    notes = [orjson.loads(step.value or b"{}") for step in await app.steps(run) if step.name == "note"]
    return [note["data"]["reason"] for note in notes if "reason" in note.get("data", {})]


async def ends(url: str, model: Any, **how: Any) -> tuple[Any, str, list[str]]:
    """What an agent gives or fails for, its one reason, and the keys of its steps."""
    async with app_with(url, model) as app:
        handle = await app.submit(agent_job(**how)())
        try:
            result: Any = await handle.result(timeout=20)
        except RunFailed as end:
            result = end
        (reason,) = await reasons(app, handle.id)
        return result, reason, [step.key for step in await app.steps(handle.id)]


def told(request: ModelRequest) -> list[str]:
    return [str(message["content"]) for message in request.messages]


# --- plan, act, observe -----------------------------------------------------------------------------------


async def test_calls_of_one_turn_run_side_by_side_as_steps_and_the_model_sees_what_came_of_each(
    url: str,
) -> None:
    asked = calls(("look", {"place": "hall"}), ("plain", {"number": 4}), ("broken", {"place": "shed"}))
    model = Scripted([asked, "It is in the hall."])
    result, reason, keys = await ends(url, model)
    assert (result, reason) == ("It is in the hall.", "done")
    assert {"turn/act/0/look", "turn/act/1/plain", "turn/act/2/broken", "turn", "turn#2"} <= set(keys)
    assert told(model.requests[1])[-3:] == ["in hall: a key", "8", "ValueError: shed is closed"]


async def test_nothing_is_added_to_the_prompt_unless_it_is_asked_for(url: str) -> None:
    model = Scripted([calls(("look", {"place": "hall"})), "Found."])
    await ends(url, model)
    roles = [[message["role"] for message in request.messages] for request in model.requests]
    assert roles == [["system", "user"], ["system", "user", "assistant", "tool"]]
    assert told(model.requests[0]) == ["You find things.", "Find the key."]


async def test_a_turn_is_one_row_and_a_replay_does_not_enter_it(lab: CrashLab) -> None:
    model = Scripted([*[calls(("look", {"place": str(n)})) for n in range(5)], "Found."])
    ended = await lab.run(agent_job()(), model=model)
    turns = [step for step in ended.steps if step.kind == Kind.SCOPE and step.name == "turn"]
    assert [step.key for step in turns] == ["turn", *(f"turn#{n}" for n in range(2, 7))]
    assert max(len(step.value or b"") for step in turns) < 600  # what it added, not the whole conversation


async def test_done_says_what_is_missing_until_it_is_content(url: str) -> None:
    def is_long(text: str) -> bool | str:
        return len(text) > 8 or "Say more."

    model = Scripted(["Here.", "In the hall."])
    assert (await ends(url, model, done=is_long))[:2] == ("In the hall.", "done")
    assert told(model.requests[1])[-2:] == ["Here.", "Say more."]


async def test_done_may_be_asked_without_words_and_may_call_a_model(url: str) -> None:
    async def judged(run: Run, text: str) -> bool:
        return (await run.model(f"Is this an answer? {text}")).text == "yes"

    model = Scripted(["Hm.", "no", "In the hall.", "yes"])
    assert (await ends(url, model, done=judged))[:2] == ("In the hall.", "done")
    assert told(model.requests[2])[-1] == NOT_DONE


@pytest.mark.parametrize("verdict", ["", None, 0, 1, {"ok": True}])
async def test_a_verdict_that_says_nothing_asks_it_to_go_on(url: str, verdict: Any) -> None:
    model = Scripted(["Here.", "There."])
    result, reason, _ = await ends(url, model, done=lambda text: verdict, max_steps=2)
    assert (type(result), reason) == (RunFailed, "max_steps")
    assert told(model.requests[1])[-1] == NOT_DONE


async def test_an_answer_that_is_cut_off_says_so(url: str) -> None:
    result, reason, _ = await ends(url, Scripted(["A long answer"]), max_tokens=2)
    assert (reason, result.partial) == ("length", "A long a")
    assert "CutOff: agent: the answer was cut off in turn 1" in result.reason


async def test_it_ends_without_an_answer_when_its_turns_are_used_up(url: str) -> None:
    model = Scripted(lambda request: ToolCall("1", "plain", f'{{"number": {len(request.messages)}}}'))
    result, reason, _ = await ends(url, model, max_steps=3)
    assert reason == "max_steps"
    assert "Stopped: agent: max_steps after 3 turns" in result.reason


async def test_what_was_said_last_is_kept(url: str) -> None:
    said = ModelReply("I look in the hall.", (ToolCall("1", "look", '{"place": "hall"}'),))
    result, reason, _ = await ends(url, Scripted([said]), max_steps=1)
    assert (reason, result.partial) == ("max_steps", "I look in the hall.")


# --- what the model gets wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            ToolCall("1", "fly", "{}"),
            "UnknownTool: there is no tool 'fly'; there are: look, pay, broken, plain",
        ),
        (ToolCall("1", "look", '{"where": 1}'), "look.place: is missing; expected string (Where to look.)"),
        (ToolCall("1", "look", "place=hall"), "InvalidArguments: look: this is no JSON"),
        (ToolCall("1", "look", "[1]"), "InvalidArguments: look: expected an object, got [1]"),
    ],
)
async def test_a_call_that_cannot_be_made_goes_back_to_the_model(
    url: str, call: ToolCall, complaint: str
) -> None:
    model = Scripted([call, "I give up."])
    assert (await ends(url, model))[:2] == ("I give up.", "done")
    assert complaint in told(model.requests[1])[-1]
    assert not executed


async def test_calls_that_gave_a_declared_type_are_told_as_its_json(url: str) -> None:
    @tool(effect="read")
    async def balance(account: str) -> Decimal:
        return Decimal("12.50")

    @tool(effect="read")
    async def holders(account: str) -> set[str]:
        return {"Kim"}

    model = Scripted([calls(("balance", {"account": "1"}), ("holders", {"account": "1"})), "12.50, Kim's."])
    assert (await ends(url, model, tools=[balance, holders]))[:2] == ("12.50, Kim's.", "done")
    assert told(model.requests[1])[-2:] == ['"12.50"', '["Kim"]']


async def test_calls_that_cannot_be_made_end_it_after_three_turns(url: str) -> None:
    model = Scripted(lambda request: ToolCall("1", f"fly{len(request.messages)}", "{}"))
    result, reason, _ = await ends(url, model)
    assert (reason, len(model.requests)) == ("invalid_calls", 3)
    assert isinstance(result, RunFailed)


@pytest.mark.parametrize("finish", CUT_OFF)
async def test_calls_of_a_reply_that_was_cut_off_are_not_made(url: str, finish: str) -> None:
    @tool
    async def wipe(place: str = "everywhere") -> str:
        raise AssertionError

    cut_off = ModelReply("", (ToolCall("1", "wipe", ""),), finish=finish)
    model = Scripted([cut_off, "I let it be."])
    assert (await ends(url, model, tools=[wipe]))[:2] == ("I let it be.", "done")
    assert told(model.requests[1])[-1] == CUT_SHORT


async def test_a_tool_that_says_something_else_each_time_may_be_asked_on(url: str) -> None:
    @tool(effect="read")
    async def progress() -> int:
        executed["progress"] += 1
        return executed["progress"]

    model = Scripted(lambda _: "Done." if executed["progress"] == 8 else ToolCall("1", "progress", "{}"))
    assert (await ends(url, model, tools=[progress]))[:2] == ("Done.", "done")


async def test_a_loop_on_one_tool_is_refused_and_then_ends_it(url: str) -> None:
    model = Scripted(lambda _: ToolCall("1", "pay", '{"amount": 5}'))
    result, reason, _ = await ends(url, model)
    assert (reason, executed["pay 5"], len(model.requests)) == ("loop", 2, 4)
    assert told(model.requests[3])[-1] == LOOP
    assert "loop after 4 turns" in result.reason


async def test_two_calls_in_turn_are_a_loop_too(url: str) -> None:
    places = ["hall", "shed"]
    model = Scripted(
        lambda request: ToolCall(
            "1", "look", orjson.dumps({"place": places[len(request.messages) // 2 % 2]}).decode()
        )
    )
    assert (await ends(url, model))[1] == "loop"
    assert executed["look hall"] + executed["look shed"] == 5


async def test_after_a_loop_another_way_leads_on(url: str) -> None:
    same = calls(("look", {"place": "hall"}))
    model = Scripted([same, same, same, calls(("look", {"place": "shed"})), "In the shed."])
    assert (await ends(url, model))[:2] == ("In the shed.", "done")
    assert executed == {"look hall": 2, "look shed": 1}


async def test_the_same_test_after_different_edits_is_no_loop(url: str) -> None:
    turns = [
        calls((name, arguments))
        for n in range(4)
        for name, arguments in (("plain", {"number": n}), ("look", {"place": "tests"}))
    ]
    assert (await ends(url, Scripted([*turns, "Done."])))[:2] == ("Done.", "done")


async def test_a_thread_that_began_with_too_much_can_be_gone_on_with(url: str) -> None:
    async with app_with(url, Scripted(["You are welcome."])) as app:
        thread = app.thread()
        await thread.append("a whole book " * 1_000)
        await thread.append({"role": "assistant", "content": "That was long."})
        handle = await app.submit(agent_job(context=auto(100))(task="Thank you."), thread=thread)
        assert await handle.result(timeout=20) == "You are welcome."


async def test_a_window_too_small_for_one_message_is_a_named_reason(url: str) -> None:
    async with app_with(url, Scripted(["never"])) as app:
        handle = await app.submit(agent_job(context=auto(5))())
        with pytest.raises(RunFailed, match="WindowTooSmall: the window is too small"):
            await handle.result(timeout=20)


# --- plans ------------------------------------------------------------------------------------------------


async def test_with_a_plan_it_plans_first_and_revises_after_a_failure(url: str) -> None:
    model = Scripted(
        [
            "1. Look in the shed.",
            calls(("broken", {"place": "shed"})),
            "The shed is closed. 1. The hall.",
            "It is in the hall.",
        ]
    )
    result, reason, keys = await ends(url, model, plan=True)
    assert (result, reason) == ("It is in the hall.", "done")
    assert {"turn/plan", "turn#2/plan"} <= set(keys)
    assert told(model.requests[0])[-1] == PLAN
    assert told(model.requests[1])[-2:] == ["1. Look in the shed.", GO_ON]
    assert told(model.requests[2])[-1] == REVISE.format(why="the last calls failed")
    assert not model.requests[0].tools and model.requests[1].tools


async def test_with_a_plan_a_loop_makes_it_replan_before_it_ends(url: str) -> None:
    def reply(request: ModelRequest) -> Any:
        return "Try again." if not request.tools else ToolCall("1", "look", '{"place": "hall"}')

    _, reason, keys = await ends(url, Scripted(reply), plan=True)
    assert reason == "loop"
    assert [key for key in keys if key.endswith("/plan")] == ["turn/plan", "turn#4/plan"]


async def test_it_looks_back_at_an_interval(url: str) -> None:
    def reply(request: ModelRequest) -> Any:
        number = sum(message["role"] == "tool" for message in request.messages)
        if not request.tools:
            return f"After {number}: on we go."
        return calls(("plain", {"number": number})) if number < 5 else "Done."

    model = Scripted(reply)
    result, _, keys = await ends(url, model, reflect_every=2)
    assert result == "Done."
    assert [key for key in keys if key.endswith("/reflect")] == ["turn#3/reflect", "turn#5/reflect"]
    assert REFLECT.format(why="2 turns are over") in [told(request)[-1] for request in model.requests]


async def test_what_shapes_the_answer_is_kept_from_plans_reflections_and_summaries(url: str) -> None:
    options = {
        "returns": dict[str, str], "tool_choice": "auto", "parallel_tool_calls": False, "name": "say", "temperature": 0,
    }  # fmt: skip

    def reply(request: ModelRequest) -> Any:
        if not request.tools:
            return "Go and look."
        number = sum(message["role"] == "tool" for message in request.messages)
        if len(executed) < 6:
            return calls(("look", {"place": f"{len(executed)} {number}"}))
        return {"place": "hall"}

    model = Scripted(reply)
    how = {"plan": True, "reflect_every": 2, "context": summarise(100)}
    result, _, keys = await ends(url, model, **how, **options)
    assert result == '{"place":"hall"}'
    assert {"turn/plan", "turn#3/plan", "turn/say"} <= set(keys) and any("summarise" in key for key in keys)
    aside = [request for request in model.requests if not request.tools]
    assert all(request.schema is None and request.options == {"temperature": 0} for request in aside)
    assert all(request.schema for request in model.requests if request.tools)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
async def test_a_choice_of_tool_that_forces_a_call_holds_for_the_first_turn(url: str, choice: Any) -> None:
    def reply(request: ModelRequest) -> Any:
        if request.options.get("tool_choice") in (None, "auto"):
            return "In the hall."
        return calls(("look", {"place": f"place {len(request.messages)}"}))

    model = Scripted(reply)
    assert (await ends(url, model, tool_choice=choice))[:2] == ("In the hall.", "done")
    assert [request.options for request in model.requests] == [{"tool_choice": choice}, {}]


# --- people and other systems -----------------------------------------------------------------------------


async def test_a_message_sent_to_a_running_agent_is_seen_at_its_next_turn(url: str) -> None:
    app = app_with(url, None)

    @tool(effect="read")
    async def wait_for_news(call: Call) -> str:
        await app.send(call.run_id, "message", "It is in the shed!")
        return "nothing here"

    model = Scripted([calls(("wait_for_news", {})), "Then it is in the shed."])
    app._model = model
    async with app:
        handle = await app.submit(agent_job(tools=[wait_for_news])())
        assert await handle.result(timeout=20) == "Then it is in the shed."
    assert told(model.requests[1])[-2:] == ["nothing here", "It is in the shed!"]


async def test_a_message_that_comes_while_the_last_answer_is_made_is_answered(url: str) -> None:
    app = app_with(url, None)

    async def reply(request: ModelRequest) -> str:
        if len(request.messages) == 2:
            (running,) = await app.runs()
            await app.send(running.id, "message", "And thank you.")
            return "Found."
        return "You are welcome."

    app._model = Scripted(reply)

    async with app:
        handle = await app.submit(agent_job()())
        assert await handle.result(timeout=20) == "You are welcome."


async def test_an_approval_and_a_tool_of_the_client_are_waited_for_side_by_side(url: str) -> None:
    @tool(approve=True)
    async def send_money(amount: int) -> str:
        executed["send_money"] += 1
        return "sent"

    @tool(external=True)
    async def sign(name: str) -> str:
        raise AssertionError

    asked = calls(("send_money", {"amount": 3}), ("sign", {"name": "Kim"}))
    model = Scripted([asked, "All done."])
    async with app_with(url, model) as app:
        handle = await app.submit(agent_job(tools=[send_money, sign])())
        actions = await until(lambda: _actions(app, handle.id, 2))
        for action in actions:
            value: Any = False if action.kind == "approval" else "signed by Kim"
            await app.answer(handle.id, action.id, value, reason="too much")
        assert await handle.result(timeout=20) == "All done."
    assert told(model.requests[1])[-2:] == [
        "Rejected: send_money: a person refused it: too much",
        "signed by Kim",
    ]
    assert not executed


async def _actions(app: Dayjob, run: str, count: int) -> Any:
    found = await app.actions(run)
    return found if len(found) == count else None


async def test_on_a_thread_it_goes_on_with_the_conversation_and_appends_to_it(url: str) -> None:
    model = Scripted([calls(("look", {"place": "hall"})), "In the hall.", "Under the mat."])
    async with app_with(url, model) as app:
        thread = app.thread()
        work = agent_job()
        await (await app.submit(work(task="Find the key."), thread=thread)).result(timeout=20)
        await thread.append("Where exactly?")
        second = await app.submit(work(task="Where exactly?"), thread=thread)
        assert await second.result(timeout=20) == "Under the mat."
        roles = [message["role"] for message in await thread.messages()]
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [message["role"] for message in model.requests[2].messages] == ["system", *roles[:-1]]


async def test_after_a_run_was_stopped_in_a_turn_the_next_on_its_thread_knows_what_was_begun(
    url: str,
) -> None:
    @tool(external=True)
    async def sign(name: str) -> str:
        raise AssertionError

    asked = calls(("pay", {"amount": 3}), ("sign", {"name": "Kim"}))
    model = Scripted([asked, "I paid; whether Kim signed I do not know."])
    async with app_with(url, model) as app:
        thread, work = app.thread(), agent_job(tools=[pay, sign])
        handle = await app.submit(work(task="Pay, and have it signed."), thread=thread)
        await until(lambda: _paid_and_waiting(app, handle.id))
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=20)
        second = await app.submit(work(task="Go on."), thread=thread)
        assert await second.result(timeout=20) == "I paid; whether Kim signed I do not know."
    sent = model.requests[1].messages
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert [call["id"] for call in sent[2]["tool_calls"]] == [each["tool_call_id"] for each in sent[3:5]]
    assert told(model.requests[1])[-3:] == ["paid 3", UNANSWERED, "Go on."]


async def _paid_and_waiting(app: Dayjob, run: str) -> bool:
    paid = [step for step in await app.steps(run) if step.key == "turn/act/0"]
    return bool(paid and await app.actions(run))


async def test_what_was_heard_is_on_the_thread_even_if_no_turn_came_of_it(url: str) -> None:
    async with app_with(url, Scripted(["never"])) as app:
        thread = app.thread()
        handle = await app.submit(agent_job()(), thread=thread, delay=0.2, limits=Limits(tokens=1))
        await app.send(handle.id, "message", "It is in the shed.")
        with pytest.raises(RunIncomplete):
            await handle.result(timeout=20)
        assert [message["content"] for message in await thread.messages()] == [
            "Find the key.",
            "It is in the shed.",
        ]


async def test_a_message_that_comes_while_the_answer_is_judged_is_answered(url: str) -> None:
    app = app_with(url, None)

    async def judged(run: Run, text: str) -> bool:
        if text == "Found.":
            await app.send(run.id, "message", "And thank you.")
        return True

    app._model = Scripted(lambda request: "You are welcome." if len(request.messages) > 2 else "Found.")
    async with app:
        handle = await app.submit(agent_job(done=judged)())
        assert await handle.result(timeout=20) == "You are welcome."


async def test_a_message_that_is_no_text_is_heard_as_json(url: str) -> None:
    model = Scripted(lambda request: "Hm." if len(request.messages) < 4 else "Forty-two.")

    async with app_with(url, model) as app:
        handle = await app.submit(agent_job(done=lambda text: text != "Hm.")(), delay=0.2)
        await app.send(handle.id, "message", {"answer": 42})
        assert await handle.result(timeout=20) == "Forty-two."
    assert '{"answer":42}' in told(model.requests[0])


async def test_tools_of_an_mcp_server_are_tools_like_any_other(url: str) -> None:
    async with McpServer(sys.executable, SHOP) as tools:
        asked = calls(("find_order", {"order_id": "A-1"}), ("find_order", {"order_id": "A-1", "limit": 99}))
        model = Scripted([asked, "Five pieces."])
        assert (await ends(url, model, tools=tools))[:2] == ("Five pieces.", "done")
    seen = told(model.requests[1])[-2:]
    assert seen[0] == "A-1: 5 pieces"
    assert "limit" in seen[1]


# --- the window -------------------------------------------------------------------------------------------


async def test_what_does_not_fit_is_left_out_named_and_still_in_the_journal(url: str) -> None:
    looks = [calls(("look", {"place": f"place {n}"})) for n in range(8)]
    model = Scripted([*looks, "Found."])
    async with app_with(url, model) as app:
        handle = await app.submit(agent_job(context=last_messages(6))())
        await handle.result(timeout=20)
        notes = [
            orjson.loads(step.value or b"") for step in await app.steps(handle.id) if step.name == "note"
        ]
        left_out = [note["data"] for note in notes if "last" in note.get("data", {})]
    assert left_out[0] == {"first": 3, "last": 8}
    assert all(len(request.messages) <= 2 + 1 + 6 for request in model.requests)
    last = told(model.requests[-1])
    assert last[:2] == ["You find things.", "Find the key."]
    assert last[2].startswith("[Messages 3 to ")


async def test_what_is_left_out_is_summed_up_by_a_step(url: str) -> None:
    def reply(request: ModelRequest) -> Any:
        if SUMMARISE in str(request.messages[0]["content"]):
            return "Nothing in the first places."
        number = len(executed)
        usage = Usage(sum(len(str(message)) // 4 for message in request.messages), 5)
        if number == 6:
            return "Found."
        return ModelReply("", (ToolCall("1", "look", f'{{"place": "the place number {number}"}}'),), usage)

    model = Scripted(reply)
    result, _, keys = await ends(url, model, context=summarise(150))
    assert result == "Found."
    assert [key for key in keys if "summarise" in key]
    assert "Nothing in the first places." in told(model.requests[-1])[2]


@pytest.mark.parametrize(
    ("seen", "summary"), [("nothing but dust", "blah " * 2_000), ("空の部屋" * 12, "空の部屋"), ("hm", "")]
)
async def test_summaries_and_what_they_are_made_of_fit_the_window_too(
    url: str, seen: str, summary: str
) -> None:
    @tool(effect="read")
    async def enter(room: int) -> str:
        return seen

    def reply(request: ModelRequest) -> ModelReply:
        counted = Usage(tokens_in(request.messages), 5)
        if SUMMARISE in str(request.messages[0]["content"]):
            return ModelReply(summary, usage=counted)
        number = len(turns)
        turns.append(number)
        call = ToolCall(str(number), "enter", f'{{"room": {number}}}')
        return ModelReply("", (call,), counted) if number < 40 else ModelReply("Nothing.", usage=counted)

    turns: list[int] = []
    model = Scripted(reply)
    assert (await ends(url, model, tools=[enter], max_steps=50, context=summarise(400)))[0] == "Nothing."
    assert max(tokens_in(request.messages) for request in model.requests) <= 400
    asked = [request for request in model.requests if SUMMARISE in str(request.messages[0]["content"])]
    assert 0 < len(asked) < 30


async def test_the_prefix_that_is_sent_stays_the_same_from_turn_to_turn(url: str) -> None:
    looks = [calls(("look", {"place": f"place {n}"})) for n in range(19)]
    model = Scripted([*looks, "Found."])
    await ends_with_notes(url, model, context=last_messages(10))
    sent = [request.messages for request in model.requests]
    grown = sum(after[: len(before)] == before for before, after in pairwise(sent))
    assert grown >= 0.7 * (len(sent) - 1)


async def ends_with_notes(url: str, model: Any, **how: Any) -> Any:
    async with app_with(url, model) as app:
        return await (await app.submit(agent_job(**how)())).result(timeout=20)


# --- crashes, cancels, limits -----------------------------------------------------------------------------


def by_what_was_said(request: ModelRequest) -> Any:
    """A model without a memory: the same conversation gets the same reply, whatever died meanwhile."""
    text = told(request)[-1]
    if not request.tools:
        return "1. Look. 2. Pay."
    seen = sum(message["role"] == "tool" for message in request.messages)
    match seen:
        case 0:
            return calls(("look", {"place": "hall"}), ("broken", {"place": "shed"}))
        case 2:
            return calls(("pay", {"amount": 7}))
        case 3 if "Thank you" not in text:
            return calls(("broken", {"place": "safe"}))
    return f"Paid. {text}"


@job
async def careful(run: Run, task: str) -> str:
    return await agent(
        run, "You find things.", task, [look, pay, broken], plan=True, done=lambda text: "Paid" in text,
        context=last_messages(12),
    )  # fmt: skip


async def it_happened(app: Dayjob, run: str) -> bool:
    actions = await app.actions(run)
    for action in actions:
        await app.answer(run, action.id, {"result": "paid 7"} if executed["pay 7"] else False)
    return bool(actions)


async def test_a_crash_at_any_write_changes_nothing_and_asks_no_model_twice(lab: CrashLab) -> None:
    asked: list[str] = []

    def reply(request: ModelRequest) -> Any:
        asked.append(told(request)[-1])
        return by_what_was_said(request)

    how: dict[str, Any] = {"model": Scripted(reply), "outside": it_happened, "on_death": asked.clear}
    calm = await lab.run(careful("Find the key."), **how)
    assert calm.status is Status.COMPLETED, calm.run.reason
    assert calm.output.startswith("Paid.")
    crashes = 0
    async for ended in lab.at_every_write(careful("Find the key."), side_by_side=1, **how):
        assert (ended.status, ended.output) == (calm.status, calm.output), ended.death
        assert not [warning for warning in ended.warnings if "not deterministic" in warning], ended.death
        paid = [step for step in ended.steps if step.name == "pay" and step.outcome == Outcome.VALUE]
        assert len(paid) == 1, ended.death
        rows = [sum(step.kind == Kind.MODEL for step in steps) for steps in (ended.steps, ended.durable)]
        assert len(asked) == rows[0] - rows[1], ended.death
        crashes += 1
    assert crashes > 30


async def test_a_message_is_heard_once_whatever_dies(lab: CrashLab) -> None:
    def reply(request: ModelRequest) -> Any:
        texts = told(request)
        assert texts.count("Thank you.") <= 1
        return "Welcome." if "Thank you." in texts else calls(("look", {"place": str(len(texts))}))

    async def outside(app: Dayjob, run: str) -> bool:
        if run in sent or not [step for step in await app.steps(run) if step.key == "turn"]:
            return False
        sent.add(run)
        await app.send(run, "message", "Thank you.")
        return True

    sent: set[str] = set()
    job = agent_job(max_steps=500)
    for ended in await everywhere(lab, job(), model=Scripted(reply), outside=outside):
        assert ended.output == "Welcome.", ended.run.reason


async def test_a_thread_is_the_same_wherever_the_run_was_cut_off(lab: CrashLab) -> None:
    replies = {1: calls(("look", {"place": "hall"})), 3: "In the hall."}

    def reply(request: ModelRequest) -> Any:
        return replies[len(request.messages) - 1]

    async with Dayjob(lab.store, worker=False) as app:
        write, ended = 0, None
        while ended is None or ended.death is not None:
            write += 1
            death = Death(write, [*Moment][write % 3])
            ended = await lab.run(agent_job()(), death=death, model=Scripted(reply), thread=f"thread {write}")
            assert ended.output == "In the hall.", ended.run.reason
            said = await app.store.thread_messages(f"thread {write}")
            roles = [orjson.loads(message)["role"] for _, _, message in said]
            assert roles == ["user", "assistant", "tool", "assistant"], ended.death
    assert write > 15


async def test_a_call_of_the_client_beside_one_of_ours_is_answered_once_whatever_dies(lab: CrashLab) -> None:
    @tool(external=True)
    async def sign(name: str) -> str:
        raise AssertionError

    asked = calls(("pay", {"amount": 3}), ("sign", {"name": "Kim"}), ("look", {"place": "hall"}))

    def reply(request: ModelRequest) -> Any:
        return asked if len(request.messages) == 2 else f"Done: {sorted(told(request)[-3:])}"

    async def outside(app: Dayjob, run: str) -> bool:
        actions = await app.actions(run)
        for action in actions:
            happened = {"result": "paid 3"} if executed["pay 3"] else False
            await app.answer(run, action.id, "signed" if action.kind == "tool" else happened)
        return bool(actions)

    async with Dayjob(lab.store, worker=False) as app:
        write, ended = 0, None
        while ended is None or ended.death is not None:
            write += 1
            executed.clear()
            ended = await lab.run(
                agent_job(tools=[pay, sign, look])(), death=Death(write, [*Moment][write % 3]), model=Scripted(reply),
                outside=outside, thread=f"thread {write}",
            )  # fmt: skip
            assert ended.output == "Done: ['in hall: a key', 'paid 3', 'signed']", ended.run.reason
            assert executed["pay 3"] == 1, ended.death
            said = [
                orjson.loads(message) for _, _, message in await app.store.thread_messages(f"thread {write}")
            ]
            assert [message["role"] for message in said] == ["user", "assistant", *["tool"] * 3, "assistant"]
            assert len({message["tool_call_id"] for message in said if message["role"] == "tool"}) == 3
    assert write > 15


@pytest.mark.parametrize("write", range(3, 24, 4))
async def test_newer_code_takes_up_the_turns_that_are_done(lab: CrashLab, write: int) -> None:
    asked: list[str] = []

    def reply(request: ModelRequest) -> Any:
        asked.append(told(request)[-1])
        number = sum(message["role"] == "tool" for message in request.messages)
        return calls(("look", {"place": str(number)})) if number < 3 else "Found."

    def version(name: str) -> Job:
        async def work(run: Run) -> str:
            return await agent(run, "You find things.", "Find the key.", TOOLS)

        return Job(work, "work", name)

    ended = await lab.run(
        version("v1")(), death=Death(write), then=[version("v2")], model=Scripted(reply), on_death=asked.clear
    )
    assert ended.output == "Found."
    rows = [{step.key for step in steps if step.kind == Kind.MODEL} for steps in (ended.steps, ended.durable)]
    assert len(asked) == len(rows[0]) - len(rows[1])


async def test_changed_instructions_are_followed_without_asking_where_nothing_is_at_stake(
    lab: CrashLab,
) -> None:
    def reply(request: ModelRequest) -> Any:
        number = sum(message["role"] == "tool" for message in request.messages)
        return calls(("look", {"place": str(number)})) if number < 3 else f"Found by {told(request)[0]}."

    def version(name: str) -> Job:
        async def work(run: Run) -> str:
            return await agent(run, name, "Find the key.", TOOLS)

        return Job(work, "work", name)

    ended = await lab.run(version("v1")(), death=Death(24), then=[version("v2")], model=Scripted(reply))
    assert ended.death is not None
    assert ended.output == "Found by v2."


async def test_a_cancelled_agent_closes_its_calls_and_is_over(url: str) -> None:
    begun = asyncio.Event()

    async def reply(request: ModelRequest) -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    async with app_with(url, Scripted(reply)) as app:
        handle = await app.submit(agent_job(plan=True)())
        await begun.wait()
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=20)


@pytest.mark.parametrize("steps", range(1, 9))
async def test_at_a_limit_the_run_ends_incomplete_with_what_was_said(url: str, steps: int) -> None:
    said = [
        ModelReply(f"Turn {n}.", (ToolCall("1", "plain", f'{{"number": {n}}}'),), Usage(1, 1), 0.0)
        for n in range(1, 9)
    ]
    async with app_with(url, Scripted(said)) as app:
        handle = await app.submit(agent_job()(), limits=Limits(steps=steps))
        with pytest.raises(RunIncomplete, match=f"limit of {steps} steps reached") as end:
            await handle.result(timeout=20)
    assert end.value.partial == f"Turn {(steps + 1) // 2}."


async def test_a_model_that_fails_ends_it_with_the_models_reason(url: str) -> None:
    async with app_with(url, Scripted([])) as app:
        handle = await app.submit(agent_job()())
        with pytest.raises(RunFailed, match="ModelRefused"):
            await handle.result(timeout=20)


async def test_a_job_may_catch_that_it_stopped(url: str) -> None:
    async def work(run: Run) -> str:
        try:
            return await agent(run, "", "Find it.", TOOLS, max_steps=1)
        except StepError as problem:
            return f"{problem.type}: {problem.message}"

    async with app_with(url, Scripted([calls(("plain", {"number": 1}))])) as app:
        handle = await app.submit(Job(work, "work", "v1")())
        assert await handle.result(timeout=20) == "Stopped: agent: max_steps after 1 turns, without an answer"
