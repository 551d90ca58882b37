"""A run's events by HTTP: nothing lost and nothing twice, whoever leaves, dies, or is slow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.dictated import Dictated
from tests.server.native_serving import Event, Native, events_in, native
from tests.until import until

KEY = {"authorization": "Bearer default"}


class Silence:
    pieces = ()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture
def model() -> Dictated:
    return Dictated()


@pytest.fixture
async def here(url: str, model: Dictated) -> AsyncIterator[Native]:
    async with native(url, model) as serving:
        yield serving


def seqs(events: list[Event]) -> list[int]:
    return [event.data["step"]["seq"] for event in events if event.name == "step.finished"]


def said(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "step.text")


def last_id(events: list[Event]) -> str:
    return next(event.id for event in reversed(events) if event.id is not None)


async def first(here: Native, run: str, count: int, **options: Any) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(20), here.stream(run, **options) as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_a_stream_tells_each_step_once_and_ends_with_the_status(here: Native) -> None:
    run = await here.run("count", to=20)
    events = await here.events(run)
    assert seqs(events) == list(range(1, 42))
    assert events[-1].name == "run.status"
    assert events[-1].data["status"] == "completed"
    assert all(event.id for event in events if event.name in ("step.finished", "run.status"))


async def test_whatever_may_be_stored_is_told_however_deep_it_is(here: Native) -> None:
    run = await here.run("nest", depth=254)
    events = await here.events(run)
    [steps] = (await here.http.get(f"/api/runs/{run}/steps")).json()["data"]
    step = (await here.http.get(f"/api/runs/{run}/step", params={"key": "nested"})).json()
    whole = (await here.http.get(f"/api/runs/{run}")).json()
    [told] = [event.data["step"] for event in events if event.name == "step.finished"]
    for value in (told["value"], steps["value"], step["value"], whole["output"]):
        assert str(value) == "[" * 254 + "'core'" + "]" * 254
    assert events[-1].data["status"] == "completed"
    deeper = await here.run("nest", depth=255)
    assert [event.name for event in await here.events(deeper)][-1] == "run.status"
    assert (await here.ended(deeper))["status"] == "failed"


async def test_text_comes_as_it_is_said(here: Native, model: Dictated) -> None:
    run = await here.run("greet", name="Ann")
    async with asyncio.timeout(20), here.stream(run) as events:
        async for event in events:
            if event.name == "step.started":
                break
        for word in ("Hello ", "there"):
            model.say(word)
            assert (await anext(events)).data["text"] == word
        model.say(None)
        names = [event.name async for event in events]
    assert names == ["step.finished", "run.status"]


async def test_who_leaves_and_comes_back_hears_the_rest_and_nothing_twice(
    here: Native, model: Dictated
) -> None:
    run = await here.run("greet", name="Ann")
    model.say("Hello ")
    await until(lambda: here.app.events.speeches.get(run, {}).get("model", Silence).pieces)
    one = await first(here, run, 3)
    assert [event.name for event in one] == ["run.status", "step.started", "step.text"]
    model.say("there")
    two = await first(here, run, 1, headers={"last-event-id": last_id(one)})
    model.say(" friend", None)
    three = await here.events(run, params={"after": last_id(two)})
    assert said([*one, *two, *three]) == "Hello there friend"
    assert seqs([*one, *two, *three]) == [1]
    assert [event.name for event in three] == ["step.text", "step.finished", "run.status"]


async def test_the_header_goes_before_the_address_as_browsers_send_both(here: Native) -> None:
    run = await here.run("count", to=2)
    events = await here.events(run)
    some = events[len(events) // 2].id or "0"
    rest = await here.events(run, params={"after": "0"}, headers={"last-event-id": some})
    assert seqs(rest) == [seq for seq in seqs(events) if seq > int(some.split(".")[0])]


async def test_who_saw_the_end_is_told_not_to_come_back(here: Native) -> None:
    run = await here.run("count", to=1)
    events = await here.events(run)
    answer = await here.http.get(f"/api/runs/{run}/events", headers={"last-event-id": last_id(events)})
    assert answer.status_code == 204


async def test_an_action_is_told_once(here: Native) -> None:
    run = await here.run("inquire")

    async def is_asked() -> bool:
        return (await here.app.get(run)).status == "requires_action"

    await until(is_asked)
    one = await first(here, run, 2)
    actions = [event.data["action"]["id"] for event in one if event.name == "action.required"]
    assert actions == ["ask"]
    following = asyncio.create_task(here.events(run, headers={"last-event-id": last_id(one)}))
    await until(lambda: len(here.app.streams))
    await here.http.post(f"/api/runs/{run}/answer", json={"action": "ask", "value": 1})
    two = await following
    assert [event for event in two if event.name == "action.required"] == []
    assert two[-1].data["status"] == "completed"


@pytest.mark.parametrize("id", ["x", "-1", "1.odd", "é", "9" * 40])
async def test_an_id_that_is_none_is_refused(here: Native, id: str) -> None:
    run = await here.run("inquire")
    for options in ({"params": {"after": id}}, {"headers": {"last-event-id": id.encode()}}):
        answer = await here.http.get(f"/api/runs/{run}/events", **options)  # type: ignore[arg-type]
        assert answer.status_code == 400
        assert "position" in answer.json()["error"]["message"]


async def test_a_silent_stream_says_that_it_lives(url: str) -> None:
    async with native(url, heartbeat_seconds=0.05) as here:
        run = await here.run("inquire")
        async with asyncio.timeout(20), here.http.stream("GET", f"/api/runs/{run}/events") as answer:
            async for line in answer.aiter_lines():
                if line == ": still here":
                    break


async def test_a_client_that_goes_leaves_nothing_behind(here: Native) -> None:
    run = await here.run("inquire")
    for _ in range(5):
        await first(here, run, 2)
    await until(lambda: len(here.app.streams) == 0)
    assert not here.app.events.active


async def test_a_client_that_takes_nothing_is_let_go_of_and_may_come_back(url: str, model: Dictated) -> None:
    async with native(url, model, stalled_seconds=0.3) as here:
        run = await here.run("greet", name="Ann")
        head = (
            f"GET /api/runs/{run}/events HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer default\r\n\r\n"
        )
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect((here.http.base_url.host, here.http.base_url.port))
            client.sendall(head.encode())
            await until(lambda: len(here.app.streams))
            for _ in range(75):
                model.say("x" * 100_000)
                await asyncio.sleep(0.001)
            await until(lambda: len(here.app.streams) == 0)
        model.say(None)
        events = await here.events(run)
        assert events[-1].data["status"] == "completed"
        await asyncio.sleep(0.1)  # until the server has seen that the connection is gone


async def test_a_client_that_reads_slowly_but_reads_on_gets_it_all(url: str) -> None:
    async with native(url, stalled_seconds=1.5) as here:
        run = await here.run("write", characters=7_000_000)
        await here.ended(run)
        head = (
            f"GET /api/runs/{run}/events HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer default\r\n\r\n"
        )
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
            client.connect((here.http.base_url.host, here.http.base_url.port))
            client.setblocking(False)
            loop, told = asyncio.get_running_loop(), b""
            await loop.sock_sendall(client, head.encode())
            while b'"status":"completed"' not in told[-1_000:]:
                piece = await loop.sock_recv(client, 50_000)
                assert piece, "it was let go of"
                told += piece
                await asyncio.sleep(0.03)
        assert len(told) > 7_000_000


@pytest.mark.parametrize("path", ["events", "steps"])
async def test_what_a_client_does_not_take_is_not_held_for_it(url: str, path: str) -> None:
    async with native(url, stalled_seconds=0.2) as here:
        run = await here.run("write", characters=7_000_000)
        await here.ended(run)
        head = (
            f"GET /api/runs/{run}/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer default\r\n\r\n"
        )
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect((here.http.base_url.host, here.http.base_url.port))
            client.sendall(head.encode())
            await asyncio.sleep(1)
            client.settimeout(20)
            left = 0
            while piece := await asyncio.to_thread(client.recv, 1_000_000):
                left += len(piece)
        assert left < 7_000_000  # what was on its way to it, and no more


async def test_many_streams_lose_nothing(here: Native) -> None:
    runs = [await here.run("count", to=3) for _ in range(20)]
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(
        base_url=here.http.base_url, limits=limits, timeout=30, headers=KEY
    ) as http:

        async def follow(run: str) -> list[int]:
            async with http.stream("GET", f"/api/runs/{run}/events") as answer:
                return seqs([event async for event in events_in(answer.aiter_lines())])

        found = await asyncio.gather(*(follow(run) for run in runs for _ in range(5)))
    assert all(each == list(range(1, 8)) for each in found)
    await until(lambda: len(here.app.streams) == 0)


async def test_a_run_of_another_process_is_followed_over_the_death_of_both(url: str, tmp_path: Path) -> None:
    """The first server works on the run and is killed; the client goes on at a second one."""
    program = tmp_path / "serve.py"
    program.write_text(
        textwrap.dedent(
            """
            import asyncio, sys
            from dayjob import Dayjob, Run, job
            from tests.server.native_serving import serving

            @job(version="1")
            async def slow(run: Run, steps: int) -> int:
                for number in range(steps):
                    await run.step(asyncio.sleep, 0.02, name="nap")
                return steps

            async def main():
                async with Dayjob(sys.argv[1], jobs=[slow]) as app, serving(app) as base:
                    print(base, flush=True)
                    await asyncio.Event().wait()

            asyncio.run(main())
            """
        )
    )

    def start() -> tuple[subprocess.Popen[str], str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])}
        process = subprocess.Popen(
            [sys.executable, str(program), url], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    first_one, base = await asyncio.to_thread(start)
    second: subprocess.Popen[str] | None = None
    events: list[Event] = []
    try:
        async with httpx2.AsyncClient(base_url=base, timeout=30, headers=KEY) as http:
            made = await http.post("/api/runs", json={"job": "slow", "input": {"steps": 60}})
            run = made.json()["id"]
            with contextlib.suppress(httpx2.TransportError):  # it is killed
                async with http.stream("GET", f"/api/runs/{run}/events") as answer:
                    async for event in events_in(answer.aiter_lines()):
                        events.append(event)
                        if len(seqs(events)) == 10 and first_one.poll() is None:
                            first_one.send_signal(signal.SIGKILL)
        second, base = await asyncio.to_thread(start)
        async with httpx2.AsyncClient(base_url=base, timeout=60, headers=KEY) as http:
            headers = {"last-event-id": last_id(events)}
            async with http.stream("GET", f"/api/runs/{run}/events", headers=headers) as answer:
                events += [event async for event in events_in(answer.aiter_lines())]
    finally:
        for process in (first_one, second):
            if process is not None:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
    assert seqs(events) == list(range(1, 61))
    assert events[-1].data["status"] == "completed"
