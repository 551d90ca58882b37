"""Processes that work on runs, and how they end: signals, exit codes, and who else may take a run up."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import orjson
from rich.console import Console
from rich.text import Text

from dayjob import doctor, trace
from dayjob.app import Dayjob
from dayjob.cli.files import DEBUG, check_model, load, model_of, source_of
from dayjob.cli.printing import (
    err,
    how_to_answer,
    line_to_type,
    log_event,
    print_event,
    print_json,
    print_value,
)
from dayjob.documents import document
from dayjob.errors import DayjobError, InputError, StoreFull, StoreLocked, StoreUnavailable, WrongStatus
from dayjob.jobs import Job
from dayjob.keys import was_unwound
from dayjob.runs import Action, Kind, RunRecord, Status
from dayjob.stores import WorkerRecord, store_exists

POLL_SECONDS = 0.1
CANCEL_SECONDS = 10.0
DRAIN_SECONDS = 25.0
FAMILY_LIMIT = 1_000
STOPPING = "stopping: steps in progress may finish; once more to stop at once"


class Exit:
    """What a command's exit code says."""

    COMPLETED = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    EXPIRED = 4
    INCOMPLETE = 5
    WAITING = 6
    INTERRUPTED = 130


EXIT_OF = {
    Status.COMPLETED: Exit.COMPLETED,
    Status.FAILED: Exit.FAILED,
    Status.CANCELLED: Exit.CANCELLED,
    Status.EXPIRED: Exit.EXPIRED,
    Status.INCOMPLETE: Exit.INCOMPLETE,
    Status.REQUIRES_ACTION: Exit.WAITING,
    Status.WAITING: Exit.WAITING,
}


@dataclass(frozen=True, slots=True)
class Work:
    """A process that works on one run and its children, and shows it. Raises InputError for a bad model."""

    store: str
    model: str | None
    jobs: dict[str, Job]
    as_json: bool

    def __post_init__(self) -> None:
        check_model(self.model)

    async def until_it_stops(self, begin: Callable[[Dayjob], Coroutine[Any, Any, str]]) -> int:
        """Works until the run is over, waits for someone, or this process is told to stop."""
        with signals() as stop:
            async with Dayjob(self.store, self.model, self.jobs.values(), worker=False) as app:
                run = await begin(app)
                console = Console(stderr=True, highlight=False, quiet=self.as_json)
                self._greet(console, run, await app.get(run))
                since = max((step.seq or 0 for step in await app.steps(run)), default=0)
                with trace.Trace(console, run) as shown:
                    app.subscribe(shown)
                    record = await self._work(app, console, run, stop)
                return await self._part(app, console, record, since, stop.is_set())

    def _greet(self, console: Console, run: str, record: RunRecord) -> None:
        console.print(
            Text.assemble((record.job, "bold"), "  ", run, ("  " + (self.model or "no model"), "dim")),
            soft_wrap=True,
        )

    async def _work(self, app: Dayjob, console: Console, run: str, stop: asyncio.Event) -> RunRecord:
        # Only this run and its family: to run a job must not take up whatever else was left in the store.
        async with app.worker(only=run):
            while True:
                record = await app.get(run)
                if record.next_run is not None:
                    run = record.next_run
                    continue
                if record.status.is_terminal:
                    return record
                if stop.is_set():
                    console.print(STOPPING, style="yellow")
                    return record
                if record.status.is_parked and await _waits_for_someone(app, record):
                    return record
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    async def _part(self, app: Dayjob, console: Console, record: RunRecord, since: int, stopped: bool) -> int:
        """What is said when the work is over, and how the process exits."""
        record = await app.get(record.id)
        steps = await app.steps(record.id)
        stopped = stopped and not record.status.is_terminal
        if not stopped:
            console.print(trace.totals(record, steps, since), soft_wrap=True)
        if record.reason and record.status != Status.COMPLETED and not stopped:
            console.print(Text(record.reason, "red"), soft_wrap=True)
        if record.error and os.environ.get(DEBUG):
            console.print(orjson.loads(record.error).get("traceback") or "", markup=False, soft_wrap=True)
        again = line_to_type("resume", record.id, store=self.store)
        if stopped:
            err.print(Text.assemble("stopped; it goes on with:  ", (again, "bold")), soft_wrap=True)
        elif record.status == Status.FAILED:
            console.print(Text.assemble("look at it:  ", line_to_type("show", record.id, store=self.store)))
            if was_unwound(steps):
                console.print("what it did was undone; it can be started anew, and not resumed")
            else:
                console.print(Text.assemble("go on from the failed step:  ", again))
        elif record.status.is_parked:
            for text in how_to_answer(await waits_of(app, record), self.store):
                console.print(text, soft_wrap=True)
            console.print(Text.assemble("and then:  ", (again, "bold")), soft_wrap=True)
        if self.as_json:
            print_json(await document(app, record.id))
        elif record.output is not None:
            print_value(orjson.loads(record.output))
        return Exit.INTERRUPTED if stopped else EXIT_OF[record.status]


async def serve(
    store: str,
    model: str | None,
    jobs: dict[str, Job],
    concurrency: int,
    queues: Sequence[str],
    as_json: bool,
) -> int:
    with signals() as stop:
        async with Dayjob(store, model, jobs.values(), worker=False) as app:
            app.subscribe(print_event if as_json else log_event)
            async with app.worker(concurrency=concurrency, queues=queues) as worker:
                await stop.wait()
                if not as_json:
                    err.print(STOPPING, style="yellow")
                await worker.stop(DRAIN_SECONDS)
    return Exit.COMPLETED


