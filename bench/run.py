"""`make bench`: Dayjob beside the raw database, in one run. Prints ratios and medians.

    python bench/run.py [NAME …] [--parked 100000] [--rounds 5]

Noise is met by alternating the two sides and taking medians; what is compared stands in one line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import server
from floor import JOURNAL, connect, floor_per_second

from dayjob import Dayjob, Run, job, tool
from dayjob.context import Policy, tokens_in
from dayjob.models import ModelReply, ModelRequest, ToolCall, Usage
from dayjob.models.scripted import Scripted
from dayjob.patterns import agent, auto

WORDS = [
    *(
        "the",
        "run",
        "a",
        "step",
        "of",
        "journal",
        "worker",
        "claims",
        "lease",
        "resumes",
        "after",
        "crash",
        "and",
    ),
    *(
        "no",
        "finished",
        "model",
        "call",
        "is",
        "paid",
        "twice",
        "because",
        "each",
        "answer",
        "was",
        "durable",
    ),
    *(
        "before",
        "next",
        "one",
        "began",
        "while",
        "people",
        "approve",
        "refunds",
        "in",
        "their",
        "own",
        "time",
    ),
]


def words(size: int, seed: int) -> str:
    """Text of this many characters, that does not compress away."""
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(size // 3))[:size]


TEXTS = [words(1_000, seed) for seed in range(64)]


async def produce(number: int) -> str:
    return TEXTS[number % 64]


@job
async def ten_steps(run: Run, count: int) -> int:
    for number in range(count):
        await run.step(produce, number)
    return count


# --- 500 runs of 10 steps, 100 at a time -----------------------------------------------------------


async def throughput(folder: Path, rounds: int) -> list[str]:
    ours, floors, narrow = [], [], []
    async with Dayjob(f"sqlite:///{folder}/w1.db", jobs=[ten_steps], concurrency=100) as app:
        for _ in range(rounds):
            floors.append(await floor_per_second(folder / "floor.db", TEXTS, JOURNAL))
            narrow.append(await floor_per_second(folder / "narrow.db", TEXTS))
            began = time.perf_counter()
            handles = await asyncio.gather(*(app.submit(ten_steps(count=10)) for _ in range(500)))
            await asyncio.gather(*(handle.result(120) for handle in handles))
            ours.append(5_000 / (time.perf_counter() - began))
    steps, floor, leanest = map(statistics.median, (ours, floors, narrow))
    return [
        f"500 runs x 10 steps of 1 KB, 100 at a time: {steps:,.0f} durable steps/s (best round {max(ours):,.0f}); "
        f"floor {floor:,.0f}: {steps / floor:.0%} of it   [bars 10,000 and 40 %]",
        f"   the leanest table, three columns and one index: {leanest:,.0f} rows/s; {steps / leanest:.0%} of it",
    ]


# --- one run of 500 sequential steps ---------------------------------------------------------------


async def latency(folder: Path, rounds: int) -> list[str]:
    raw = connect(folder / "raw.db")
    steps: list[float] = []
    commits: list[float] = []

    @job(version="1")
    async def sequential(run: Run, count: int) -> int:
        for number in range(count):
            began = time.perf_counter()
            await run.step(produce, number)
            steps.append(time.perf_counter() - began)
            began = time.perf_counter()
            raw.execute("INSERT INTO steps VALUES (?, ?, ?)", (run.id, number, TEXTS[number % 64]))
            commits.append(time.perf_counter() - began)
        return count

    async with Dayjob(f"sqlite:///{folder}/w2.db", jobs=[sequential]) as app:
        for _ in range(rounds):
            await (await app.submit(sequential(count=500))).result(120)
    raw.close()
    step, commit = statistics.median(steps) * 1e3, statistics.median(commits) * 1e3
    return [
        f"500 sequential steps: {step:.3f} ms a step; raw commit {commit:.3f} ms; {step / commit:.2f} x   [bar 2.0 x]"
    ]


# --- a tool step -----------------------------------------------------------------------------------


@tool(effect="read")
async def looked_up(number: int) -> str:
    return TEXTS[number % 64]


@tool(effect="idempotent")
async def put(number: int) -> str:
    return TEXTS[number % 64]


@tool(effect="write")
async def sent(number: int) -> str:
    return TEXTS[number % 64]


async def effects(folder: Path, rounds: int) -> list[str]:
    times: dict[str, list[float]] = {}

    async def timed(what: str, doing: Awaitable[Any]) -> None:
        began = time.perf_counter()
        await doing
        times.setdefault(what, []).append(time.perf_counter() - began)

    @job(version="1")
    async def sequential(run: Run, count: int) -> None:
        for number in range(count):
            await timed("step", run.step(produce, number))
            await timed("read", run.tool(looked_up, number=number))
            await timed("idempotent", run.tool(put, number=number))
            await timed("write", run.tool(sent, number=number))

    async with Dayjob(f"sqlite:///{folder}/effects.db", jobs=[sequential]) as app:
        for _ in range(rounds):
            await (await app.submit(sequential(count=200))).result(120)
    step = statistics.median(times["step"])
    told = [
        f"{what} {statistics.median(times[what]) * 1e3:.3f} ms ({statistics.median(times[what]) / step:.2f} x)"
        for what in ("read", "idempotent", "write")
    ]
    return [f"a plain step {step * 1e3:.3f} ms; a tool step: {', '.join(told)}   [a write is two commits]"]


# --- one run of 200 turns --------------------------------------------------------------------------


async def turns(folder: Path, rounds: int) -> list[str]:
    answers = [words(2_000, seed) for seed in range(200)]
    times: dict[int, list[float]] = {}
    sizes: dict[int, int] = {}

    @job(version="1")
    async def conversation(run: Run, count: int) -> int:
        messages: list[dict[str, Any]] = []
        for turn in range(1, count + 1):
            messages.append({"role": "user", "content": words(60, turn)})
            began = time.perf_counter()
            reply = await run.model(messages)
            times.setdefault(turn, []).append(time.perf_counter() - began)
            messages.append(reply.message)
        return count

    for number in range(rounds * 3):
        path = folder / f"turns{number}.db"
        model = Scripted(lambda request: answers[len(request.messages) // 2 % 200])
        async with Dayjob(f"sqlite:///{path}", model=model, jobs=[conversation]) as app:
            await (await app.submit(conversation(count=200))).result(120)
    for count in (100, 200):
        path = folder / f"size{count}.db"
        model = Scripted(lambda request: answers[len(request.messages) // 2 % 200])
        async with Dayjob(f"sqlite:///{path}", model=model, jobs=[conversation]) as app:
            await (await app.submit(conversation(count=count))).result(120)
        sizes[count] = path.stat().st_size

    return [
        _late_and_early("200 turns of 2 KB", times, sizes),
        await _agent(folder, rounds, "an agent that sends everything", None),
        await _agent(folder, rounds, "an agent with a window of 8,000 tokens", auto(8_000)),
    ]


async def _agent(folder: Path, rounds: int, what: str, context: Policy | None) -> str:
    """The same for the pattern: a turn is a model call, the call of a tool that gives 2 KB, and what is around them."""
    answers = [words(2_000, seed) for seed in range(200)]
    times: dict[int, list[float]] = {}
    sizes: dict[int, int] = {}

    @tool(effect="read")
    async def look(number: int) -> str:
        return answers[number]

    @job(version="1")
    async def searching(run: Run) -> str:
        return await agent(run, "You look.", "Look.", [look], max_steps=300, context=context)

    for number, count in enumerate([*[200] * rounds * 3, 100, 200]):
        began: list[float] = []

        def reply(request: ModelRequest, began: list[float] = began, count: int = count) -> Any:
            began.append(time.perf_counter())
            turn = len(began)
            call = ToolCall(f"call_{turn}", "look", f'{{"number": {turn % 200}}}') if turn <= count else None
            tokens = Usage(tokens_in(request.messages), 20)
            return ModelReply("" if call else "Done.", (call,) if call else (), tokens)

        path = folder / f"agent{context is None:d}-{number}.db"
        model = Scripted(reply, keep_requests=False)
        async with Dayjob(f"sqlite:///{path}", model=model, jobs=[searching]) as app:
            await (await app.submit(searching())).result(120)
        for turn, (start, end) in enumerate(pairwise(began), 1):
            times.setdefault(turn, []).append(end - start)
        sizes[count] = path.stat().st_size
    return _late_and_early(what, times, sizes)


def _late_and_early(what: str, times: dict[int, list[float]], sizes: dict[int, int]) -> str:
    def around(turn: int) -> float:
        return statistics.median(t for near in range(turn - 9, turn + 1) for t in times[near]) * 1e3

    early, late = around(15), around(200)
    return (
        f"{what}: turns 191-200 {late:.3f} ms, turns 6-15 {early:.3f} ms; {late / early:.2f} x   [bar 1.2 x]\n"
        f"   stored: {sizes[100] / 1e3:,.0f} KB after 100 turns, {sizes[200] / 1e3:,.0f} KB after 200; "
        f"{sizes[200] / sizes[100]:.2f} x   [linear: 2]"
    )


# --- parked runs -----------------------------------------------------------------------------------


@job
async def asks(run: Run, number: int) -> str:
    await run.step(produce, number)
    answer: str = await run.ask("Go on?")
    if run.id in CONTINUED:
        CONTINUED[run.id].set_result(time.perf_counter())
    return answer


CONTINUED: dict[str, asyncio.Future[float]] = {}


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def parked(folder: Path, count: int) -> list[str]:
    lines = []
    async with Dayjob(f"sqlite:///{folder}/parked.db", jobs=[asks], concurrency=200) as app:
        await _park(app, 200)
        before = memory_mb()
        began = time.perf_counter()
        await _park(app, count)
        seconds = time.perf_counter() - began
        after = memory_mb()
        with contextlib.closing(sqlite3.connect(folder / "parked.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        held = len(app._workers[0].held) + len(app._workers[0].warm)
        lines.append(
            f"{count:,} parked runs ({count / seconds:,.0f}/s): memory {before:.0f} MB with 200 parked, "
            f"{after:.0f} MB with all "
            f"({(after - before) * 1e6 / count:,.0f} bytes a run; {held} in memory); "
            f"{(folder / 'parked.db').stat().st_size / (count + 200):,.0f} bytes a run "
            "in the store, 1,000 of them its own text   [bar: as with none]"
        )
        lines.append(await _answer_some(app, "evicted", 10.0))
    async with Dayjob(f"sqlite:///{folder}/warm.db", jobs=[asks], worker=False) as app:
        async with app.worker(concurrency=200, short_journal=-1):
            await _park(app, 300)
            lines.append(await _answer_some(app, "warm", 2.5))
    return lines


async def _park(app: Dayjob, count: int) -> None:
    for start in range(0, count, 500):
        wanted = min(500, count - start)
        await asyncio.gather(*(app.submit(asks(number=start + n)) for n in range(wanted)))
    while True:
        connection = sqlite3.connect(app.store.path)
        waiting = connection.execute(
            "SELECT count(*) FROM runs WHERE status IN ('queued', 'in_progress')"
        ).fetchone()[0]
        connection.close()
        if not waiting and not app._workers[0].held:
            return
        await asyncio.sleep(0.1)


async def _answer_some(app: Dayjob, how: str, bar: float) -> str:
    times = []
    for record in await app.runs(status="requires_action", limit=200):
        continued = CONTINUED[record.id] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await app.answer(record.id, "ask", "yes")
        times.append((await continued - began) * 1e3)
        await app.handle(record.id).result(10)
    tail = sorted(times)[int(len(times) * 0.95)]
    return f"   answer -> continued, {how}: p50 {statistics.median(times):.2f} ms, p95 {tail:.2f} ms   [bar {bar} ms]"


# --- import, recovery ------------------------------------------------------------------------------


def imports(rounds: int) -> list[str]:
    def milliseconds(code: str) -> float:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        return (time.perf_counter() - began) * 1e3

    codes = ["pass", "import asyncio", "import pydantic", "from dayjob import Dayjob, Run, job, tool"]
    times = [[milliseconds(code) for code in codes] for _ in range(rounds * 3)]
    columns = list(zip(*times, strict=True))
    bare, loop, pydantic, ours = (statistics.median(column) for column in columns)
    return [
        f"import: {ours - bare:.0f} ms above Python's own {bare:.0f} ms "
        f"(best {min(columns[3]) - min(columns[0]):.0f} ms); "
        f"asyncio alone {loop - bare:.0f} ms, pydantic alone {pydantic - bare:.0f} ms   [bar 100 ms]"
    ]


WORKER = """
import asyncio, os, sys, time
from dayjob import Dayjob, Run, job, tool

