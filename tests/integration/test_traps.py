"""The traps that the design names, each sprung on purpose."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dayjob import Dayjob, Run, RunCancelled, RunFailed, Status, job
from dayjob.cli.files import load
from dayjob.errors import UnknownAction
from dayjob.execution import Execution
from dayjob.runs import Outcome, RunRecord
from dayjob.stores import Entry, Submitted, Wanted, open_store
from dayjob.testing import Clock, CrashLab
from tests.failing_stores import Around, Failing
from tests.until import is_finished, turns, until

NO_REPAIR = {"beat_seconds": 600.0, "lease_seconds": 3600.0}
"""A worker whose heartbeat comes too late to repair anything that a test is to catch."""


class Heard:
    """What an app says of itself."""

    def __init__(self, app: Dayjob) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        app.subscribe(lambda name, fields: self.events.append((name, fields)))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for heard, fields in self.events if heard == name]


# --- wake-ups that meet a run on its way to bed --------------------------------------------------------


@job
async def interview(run: Run, questions: int) -> list[str]:
    return [await run.ask(f"question {number}?") for number in range(questions)]


async def test_an_answer_that_meets_the_park_is_never_missed(url: str) -> None:
    """Answers come from another connection, as soon as a question can be answered at all."""
    async with Dayjob(url, worker=False) as app, Dayjob(url, worker=False) as outside:
        answering: set[asyncio.Task[None]] = set()

        async def answer(run: str, key: str) -> None:
            while True:  # the row of the question is on its way
                try:
                    return await outside.answer(run, key, key)
                except UnknownAction:
                    await asyncio.sleep(0)

        def opened(name: str, fields: dict[str, Any]) -> None:
            if name == "step.opened":
                task = asyncio.create_task(answer(fields["run"], fields["key"]))
                answering.add(task)

        app.subscribe(opened)
        async with app.worker(**NO_REPAIR):
            handles = [await app.submit(interview(questions=12)) for _ in range(25)]
            results = await asyncio.gather(*(handle.result(30) for handle in handles))
        await asyncio.gather(*answering)
        expected = ["ask"] + [f"ask#{number}" for number in range(2, 13)]
        assert results == [expected] * 25


@job
async def leaf(run: Run, number: int) -> int:
    return number


@job
async def family(run: Run, children: int) -> int:
    started = [await run.start(leaf(number=number)) for number in range(children)]
    return sum([await child.result() for child in started])


async def test_a_child_that_ends_while_its_parent_parks_is_never_missed(url: str) -> None:
    """Two workers with connections of their own: children end anywhere around their parents' parks."""
    async with (
        Dayjob(url, jobs=[family, leaf], worker=False) as one,
        Dayjob(url, jobs=[family, leaf], worker=False) as two,
    ):
        async with one.worker(**NO_REPAIR), two.worker(**NO_REPAIR):
            handles = [await one.submit(family(children=6)) for _ in range(40)]
            results = await asyncio.gather(*(handle.result(40) for handle in handles))
        assert results == [15] * 40
        runs = await one.runs(limit=1000)
        assert len(runs) == 40 * 7
        assert all(run.attempts == 0 for run in runs)


@job
async def listener(run: Run, count: int) -> list[int]:
    return [await run.event("tick") for _ in range(count)]


async def test_what_is_sent_quickly_arrives_in_order_and_once(url: str) -> None:
    async with (
        Dayjob(url, worker=False) as app,
        Dayjob(url, worker=False) as outside,
        app.worker(**NO_REPAIR),
    ):
        handle = await app.submit(listener(count=60))
        for number in range(60):
            await outside.send(handle.id, "tick", number)
        assert await handle.result(20) == list(range(60))


# --- losing a run --------------------------------------------------------------------------------------


