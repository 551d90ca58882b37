"""`dayjob serve` killed and started again, at every kind of moment: its clients notice nothing but a pause.

The model is a real endpoint on this machine, which outlives the server and counts what it is asked.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.acceptance.command_line import JOBS, CommandLine
from tests.bank import Bank, closed_port
from tests.server.wire_rules import TEXT_RUN, once
from tests.wire import Answer, Request, Script, Wire, calls, chunk, hangs, says, stream

RETRIES = 8
"""More than a client's two: a machine may be busy while the server starts."""
Frame = tuple[str, str, Any]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


class Server:
    """A server that may be killed and started again, on one port, and its model: `lives` says what it answers in each.

    Of the last there may be any number.
    """

    def __init__(self, folder: Path, lives: tuple[Script, ...], file: Path | None, stack: ExitStack) -> None:
        self.command = CommandLine(folder)
        self.command.environment["OPENAI_API_KEY"] = "sk-test"
        self.wire = Wire(self._answer)
        self.url = f"http://127.0.0.1:{closed_port()}"
        self._lives = lives
        self._started = 0
        self._file = file
        self._stack = stack

    def _answer(self, request: Request) -> Answer:
        script = self._lives[min(self._started, len(self._lives)) - 1]
        return script if isinstance(script, Answer) else script(request)

    async def start(self) -> None:
        self._started += 1
        self.command.environment["OPENAI_BASE_URL"] = self.wire.url
        files = [] if self._file is None else [self._file]
        told = ("--port", self.url.rpartition(":")[2], "--model", "openai:gpt-test", "--json")
        self.process = self._stack.enter_context(self.command.started("serve", *files, *told))
        await asyncio.to_thread(self._greeted)

    def _greeted(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line)["event"] == "server.started":
                return
        raise AssertionError(self.process.communicate()[1])

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    async def killed_and_started(self) -> None:
        self.kill()
        await self.start()


@asynccontextmanager
async def serving(
    folder: Path, *lives: Script, file: Path | None = None, **environment: str
) -> AsyncIterator[tuple[Server, AsyncOpenAI]]:
    with ExitStack() as stack:
        server = Server(folder, lives, file, stack)
        server.command.environment.update(environment)
        async with server.wire:
            await server.start()
            async with AsyncOpenAI(
                base_url=f"{server.url}/v1", api_key="any", max_retries=RETRIES, timeout=30,
                _strict_response_validation=True,
            ) as client:  # fmt: skip
                yield server, client


async def assistant(client: AsyncOpenAI, *tools: Any) -> str:
    return (await client.beta.assistants.create(model="gpt-4o", tools=list(tools))).id


async def thread(client: AsyncOpenAI) -> str:
    return (await client.beta.threads.create(messages=[{"role": "user", "content": "Hi."}])).id


async def said(client: AsyncOpenAI, on: str) -> list[str]:
    """What the thread holds, oldest first."""
    page = await client.beta.threads.messages.list(on, order="asc")
    return [part.text.value for message in page.data for part in message.content if part.type == "text"]


async def is_free(client: AsyncOpenAI, on: str, who: str) -> None:
    """The thread takes a message and a run of it."""
    await client.beta.threads.messages.create(on, role="user", content="More?")
    run = await client.beta.threads.runs.create_and_poll(thread_id=on, assistant_id=who)
    assert run.status == "completed", run


# --- in the middle of a run ------------------------------------------------------------------------


def begins(*texts: str) -> Answer:
    """An answer that begins, and never ends."""
    return stream(*(chunk({"content": text}) for text in texts), end="hang")


@pytest.mark.parametrize("under_way", [hangs(), begins("Well, ", "let me ")])
async def test_a_run_whose_server_died_in_a_model_call_is_gone_on_with(
    tmp_path: Path, under_way: Answer
) -> None:
    async with serving(tmp_path, under_way, says("Hello there.")) as (server, client):
        on, who = await thread(client), await assistant(client)
        polling = asyncio.create_task(
            client.beta.threads.runs.create_and_poll(thread_id=on, assistant_id=who)
        )
        await server.wire.request_arrived()
        await asyncio.sleep(0.05)
        await server.killed_and_started()
        run = await polling
        assert run.status == "completed"
        assert await said(client, on) == ["Hi.", "Hello there."]
        await is_free(client, on, who)
        assert len(server.wire.requests) == 3


async def test_runs_are_kept_that_were_made_a_moment_before_the_kill(tmp_path: Path) -> None:
    async with serving(tmp_path, says("Hello there.")) as (server, client):
        who = await assistant(client)
        threads = [await thread(client) for _ in range(3)]
        runs = [await client.beta.threads.runs.create(thread_id=on, assistant_id=who) for on in threads]
        await server.killed_and_started()
        for run in runs:
            done = await client.beta.threads.runs.poll(run.id, thread_id=run.thread_id)
            assert done.status == "completed"
            assert await said(client, run.thread_id) == ["Hi.", "Hello there."]
            await is_free(client, run.thread_id, who)


