"""The server beside the model endpoint that it stands in front of: what it adds to a stream, and how much it does.

python bench/server.py [streams|polls|messages …] [--rounds 5]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI

WORDS = 40
CADENCE_MS = 20.0
MANY = 500
START_SECONDS = 30.0
SCRIPTED = Path(__file__).with_name("scripted_server.py")


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextlib.contextmanager
def process(*command: str, port: int, **environment: str) -> Iterator[None]:
    started = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if started.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)}: did not start")
            time.sleep(0.05)
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(30)


@contextlib.contextmanager
def serving(folder: Path, model: str, *more: str, **environment: str) -> Iterator[str]:
    """`dayjob serve`."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("dayjob")), "serve", *more, "--port", str(port), "--model", model,
        "--store", f"sqlite:///{folder / 'served.db'}", "--files", str(folder / "files"),
    ]  # fmt: skip
    with process(*command, port=port, **environment):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def scripted(folder: Path) -> Iterator[str]:
    """The same server, over a model that takes no time."""
    port = free_port()
    with process(sys.executable, str(SCRIPTED), str(port), str(folder), port=port):
        yield f"http://127.0.0.1:{port}"


def client(limit: int = 10) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=limit, max_keepalive_connections=limit)
    return httpx2.AsyncClient(timeout=120, limits=limits, headers={"OpenAI-Beta": "assistants=v2"})


async def direct(official: AsyncOpenAI) -> tuple[float, list[float]]:
    """From asking to the first word, and how late each word is, in milliseconds."""
    asked, delays, first = time.monotonic(), list[float](), 0.0
    stream = await official.chat.completions.create(
        model="paced", stream=True, messages=[{"role": "user", "content": "Speak."}]
    )
    async for chunk in stream:
        at = time.monotonic()
        if chunk.choices and (said := chunk.choices[0].delta.content):
            first = first or at - asked
            delays.append(1000 * (at - float(said)))
    return 1000 * first, delays


async def through(official: AsyncOpenAI, assistant: str, thread: str) -> tuple[float, list[float], list[str]]:
    """The same through a run, with the names of its events."""
    asked, delays, names, first = time.monotonic(), list[float](), list[str](), 0.0
    stream = await official.beta.threads.runs.create(thread, assistant_id=assistant, stream=True)
    async for event in stream:
        at = time.monotonic()
        names.append(event.event)
        if event.event == "thread.message.delta":
            first = first or at - asked
            said = event.data.delta.content[0].text.value
            delays += [1000 * (at - float(word)) for word in said.split()]
    return 1000 * first, delays, names


async def new_thread(official: AsyncOpenAI) -> str:
    made = await official.beta.threads.create(messages=[{"role": "user", "content": "Speak."}])
    return made.id


async def new_assistant(http: httpx2.AsyncClient, server: str) -> str:
    answer = await http.post(f"{server}/v1/assistants", json={"model": "paced", "instructions": "Be brief."})
    return str(answer.raise_for_status().json()["id"])


async def streams(folder: Path, rounds: int) -> list[str]:
    port, bare = free_port(), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    scripts = [str(Path(__file__).with_name(name)) for name in ("endpoint.py", "passthrough.py")]
    environment = {"OPENAI_BASE_URL": f"{endpoint}/v1", "OPENAI_API_KEY": "none"}
    with (
        process(sys.executable, scripts[0], str(port), str(WORDS), str(CADENCE_MS), port=port),
        process(sys.executable, scripts[1], str(bare), endpoint, port=bare),
        serving(folder, "openai:paced", "--concurrency", str(MANY), **environment) as server,
    ):
        async with (
            AsyncOpenAI(base_url=f"{endpoint}/v1", api_key="none") as straight,
            AsyncOpenAI(base_url=f"http://127.0.0.1:{bare}/v1", api_key="none") as passing,
            AsyncOpenAI(base_url=f"{server}/v1", api_key="none", timeout=120) as official,
        ):
            assistant = (await official.beta.assistants.create(model="paced")).id
            sides = []
            for _ in range(rounds * 3 + 1):
                thread = await new_thread(official)
                sides.append(
                    (
                        await direct(straight),
                        await through(passing, "asst_1", "thread_1"),
                        await through(official, assistant, thread),
                    )
                )
            lines = [
                f"a stream {_added(sides[1:], 2)} (bars 5 and 1)",
                f"a pass-through of the same libraries, which keeps nothing, {_added(sides[1:], 1)}",
            ]
            threads = [await new_thread(official) for _ in range(MANY)]
            begun = time.monotonic()
            many = await asyncio.gather(*(through(official, assistant, thread) for thread in threads))
            took = time.monotonic() - begun
            whole = [
                names
                for _, delays, names in many
                if len(delays) == WORDS and names[-1] == "thread.run.completed"
            ]
            late = statistics.median(delay for _, delays, _ in many for delay in delays)
            lines.append(
                f"{MANY} streams at once of {WORDS} words: {len(whole)} whole, {took:.1f} s "
                f"(the words alone take {WORDS * CADENCE_MS / 1000:.1f} s), a word is {late:.0f} ms late (p50)"
            )
    return lines