class StolenAtCommit(Around):
    """Between the check that the run is held and the commit of a row, another process takes the run."""

    stolen: RunRecord | None = None

    def put(self, entry: Entry) -> None:
        if self.stolen is None and entry.durable is not None:
            thief = threading.Thread(target=lambda: asyncio.run(self._steal(entry)))
            thief.start()
            thief.join()
        self.store.put(entry)

    async def _steal(self, entry: Entry) -> None:
        other = open_store(self.store.url)
        held = await other.get(entry.run)
        assert held is not None
        assert await other.reclaim(str(held.worker), [(entry.run, entry.epoch)]) == 1
        await other.register((await other.workers())[0]._replace(id="thief"))
        version = str(held.version)
        wanted = Wanted("thief", ["default"], {held.job: [version]}, {held.job: version}, 1)
        ((self.stolen, _),) = await other.claim(wanted)
        await other.close()


async def test_a_takeover_between_check_and_commit_leaves_no_row_of_the_old_holder(url: str) -> None:
    calls: list[int] = []

    async def count(number: int) -> int:
        calls.append(number)
        return len(calls)

    @job
    async def counting(run: Run) -> list[int]:
        return [await run.step(count, number) for number in range(3)]

    store = StolenAtCommit(open_store(url))
    async with Dayjob(store) as app:
        heard = Heard(app)
        handle = await app.submit(counting())
        await until(lambda: heard.of("run.lost"))
        assert await app.steps(handle.id) == []
        stolen = store.stolen
        assert stolen is not None
        await store.release(stolen.home, stolen.id, stolen.epoch)
        assert await handle.result(20) == [2, 3, 4]  # what the first holder's body gave was never written
        assert calls == [0, 0, 1, 2]
        steps = await app.steps(handle.id)
        assert [(step.key, step.epoch, step.attempt) for step in steps] == [
            ("count", 5, 1), ("count#2", 5, 1), ("count#3", 5, 1),
        ]  # fmt: skip
        assert len(heard.of("run.lost")) == 1
    await store.close()


class ReplyLost(Around):
    """Claims a run, and never says so."""

    lost = 0

    async def claim(self, wanted: Wanted) -> list[Any]:
        return self._heard(await self.store.claim(wanted))

    async def submit_and_claim(self, *submission: Any) -> Submitted:
        submitted = await self.store.submit_and_claim(*submission)
        return Submitted(submitted.run, self._heard(submitted.claimed))

    def _heard(self, claimed: list[Any]) -> list[Any]:
        if claimed and not self.lost:
            self.lost = len(claimed)
            return []
        return claimed


@pytest.mark.parametrize("queued", [True, False], ids=["by a worker", "with the submission"])
async def test_a_claim_whose_reply_was_lost_is_queued_again_by_the_heartbeat(url: str, queued: bool) -> None:
    store = ReplyLost(open_store(url))
    async with Dayjob(store, worker=False) as app:
        handles = [await app.submit(leaf(number=number)) for number in range(3 if queued else 0)]
        async with app.worker(beat_seconds=0.05):
            handles += [await app.submit(leaf(number=number)) for number in range(len(handles), 3)]
            assert await asyncio.gather(*(handle.result(20) for handle in handles)) == [0, 1, 2]
        assert store.lost > 0
        records = [await app.get(handle.id) for handle in handles]
        assert sum(record.epoch > 1 for record in records) == store.lost
        assert all(record.attempts == 0 for record in records)  # nobody died of it
    await store.close()