async def test_a_run_with_a_key_is_made_once_whenever_the_server_dies_about_it(tmp_path: Path) -> None:
    async with serving(tmp_path, says("Hello there.")) as (server, client):
        who = await assistant(client)
        for milliseconds in (0, 4, 12):
            on = await thread(client)
            runs, key = client.beta.threads.runs, {"Idempotency-Key": f"{milliseconds}"}
            making = asyncio.create_task(
                runs.create_and_poll(thread_id=on, assistant_id=who, extra_headers=key)
            )
            await asyncio.sleep(milliseconds / 1_000)
            await server.killed_and_started()
            assert (await making).status == "completed"
            assert [each.id for each in (await runs.list(on)).data] == [(await making).id]
            assert await said(client, on) == ["Hi.", "Hello there."]


class AnswerLost(httpx.AsyncHTTPTransport):
    """Kills the server when it has answered, and loses the answer: the client sends the same request again."""

    def __init__(self, server: Server, path: str) -> None:
        super().__init__()
        self._server = server
        self._path = path
        self.lost = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if (request.method, request.url.path) == ("POST", self._path) and not self.lost:
            self.lost += 1
            await self._server.killed_and_started()
            raise httpx.ReadError("the server died", request=request)
        return response


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_run_whose_answer_was_lost_is_there_and_sent_again_is_found_by_its_key(
    tmp_path: Path, keyed: bool
) -> None:
    async with serving(tmp_path, hangs()) as (server, client):
        on, who = await thread(client), await assistant(client)
        path = f"/v1/threads/{on}/runs"
        async with httpx.AsyncClient(transport=AnswerLost(server, path)) as http:
            runs = client.with_options(http_client=http).beta.threads.runs
            key = {"Idempotency-Key": "k"} if keyed else {}
            making = runs.create(thread_id=on, assistant_id=who, extra_headers=key)
            if keyed:
                made = (await making).id
                assert [each.id for each in (await runs.list(on)).data] == [made]
            else:
                with pytest.raises(BadRequestError) as refused:
                    await making
                [run] = (await runs.list(on)).data
                words = f"Thread {on} already has an active run {run.id}."
                assert refused.value.body == {**refused.value.body, "message": words}


async def test_a_server_that_died_while_its_own_tool_paid_pays_once(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {"to": {"type": "string"}}}
    offered = {"type": "function", "function": {"name": "by_key", "parameters": parameters}}
    lives = calls("by_key", '{"to": "rent"}'), says("Paid.")
    with Bank() as bank:
        account = bank.account(honours_keys=True)
        paying = serving(tmp_path, *lives, file=JOBS / "payer.py", BANK=account.url)
        async with paying as (server, client):
            account.when("asked", "rent", server.kill)
            on, who = await thread(client), await assistant(client, offered)
            polling = asyncio.create_task(
                client.beta.threads.runs.create_and_poll(thread_id=on, assistant_id=who)
            )
            assert await asyncio.to_thread(server.process.wait, 30) == -signal.SIGKILL
            await server.start()
            run = await polling
            assert run.status == "completed", run
            assert account.standing() == ["rent"]
            first, second = account.all("asked", reference="rent")
            assert first.key == second.key
            assert await said(client, on) == ["Hi.", "Paid."]
            assert len(server.wire.requests) == 2
            await is_free(client, on, who)


# --- in the middle of a stream ---------------------------------------------------------------------


async def frames(url: str, method: str, path: str, **how: Any) -> AsyncIterator[Frame]:
    """The events of a stream as they are on the wire: id, name, data."""
    async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=30, trust_env=False) as http:
        async with http.stream(method, path, **how) as answer:
            assert answer.status_code == 200, await answer.aread()
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields and not line:
                    done = fields["event"] == "done"
                    yield fields.get("id", ""), fields["event"], None if done else json.loads(fields["data"])
                    fields = {}


async def resumed(server: Server, on: str, seen: list[Frame]) -> list[Frame]:
    path = f"/threads/{on}/runs/{run_of(seen)}/stream"
    return [each async for each in frames(server.url, "GET", path, headers={"Last-Event-ID": seen[-1][0]})]


def run_of(seen: list[Frame]) -> str:
    return next(str(data["id"]) for _, name, data in seen if name == "thread.run.created")


