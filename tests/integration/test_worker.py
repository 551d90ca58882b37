"""What a worker does with its runs: takes its share, lets go of them in good order, and cannot be killed by them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dayjob import Dayjob, Run, RunFailed, Status, job
from dayjob.cli.files import load
from dayjob.errors import StoreLocked
from dayjob.jobs import Job
from dayjob.stores import Store, Wanted, open_store
from dayjob.testing import Clock
from dayjob.worker import MAX_ATTEMPTS
from tests.failing_stores import Around, Failing, Locked
from tests.until import is_finished, turns, until


class Desk:
    """Steps that wait at a gate, and the list of those that came to it."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.came: list[str] = []

    async def enter(self, name: str) -> str:
        self.came.append(name)
        await self.gate.wait()
        return f"{name} entered"


async def test_a_worker_that_stops_lets_steps_in_progress_finish_and_gives_its_runs_back(url: str) -> None:
    desk = Desk()

    @job
    async def visit(run: Run) -> list[str]:
        return [await run.step(desk.enter, name) for name in ("one", "two")]

    async with Dayjob(url, worker=False) as app:
        async with app.worker() as worker:
            handle = await app.submit(visit())
            await until(lambda: desk.came == ["one"])
            stopping = asyncio.create_task(worker.stop())
            await turns()
            desk.gate.set()
            await stopping
        record = await app.get(handle.id)
        assert (record.status, record.worker, record.attempts) == (Status.QUEUED, None, 0)
        assert [(step.key, step.outcome) for step in await app.steps(handle.id)] == [("enter", "value")]
        assert await app.store.workers() == []
        async with app.worker():
            assert await handle.result(20) == ["one entered", "two entered"]
    assert desk.came == ["one", "two"]


async def test_a_worker_that_stops_does_not_wait_for_ever(url: str) -> None:
    desk = Desk()

    @job
    async def visit(run: Run) -> str:
        return str(await run.step(desk.enter, "one"))

    async with Dayjob(url, worker=False) as app:
        async with app.worker(grace_seconds=0.05) as worker:
            handle = await app.submit(visit())
            await until(lambda: desk.came)
            async with asyncio.timeout(15):
                await worker.stop(drain_seconds=0.05)
        desk.gate.set()
        assert (await app.get(handle.id)).status == Status.QUEUED
        assert await app.steps(handle.id) == []
        async with app.worker():
            assert await handle.result(20) == "one entered"
    assert desk.came == ["one", "one"]