async def test_a_worker_declared_dead_stays_dead_registers_anew_and_goes_on(url: str) -> None:
    gate = asyncio.Event()
    ledger: list[str] = []

    async def slow(part: str) -> str:
        ledger.append(part)
        if len(ledger) == 2:
            await gate.wait()
        return f"{part} {len(ledger)}"

    @job
    async def parts(run: Run) -> list[str]:
        return [await run.step(slow, part) for part in ("one", "two")]

    async with Dayjob(url, worker=False) as app:
        heard = Heard(app)
        async with app.worker(beat_seconds=0.05) as worker:
            handle = await app.submit(parts())
            await until(lambda: ledger == ["one", "two"])
            first = worker.id
            later = open_store(url, clock=lambda: time.time() + 60)  # a clock that is ahead
            assert (await later.sweep(3)).dead_workers == [first]
            await later.close()
            await until(lambda: worker.id != first)
            gate.set()
            assert await handle.result(20) == ["one 1", "two 3"]
            known = {known.id: known.dead for known in await app.store.workers()}
            assert known == {first: True, worker.id: False}
        assert ledger == ["one", "two", "two"]  # what was finished is not done again
        assert [fields["worker"] for fields in heard.of("worker.dead")][:1] == [first]


async def test_past_its_lease_a_worker_begins_nothing_until_it_is_heard_again(url: str) -> None:
    clock = Clock()
    gate = asyncio.Event()
    ledger: list[str] = []

    async def enter(part: str) -> None:
        ledger.append(part)

    @job
    async def parts(run: Run) -> str:
        await run.step(enter, "before")
        await gate.wait()
        await run.step(enter, "after")
        return "done"

    store = Failing(open_store(url, clock=clock))
    async with Dayjob(store, worker=False, clock=clock) as app, app.worker(beat_seconds=0.02) as worker:
        handle = await app.submit(parts())
        await until(lambda: ledger == ["before"])
        store.failing.add("beat")
        clock.advance(12.5)  # past lease − 3 s, and not yet dead
        gate.set()
        unheard = len(store.failed)
        await until(lambda: len(store.failed) > unheard + 2)
        assert ledger == ["before"]
        assert not worker.held[handle.id].valid(clock())
        store.failing.clear()
        assert await handle.result(20) == "done"
    assert ledger == ["before", "after"]
    await store.close()


# --- jobs that do not listen ---------------------------------------------------------------------------


async def test_a_job_that_swallows_its_cancellation_is_left_behind(url: str) -> None:
    released = asyncio.Event()
    ignored: list[str] = []

    @job
    async def stubborn(run: Run) -> str:
        while not released.is_set():
            try:
                await released.wait()
            except BaseException as problem:
                ignored.append(type(problem).__name__)
        await run.step(ignored.append, "a call on a closed handle")
        return "too late"

    async with Dayjob(url, worker=False) as app:
        heard = Heard(app)
        async with app.worker(grace_seconds=0.05) as worker:
            handle = await app.submit(stubborn())
            await until(lambda: handle.id in worker.held)
            await until(lambda: asyncio.all_tasks() and worker.held[handle.id].is_running_code)
            await turns()
            assert await handle.cancel("enough") == Status.CANCELLING
            with pytest.raises(RunCancelled, match="enough"):
                await handle.result(20)
            assert ignored == ["CancelledError"]
            assert heard.of("run.abandoned") == [{"run": handle.id, "tasks": 1}]
            assert worker.held == {}
            released.set()
            await turns()
            assert ignored == ["CancelledError"]  # it does not return, and cannot spin
            assert await app.steps(handle.id) == []
            assert (await app.get(handle.id)).status == Status.CANCELLED


async def test_a_job_that_catches_everything_around_our_verbs_does_not_spin(url: str) -> None:
    caught: list[str] = []

    @job
    async def catching(run: Run) -> str:
        while True:
            try:
                await run.sleep(3600)
            except BaseException as problem:
                caught.append(type(problem).__name__)

    async with Dayjob(url, worker=False) as app:
        heard = Heard(app)
        async with app.worker(grace_seconds=0.05):
            handle = await app.submit(catching())
            await until(lambda: heard.of("run.parked"))
            await handle.cancel()
            with pytest.raises(RunCancelled):
                await handle.result(20)
            await until(lambda: heard.of("run.abandoned"))
            await turns()
            assert set(caught) == {"CancelledError"}
            assert len(caught) <= 2  # once by the eviction, once by the cancel


