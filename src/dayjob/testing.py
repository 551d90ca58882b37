"""For tests of jobs: a clock to set, a model that says what it is told, and workers that die when told.

A crash is honest: a worker dies at the n-th thing that it writes, as after `kill -9`. From then on its
store takes nothing and answers nothing, its runs are dropped from memory, and another worker finds
them by the same sweep and claim as in life.

    async with CrashLab() as lab:
        calm = await lab.run(digest(path="LICENSE"))
        async for crashed in lab.at_every_write(digest(path="LICENSE")):
            assert crashed.output == calm.output
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NoReturn
from urllib.parse import quote

import orjson

from dayjob.app import Dayjob
from dayjob.errors import StoreUnavailable
from dayjob.events import Events
from dayjob.jobs import Job, Request
from dayjob.models import Model
from dayjob.models.scripted import Delay as Delay
from dayjob.models.scripted import Scripted as Scripted
from dayjob.runs import RunRecord, Status, StepRecord, new_id
from dayjob.stores import Beat, Entry, Held, Loaded, Reservation, Reserved, Wanted, WorkerRecord, open_store
from dayjob.worker import Worker

POLL_SECONDS = 0.005
LOOP_TURNS = 40
"""A worker whose writes go nowhere has nothing left to do after about as many turns of the loop."""

Outside = Callable[[Dayjob, str], Awaitable[bool]]
"""The world around a run, called again and again: looks what it waits for, answers, says whether it did."""


class Clock:
    """A clock that a test sets; give it to `Dayjob(clock=…)`."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Moment(StrEnum):
    """When, around a write, a worker dies."""

    LOST = "lost"  # before the write is durable
    QUEUED = "queued"  # the same, but the worker goes on until it has to wait: what follows is lost too
    UNHEARD = "unheard"  # after it is durable, and before anybody hears of it