class Slow(Around):
    """A store whose claims take a while: their replies come when the gate is open."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.gate = asyncio.Event()
        self.claimed: list[str] = []

    async def claim(self, wanted: Wanted) -> Any:
        claimed = await self.store.claim(wanted)
        self.claimed += [record.id for record, _ in claimed]
        await self.gate.wait()
        return claimed


async def test_what_a_worker_claims_while_it_stops_is_given_back_and_counted_as_no_death(url: str) -> None:
    store = Slow(open_store(url))
    async with Dayjob(store, worker=False) as app, Dayjob(url, worker=False) as other:
        handles = [await app.submit(name_of(name=str(number))) for number in range(3)]
        for _ in range(MAX_ATTEMPTS + 1):
            store.gate.clear()
            store.claimed.clear()
            async with app.worker() as worker:
                await until(lambda: len(store.claimed) == 3)
                stopping = asyncio.create_task(worker.stop())
                await turns()
                store.gate.set()
                await stopping
            found = [(run.status, run.worker, run.attempts) for run in await app.runs()]
            assert found == [(Status.QUEUED, None, 0)] * 3
        other.jobs[name_of.name] = name_of
        async with other.worker():
            assert [await handle.result(20) for handle in handles] == ["0", "1", "2"]
    await store.store.close()


async def test_a_claim_that_never_ends_does_not_hold_up_the_end_of_its_worker(url: str) -> None:
    store = Slow(open_store(url))
    async with Dayjob(store, worker=False) as app:
        handle = await app.submit(name_of(name="Ann"))
        async with app.worker(grace_seconds=0.05) as worker:
            await until(lambda: store.claimed)
            async with asyncio.timeout(15):
                await worker.stop()
        record = await app.get(handle.id)
        assert (record.status, record.worker, record.attempts) == (Status.QUEUED, None, 0)
    await store.store.close()


async def test_no_more_runs_are_worked_on_at_a_time_than_was_said(url: str) -> None:
    desk = Desk()

    @job
    async def visit(run: Run, number: int) -> str:
        return str(await run.step(desk.enter, str(number)))

    async with Dayjob(url, worker=False) as app:
        handles = [await app.submit(visit(number=number)) for number in range(7)]
        async with app.worker(concurrency=3) as worker:
            await until(lambda: len(desk.came) == 3)
            await turns()
            assert len(worker.held) == 3
            assert desk.came == ["0", "1", "2"]
            desk.gate.set()
            assert len(await asyncio.gather(*(handle.result(20) for handle in handles))) == 7


@job
async def name_of(run: Run, name: str) -> str:
    return name


async def test_workers_of_one_process_serve_their_own_queues(url: str) -> None:
    async with Dayjob(url, worker=False) as app:
        slow = await app.submit(name_of(name="slow"), queue="slow")
        fast = await app.submit(name_of(name="fast"))
        async with app.worker():
            assert await fast.result(20) == "fast"
            assert await slow.status() == Status.QUEUED
            async with app.worker(queues=["slow", "other"]):
                assert await slow.result(20) == "slow"


async def test_a_worker_for_one_run_leaves_the_others(url: str) -> None:
    async with Dayjob(url, worker=False) as app:
        other = await app.submit(name_of(name="other"))
        wanted = await app.submit(name_of(name="wanted"))
        async with app.worker(only=wanted.id):
            assert await wanted.result(20) == "wanted"
            assert await other.status() == Status.QUEUED


async def test_two_workers_of_one_store_both_see_what_other_processes_do(url: str) -> None:
    """Each watches the file for itself: a change that one has seen is not gone for the other."""
    desk = Desk()

    @job
    async def listening(run: Run) -> str:
        heard, _ = await run.gather(lambda r: r.event("go"), lambda r: r.step(desk.enter, "x"))
        return str(heard)

    slow_heart = {"beat_seconds": 600.0, "lease_seconds": 3600.0}
    async with Dayjob(url, worker=False) as app, Dayjob(url, worker=False) as outside:
        async with (
            app.worker(queues=["a"], **slow_heart),
            app.worker(queues=["b"], **slow_heart),
            app.worker(queues=["c"], **slow_heart),
        ):
            handles = [await app.submit(listening(), queue=queue) for queue in "abc"]
            await until(lambda: len(desk.came) == 3)
            for handle in handles:
                await until(lambda id=handle.id: outside.store.open_step(id, "gather/0/go"))
            for handle in handles:
                await outside.send(handle.id, "go", "gone")
            for handle in handles:
                await until(lambda id=handle.id: is_finished(outside, id, "gather/0/go"))
            desk.gate.set()
            assert await asyncio.gather(*(handle.result(20) for handle in handles)) == ["gone"] * 3


async def test_a_long_journal_stays_warm_for_a_while_and_then_leaves(url: str) -> None:
    @job
    async def waiting(run: Run) -> str:
        await run.step(lambda: "so far")
        return str(await run.ask("go on?"))

    clock = Clock()
    async with Dayjob(url, worker=False, clock=clock) as app:
        async with app.worker(short_journal=0, warm_seconds=10, lease_seconds=3600) as worker:
            warm = await app.submit(waiting())
            await until(lambda: warm.id in worker.warm)
            await app.answer(warm.id, "ask", "at once")
            assert await warm.result(20) == "at once"
            cooled = await app.submit(waiting())
            await until(lambda: cooled.id in worker.warm)
            clock.advance(11)
            await until(lambda: cooled.id not in worker.warm)
            await app.answer(cooled.id, "ask", "later")
            assert await cooled.result(20) == "later"


async def test_as_many_sync_steps_run_side_by_side_as_runs(url: str) -> None:
    together = threading.Barrier(40)

    @job
    async def meeting(run: Run) -> int:
        return int(await run.step(together.wait, 20))

    async with Dayjob(url) as app:
        handles = [await app.submit(meeting()) for _ in range(40)]
        numbers = await asyncio.gather(*(handle.result(30) for handle in handles))
        assert sorted(numbers) == list(range(40))


async def test_steps_that_hang_in_threads_do_not_hold_up_the_end_of_their_worker(url: str) -> None:
    gate = threading.Event()
    came: list[int] = []

    def hang(number: int) -> None:
        came.append(number)
        gate.wait(60)

    @job
    async def hanging(run: Run, number: int) -> None:
        await run.step(hang, number)

    try:
        async with Dayjob(url, worker=False) as app:
            async with app.worker(grace_seconds=0.05) as worker:
                for number in range(40):
                    await app.submit(hanging(number=number))
                await until(lambda: len(came) == 40)
                async with asyncio.timeout(15):
                    await worker.stop(drain_seconds=0.05)
            assert {run.status for run in await app.runs()} == {Status.QUEUED}
    finally:
        gate.set()


def test_a_process_with_a_step_that_hangs_in_a_thread_can_still_end(url: str, tmp_path: Path) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(
        "import asyncio, sys, threading, time\nfrom dayjob import Dayjob, Run, job\n"
        "came = threading.Event()\n"
        "def hang():\n    came.set()\n    time.sleep(600)\n"
        "@job\nasync def hanging(run: Run) -> None:\n    await run.step(hang)\n"
        "async def main():\n"
        "    async with Dayjob(sys.argv[1], worker=False) as app:\n"
        "        async with app.worker(grace_seconds=0.05) as worker:\n"
        "            await app.submit(hanging())\n"
        "            await asyncio.to_thread(came.wait, 30)\n"
        "            await worker.stop(0.05)\n"
        "asyncio.run(main())\n"
        "print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("ended\n", 0), done.stderr


DEADLY = """
import asyncio, os, sys
from dayjob import Dayjob, Run, job