def _added(sides: list[Any], who: int) -> str:
    """What the stream of that side adds to the endpoint's own, of the same rounds."""
    firsts = [statistics.median(side[each][0] for side in sides) for each in (0, who)]
    words = [statistics.median(delay for side in sides for delay in side[each][1]) for each in (0, who)]
    return (
        f"adds {firsts[1] - firsts[0]:.1f} ms to the first word ({firsts[1]:.1f} against {firsts[0]:.1f}), "
        f"and {words[1] - words[0]:.2f} ms to each ({words[1]:.2f} against {words[0]:.2f})"
    )


async def create_and_poll(http: httpx2.AsyncClient, server: str, assistant: str) -> float:
    begun = time.monotonic()
    body = {"assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Speak."}]}}
    run = (await http.post(f"{server}/v1/threads/runs", json=body)).raise_for_status().json()
    url = f"{server}/v1/threads/{run['thread_id']}/runs/{run['id']}"
    while True:
        answer = await http.get(url, headers={"X-Stainless-Poll-Helper": "true"})
        run = answer.raise_for_status().json()
        if run["status"] == "completed":
            return 1000 * (time.monotonic() - begun)
        if run["status"] not in ("queued", "in_progress"):
            raise SystemExit(f"a run ended {run['status']}: {run['last_error']}")
        await asyncio.sleep(int(answer.headers.get("openai-poll-after-ms", 1000)) / 1000)


async def polls(folder: Path, rounds: int) -> list[str]:
    with scripted(folder) as server:
        async with client(32) as http:
            assistant = await new_assistant(http, server)
            await asyncio.gather(*(create_and_poll(http, server, assistant) for _ in range(20)))
            alone = statistics.median(
                [await create_and_poll(http, server, assistant) for _ in range(40 * rounds)]
            )
            rates = []
            for _ in range(rounds):
                begun = time.monotonic()
                await asyncio.gather(*(_several(http, server, assistant, 15) for _ in range(32)))
                rates.append(32 * 15 / (time.monotonic() - begun))
    return [
        f"create and poll of one run: {alone:.1f} ms p50 (bar 15)",
        f"create and poll, 32 clients: {statistics.median(rates):.0f} runs/s (bar 150)",
    ]


async def _several(http: httpx2.AsyncClient, server: str, assistant: str, count: int) -> None:
    for _ in range(count):
        await create_and_poll(http, server, assistant)


async def messages(folder: Path, rounds: int) -> list[str]:
    """A page of a thread, and a run, in a store that is empty and in one that holds 100,000 messages."""
    lines = []
    with scripted(folder) as server:
        async with client() as http:
            assistant = await new_assistant(http, server)
            thread = (await http.post(f"{server}/v1/threads", json={})).json()["id"]
            for number in range(20):
                said = {"role": "user", "content": f"word {number}"}
                await http.post(f"{server}/v1/threads/{thread}/messages", json=said)
            empty = await _page_and_run(http, server, assistant, thread, rounds)
            _fill(folder / "served.db", 1_000, 100)
            full = await _page_and_run(http, server, assistant, thread, rounds)
    for what, before, after in zip(
        ("a page of a thread", "create and poll of a run"), empty, full, strict=True
    ):
        lines.append(
            f"{what}, beside 100,000 messages: {after / before:.2f} x (bar 1.2; {after:.2f} against {before:.2f} ms)"
        )
    return lines


async def _page_and_run(
    http: httpx2.AsyncClient, server: str, assistant: str, thread: str, rounds: int
) -> tuple[float, float]:
    pages = []
    for _ in range(60 * rounds):
        begun = time.monotonic()
        (await http.get(f"{server}/v1/threads/{thread}/messages")).raise_for_status()
        pages.append(1000 * (time.monotonic() - begun))
    runs = [await create_and_poll(http, server, assistant) for _ in range(40 * rounds)]
    return statistics.median(pages), statistics.median(runs)


def _fill(path: Path, threads: int, each: int) -> None:
    """Messages by the shortest way: nothing but the rows is of interest here."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        now = time.time()
        connection.executemany(
            "INSERT INTO threads (home, id, project, created) VALUES (?1, ?1, 'default', ?2)",
            [(f"thread_{t:06}", now) for t in range(threads)],
        )
        connection.executemany(
            "INSERT INTO thread_messages (home, thread, n, id, message, created) VALUES (?1, ?1, ?2, ?3, ?4, ?5)",
            [
                (
                    f"thread_{t:06}",
                    n,
                    f"msg_{t:06}_{n}",
                    json.dumps({"role": "user", "content": "a few words " * 40}),
                    now,
                )
                for t in range(threads)
                for n in range(1, each + 1)
            ],
        )