async def test_a_cancelled_job_that_returns_a_value_is_cancelled_all_the_same(url: str) -> None:
    begun = asyncio.Event()

    @job
    async def polite(run: Run) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "I was faster"
        return ""

    async with Dayjob(url) as app:
        handle = await app.submit(polite())
        await begun.wait()
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(20)


async def test_a_blocked_event_loop_is_reported_with_the_step_that_blocks_it(url: str) -> None:
    async def grind(seconds: float) -> str:
        time.sleep(seconds)  # noqa: ASYNC251
        return "ground"

    @job
    async def mill(run: Run) -> str:
        return await run.step(grind, 1.4, name="the mill")

    async with Dayjob(url) as app:
        heard = Heard(app)
        handle = await app.submit(mill())
        assert await handle.result(20) == "ground"
        # a loaded machine may hold the loop up elsewhere too
        blocked = await until(
            lambda: next((b for b in heard.of("worker.blocked") if b["step"] == "the mill"), None)
        )
        assert blocked["seconds"] >= 1.0
        assert "time.sleep(seconds)" in blocked["stack"]
        assert heard.of("worker.dead") == []  # its heart beats in a thread of its own


# --- memory --------------------------------------------------------------------------------------------


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


async def test_a_parked_run_leaves_nothing_in_memory(url: str) -> None:
    executions, runs, tasks = alive(Execution), alive(Run), len(asyncio.all_tasks())
    async with Dayjob(url) as app:
        working = len(asyncio.all_tasks())
        handles = [await app.submit(interview(questions=1)) for _ in range(150)]
        await until(lambda: _all_parked(app, 150))
        (worker,) = app._workers
        await until(lambda: not worker.held and not worker.warm)
        await until(lambda: len(asyncio.all_tasks()) <= working)
        assert (alive(Execution), alive(Run)) == (executions, runs)
        for action in await app.actions():
            await app.answer(action.run, action.id, "yes")
        assert await asyncio.gather(*(handle.result(20) for handle in handles)) == [["yes"]] * 150
        await until(lambda: alive(Execution) == executions)
    assert len(asyncio.all_tasks()) == tasks


async def _all_parked(app: Dayjob, count: int) -> bool:
    return len(await app.runs(status=Status.REQUIRES_ACTION, limit=1000)) == count


@pytest.mark.parametrize("holding", ["timeout", "group"])
async def test_a_run_that_holds_a_timer_of_its_own_stays_in_memory(url: str, holding: str) -> None:
    @job
    async def held(run: Run) -> str:
        if holding == "timeout":
            async with asyncio.timeout(3600):
                return str(await run.ask("ok?"))
        async with asyncio.TaskGroup():
            return str(await run.ask("ok?"))

    async with Dayjob(url) as app:
        handle = await app.submit(held())
        (worker,) = app._workers
        (action,) = await until(app.actions)
        await until(lambda: handle.id in worker.warm)
        execution, _ = worker.warm[handle.id]
        assert not execution.is_evictable
        await app.answer(handle.id, action.id, "yes")
        assert await handle.result(20) == "yes"
        assert (await app.get(handle.id)).epoch == 2


async def test_a_warm_run_whose_own_timer_strikes_takes_itself_back(url: str) -> None:
    timers: list[asyncio.Timeout] = []

    @job
    async def impatient(run: Run) -> str:
        try:
            async with asyncio.timeout(3600) as timer:
                timers.append(timer)
                return str(await run.ask("ok?"))
        except TimeoutError:
            return str(await run.step(lambda: "went on"))

    async with Dayjob(url) as app:
        heard = Heard(app)
        handle = await app.submit(impatient())
        await until(lambda: heard.of("run.parked"))
        timers[0].reschedule(asyncio.get_running_loop().time())
        assert await handle.result(20) == "went on"
        assert [fields["evicted"] for fields in heard.of("run.parked")] == [False]
        outcomes = {step.key: step.outcome for step in await app.steps(handle.id)}
        assert outcomes == {"ask": "cancelled", "lambda": "value"}
        assert await app.actions() == []


