"""Whatever a run does, its stream obeys the rules of the official clients, and can be picked up after each event."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from dayjob import Dayjob, tool
from dayjob.errors import ModelUnavailable
from dayjob.models import ToolCall
from dayjob.server import Settings
from tests.server.serving import Serving, function, serving
from tests.server.test_streams import assistant, frames, thread
from tests.server.wire_rules import Speaker, Told, call, check, plot, said_in
from tests.until import until

CLIENTS = [function("weather"), function("news")]
FUNCTIONS = [*CLIENTS, function("clock")]
DROPPED = ModelUnavailable("the connection broke")


@tool(effect="read")
async def clock() -> str:
    """Tells the time."""
    return "noon"


@tool(effect="write", approve=True)
async def pay() -> str:
    """Pays."""
    return "paid"


SCRIPTS: dict[str, list[tuple[list[str], Any]]] = {
    "text": [(["Hel", "lo ", "there."], "stop")],
    "one character": [(["!"], "stop")],
    "white space": [([" ", "\n"], "stop")],
    "emoji": [(["👩‍", "🚀 ", "é"], "stop")],
    "nothing": [([], "stop")],
    "cut off": [(["Once ", "upon"], "length")],
    "filtered": [(["Some ", "thing"], "content_filter")],
    "tried again": [(["Hel", "lo"], DROPPED), (["Good ", "day."], "stop")],
    "tried again without a word": [([], DROPPED), (["Good ", "day."], "stop")],
    "failed": [(["Well, ", "I"], ValueError("a bug"))],
    "failed without a word": [([], ValueError("a bug"))],
    "calls": [([], [call("weather")]), (["Sun."], "stop")],
    "text and calls": [(["Let ", "me see."], [call("weather")]), (["Sun."], "stop")],
    "calls side by side": [([], [call("weather"), call("news"), call("weather", 2)]), (["Sun."], "stop")],
    "calls again": [
        (["First ", "this."], [call("weather")]),
        (["Then ", "that."], [call("news", 2), call("weather", 2)]),
        (["Sun."], "stop"),
    ],
    "calls here": [(["A ", "moment."], [call("clock")]), ([], [call("clock", 2)]), (["Noon."], "stop")],
    "calls of both": [([], [call("clock"), call("weather"), call("clock", 2)]), (["Noon."], "stop")],
}


def scripted(name: str) -> Speaker:
    return Speaker(SCRIPTS[name])


async def begin(here: Serving) -> tuple[str, dict[str, Any]]:
    """The path of a new thread's runs, and the body that streams one."""
    body = {"assistant_id": await assistant(here, tools=FUNCTIONS), "stream": True}
    return f"/threads/{await thread(here)}/runs", body


def of(events: list[Told]) -> str:
    run = next(data for _, name, data in events if name == "thread.run.created")
    return f"/threads/{run['thread_id']}/runs/{run['id']}"


def outputs(events: list[Told]) -> list[dict[str, str]]:
    calls = events[-2][2]["required_action"]["submit_tool_outputs"]["tool_calls"]
    return [{"tool_call_id": each["id"], "output": f"output {n}"} for n, each in enumerate(calls)]


async def whole_of(here: Serving) -> list[Told]:
    """A run from its beginning to its end, with the streams of what its client hands in."""
    path, body = await begin(here)
    events = [each async for each in frames(here, "POST", path, json=body)]
    check(events)
    while events[-2][1] == "thread.run.requires_action":
        given = {"tool_outputs": outputs(events), "stream": True}
        path = f"{of(events)}/submit_tool_outputs"
        more = [each async for each in frames(here, "POST", path, json=given)]
        check(more, events)
        events += more
    return events


async def rest_of(here: Serving, path: str, id: str) -> list[Told]:
    return [each async for each in frames(here, "GET", f"{path}/stream", headers={"last-event-id": id})]