def told(seen: list[Frame]) -> str:
    """What is said in a stream, by its deltas."""
    deltas = [data["delta"]["content"][0]["text"] for _, name, data in seen if name == "thread.message.delta"]
    return "".join(delta["value"] for delta in deltas)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("thread.run.created", ["Well, ", "let ", "me see."]),
        ("thread.message.created", ["Well, ", "let ", "me see."]),
        ("thread.message.delta", ["Well, ", "let ", "me see."]),
        ("thread.message.delta", ["No."]),
    ],
)
async def test_a_stream_that_died_with_its_server_is_picked_up_at_the_next(
    tmp_path: Path, last: str, words: list[str]
) -> None:
    """If the model says something else when it is asked again, the message that ends it is the one that counts."""
    async with serving(tmp_path, begins("Well, ", "let "), says(*words)) as (server, client):
        on, who = await thread(client), await assistant(client)
        seen: list[Frame] = []

        async def watch() -> None:
            body = {"assistant_id": who, "stream": True}
            async for each in frames(server.url, "POST", f"/threads/{on}/runs", json=body):
                seen.append(each)
                if each[1] == last and server.process.poll() is None:
                    server.kill()

        with pytest.raises(httpx.HTTPError):
            await watch()
        await server.start()
        seen += await resumed(server, on, seen)
        assert once([name for _, name, _ in seen]) == TEXT_RUN
        assert told(seen).startswith("Well, ") if words == ["No."] else told(seen) == "".join(words)
        [whole] = [data for _, name, data in seen if name == "thread.message.completed"]
        assert whole["content"][0]["text"]["value"] == "".join(words)
        assert await said(client, on) == ["Hi.", "".join(words)]
        await is_free(client, on, who)


async def test_a_stream_ends_when_the_server_is_told_to_stop_and_goes_on_at_the_next(tmp_path: Path) -> None:
    words = says("Well, ", "let ", "me ", "see.", seconds_between=0.1)
    async with serving(tmp_path, words) as (server, client):
        on, who = await thread(client), await assistant(client)
        seen: list[Frame] = []
        body = {"assistant_id": who, "stream": True}
        async for each in frames(server.url, "POST", f"/threads/{on}/runs", json=body):
            seen.append(each)
            if each[1] == "thread.message.delta" and told(seen) == "Well, ":
                server.process.send_signal(signal.SIGTERM)
        assert [name for _, name, _ in seen[-2:]] == ["error", "done"]
        del seen[-2:]
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        await server.start()
        seen += await resumed(server, on, seen)
        assert once([name for _, name, _ in seen]) == TEXT_RUN
        assert told(seen) == "Well, let me see."
        await is_free(client, on, who)
        assert len(server.wire.requests) == 2


# --- in the middle of tool outputs -----------------------------------------------------------------


def asks_for_the_weather(request: Request) -> Answer:
    last = request.body["messages"][-1]
    return says(f"It is {last['content']}.") if last["role"] == "tool" else calls("weather", "{}")


def asks_and_hangs(request: Request) -> Answer:
    return hangs() if request.body["messages"][-1]["role"] == "tool" else calls("weather", "{}")


async def waiting(client: AsyncOpenAI) -> Any:
    """A run that waits for what a tool gives."""
    on, who = await thread(client), await assistant(client, WEATHER)
    run = await client.beta.threads.runs.create_and_poll(thread_id=on, assistant_id=who)
    assert run.status == "requires_action", run
    return run


def handed_in(client: AsyncOpenAI, run: Any, output: str) -> asyncio.Task[Any]:
    (call,) = run.required_action.submit_tool_outputs.tool_calls
    return asyncio.create_task(
        client.beta.threads.runs.submit_tool_outputs(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=[{"tool_call_id": call.id, "output": output}]
        )
    )


async def was_taken_once(server: Server, client: AsyncOpenAI, run: Any, output: str) -> None:
    """The run is completed with this output, and neither the model nor the client was asked for it again."""
    done = await client.beta.threads.runs.poll(run.id, thread_id=run.thread_id)
    assert done.status == "completed", done
    assert await said(client, run.thread_id) == ["Hi.", f"It is {output}."]
    steps = (await client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc")).data
    assert [each.type for each in steps] == ["tool_calls", "message_creation"]
    assert [each.function.output for each in steps[0].step_details.tool_calls] == [output]
    turns = [request.body["messages"][-1] for request in server.wire.requests]
    assert [turn["role"] for turn in turns].count("user") == 1
    assert {turn["content"] for turn in turns if turn["role"] == "tool"} == {output}
    server.wire.requests.clear()


async def test_outputs_are_taken_whenever_the_server_dies_about_them(tmp_path: Path) -> None:
    async with serving(tmp_path, asks_for_the_weather) as (server, client):
        run = await waiting(client)
        server.kill()
        submitting = handed_in(client, run, "sunny")
        await asyncio.sleep(0.1)
        await server.start()
        await submitting
        await was_taken_once(server, client, run, "sunny")
        for milliseconds in (0, 4, 12):
            run = await waiting(client)
            submitting = handed_in(client, run, f"{milliseconds} degrees")
            await asyncio.sleep(milliseconds / 1_000)
            await server.killed_and_started()
            await submitting
            await was_taken_once(server, client, run, f"{milliseconds} degrees")


async def test_outputs_that_were_taken_outlive_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path, asks_and_hangs, asks_for_the_weather) as (server, client):
        run = await waiting(client)
        assert (await handed_in(client, run, "foggy")).status == "queued"
        await server.killed_and_started()
        assert (await handed_in(client, run, "foggy")).status in ("queued", "in_progress", "completed")
        await was_taken_once(server, client, run, "foggy")