@job
async def deadly(run: Run) -> None:
    os._exit(9)

def die() -> None:
    os._exit(9)

@job
async def deadly_in_the_end(run: Run) -> None:
    await run.defer(die)
    raise ValueError("x")

@job
async def harmless(run: Run) -> str:
    return "harmless"

async def main(url: str) -> None:
    async with Dayjob(url, jobs=[deadly, deadly_in_the_end, harmless]):
        await asyncio.sleep(20)

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


async def test_a_run_that_kills_every_process_that_takes_it_ends_as_poison(url: str, tmp_path: Path) -> None:
    script = tmp_path / "deadly_work.py"
    await asyncio.to_thread(script.write_text, DEADLY)
    _, jobs = load(str(script))
    async with Dayjob(url, worker=False) as app:
        handle = await app.submit(jobs["deadly"]())
        for _ in range(3):
            died = await asyncio.create_subprocess_exec(sys.executable, str(script), url)
            assert await died.wait() == 9
        bystander = await app.submit(jobs["harmless"]())
        async with app.worker():
            with pytest.raises(RunFailed, match="poison: 3 workers died while they held it"):
                await handle.result(20)
            assert await bystander.result(20) == "harmless"


async def test_a_run_whose_deferred_function_kills_every_process_ends_with_its_own_error(
    url: str, tmp_path: Path
) -> None:
    script = tmp_path / "deadly_work.py"
    await asyncio.to_thread(script.write_text, DEADLY)
    _, jobs = load(str(script))
    async with Dayjob(url, worker=False) as app:
        handle = await app.submit(jobs["deadly_in_the_end"]())
        for _ in range(4):  # the first has finished a step, the one that says what is deferred
            died = await asyncio.create_subprocess_exec(sys.executable, str(script), url)
            assert await died.wait() == 9
        async with app.worker():
            with pytest.raises(RunFailed, match="ValueError: x; what was left to do at its end was skipped"):
                await handle.result(20)


# --- a store that fails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", ["claim", "refresh", "park", "unpark", "settle", "sweep", "beat", "recall", "ended"]
)
async def test_a_verb_that_fails_for_a_while_loses_nothing_and_is_no_error_of_the_job(
    url: str, verb: str
) -> None:
    @job
    async def varied(run: Run) -> list[Any]:
        said = await run.ask("go on?")
        remembered = await run.recall("nothing", default="default")
        slept = await run.gather(lambda r: r.sleep(0.05), lambda r: r.step(lambda: 1))
        try:
            async with asyncio.timeout(0.3):
                await run.event("never")
        except TimeoutError:
            return [said, remembered, slept, await run.step(lambda: 2)]

    store = Failing(open_store(url))
    store.failing.add(verb)
    async with Dayjob(store, worker=False) as app:
        async with app.worker(beat_seconds=0.1):
            handle = await app.submit(varied())
            waiting = asyncio.create_task(handle.result(30))

            async def go_on() -> None:
                await until(app.actions)
                await app.answer(handle.id, "ask", "yes")

            answering = asyncio.create_task(go_on())
            await until(lambda: store.failed, 25, f"{verb} is called")
            await turns(200)
            store.failing.clear()
            assert await waiting == ["yes", "default", [None, 1], 2]
            await answering
    await store.store.close()


async def test_subscribers_are_called_on_the_event_loop_even_of_a_failing_store(url: str, path: Path) -> None:
    threads: set[int] = set()
    names: set[str] = set()

    def heard(name: str, fields: dict[str, Any]) -> None:
        threads.add(threading.get_ident())
        names.add(name)

    async with Dayjob(url) as app:
        app.subscribe(heard)
        with Locked(path), pytest.raises(StoreLocked, match="another program holds"):
            await app.submit(name_of(name="x"))
        await until(lambda: "store.failing" in names)
    assert threads == {threading.get_ident()}


def test_an_app_can_be_used_from_one_loop_after_the_other(url: str) -> None:
    async def once(name: str) -> str:
        async with Dayjob(url) as app:
            return str(await (await app.submit(name_of(name=name))).result(20))

    assert [asyncio.run(once(name)) for name in ("a", "b")] == ["a", "b"]