async def cancel_run(store: str, run: str, reason: str, model: str | None, as_json: bool) -> int:
    async with opened(store) as app:
        status = await app.cancel(run, reason)
        record = await app.get(run)
        taken = bool(await workers_for(app, record))
        if not status.is_terminal and taken:
            record = await _poll(app, run, time.monotonic() + CANCEL_SECONDS)
    if not record.status.is_terminal and not taken and record.source is not None:
        record = await _finish_cancelling(store, record, model)
    if as_json:
        async with opened(store) as app:
            print_json(await document(app, run))
    elif record.status == Status.CANCELLED:
        err.print(f"{run} is cancelled")
    elif record.status.is_terminal:
        err.print(f"{run} was over already: {record.status}")
    else:
        err.print(f"{run} will be cancelled by the worker that has it, or by the next one that has its job")
    return Exit.COMPLETED


async def _finish_cancelling(store: str, record: RunRecord, model: str | None) -> RunRecord:
    """Nobody works on it: does here what is to be done at its end."""
    try:
        _, jobs = load(source_of(record))
    except InputError as problem:
        err.print(f"! {problem.message}", style="yellow", soft_wrap=True)
        return record
    model = model_of(record, model)
    async with Dayjob(store, model, jobs.values(), worker=False) as app, app.worker(only=record.id):
        return await _poll(app, record.id, time.monotonic() + CANCEL_SECONDS)


async def _poll(app: Dayjob, run: str, deadline: float) -> RunRecord:
    while True:
        record = await app.get(run)
        if record.status.is_terminal or time.monotonic() > deadline:
            return record
        await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def opened(store: str) -> AsyncIterator[Dayjob]:
    """A store that is there already: to look at runs must not make one."""
    if not store_exists(store):
        raise StoreUnavailable(f"{store}: no store is there; `dayjob run` makes one, --store names another")
    async with Dayjob(store, worker=False) as app:
        yield app


async def resumable(store: str, run: str) -> RunRecord:
    async with opened(store) as app:
        record = await app.get(run)
        holder = next((w for w in await doctor.live_workers(app) if w.id == record.worker), None)
        if holder is not None:
            raise WrongStatus(
                f"{run}: process {holder.pid} on {holder.host} works on it; watch it: dayjob tail {run}"
            )
        return record


async def workers_for(app: Dayjob, record: RunRecord) -> list[WorkerRecord]:
    """Live workers that hold the run, or may claim it."""
    return [
        w
        for w in await doctor.live_workers(app)
        if w.id == record.worker
        or (record.worker is None and record.job in w.jobs and record.queue in w.queues)
    ]


async def waits_of(app: Dayjob, record: RunRecord) -> list[Action]:
    """What the run and its children wait for from outside."""
    found: list[Action] = []
    for member in [] if record.status.is_terminal else await _family(app, record):
        found += await app.actions(member.id)
        found += [
            Action(row.key, row.run, row.kind, row.name, None, row.due, row.started)
            for row in await app.store.open_steps(member.id, [Kind.EVENT])
        ]
    return found


async def _waits_for_someone(app: Dayjob, record: RunRecord) -> bool:
    """Whether only someone outside can bring the run, or a child of it, on."""
    family = await _family(app, record)
    if any(not member.status.is_parked for member in family):
        return False
    if any(member.status == Status.WAITING and member.due is not None for member in family):
        return False
    sleeps = [await app.store.open_steps(member.id, [Kind.SLEEP]) for member in family]
    if any(sleeps) or not await waits_of(app, record):
        return False
    # A child may have ended, or an answer have come, between these reads: then the wakes differ.
    again = await _family(app, await app.get(record.id))
    return [(m.id, m.status, m.wakes) for m in family] == [(m.id, m.status, m.wakes) for m in again]


async def _family(app: Dayjob, record: RunRecord) -> list[RunRecord]:
    """The run and its children that are not over."""
    children = await app.runs(parent=record.id, limit=FAMILY_LIMIT)
    nested = [await _family(app, child) for child in children if not child.status.is_terminal]
    return [record, *(member for family in nested for member in family)]


def leave(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Runs the work and exits with its code.

    At once: a function that a step left behind in a thread, or a task that swallows its cancellation,
    would keep the process alive, and the journal needs neither.
    """
    runner = asyncio.Runner()
    try:
        code = runner.run(work)
    except DayjobError as problem:
        complain(problem)
        code = exit_code_of(problem)
    atexit._run_exitfuncs()  # noqa: SLF001 - those of the user's file: exporters flush there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def interruptible(work: Coroutine[Any, Any, int]) -> int:
    with signals() as stop:
        task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        return Exit.INTERRUPTED


@contextlib.contextmanager
def signals() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process at once.

    Not the loop's own handlers: a job that blocks the loop must not keep the user from leaving.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def complain(problem: DayjobError) -> None:
    if os.environ.get(DEBUG):
        traceback.print_exception(problem)
    err.print(Text.assemble(("error: ", "bold red"), problem.message), soft_wrap=True)


def exit_code_of(problem: DayjobError) -> int:
    """Trouble while working is a failure; anything else was given wrongly."""
    return Exit.FAILED if isinstance(problem, StoreFull | StoreLocked) else Exit.USAGE