async def test_an_action_that_lost_its_race_is_not_asked_any_more(url: str) -> None:
    gate = asyncio.Event()

    @job
    async def racing(run: Run) -> str:
        won = await run.race(lambda r: r.ask("which?"), lambda r: r.step(lambda: "fast"))
        await gate.wait()
        return str(won)

    async with Dayjob(url) as app:
        heard = Heard(app)
        handle = await app.submit(racing())
        await until(lambda: any(f["kind"] == "join" for f in heard.of("step.finished")))
        assert await app.actions() == []
        gate.set()
        assert await handle.result(20) == "fast"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_closed_app_leaves_no_task_thread_or_file_behind(url: str) -> None:
    @job
    async def busy(run: Run) -> int:
        await run.gather(lambda r: r.sleep(0.01), lambda r: r.step(lambda: 1))
        child = await run.start(leaf(number=1))
        return int(await child.result())

    async def cycle() -> None:
        async with Dayjob(url, jobs=[leaf]) as app:
            done = await app.submit(busy())
            left = await app.submit(interview(questions=1))
            assert await done.result(20) == 1
            await until(lambda: _is_parked(app, left.id))
            async with app.worker():
                pass

    await cycle()
    gc.collect()
    before = len(asyncio.all_tasks()), open_files()
    threads = {thread.name for thread in threading.enumerate()}
    for _ in range(3):
        await cycle()
    gc.collect()
    assert (len(asyncio.all_tasks()), open_files()) == before
    assert {t.name for t in threading.enumerate() if t.name.startswith("dayjob")} <= threads
    assert not [t.name for t in threading.enumerate() if t.name.startswith("dayjob")]


async def test_a_lab_that_is_given_up_leaves_no_worker_behind() -> None:
    with pytest.raises(TimeoutError):
        async with CrashLab() as lab, asyncio.timeout(0.3):
            await lab.run(interview(questions=1))
    assert not [t.name for t in threading.enumerate() if t.name.startswith("dayjob")]
    assert len(asyncio.all_tasks()) == 1


async def _is_parked(app: Dayjob, run: str) -> bool:
    return (await app.get(run)).status.is_parked


# --- several processes ---------------------------------------------------------------------------------

WRITER = """
import asyncio, json, sys, time
from dayjob import Dayjob, Run, job

def nothing() -> str:
    return "x" * 200

async def write(run: Run, until: float) -> list[float]:
    at = []
    while time.time() < until:
        await run.now()
        await run.remember("last", 1)
        at.append(time.time())
    return at

@job
async def writing(run: Run, until: float) -> list[list[float]]:
    return await run.map(write_until(until), list(range(10)))

def write_until(until):
    async def one(run: Run, number: int) -> list[float]:
        return await write(run, until)
    return one

async def main(url: str, queue: str) -> None:
    async with Dayjob(url, worker=False) as app:
        async with app.worker(queues=[queue]):
            print("ready", flush=True)
            begin = float(await asyncio.to_thread(sys.stdin.readline))
            handle = await app.submit(writing(until=begin + 2.5), queue=queue)
            print(json.dumps(sorted(at for each in await handle.result(60) for at in each)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_the_threads_of_a_store_take_their_turns_apart(url: str) -> None:
    """A lock on a file keeps threads apart only if each has opened it for itself."""
    store: Any = open_store(url)
    writer, entered = store._writer, threading.Event()

    def enter() -> None:
        with writer._checkpoint_lock:
            entered.set()

    thread = threading.Thread(target=enter)
    with writer._lock:
        thread.start()
        assert not await asyncio.to_thread(entered.wait, 0.1)
    await asyncio.to_thread(thread.join, 20)
    assert entered.is_set()
    await store.close()


def test_processes_that_share_a_file_write_in_turn(url: str, tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    writers = [
        subprocess.Popen(
            [sys.executable, str(script), url, f"queue{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * 3
    begin = f"{time.time()}\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(begin)
        writer.stdin.flush()
    said = [writer.communicate(timeout=60) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], said
    times = [json.loads(out) for out, _ in said]
    counts = [len(own) for own in times]
    assert min(counts) > max(counts) / 3, counts
    # The disk may stall for all of them; what must not be is that others write while one cannot.
    written = sorted((at, writer) for writer, own in enumerate(times) for at in own)
    both = written[len(written) // 10 : -len(written) // 10]
    silences = [longest_silence([who for _, who in both], writer) for writer in range(3)]
    assert max(silences) < len(both) / 10, (silences, counts)


def longest_silence(written: list[int], writer: int) -> int:
    """The most writes of others between two of this one."""
    longest = silent = 0
    for who in written:
        silent = 0 if who == writer else silent + 1
        longest = max(longest, silent)
    return longest


WORK = """
import asyncio, os, sys
from pathlib import Path
from dayjob import Dayjob, Run, job