def same(rest: list[Told], expected: list[Told]) -> None:
    skipped = "thread.run.requires_action"  # it is stated, and it no longer is so
    assert plot(rest) == [each for each in plot(expected) if each[0] != skipped]
    assert said_in(rest) == said_in(expected)


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_stream_obeys_the_rules_and_is_picked_up_after_any_event(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path, model=scripted(name), tools=[clock]) as here:
        whole = await whole_of(here)
        told = [each for each in whole if each[1] != "done"]
        for number, (id, _, _) in enumerate(told):
            same(await rest_of(here, of(whole), id), told[number + 1 :])
    async with serving(tmp_path, worker=False) as other:
        for number, (id, _, _) in enumerate(told):
            same(await rest_of(other, of(whole), id), told[number + 1 :])
        read = await other.http.get(f"{of(whole)}/steps")
        over = {d["id"]: d for _, n, d in told if "run.step" in n and "delta" not in n}
        for step in read.json()["data"]:
            assert over[step["id"]] == step
        read = await other.http.get(f"{of(whole).partition('/runs')[0]}/messages")
        said = {d["id"]: d for _, n, d in told if n.endswith(("message.completed", "message.incomplete"))}
        for message in read.json()["data"]:
            assert message["role"] == "user" or said[message["id"]] == message


@pytest.mark.parametrize("name", ["text", "tried again", "text and calls", "calls here"])
async def test_a_stream_that_breaks_while_the_run_goes_on_loses_nothing(tmp_path: Path, name: str) -> None:
    model = Speaker(SCRIPTS[name], pause=0.002)
    async with serving(tmp_path, model=model, tools=[clock]) as here:
        whole = await whole_of(here)
        for cut in range(1, len(whole) - 1):
            path, body = await begin(here)
            events: list[Told] = []
            streaming = frames(here, "POST", path, json=body)
            async for each in streaming:
                if each[1] == "done":
                    break
                events.append(each)
                if len(events) == cut:
                    break
            await streaming.aclose()
            while events[-1][1] != "thread.run.completed":
                if events[-1][1] == "thread.run.requires_action":
                    given = {"tool_outputs": outputs([*events, ("", "done", "")])}
                    (await here.http.post(f"{of(events)}/submit_tool_outputs", json=given)).raise_for_status()
                more = await rest_of(here, of(events), events[-1][0])
                check(more, events)
                events += more[:-1]
            assert [name for name, _ in plot(events)] == [name for name, _ in plot(whole)]
            assert list(said_in(events).values()) == list(said_in(whole).values())
        await until(lambda: len(here.app.streams) == 0)
        assert (here.app.events.active, here.app.events.speeches) == (False, {})


@pytest.mark.parametrize("name", ["text", "calls", "tried again", "text and calls"])
async def test_what_is_said_again_after_a_crash_is_no_second_message(tmp_path: Path, name: str) -> None:
    """An id that was given under another claim of the run, as it is once a worker has died."""
    async with serving(tmp_path, model=scripted(name)) as here:
        whole = await whole_of(here)
        told = [each for each in whole if each[1] != "done"]
        for number, (id, _, _) in enumerate(told):
            earlier = re.sub(r"\.t([0-9a-f]{8})-\d+-", r".t\1-0-", id)
            rest = await rest_of(here, of(whole), earlier)
            check(rest, told[: number + 1])
            same(rest, told[number + 1 :])


DYING = """
import asyncio, sys
from pathlib import Path
import orjson
from tests.server.serving import serving
from tests.server.test_stream_rules import begin, frames
from tests.server.wire_rules import Speaker

async def main():
    async with serving(Path(sys.argv[1]), model=Speaker([(["Hel", "lo"], asyncio.Event())])) as here:
        path, body = await begin(here)
        async for each in frames(here, "POST", path, json=body):
            print(orjson.dumps(each).decode(), flush=True)

asyncio.run(main())
"""


