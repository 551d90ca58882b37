"""A worker: claims runs, advances them, lets go of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dayjob.errors import StoreError
from dayjob.events import Events
from dayjob.execution import Execution, Left, Services
from dayjob.heartbeat import BEAT_SECONDS, LEASE_SECONDS, Heartbeat
from dayjob.jobs import Job
from dayjob.models import Model
from dayjob.runs import RunRecord, new_id
from dayjob.steps import RETRY_SECONDS
from dayjob.stores import Beat, Loaded, Store, Wanted, WorkerRecord
from dayjob.stores.process import start_of, this_host
from dayjob.values import Redactor

logger = logging.getLogger("dayjob")

MAX_ATTEMPTS = 3
SWEEP_SECONDS = 1.0
WARM_SECONDS = 60.0
MAX_WARM = 1_000
SHORT_JOURNAL = 200
"""Replaying so many steps takes about as long as waking a warm run: shorter ones leave memory at once."""
LEASE_MARGIN_SECONDS = 3.0


class Worker:
    """Claims runs of the given jobs and queues, `concurrency` at a time, and advances them."""

    def __init__(
        self,
        store: Store,
        jobs: Iterable[Job],
        *,
        model: str | Model | None = None,
        events: Events | None = None,
        concurrency: int = 100,
        queues: Sequence[str] = ("default",),
        only: str | None = None,
        clock: Callable[[], float] = time.time,
        grace_seconds: float = 2.0,
        beat_seconds: float = BEAT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        warm_seconds: float = WARM_SECONDS,
        short_journal: int = SHORT_JOURNAL,
        on_settled: Callable[[RunRecord], None] = lambda record: None,
    ) -> None:
        self.store = store
        self.jobs = {job.name: job for job in jobs}
        self.events = events or Events()
        self.concurrency = concurrency
        self.queues = tuple(queues)
        self.only = only
        self.services = Services(
            store, clock, self.events, Redactor.from_environment(), "", model, grace_seconds
        )
        self.services.revive = self._revive
        self.services.timer = self._note_due
        self.services.know = self.add_job
        self.services.jobs = self.jobs
        self.services.room = self._work_is_there
        self.services.lease_seconds = lease_seconds
        self._clock = clock
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._warm_seconds = warm_seconds
        self._short_journal = short_journal
        self._on_settled = on_settled
        self.held: dict[str, Execution] = {}
        self._offered = 0
        self.warm: OrderedDict[str, tuple[Execution, float]] = OrderedDict()
        self._versions: Mapping[str, Sequence[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self._sweep_at = 0.0
        self._sweep_moved = asyncio.Event()
        self._unknown: dict[str, int] = {}
        self._missing: set[str] = set()
        self._stopping = False
        self._heartbeat: Heartbeat | None = None

    @property
    def id(self) -> str:
        return self.services.worker

    # --- starting and stopping -------------------------------------------------------------------

    async def start(self) -> None:
        """Registers, takes over what dead workers left, and begins to claim."""
        await self._register()
        self._heartbeat = Heartbeat(self.store, self, lambda: self.id, self._beat_seconds)
        self._heartbeat.start()
        self._loops = [
            asyncio.create_task(self._claim_loop()),
            asyncio.create_task(self._sweep_loop()),
        ]
        self._work.set()
        self.events.emit("worker.started", worker=self.id, jobs=list(self.jobs), queues=list(self.queues))

    async def stop(self, drain_seconds: float = 5.0) -> None:
        """Begins no step any more, lets those in progress finish, and gives the runs back to the queue."""
        if self._stopping:
            return
        self._stopping = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self.services.valid_until = float("-inf")
        deadline = time.monotonic() + drain_seconds
        while any(execution.busy for execution in self.held.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        await asyncio.gather(
            *(execution.hand_back() for execution in tuple(self.held.values())),
            return_exceptions=True,
        )
        for execution, _ in self.warm.values():
            execution.evict()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.services.background:
            await asyncio.wait(self.services.background, timeout=self.services.grace_seconds)
        self.services.threads.close()
        await self.services.threads.closed(self.services.grace_seconds)
        if self._heartbeat is not None:
            self._heartbeat.stop()
            await self._heartbeat.stopped()
        for model in self.services.models.values():
            await model.close()
        with contextlib.suppress(StoreError):  # a failing store learns by the lease that this worker is gone
            await self.store.retire(self.id)
        self.events.emit("worker.stopped", worker=self.id)

    async def _register(self) -> None:
        id = new_id("wrk")
        await self._announce(id)
        self.services.worker = id
        self.services.valid_until = self._clock() + self._lease_seconds - LEASE_MARGIN_SECONDS

    async def add_job(self, job: Job) -> None:
        """Works on this job too from now on; one that has the name already stays."""
        if job.name in self.jobs:
            return
        self.jobs[job.name] = job
        await self._announce(self.id)

    async def _announce(self, id: str) -> None:
        host, boot = this_host()
        versions = {name: job.version for name, job in self.jobs.items()}
        pid = os.getpid()
        await self.store.register(
            WorkerRecord(id, host, boot, pid, start_of(pid) or "", self.queues, versions, self._lease_seconds)
        )
        await self._learn_versions()

    async def _learn_versions(self) -> None:
        versions = await self.store.adoptable({name: job.version for name, job in self.jobs.items()})
        if versions != self._versions:  # runs of older code may wait for this: their workers are gone
            self._versions = versions
            self._work.set()

    # --- claiming ------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """For so many more runs there is a place; none beside a suspect run, which is worked on alone."""
        if any(execution.record.attempts >= 2 for execution in self.held.values()):
            return 0
        busy = sum(not execution.is_idle for execution in self.held.values())
        return self.concurrency - busy - self._offered

    def _wanted(self, limit: int, alone: bool) -> Wanted:
        current = {name: job.version for name, job in self.jobs.items()}
        return Wanted(self.id, self.queues, self._versions, current, limit, alone=alone, only=self.only)

    @contextlib.contextmanager
    def offer(self) -> Iterator[Wanted | None]:
        """A place for one run, to be claimed by whoever submits one: give what was claimed to `take`."""
        if self._stopping or self._room <= 0 or self.only is not None:
            yield None
            return
        self._offered += 1
        try:
            yield self._wanted(1, alone=False)
        finally:
            self._offered -= 1

    def take(self, claimed: Iterable[tuple[RunRecord, Loaded | None]]) -> None:
        """Begins what was claimed for it. A worker that stops meanwhile gives it back with all else."""
        for record, loaded in () if self._stopping else claimed:
            self._take(record, loaded)

    def poke(self, run: str | None = None) -> None:
        """Something may be there to claim, or have happened to a run that is held."""
        if run is not None and run in self.held:
            self.held[run].poke()
        else:
            self._work.set()

    def _work_is_there(self) -> None:
        self._work.set()

    async def _claim_loop(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            room = self._room
            if room <= 0:
                continue
            try:
                claimed = await self._claimed(self._wanted(room, alone=not (self.held or self._offered)))
            except StoreError as problem:
                self.events.emit("store.failing", error=str(problem))
                await asyncio.sleep(RETRY_SECONDS)
                self._work.set()
                continue
            for record, loaded in claimed:
                self._take(record, loaded)
            if len(claimed) == room:
                self._work.set()

    async def _claimed(self, wanted: Wanted) -> list[tuple[RunRecord, Loaded | None]]:
        """What was claimed. A claim that is under way when the worker stops is waited for, and given back."""
        claim = asyncio.ensure_future(self.store.claim(wanted))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(self.services.grace_seconds):
                    claimed = await claim
                    await self.store.reclaim(self.id, [(record.id, record.epoch) for record, _ in claimed])
            raise

    def _take(self, record: RunRecord, loaded: Loaded | None) -> None:
        self.events.emit(
            "run.claimed",
            run=record.id,
            job=record.job,
            epoch=record.epoch,
            attempts=record.attempts,
        )
        if record.expires is not None:
            self._note_due(record.expires)
        execution, _ = self.warm.pop(record.id, (None, 0.0))
        if execution is not None and execution.journal.epoch == record.epoch - 1 and not execution.lost:
            execution.take_up(record, loaded)
        else:
            if execution is not None:
                execution.evict()
            execution = Execution(record, self.jobs[record.job], self.services)
        self._advance(execution)

    def _advance(self, execution: Execution) -> None:
        self.held[execution.record.id] = execution
        task = asyncio.create_task(self._advance_until_it_leaves(execution))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _advance_until_it_leaves(self, execution: Execution) -> None:
        run = execution.record.id
        try:
            left = await execution.advance()
        except (
            StoreError
        ) as problem:  # while the run was loaded: it is found and queued again by the heartbeat
            self.events.emit("store.failing", error=str(problem))
            execution.lose()
            left = Left.LOST
        except Exception:
            logger.exception("run %s: dropped by a defect of Dayjob; it is queued again", run)
            execution.lose()
            left = Left.LOST
        if self.held.get(run) is execution:
            del self.held[run]
        if left is Left.WARM:
            self._keep_warm(execution)
        elif left is Left.SETTLED:
            self._on_settled(execution.record)
        self._work.set()

    # --- runs in memory that wait ----------------------------------------------------------------

    def _keep_warm(self, execution: Execution) -> None:
        """Short journals leave memory at once; long ones, and those that cannot leave, stay a while."""
        evictable = execution.is_evictable and not execution.is_running_code
        if execution.is_running_code:
            self.warm[execution.record.id] = (execution, self._clock())
            return
        if evictable and execution.journal.size <= self._short_journal:
            execution.evict()
            return
        self.warm[execution.record.id] = (execution, self._clock())
        while len(self.warm) > MAX_WARM:
            _, (oldest, _) = self.warm.popitem(last=False)
            oldest.evict()

    def _cool(self) -> None:
        for run, (execution, since) in list(self.warm.items()):
            if self._clock() - since < self._warm_seconds:
                return
            if execution.is_evictable and not execution.is_running_code:
                del self.warm[run]
                execution.evict()

    def _revive(self, execution: Execution) -> None:
        """A warm run took itself back."""
        self.warm.pop(execution.record.id, None)
        self._advance(execution)

    # --- repairing -----------------------------------------------------------------------------

    def _note_due(self, due: float) -> None:
        if due < self._sweep_at:
            self._sweep_at = due
            self._sweep_moved.set()

    async def _sweep_loop(self) -> None:
        while True:
            try:
                swept = await self.store.sweep(MAX_ATTEMPTS)
                await self._learn_versions()
            except StoreError as problem:
                self.events.emit("store.failing", error=str(problem))
                await asyncio.sleep(SWEEP_SECONDS)
                continue
            for run, key, due in swept.warned:
                self.events.emit("action.due_soon", run=run, key=key, due=due)
            if swept.taken_over:
                self.events.emit("worker.took_over", runs=list(swept.taken_over))
            if swept.poisoned:
                self.events.emit("worker.poisoned", runs=list(swept.poisoned))
            for run in swept.expired:
                self.poke(run)
            if swept.woken or swept.taken_over or swept.poisoned or swept.expired:
                self._work.set()
            self._cool()
            now = self._clock()
            self._sweep_at = min(swept.next_due or float("inf"), now + SWEEP_SECONDS)
            await self._until_sweep()

    async def _until_sweep(self) -> None:
        while (delay := self._sweep_at - self._clock()) > 0:
            self._sweep_moved.clear()
            with contextlib.suppress(
                TimeoutError
            ):  # wait_for could swallow the cancellation that stops this loop
                async with asyncio.timeout(delay):
                    await self._sweep_moved.wait()

    # --- the heartbeat -------------------------------------------------------------------------

    def acknowledged(self, beat: Beat) -> None:
        """From the heartbeat's thread: the lease is certain for a while longer."""
        if beat.held is not None and not self._stopping:
            self.services.valid_until = beat.at + self._lease_seconds - LEASE_MARGIN_SECONDS

    def beaten(self, beat: Beat) -> None:
        """Compares what the store says this worker holds with what it holds."""
        if self._stopping:
            return
        if beat.held is None:
            self._was_declared_dead()
            return
        self._compare(beat.held)
        missing = {run for run in self.held if run not in beat.held}
        for run in missing & self._missing:
            self.held[run].lose()
        self._missing = missing
        unknown = {run: epoch for run, (epoch, _) in beat.held.items() if run not in self.held}
        stray = [(run, epoch) for run, epoch in unknown.items() if self._unknown.get(run) == epoch]
        self._unknown = unknown
        if stray:
            task = asyncio.create_task(self._reclaim(stray))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def changed(self, claimable: bool, held: Mapping[str, tuple[int, int]]) -> None:
        """Something was committed, perhaps by another process."""
        self._compare(held)
        if claimable:
            self._work.set()

    def blocked(self, seconds: float, step: str | None, stack: str) -> None:
        self.events.emit("worker.blocked", seconds=seconds, step=step, stack=stack)

    def step_in(self, task: asyncio.Task[object] | None) -> str | None:
        return next((step for e in tuple(self.held.values()) if (step := e.step_of(task)) is not None), None)

    def _compare(self, held: Mapping[str, tuple[int, int]]) -> None:
        for run, execution in self.held.items():
            epoch, wakes = held.get(run, (None, None))
            if epoch == execution.journal.epoch:
                execution.poke(wakes)

    async def _reclaim(self, runs: Sequence[tuple[str, int]]) -> None:
        """Runs that were claimed for this worker, but whose claim never reached it."""
        if await self.store.reclaim(self.id, runs):
            self._work.set()

    def _was_declared_dead(self) -> None:
        """A worker once declared dead stays dead: it drops its runs and registers anew."""
        self.events.emit("worker.dead", worker=self.id)
        self.services.valid_until = float("-inf")
        for execution in tuple(self.held.values()):
            execution.lose()
        for run, (execution, _) in list(self.warm.items()):
            del self.warm[run]
            execution.evict()
        task = asyncio.create_task(self._register())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