LEDGER = Path(__file__).with_name("ledger")

def enter(line: str) -> str:
    with LEDGER.open("a") as file:
        file.write(line + "\\n")
    return line

async def hang_once() -> str:
    enter("hanging")
    while LEDGER.read_text().count("hanging") == 1:
        await asyncio.sleep(0.01)
    return "went on"

@job
async def work(run: Run, number: int) -> str:
    await run.step(enter, f"first {number}")
    return await run.step(hang_once) if number == 0 else await run.ask("and now?")

async def main(url: str) -> None:
    async with Dayjob(url, worker=False) as app, app.worker(lease_seconds=3600):
        for number in range(3):
            await app.submit(work(number=number), key=str(number))
        await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def work_file(tmp_path: Path) -> Path:
    file = tmp_path / "killed_work.py"
    file.write_text(WORK)
    return file


async def test_runs_of_a_killed_process_go_on_at_once_in_another_on_this_host(
    url: str, work_file: Path
) -> None:
    ledger = work_file.with_name("ledger")
    process = subprocess.Popen([sys.executable, str(work_file), url])  # noqa: ASYNC220
    try:
        await until(lambda: ledger.exists() and len(ledger.read_text().splitlines()) == 4, 30)
        async with Dayjob(url, worker=False) as outside:
            await until(lambda: _finished(outside, 3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, jobs = load(str(work_file))
    async with Dayjob(url, jobs=jobs.values()) as app:
        heard = Heard(app)
        runs = {run.submit_key: run for run in await app.runs()}
        assert await app.handle(runs["0"].id).result(20) == "went on"  # long before the lease ends
        assert runs["0"].id in [run for fields in heard.of("worker.took_over") for run in fields["runs"]]
        for action in await until(lambda: _actions(app, 2)):
            await app.answer(action.run, action.id, "yes")
        assert await app.handle(runs["1"].id).result(20) == "yes"
    lines = Counter(ledger.read_text().splitlines())
    assert lines == {"first 0": 1, "first 1": 1, "first 2": 1, "hanging": 2}


async def _finished(app: Dayjob, count: int) -> bool:
    steps = [step for run in await app.runs() for step in await app.steps(run.id)]
    return len([step for step in steps if step.seq is not None]) == count


async def _actions(app: Dayjob, count: int) -> list[Any]:
    found = await app.actions()
    return found if len(found) == count else []


async def test_what_another_process_commits_wakes_a_held_run(url: str) -> None:
    """Not by a poke, and long before the next heartbeat."""
    gate = asyncio.Event()

    @job
    async def holding(run: Run) -> str:
        await run.gather(lambda r: r.event("go"), lambda r: r.step(gate.wait))
        return "gone"

    async with Dayjob(url, worker=False) as app, Dayjob(url, worker=False) as outside:
        heard = Heard(app)
        async with app.worker(**NO_REPAIR), app.worker(queues=["idle"], **NO_REPAIR):
            handle = await app.submit(holding())
            await until(lambda: heard.of("step.opened"))
            await until(lambda: outside.store.open_step(handle.id, "gather/0/go"))
            await outside.send(handle.id, "go", 1)
            await until(lambda: is_finished(outside, handle.id, "gather/0/go"))
            gate.set()
            assert await handle.result(20) == "gone"


async def test_a_run_that_another_process_resumed_and_ended_is_not_answered_from_memory(url: str) -> None:
    gate = asyncio.Event()
    outcomes = ["broken", "first", "second"]

    async def attempt() -> str:
        outcome = outcomes.pop(0)
        if outcome == "broken":
            raise ValueError(outcome)
        await gate.wait()
        return outcome

    @job
    async def fragile(run: Run) -> str:
        return str(await run.step(attempt))

    async with Dayjob(url, worker=False) as here, Dayjob(url, worker=False, jobs=[fragile]) as there:
        async with here.worker():
            handle = await here.submit(fragile())
            with pytest.raises(RunFailed, match="ValueError: broken"):
                await handle.result(20)
        async with there.worker():
            await there.resume(handle.id)
            result = asyncio.create_task(handle.result(20))
            await until(lambda: outcomes == ["second"])
            await turns()
            assert not result.done()
            gate.set()
            assert await result == "first"
            await there.resume(handle.id, from_step="attempt")
            assert await there.handle(handle.id).result(20) == "second"
        assert await handle.result(20) == "second"


async def test_workers_that_come_and_go_leave_no_file_open_in_the_store(url: str) -> None:
    async with Dayjob(url, worker=False, jobs=[leaf]) as app:

        async def come_and_go() -> int:
            async with app.worker() as worker:
                await until(lambda: _has_beaten(app, worker.id))
            gc.collect()
            return open_files()

        first = [await come_and_go() for _ in range(3)]
        later = [await come_and_go() for _ in range(3)]
    assert max(later) < max(first) + 5  # what one worker opens; three have come and gone meanwhile


async def _has_beaten(app: Dayjob, worker: str) -> bool:
    return any(found.id == worker and found.beat > found.started for found in await app.store.workers())


async def test_what_a_cut_off_branch_had_started_below_it_is_cut_off_too(url: str) -> None:
    went_on: list[str] = []
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await finish.wait()
        return "slow"

    async def deep(run: Run) -> None:
        await run.step(slow)
        went_on.append("deep")

    async def loser(run: Run) -> None:
        await run.gather(deep, sleeping)

    async def sleeping(run: Run) -> None:
        await run.sleep(1000)

    async def winner(run: Run) -> str:
        await begun.wait()
        return "won"

    @job
    async def nested(run: Run) -> str:
        await run.race(winner, loser)
        return str(await run.ask("Go on?"))

    async with Dayjob(url) as app:
        handle = await app.submit(nested())
        await until(lambda: app.actions(handle.id))
        finish.set()

        async def parked() -> bool:
            return await handle.status() == Status.REQUIRES_ACTION

        await until(parked)
        await app.answer(handle.id, "ask", "yes")
        assert await handle.result(20) == "yes"
        assert went_on == []
        assert not any(
            "slow" in step.key and step.outcome == Outcome.VALUE for step in await app.steps(handle.id)
        )


async def test_a_branch_that_exits_fails_its_run_and_no_other(url: str) -> None:
    def leave() -> None:
        sys.exit(3)

    async def branch(run: Run) -> None:
        await run.step(leave)

    @job
    async def exits(run: Run) -> None:
        await run.gather(branch)

    @job
    async def innocent(run: Run) -> str:
        return "fine"

    async with Dayjob(url) as app:
        handle, other = await app.submit(exits()), await app.submit(innocent())
        with pytest.raises(RunFailed, match="SystemExit: 3"):
            await handle.result(20)
        assert await other.result(20) == "fine"