async def test_a_server_that_is_killed_is_followed_on_by_another_which_says_something_else(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", DYING, str(tmp_path)]
    path = os.pathsep.join(each for each in sys.path if each)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    seen: list[Told] = []
    while "".join(said_in(seen).values()) != "Hello":
        seen.append(tuple(orjson.loads(await process.stdout.readline())))
    process.kill()
    await process.communicate()
    async with serving(tmp_path, model=Speaker([(["Good ", "day, Sir."], "stop")], pause=0.01)) as here:
        for count in range(len(seen), 0, -1):
            rest = await rest_of(here, of(seen), seen[count - 1][0])
            check(rest, seen[:count])
            (completed,) = [data for _, name, data in rest if name == "thread.message.completed"]
            assert completed["content"][0]["text"]["value"] == "Good day, Sir."
            (text,) = said_in([*seen[:count], *rest]).values()
            assert text == ("Helloday, Sir." if said_in(seen[:count]) else "Good day, Sir.")


@pytest.mark.parametrize(
    "id", ["0.queued~" + "9" * 5000, "-" + "9" * 5000, "-٣", "0.queued~٣", "9.a~1", "~~1"]
)
async def test_an_id_that_nobody_gave_is_refused(tmp_path: Path, id: str) -> None:
    async with serving(tmp_path, model=scripted("text")) as here:
        path = of(await whole_of(here))
        answer = await here.http.get(f"{path}/stream", headers={"last-event-id": id.encode()})
        assert answer.status_code == 400


@pytest.mark.parametrize("id", ["99.in_progress~0", "99.in_progress~7", "-999", "0.completed~3"])
async def test_an_id_beyond_the_end_ends(tmp_path: Path, id: str) -> None:
    async with serving(tmp_path, model=scripted("text")) as here:
        path = of(await whole_of(here))
        assert (await rest_of(here, path, id))[-1][1] == "done"


async def test_calls_asked_for_again_before_anybody_looked_end_the_stream(tmp_path: Path) -> None:
    """A reader beside the process that works, who sees of the second calls no more than that they wait."""
    async with serving(tmp_path, model=scripted("calls again")) as here:
        path, body = await begin(here)
        events = [each async for each in frames(here, "POST", path, json=body)]
        given = {"tool_outputs": outputs(events)}
        (await here.http.post(f"{of(events)}/submit_tool_outputs", json=given)).raise_for_status()
        await until(lambda: _waits(here.app, of(events).rpartition("/")[2], 2))
        async with asyncio.timeout(10):
            more = await rest_of(here, of(events), events[-2][0])
        check(more, events)
        assert more[-2][1] == "thread.run.requires_action"


async def test_calls_that_wait_for_a_person_first_are_asked_for_once_he_has_answered(tmp_path: Path) -> None:
    calls = [call("pay"), call("weather")]
    functions = [*FUNCTIONS, function("pay")]
    model = Speaker([(["A ", "moment."], calls), (["Paid."], "stop")])
    quick = Settings(files=tmp_path / "files", heartbeat_seconds=0.05)
    async with (
        serving(tmp_path, model=model, tools=[pay]) as here,
        serving(tmp_path, worker=False, settings=quick) as other,
    ):
        body = {"assistant_id": await assistant(here, tools=functions), "stream": True}
        path = f"/threads/{await thread(here)}/runs"
        for server in (here, other):
            run = (await here.http.post(path, json={**body, "stream": False})).json()
            streaming = asyncio.create_task(_all(server, f"{path}/{run['id']}/stream"))
            await until(lambda run=run: _waits(here.app, run["id"], 2))
            await asyncio.sleep(0.3)
            assert not streaming.done()
            approval = next(each for each in await here.app.actions(run["id"]) if each.kind == "approval")
            await here.app.approve(run["id"], approval.id, by="a person")
            events = await asyncio.wait_for(streaming, 10)
            check(events)
            assert events[-2][1] == "thread.run.requires_action"
            given = {"tool_outputs": outputs(events)}
            submit = f"{path}/{run['id']}/submit_tool_outputs"
            (await here.http.post(submit, json=given)).raise_for_status()
            more = await rest_of(server, f"{path}/{run['id']}", events[-2][0])
            check(more, events)
            assert more[-2][1] == "thread.run.completed"


async def _all(here: Serving, path: str) -> list[Told]:
    return [each async for each in frames(here, "GET", path)]


@pytest.mark.parametrize("name", ["text", "calls"])
async def test_a_run_that_expires_ends_its_stream(tmp_path: Path, name: str) -> None:
    turns = SCRIPTS[name] if name == "calls" else [(["Hel", "lo"], asyncio.Event())]
    soon = Settings(files=tmp_path / "files", expires_seconds=1.0)
    async with serving(tmp_path, model=Speaker(turns), settings=soon) as here:
        path, body = await begin(here)
        events = [each async for each in frames(here, "POST", path, json=body)]
        check(events)
        if name == "calls":
            more = await rest_of(here, of(events), events[-2][0])
            assert plot(more)[0][0] == "thread.run.step.expired"
            events += more
        assert events[-2][1] == "thread.run.expired"


async def _waits(app: Dayjob, run: str, count: int) -> bool:
    return len(await app.actions(run)) == count and (await app.get(run)).status == "requires_action"


async def test_outputs_sent_again_tell_all_that_followed_from_them(tmp_path: Path) -> None:
    async with serving(tmp_path, model=scripted("calls")) as here:
        path, body = await begin(here)
        events = [each async for each in frames(here, "POST", path, json=body)]
        given = {"tool_outputs": outputs(events), "stream": True}
        path = f"{of(events)}/submit_tool_outputs"
        first = [each async for each in frames(here, "POST", path, json=given)]
        again = [each async for each in frames(here, "POST", path, json=given)]
        check(again, events)
        same(again, first)


async def test_calls_that_were_cut_off_are_no_step(tmp_path: Path) -> None:
    class CutOff(Speaker):
        async def reply(self, *asked: Any) -> Any:
            reply = await super().reply(*asked)
            calls = (ToolCall("call_1", "weather", '{"ci'),)
            return reply if self.made > 1 else replace(reply, tool_calls=calls, finish="length")

    async with serving(tmp_path, model=CutOff([(["Let"], "length"), (["Sun."], "stop")])) as here:
        await whole_of(here)


@pytest.mark.parametrize("name", ["text", "calls", "calls here"])
@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_a_run_that_is_ended_from_outside_ends_its_stream(tmp_path: Path, name: str, how: str) -> None:
    """In the middle of whatever it does: each event is a moment at which it may happen."""
    async with serving(tmp_path, model=Speaker(SCRIPTS[name], pause=0.01), tools=[clock]) as here:
        for cut in range(1, 14):
            path, body = await begin(here)
            events: list[Told] = []
            async for each in frames(here, "POST", path, json=body):
                events.append(each)
                if len(events) == cut:
                    if how == "cancel":
                        await here.http.post(f"{of(events)}/cancel")
                    else:
                        await here.http.delete(of(events).partition("/runs")[0])
            if events[-2][1] == "error":
                assert set(events[-2][2]["error"]) == {"message", "type", "code", "param"}
            else:
                check(events)


async def test_a_stream_whose_store_fails_ends_with_an_error(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with serving(tmp_path, model=Speaker([(["Hel", "lo"], go_on)])) as here:
        path, body = await begin(here)
        events: list[Told] = []
        async for each in frames(here, "POST", path, json=body):
            events.append(each)
            if each[1] == "thread.message.delta":
                await here.app.streams.close()
        assert [name for _, name, _ in events[-2:]] == ["error", "done"]
        assert events[-2][2]["error"]["type"] == "server_error"
        go_on.set()


async def test_a_server_that_stops_says_so_and_the_stream_is_picked_up_at_the_next(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with serving(tmp_path, model=Speaker([(["Hel", "lo"], go_on)])) as here:
        path, body = await begin(here)
        events: list[Told] = []
        async for each in frames(here, "POST", path, json=body):
            events.append(each)
            if each[1] == "thread.message.delta":
                asyncio.get_running_loop().call_soon(here.server.state.streams.end)
        assert [name for _, name, _ in events[-2:]] == ["error", "done"]
        assert "picked up" in events[-2][2]["error"]["message"]
        go_on.set()


async def test_a_message_that_nobody_will_finish_is_closed_with_its_run(tmp_path: Path) -> None:
    """Its worker died in the middle of it, and the run was cancelled before another one said it again."""
    go_on = asyncio.Event()
    async with serving(tmp_path, model=Speaker([(["Hel", "lo"], go_on)])) as here:
        path, body = await begin(here)
        events: list[Told] = []
        async for each in frames(here, "POST", path, json=body):
            events.append(each)
            if each[1] == "thread.message.delta":
                break
        go_on.set()
        await here.app.until_settled(of(events).rpartition("/")[2], 20)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as store, store:  # as if nothing of it was kept
        store.execute("DELETE FROM steps")
        store.execute("UPDATE runs SET status = 'cancelled', outcome = 'cancelled'")
    async with serving(tmp_path, worker=False) as other:
        more = await rest_of(other, of(events), events[-1][0])
        check(more, events)
        assert [name for _, name, _ in more] == [
            "thread.message.incomplete",
            "thread.run.step.cancelled",
            "thread.run.cancelled",
            "done",
        ]