@dataclass(frozen=True, slots=True)
class Death:
    """The worker dies at its n-th write, counted from 1, claims and settles among them."""

    write: int
    moment: Moment = Moment.LOST


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, and what it went through.

    `error` is the type of the error that ended it. `writes` counts what the first worker wrote; `death`
    is the last that befell a worker, if any, and `durable` the journal as it was then.
    """

    run: RunRecord
    output: Any
    error: str | None
    steps: Sequence[StepRecord]
    writes: int
    death: Death | None
    durable: Sequence[StepRecord]
    warnings: Sequence[str]

    @property
    def status(self) -> Status:
        return self.run.status


class MortalStore:
    """A store that dies with its worker: from then on it takes nothing, and no call of it returns.

    Once it is buried its calls fail instead, so that what is left of the worker can be cleared away.
    """

    def __init__(self, store: Any, death: Death | None = None) -> None:
        self.url: str = store.url
        self.writes = 0
        self.died = asyncio.Event()
        self.deaf = False
        self.buried = False
        self.store = store
        self.death = death
        self.worker: WorkerRecord | None = None

    # --- what a worker writes --------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        dies = self._count()
        if self.died.is_set() and not (dies and self._is_unheard):
            return
        durable, lost = entry.durable, entry.lost
        if durable is not None:
            heard = asyncio.get_running_loop().create_future()
            heard.add_done_callback(lambda came: self._tell(durable, came.exception()))
            entry = replace(entry, durable=heard)
        if lost is not None:
            entry = replace(entry, lost=lambda: None if self.deaf else lost())
        self.store.put(entry)

    async def claim(self, wanted: Wanted) -> list[tuple[RunRecord, Loaded | None]]:
        await self._if_alive()
        claimed: list[tuple[RunRecord, Loaded | None]] = await self.store.claim(wanted)
        if claimed:
            self._count()
        await self._if_alive()
        return claimed

    async def park(
        self, home: str, run: str, epoch: int, wakes: int, status: Status, due: float | None
    ) -> Held:
        held: Held = await self._write(self.store.park, home, run, epoch, wakes, status, due)
        return held

    async def unpark(self, home: str, run: str, epoch: int, worker: str) -> bool:
        return bool(await self._write(self.store.unpark, home, run, epoch, worker))

    async def release(self, home: str, run: str, epoch: int, pin: str | None = None) -> None:
        await self._write(self.store.release, home, run, epoch, pin)

    async def reserve(self, reservation: Reservation) -> Reserved:
        reserved: Reserved = await self._write(self.store.reserve, reservation)
        return reserved

    async def unwind(self, *identity_and_end: Any) -> Held:
        held: Held = await self._write(self.store.unwind, *identity_and_end)
        return held

    async def settle(self, *identity_and_end: Any) -> Held:
        held: Held = await self._write(self.store.settle, *identity_and_end)
        return held

    async def _write(self, verb: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        await self._if_alive()
        dies = self._count()
        if self.died.is_set():
            if dies and self._is_unheard:
                await verb(*args)
            await self._never()
        result = await verb(*args)
        return result if self._hears() else await self._never()

    def _count(self) -> bool:
        """Counts a write; true if the worker dies of this one."""
        self.writes += 1
        dies = self.death is not None and self.writes == self.death.write
        if dies and self.death is not None:
            self.deaf = self.death.moment != Moment.QUEUED
            self.died.set()
        return dies

    @property
    def _is_unheard(self) -> bool:
        return self.death is not None and self.death.moment == Moment.UNHEARD

    def _tell(self, durable: asyncio.Future[None], refusal: BaseException | None) -> None:
        if self.deaf or durable.done():
            return
        if refusal is None:
            durable.set_result(None)
        else:
            durable.set_exception(refusal)

    # --- the rest ------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord) -> None:
        await self._if_alive()
        await self.store.register(worker)
        self.worker = worker

    async def end_lease(self) -> None:
        """As if the lease of its worker were over: whoever sweeps next declares it dead."""
        if self.worker is not None:
            await self.store.register(self.worker._replace(lease=-1.0))

    def beat(self, worker: str) -> Beat:
        beat: Beat | None = self.store.beat(worker) if self._hears() else None
        return beat if beat is not None and self._hears() else Beat(float("-inf"), {})

    def changed(self, worker: str) -> Any:
        return None if self.died.is_set() else self.store.changed(worker)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def heard(*args: Any, **kwargs: Any) -> Any:
            if not self._hears():
                await self._never()
            result = await verb(*args, **kwargs)
            return result if self._hears() else await self._never()

        return heard

    def bury(self) -> None:
        self.deaf = self.buried = True

    def _hears(self) -> bool:
        return not self.deaf

    async def _if_alive(self) -> None:
        if self.died.is_set():
            await self._never()

    async def _never(self) -> NoReturn:
        if self.buried:
            raise StoreUnavailable(f"{self.url}: this worker is dead")
        await asyncio.get_running_loop().create_future()
        raise AssertionError


class CrashLab:
    """Runs jobs to their end while their workers die.

    `store` is a URL; by default a file in a temporary folder that is not synced to disk, since no crash
    of the machine is tried here. Each worker opens it for itself, as a process would. `settings` go to
    each `Worker`. Runs may be tried side by side.
    """

    def __init__(
        self,
        store: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        patience_seconds: float = 30.0,
        **settings: Any,
    ) -> None:
        self.deaths = 0
        self._url = store
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._settings = settings
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._trials: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CrashLab:
        if self._url is None:
            self._folder = tempfile.TemporaryDirectory(prefix="dayjob-lab-")
            self._url = f"sqlite:///{quote(self._folder.name)}/lab.db?synchronous=off"
        self.store: Any = self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        left = [trial for trial in self._trials if trial is not asyncio.current_task()]
        for trial in left:  # one that stood beside them failed
            trial.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.gather(*self._leaving)
        await self.store.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _open(self) -> Any:
        return open_store(str(self._url), clock=self._clock)

    async def at_every_write(
        self,
        request: Request,
        moments: Iterable[Moment] = tuple(Moment),
        side_by_side: int = 4,
        **how: Any,
    ) -> AsyncIterator[Ended]:
        """Runs the job again and again, each time with a death one write later, until it ends without one."""
        for moment in moments:
            for first in range(1, 1_000_000, side_by_side):
                deaths = [Death(write, moment) for write in range(first, first + side_by_side)]
                trials = await asyncio.gather(*(self.run(request, death=death, **how) for death in deaths))
                for ended in trials:
                    if ended.death is not None:
                        yield ended
                if trials[-1].death is None:
                    break

    async def run(
        self,
        request: Request,
        *,
        death: Death | Sequence[Death] = (),
        jobs: Sequence[Job] = (),
        then: Sequence[Job] = (),
        model: str | Model | None = None,
        outside: Outside | None = None,
        on_death: Callable[[], None] = lambda: None,
        **submit: Any,
    ) -> Ended:
        """Runs a job to its end. If its worker dies another takes over, with the jobs in `then` if given.

        Several deaths befall one worker after the other. `jobs` are what it starts as children. Raises
        TimeoutError, saying where the run stands, if it does not end in time.
        """
        trial = _Trial(new_id("queue"), model, outside)
        deaths = [death] if isinstance(death, Death) else list(death)
        team = [request.job, *jobs]
        writes, last_death, durable = 0, None, ()
        async with self._trying(), Dayjob(self.store, worker=False, clock=self._clock) as app:
            handle = await app.submit(request, queue=trial.queue, **submit)
            while True:
                mortal, worker = await self._hire(trial, team, deaths.pop(0) if deaths else None)
                record = await self._over_or_dead(app, handle.id, worker, mortal, trial)
                writes = writes or mortal.writes
                if record is not None:
                    break
                await self._bury(worker, mortal)
                on_death()
                last_death, durable = mortal.death, await self.store.steps(handle.id)
                team = list(then) or team
        return Ended(
            record,
            orjson.loads(record.output) if record.output else None,
            orjson.loads(record.error)["type"] if record.error else None,
            await self.store.steps(record.id),
            writes,
            last_death,
            durable,
            trial.warnings,
        )

    @asynccontextmanager
    async def _trying(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._trials.add(task)
        try:
            yield
        finally:
            self._trials.discard(task)

    async def _over_or_dead(
        self, app: Dayjob, run: str, worker: Worker, mortal: MortalStore, trial: _Trial
    ) -> RunRecord | None:
        """The run, when it is over; None when its worker died first."""
        died = asyncio.create_task(mortal.died.wait())
        over = asyncio.create_task(self._until_over(app, run, worker, trial))
        try:
            await asyncio.wait({died, over}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # whoever runs the job has no more patience
            died.cancel()
            over.cancel()
            self._dismiss(worker, mortal)
            raise
        if mortal.died.is_set():
            await _cancelled(over)
            return None
        await _cancelled(died)
        mortal.death = None  # the run is over: what the worker writes while it leaves is no part of the trial
        self._dismiss(worker, mortal)
        return await over

    async def _hire(
        self, trial: _Trial, jobs: Sequence[Job], death: Death | None = None
    ) -> tuple[MortalStore, Worker]:
        store = MortalStore(self._open(), death)
        settings = {"clock": self._clock, "queues": (trial.queue,), "grace_seconds": 0.5, **self._settings}
        worker = Worker(store, jobs, model=trial.model, events=trial.events, **settings)
        await worker.start()
        return store, worker

    async def _bury(self, worker: Worker, mortal: MortalStore) -> None:
        """Clears a dead worker away, so that the next sweep finds its runs without one."""
        self.deaths += 1
        if not mortal.deaf:
            for _ in range(LOOP_TURNS):
                await asyncio.sleep(0)
        _clear_away(worker, mortal)
        await mortal.end_lease()
        self._dismiss(worker, mortal)

    def _dismiss(self, worker: Worker, mortal: MortalStore) -> None:
        if mortal.died.is_set() and not mortal.buried:
            _clear_away(worker, mortal)

        async def leave() -> None:
            await worker.stop(drain_seconds=0)
            await mortal.store.close()

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _until_over(self, app: Dayjob, run: str, worker: Worker, trial: _Trial) -> RunRecord:
        """The run that ended, or the last of those that it went on as."""
        deadline = time.monotonic() + self._patience_seconds
        while True:
            trial.news.clear()
            record = await app.get(run)
            if record.status.is_terminal and record.next_run is None:
                return record
            run = record.next_run or run
            if trial.outside is not None and await trial.outside(app, run):
                for held in tuple(worker.held):
                    worker.poke(held)
                worker.poke()
            if time.monotonic() > deadline:
                raise TimeoutError(await self._described(record))
            wait = POLL_SECONDS if trial.outside is not None else 10 * POLL_SECONDS
            with suppress(TimeoutError):  # wait_for could swallow the cancellation that ends this look-out
                async with asyncio.timeout(wait):
                    await trial.news.wait()

    async def _described(self, record: RunRecord) -> str:
        steps = await self.store.steps(record.id)
        rows = "".join(f"\n  {step.seq} {step.key} {step.kind} {step.outcome}" for step in steps)
        return f"{record.id}: still {record.status} (epoch {record.epoch}, held by {record.worker}){rows}"


@dataclass(slots=True)
class _Trial:
    """One run in the lab: the queue that is its own, what its workers say, and the world around it."""

    queue: str
    model: str | Model | None
    outside: Outside | None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    events: Events = field(default_factory=Events)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events.subscribe(self._hear)

    def _hear(self, name: str, fields: dict[str, Any]) -> None:
        if name in ("run.parked", "run.settled"):
            self.news.set()
        elif name == "run.warning":
            self.warnings.append(f"{fields['step']}: {fields['message']}")


def _clear_away(worker: Worker, mortal: MortalStore) -> None:
    """What a dead worker held leaves memory: nothing would ever answer it."""
    mortal.bury()
    for execution in (*worker.held.values(), *(execution for execution, _ in worker.warm.values())):
        execution.evict()


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