async def body(n: int) -> int:
    with open(sys.argv[2], "a") as ledger:
        ledger.write(f"{os.getpid()} {n}\\n")
    await asyncio.sleep(0.05)
    return n

@job(version="1")
async def work(run: Run, number: int) -> int:
    for n in range(20):
        await run.step(body, number * 1000 + n)
    return number

async def main():
    async with Dayjob(sys.argv[1], jobs=[work]) as app:
        if sys.argv[3] == "first":
            for n in range(100):
                await app.submit(work(number=n))
            print("ready", flush=True)
            await asyncio.sleep(60)
        else:
            def waits(run):
                return run.status == "queued" or (run.status == "in_progress" and run.epoch < 2)
            while any(map(waits, await app.runs(limit=100))):
                await asyncio.sleep(0.005)
            print("resumed", flush=True)
            while any(not r.status.is_terminal for r in await app.runs(limit=100)):
                await asyncio.sleep(0.05)

asyncio.run(main())
"""


def recovery(folder: Path) -> list[str]:
    """kill -9 with 100 runs in flight; another worker of the same host is there."""
    store, ledger = folder / "recovery.db", folder / "ledger.txt"
    command = [sys.executable, "-c", WORKER, f"sqlite:///{store}", str(ledger)]
    first = subprocess.Popen([*command, "first"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    connection = sqlite3.connect(store)
    done = {
        int(row[0].strip("[]"))
        for row in connection.execute("SELECT CAST(input AS TEXT) FROM steps WHERE outcome = 'value'")
    }
    connection.close()
    began = time.perf_counter()
    second = subprocess.Popen([*command, "second"], stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    second.stdout.readline()
    resumed = time.perf_counter() - began
    second.wait()
    executions = [line.split() for line in ledger.read_text().splitlines()]
    again = [int(number) for pid, number in executions if int(pid) != first.pid and int(number) in done]
    total = {int(number) for _, number in executions}
    return [
        f"kill -9 with 100 runs in flight: all 100 resumed {resumed:.2f} s after the next worker "
        "was started (its start included); "
        f"{len(done)} steps were durable, {len(again)} of them ran again; {len(total)} of 2,000 distinct "
        "bodies ran   [bar: lease 15 s + 1 s; 0]"
    ]


BENCHES: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "throughput": lambda folder, given: throughput(folder, given.rounds),
    "effects": lambda folder, given: effects(folder, given.rounds),
    "latency": lambda folder, given: latency(folder, given.rounds),
    "turns": lambda folder, given: turns(folder, given.rounds),
    "parked": lambda folder, given: parked(folder, given.parked),
    "imports": lambda folder, given: imports(given.rounds),
    "recovery": lambda folder, given: recovery(folder),
    "streams": lambda folder, given: server.streams(folder, given.rounds),
    "polls": lambda folder, given: server.polls(folder, given.rounds),
    "messages": lambda folder, given: server.messages(folder, given.rounds),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--parked", type=int, default=10_000, help="how many runs to park")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHES]
    if unknown:
        parser.error(f"{unknown[0]!r} is not a benchmark; there are {', '.join(BENCHES)}")
    # Beside the checkout, not in a memory file system: what is measured is the disk.
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path.cwd()))
    try:
        for name in given.names or BENCHES:
            result = BENCHES[name](folder, given)
            lines = asyncio.run(_awaited(result)) if isinstance(result, Awaitable) else result
            for line in lines:
                print(line, flush=True)
    finally:
        shutil.rmtree(folder)


async def _awaited(result: Awaitable[list[str]]) -> list[str]:
    return await result


if __name__ == "__main__":
    main()