def test_a_process_whose_job_will_not_be_cancelled_can_still_end(url: str, tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import asyncio, sys\nfrom dayjob import Dayjob, Run, job\n"
        "@job\nasync def stubborn(run: Run) -> None:\n"
        "    while True:\n"
        "        try:\n            await run.sleep(3600)\n        except BaseException:\n            pass\n"
        "async def main():\n"
        "    async with Dayjob(sys.argv[1], worker=False) as app:\n"
        "        async with app.worker(grace_seconds=0.05):\n"
        "            handle = await app.submit(stubborn())\n"
        "            while (await handle.status()) != 'waiting':\n                await asyncio.sleep(0.01)\n"
        "            await handle.cancel()\n"
        "            try:\n                await handle.result(10)\n"
        "            except Exception as error:\n                print(type(error).__name__)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), url], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.stdout, done.returncode) == ("RunCancelled\n", 0), done.stderr


async def test_who_waits_for_a_run_that_ends_elsewhere_outlasts_a_failing_store(url: str) -> None:
    store = Failing(open_store(url))
    store.failing.add("ended")
    async with Dayjob(store, worker=False) as waiting, Dayjob(url, worker=False, jobs=[name_of]) as working:
        handle = await waiting.submit(name_of(name="Ann"))
        result = asyncio.create_task(handle.result(20))
        await until(lambda: len(store.failed) > 1)
        store.failing.clear()
        async with working.worker():
            assert await result == "Ann"
    await store.store.close()


async def test_a_clock_that_jumps_ahead_loses_no_run(url: str) -> None:
    clock = Clock()
    gate = asyncio.Event()

    async def held_up() -> str:
        await gate.wait()
        return "held up"

    @job
    async def sleeper(run: Run) -> str:
        await run.sleep(3600)
        return await run.step(held_up)

    async with Dayjob(url, worker=False, clock=clock) as app, app.worker(beat_seconds=0.05):
        asleep, busy = await app.submit(sleeper()), await app.submit(holds(gate)())
        await until(lambda: _is(app, asleep.id, Status.WAITING))
        clock.advance(7200)
        gate.set()
        assert await asleep.result(20) == "held up"
        assert await busy.result(20) == "through"


async def test_a_clock_that_is_set_back_wakes_nobody_early(url: str) -> None:
    clock = Clock()

    @job
    async def sleeper(run: Run) -> float:
        await run.sleep(60)
        return await run.now()

    async with Dayjob(url, worker=False, clock=clock) as app, app.worker(beat_seconds=0.05):
        began = clock()
        handle = await app.submit(sleeper())
        await until(lambda: _is(app, handle.id, Status.WAITING))
        clock.advance(-3600)
        await app.store.sweep(3)
        assert await handle.status() == Status.WAITING
        clock.advance(3661)
        assert await handle.result(20) >= began + 60


def holds(gate: asyncio.Event) -> Job:
    @job
    async def waits(run: Run) -> str:
        await gate.wait()
        return await run.step(lambda: "through", name="through")

    return waits


async def _is(app: Dayjob, run: str, status: Status) -> bool:
    return (await app.get(run)).status == status


# --- submitted and begun at once ------------------------------------------------------------------------


async def test_a_run_is_begun_with_its_submission_where_a_worker_has_room(url: str) -> None:
    @job
    async def waits(run: Run) -> None:
        await run.event("go")

    async with Dayjob(url, jobs=[waits]) as app:
        handle = await app.submit(waits())
        assert (await app.get(handle.id)).epoch == 1
        await app.send(handle.id, "go")
        await handle.result(20)


async def test_many_submitted_at_once_are_never_more_at_work_than_there_is_room(url: str) -> None:
    most, now = 0, 0

    @job
    async def busy(run: Run) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    async with Dayjob(url, jobs=[busy], concurrency=3) as app:
        handles = await asyncio.gather(*(app.submit(busy()) for _ in range(40)))
        for handle in handles:
            await handle.result(20)
    assert most == 3


async def test_a_submission_that_nobody_waits_for_any_more_is_done_all_the_same(url: str) -> None:
    done: list[str] = []

    @job
    async def work(run: Run) -> None:
        done.append(run.id)

    async with Dayjob(url, jobs=[work]) as app:
        for turns in range(6):
            submitting = asyncio.create_task(app.submit(work(), key=str(turns)))
            for _ in range(turns):
                await asyncio.sleep(0)
            submitting.cancel()
            await asyncio.gather(submitting, return_exceptions=True)
        for turns in range(1, 6):
            handle = await app.submit(work(), key=str(turns))
            await handle.result(20)
    assert len(done) == len(set(done))
