"""One held run in memory: its tasks, what they wait for, and how it leaves.

Every scope is in code, waiting or joining. When none is in code the run parks; whether it also
leaves memory is a cache decision. The status in the store and this object are separate things: losing
the lease, parking and shutdown are never errors that a job could catch.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from dayjob.errors import (
    DayjobError,
    Incomplete,
    InputError,
    ModelNotConfigured,
    StepError,
    StoreError,
    step_error_of,
    text_of,
)
from dayjob.events import Events
from dayjob.jobs import Job, Request
from dayjob.join import Wait
from dayjob.journal import DEFER_SCOPE, Journal, Scope, error_bytes
from dayjob.keys import UNDO_SCOPE
from dayjob.limits import Budget, Reached
from dayjob.models import Model, open_model
from dayjob.run import Run, new_run
from dayjob.runs import Kind, RunRecord, Status, StepRecord, is_action
from dayjob.steps import DUE, RETRY_SECONDS, never, patiently
from dayjob.stores import End, Held, InboxItem, Loaded, Store
from dayjob.threads import Threads
from dayjob.tools import Tool, Undo
from dayjob.undo import Done, Unwinding
from dayjob.values import Redactor, encode

T = TypeVar("T")

WRITE_SECONDS = 60.0
"""How long a run that ends waits for a write whose tool names no timeout."""
CHILD_SECONDS = 0.5
_UNDONE = frozenset({Status.FAILED, Status.CANCELLED, Status.EXPIRED})
_WAITS = Wait.__await__.__code__
REPLAY_SECONDS = 30.0
"""How long a job that ends may take to walk its recorded steps, to learn what it deferred, and how to undo."""
TIME_LIMIT = "#seconds"
"""The timer of the limit of seconds, among those of waiting steps."""
LOOK_AGAIN_SECONDS = 60.0
"""A parked run that only memory can go on with is looked after so often: its worker may be dead."""


def _is_defer(row: StepRecord) -> bool:
    return row.name == "defer" and row.kind == Kind.NOTE


async def _nobody(job: Job) -> None:
    pass


def _nothing() -> None:
    pass


@dataclass
class Services:
    """What executions share: they belong to a worker."""

    store: Store
    clock: Callable[[], float]
    events: Events
    redact: Redactor
    worker: str
    model: str | Model | None = None
    grace_seconds: float = 2.0
    valid_until: float = 0.0
    revive: Callable[[Execution], None] = lambda execution: None
    timer: Callable[[float], None] = lambda due: None
    know: Callable[[Job], Awaitable[None]] = _nobody
    jobs: Mapping[str, Job] = field(default_factory=dict)
    room: Callable[[], None] = lambda: None
    lease_seconds: float = 15.0
    slots: dict[Tool[..., Any], asyncio.Semaphore] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    budgets: WeakValueDictionary[str, Budget] = field(default_factory=WeakValueDictionary)
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    threads: Threads = field(default_factory=lambda: Threads("dayjob-step"))

    async def budget_of(self, run: RunRecord) -> Budget | None:
        """The budget that a run draws on, the same object for all of its family here."""
        if run.budget is None:
            return None
        record = await self.store.budget(run.home, run.budget)
        if record is None:
            return None
        return self.budgets.setdefault(record.run, Budget(self.store, record))

    def model_named(self, model: str | Model | None) -> Model:
        """The model that a step asked for, or the app's. Raises ModelNotConfigured."""
        wanted = model if model is not None else self.model
        if wanted is None:
            raise ModelNotConfigured()
        if not isinstance(wanted, str):
            return wanted
        if wanted not in self.models:
            self.models[wanted] = open_model(wanted)
        return self.models[wanted]


class Left(Enum):
    """How a run left the hands of `advance`."""

    SETTLED = "settled"
    EVICTED = "evicted"
    WARM = "warm"  # parked, and still in memory
    RELEASED = "released"  # given back to the queue
    LOST = "lost"


class Execution:
    """A run that this worker holds; the keeper of its `Run` handles."""

    def __init__(self, record: RunRecord, job: Job, services: Services) -> None:
        self.record = record
        self.job = job
        self.services = services
        self.store = services.store
        self.events = services.events
        self.wakes = record.wakes
        self.redact = services.redact.for_run()
        self.journal = Journal(record, job.version, services.store, services.clock, self.redact, self.lose)
        self.ending = record.status != Status.IN_PROGRESS
        self.dormant = False
        self.busy = 0
        self.inbox: dict[str, list[InboxItem]] = {}
        self.tools: dict[str, Tool[..., Any]] = {}
        self.undos: dict[str, Undo] = {}
        self.lease_seconds = services.lease_seconds
        self.is_idle = False
        self.poked = False
        self.lost = False
        self.end: End | None = None
        self.following: RunRecord | None = None
        self.budget: Budget | None = None
        self._planned: End | None = None
        self._stop: End | None = None  # asked for from outside
        self._pin: str | None = None
        self._received: set[str] = set()
        self._answers: dict[tuple[str, int], bytes] = {}
        self._waits: dict[str, tuple[StepRecord, list[tuple[asyncio.Future[Any], Scope]]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[asyncio.Task[Any], Scope] = {}
        self._writes: dict[asyncio.Task[Any], float] = {}
        self._defers: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._recorded_defers: set[str] = set()  # that the job has not come to again
        self._stops_midway = False  # in a replay, once it has come to all of them
        self._in_code = 0
        self._changed = asyncio.Event()
        self._park_known = asyncio.Event()
        self._taking_back = asyncio.Lock()
        self._root: Scope | None = None
        self._last_scope: Scope | None = None  # of what was deferred

    # --- for the worker ------------------------------------------------------------------------

    async def advance(self) -> Left:
        """Goes on until the run is over, waits for something outside, or belongs to another worker."""
        if self._root is None and not self.lost:
            await self._begin()
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.lost:
                return self._drop(Left.LOST)
            if self.poked:
                self.poked = False
                await self._refresh()
                self._changed.set()
                continue
            if self._pin is not None:
                return await self._release(self._pin)
            if self.end is not None:
                return await self._finish(self.end)
            if self._in_code == 0 and not self._writes:
                left = await (self._end_of_replay() if self.ending else self._park())
                if left is not None:
                    return left

    def poke(self, wakes: int | None = None) -> None:
        """Something may have happened to this run; a hint, which only a read of the store confirms."""
        if wakes is None or wakes != self.wakes:
            self.poked = True
            self._changed.set()

    def lose(self) -> None:
        """Another worker has this run: from here on nothing of it returns or writes."""
        if not self.lost:
            self.lost = True
            self._close_all()
            self._changed.set()

    def take_up(self, record: RunRecord, loaded: Loaded | None) -> None:
        """A warm run was claimed again, with nobody in between: it goes on where it is."""
        self.record = record
        self.journal.epoch = record.epoch
        self._wake_up()
        if loaded is not None:
            self._react_to(loaded)
        self._watch_time()
        self._changed.set()

    async def hand_back(self) -> None:
        """Gives the run back to the queue, as it is: the worker stops."""
        if self.lost or self.end is not None:
            return
        if self.dormant:
            self.evict()
            return
        self._close_all()
        self.lost = True
        try:
            await self.store.release(self.record.home, self.record.id, self.journal.epoch, None)
        finally:
            self._drop(Left.RELEASED)

    def evict(self) -> None:
        """Leaves memory; the journal is enough to go on from."""
        self._close_all()
        self._drop(Left.EVICTED)

    @property
    def is_evictable(self) -> bool:
        """Whether every task waits in Dayjob's own waits, with no user's timer or task group open on the way."""
        return self._kept_in_memory() is None

    def _kept_in_memory(self) -> float | None:
        """For how long the job's own timers keep a run in memory; None: it may leave.

        They are lost with the worker, so the run is due by then for whoever is there.
        """
        kept = [until for task in self._tasks if not task.done() and (until := _kept_until(task)) is not None]
        if not kept:
            return None
        return min(max(min(kept) - asyncio.get_running_loop().time(), 0.0), LOOK_AGAIN_SECONDS)

    @property
    def is_running_code(self) -> bool:
        return self._in_code > 0

    def step_of(self, task: asyncio.Task[Any] | None) -> str | None:
        """The key of the step that a task is in."""
        scope = self._tasks.get(task) if task is not None else None
        return scope.current if scope is not None else None

    # --- beginning and ending --------------------------------------------------------------------

    async def _begin(self) -> None:
        if self.record.budget is not None:
            self.budget = await self.services.budget_of(self.record)
        if self.record.epoch > 1 or self.record.wakes:
            loaded = await self.store.refresh(
                self.record.home, self.record.id, self.record.epoch, self.journal.load_version
            )
            if loaded is None:
                self.lose()
                return
            self.journal.load(loaded)
            self._take_in(loaded)
            self._recorded_defers = {row.key for row in loaded.steps or () if _is_defer(row)}
            if loaded.outcome is not None:
                self.end = End(Status(loaded.outcome), loaded.reason)
            elif loaded.status == Status.CANCELLING:
                self.end = End(Status.CANCELLED, loaded.reason)
            elif (reached := self._time_reached()) is not None:
                self.end = self._end_at(reached)
            self.ending = self.ending or self.end is not None
            if self.ending and not self._is_worth_replaying(loaded):
                self._root = Scope(self.journal, "", None)
                self._changed.set()
                return
        if self.ending:
            self._planned, self.end = self.end, None
            asyncio.get_running_loop().call_later(REPLAY_SECONDS, self._stop_replaying)
        root = self._root = Scope(self.journal, "", None)
        self.count(root)
        self.spawn(root, self._main(root))
        self._watch_time()

    def _is_worth_replaying(self, loaded: Loaded) -> bool:
        """Whether a job that ends walks its recorded steps: for what it deferred, and for the undos that it gave.

        Not for the latter once a worker died of it, or began with the undoing: then undos are found by name.
        """
        if self._recorded_defers:
            return True
        asked_to_stop = loaded.status == Status.CANCELLING and self.record.attempts == 0
        return asked_to_stop and any(row.undo or row.outcome is None for row in loaded.effects)

    async def _main(self, root: Scope) -> None:
        """The job's own task."""
        run = Run(self, root)
        end: End
        try:
            arguments = self.job.signature.decode(self.record.input or b"{}")
            value = await self.job.fn(run, **arguments)
            if doomed := self.journal.doomed(root):
                await run.diverge(doomed)
            if root.closed:
                return
            end = End(Status.COMPLETED, None, self.redact(self._output(value)))
        except asyncio.CancelledError:
            if root.closed:
                return
            end = self._failure(StepError("CancelledError", "the job cancelled itself"))
        except (Exception, SystemExit, GeneratorExit) as problem:
            end = self._failure(_as_step_error(problem))
        if not root.closed:
            self._decide(end)

    def _output(self, value: Any) -> bytes:
        try:
            return encode(value, self.job.signature.returns)
        except DayjobError as problem:
            raise StepError(type(problem).__name__, f"output: {problem}") from None

    def _failure(self, error: StepError) -> End:
        named = error.message.startswith(("step ", "model step "))
        where = f"step {error.step!r}: " if error.step and not named else ""
        reason = error.message if error.type == Incomplete.__name__ else f"{where}{error}"
        # a limit is that of the whole family: one that a child reached, and nobody caught, is reached by all
        early = error.type in (Incomplete.__name__, "RunIncomplete")
        status = Status.INCOMPLETE if early else Status.FAILED
        return End(status, self.redact.text(reason), None, self.redact(error_bytes(error)))

    def _decide(self, end: End) -> None:
        """The run is to end this way; the first decision stands."""
        if self.end is None:
            self.end = self._planned if self.ending and self._planned else end
        self._close_all()
        self._changed.set()

    def fatal(self, reason: str) -> None:
        error = StepError("JobError", reason)
        self._decide(End(Status.FAILED, reason, None, error_bytes(error)))

    def expire(self, reason: str) -> None:
        self._decide(End(Status.EXPIRED, reason))

    def stop_at_limit(self, reached: Reached) -> None:
        self._decide(self._end_at(reached))

    def _end_at(self, reached: Reached) -> End:
        if self.end is None:
            self.events.emit(
                "run.limit", run=self.record.id, limit=reached.limit, allowed=reached.allowed, spent=reached.spent,
                on_limit="stop",
            )  # fmt: skip
        error = StepError("LimitReached", reached.reason, limit=reached.limit)
        return End(Status.INCOMPLETE, reached.reason, None, error_bytes(error))

    def continue_as(self, request: Request) -> None:
        record = self.record
        self.following = new_run(
            request, self.redact(request.input), self.services.clock(), home=record.home,
            project=record.project, queue=record.queue, priority=record.priority, thread=record.thread,
            parent=record.parent, parent_key=record.parent_key, tags=record.tags, source=record.source,
            expires=record.expires, expires_seconds=record.expires_seconds,
            root=record.root if record.parent else None, budget=record.budget,
        )  # fmt: skip
        self._decide(End(Status.COMPLETED, f"continued as {self.following.id}"))

    def keep_old_version(self) -> None:
        """A person chose the recorded path: only a worker with its code may go on."""
        versions = [row.version for row in self.journal.old_rows()]
        self._pin = versions[-1] if versions else self.job.version
        self._close_all()
        self._changed.set()

    async def _release(self, pin: str) -> Left:
        await self.store.release(self.record.home, self.record.id, self.journal.epoch, pin)
        return self._drop(Left.RELEASED)

    def _stop_replaying(self) -> None:
        """The job's own code hangs between recorded steps: what it would defer or give after that is not known."""
        if self.end is None:
            self._decide(self._stop or End(Status.CANCELLED))

    async def _end_of_replay(self) -> Left | None:
        """Everything recorded was walked, for what was deferred and how to undo; nothing more is done for real."""
        self.end = self._planned or End(Status.CANCELLED)
        self._close_all()
        return await self._finish(self.end)

    async def _finish(self, end: End) -> Left:
        """What is done once at the end, and then the end itself."""
        await self._stop_tasks()
        await self._let_writes_finish()
        while not self.lost:
            end = await self._unwind(end)
            settled = await self._until_guarded(self._settle, end, give_way=True)
            if settled is end:
                break
            end = settled
        if self.lost:
            return self._drop(Left.LOST)
        self.record.status = end.status
        self.record.next_run = self.following.id if self.following else None
        self.record.reason, self.record.output, self.record.error = (
            end.reason,
            end.output,
            end.error,
        )
        self.events.emit(
            "run.settled",
            run=self.record.id,
            job=self.record.job,
            status=end.status,
            reason=end.reason,
        )
        return self._drop(Left.SETTLED)

    async def _unwind(self, end: End) -> End:
        """What a run does before it ends so: stops its children, undoes its effects, calls what was deferred."""
        if end.status != Status.COMPLETED and await self._has_children():
            if end.status != Status.CANCELLED:  # the end must stand before a child's end could change it
                end = await self._mark_unwinding(end)
            await self._stop_children(end)
        unwinding = self._unwinding()
        effects: list[Done] = []
        if end.status in _UNDONE:
            if self.journal.effects.any():
                await self._until_written()
            effects = await unwinding.effects(deferred=not self._is_unwinding)
        if not (effects or self._defers) or self.lost:
            return end
        if end.status != Status.COMPLETED:
            wanted, end = end, await self._mark_unwinding(end)
            if end is not wanted:
                effects = await unwinding.effects()
        await self._at_the_end(Scope(self.journal, UNDO_SCOPE, None), unwinding.undo(effects))
        if unwinding.failed and not self.lost:
            self.events.emit("run.attention", run=self.record.id, steps=unwinding.failed)
        await self._run_defers()
        return end

    async def _mark_unwinding(self, end: End) -> End:
        if not self._is_unwinding:
            end = await self._until_guarded(self.store.unwind, end)
            self.record.status = Status.UNWINDING
        return end

    async def _until_written(self) -> None:
        """Until all that was put so far is durable, or the run lost."""
        written = self.journal.commit()
        written.add_done_callback(lambda _: self._changed.set())
        while not (written.done() or self.lost):
            await self._changed.wait()
            self._changed.clear()

    async def _settle(self, home: str, run: str, epoch: int, wakes: int, end: End) -> Held:
        following = self.following if end.status == Status.COMPLETED else None
        return await self.store.settle(home, run, epoch, wakes, end, following)

    async def _until_guarded(
        self, verb: Callable[..., Awaitable[Held]], end: End, give_way: bool = False
    ) -> End:
        """Writes how the run ends, whatever wakes it meanwhile; a stop that was asked for first wins.

        With `give_way` nothing is written then: another end comes after other things.
        """
        while True:
            stop = self._stop
            if stop is not None and end.status != stop.status and not self._is_unwinding:
                end = End(stop.status, stop.reason, end.output, end.error)
                if give_way:
                    return end
            if await self._guarded(lambda *run, end=end: verb(*run, end)) is not Held.WOKEN:
                return end
            await self._refresh()

    @property
    def _is_unwinding(self) -> bool:
        return self.record.status == Status.UNWINDING

    def _identity(self) -> tuple[str, str, int, int]:
        return self.record.home, self.record.id, self.journal.epoch, self.wakes

    async def _guarded(self, verb: Callable[..., Awaitable[Held]]) -> Held:
        """A guarded change, tried until the store can do it or the run is lost."""
        while not self.lost:
            try:
                held = await verb(*self._identity())
            except StoreError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if held is Held.LOST:
                self.lose()
            return held
        return Held.LOST

    async def _run_defers(self) -> None:
        """Calls what was deferred, last first, each a step of its own; an error of one does not stop the others."""
        scope = self._last_scope = Scope(self.journal, DEFER_SCOPE, None)
        self.ending = False
        await self._at_the_end(scope, self._defer_all(scope))
        self._defers.clear()

    async def _at_the_end(self, scope: Scope, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = scope
        task.add_done_callback(self._tasks.pop)
        scope.owner = task
        try:
            await self._see_through(task)
        finally:
            scope.close()
            task.cancel()

    async def _see_through(self, task: asyncio.Task[Any]) -> None:
        """Until the task is done or the run lost; what the task waits for may come from outside."""
        task.add_done_callback(lambda _: self._changed.set())
        while not task.done() and not self.lost:
            await self._changed.wait()
            self._changed.clear()
            if self.poked:
                self.poked = False
                await self._refresh()
        if task.cancelled():  # cut off by the job's own code: as after a crash
            self.lose()
        elif task.done():
            task.result()

    async def _defer_all(self, scope: Scope) -> None:
        run = Run(self, scope)
        for fn, args in reversed(self._defers):
            try:
                await run.step(fn, *args)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if scope.closed or task is None:
                    raise
                task.uncancel()
                self.warn(DEFER_SCOPE, "deferred function cancelled itself")
            except (Exception, SystemExit, GeneratorExit) as problem:
                step = problem.step if isinstance(problem, StepError) else None
                self.warn(step or DEFER_SCOPE, f"deferred function failed: {text_of(problem)}")

    # --- effects -------------------------------------------------------------------------------

    async def slot(self, tool: Tool[..., Any]) -> Callable[[], None]:
        """Waits until one more call of the tool is allowed; what it returns gives the place back."""
        if tool.concurrency is None:
            return _nothing
        slots = self.services.slots.setdefault(tool, asyncio.Semaphore(tool.concurrency))
        await slots.acquire()
        return slots.release

    def send(self, sending: Coroutine[Any, Any, T], seconds: float | None) -> asyncio.Task[T]:
        """A write on its way: it is let finish, whatever becomes of the run meanwhile."""
        task = asyncio.create_task(sending, name=f"dayjob {self.record.id} write")
        self._writes[task] = seconds or WRITE_SECONDS
        task.add_done_callback(self._written)
        return task

    def _written(self, task: asyncio.Task[Any]) -> None:
        """What is on its way keeps its run from parking."""
        self._writes.pop(task, None)
        self._changed.set()

    async def _let_writes_finish(self) -> None:
        """Before the end: what was sent is recorded; what takes too long remains unknown."""
        if self._writes:
            _, hanging = await asyncio.wait(self._writes, timeout=max(self._writes.values()))
            if hanging:
                await _see_off(list(hanging), self)

    async def _has_children(self) -> bool:
        return bool(await patiently(lambda: self.store.runs(parent=self.record.id, limit=1)))

    async def _stop_children(self, end: End) -> None:
        """A run that ends otherwise than completed takes its children along, and waits for them."""
        reason = f"the run that started it is {end.status}: {end.reason}"
        self.is_idle = True
        self.services.room()
        try:
            while not self.lost:
                if await patiently(partial(self.store.stop_children, self.record.id, reason)) == 0:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHILD_SECONDS):
                        await self._changed.wait()
                self._changed.clear()
                if self.poked:
                    self.poked = False
                    await self._refresh()
        finally:
            self.is_idle = False

    def _unwinding(self) -> Unwinding:
        return Unwinding(
            self.journal, self.job, self.services.jobs, self.tools, self.undos, self.lease_seconds, self.threads,
            self.warn,
            self._announce,
        )  # fmt: skip

    async def undo_after(self, key: str) -> list[str]:
        """Undoes what was done after a step, writes of other branches that are on their way now included.

        Returns what could not be undone.
        """
        await self.journal.commit()  # whose intent is durable by then, is sent by then
        if self._writes:
            await asyncio.wait(set(self._writes), timeout=max(self._writes.values()))
        steps = await patiently(lambda: self.store.steps(self.record.id))
        found = next((step for step in steps if step.key == key and step.seq is not None), None)
        if found is None or found.seq is None:
            raise InputError(f"rollback: to={key!r}: no finished step has that key")
        unwinding = self._unwinding()
        return await unwinding.undo(await unwinding.effects(after=found.seq))

    def _announce(self, row: StepRecord) -> None:
        if self.events.active:
            Run(self, Scope(self.journal, row.scope, None)).announce(row)

    # --- parking -------------------------------------------------------------------------------

    async def _park(self) -> Left | None:
        """Every scope waits: lets go of the run, unless something came meanwhile."""
        rows = [row for row, waiters in self._waits.values() if waiters]
        if not rows:
            return None
        asks = any(is_action(row) for row in rows)
        status = Status.REQUIRES_ACTION if asks else Status.WAITING
        due = min((row.due for row in rows if row.due is not None), default=None)
        if (kept := self._kept_in_memory()) is not None:
            due = min(self.services.clock() + kept, due or math.inf)
        if (until := self._stops_at) is not None:
            due = min(until, due or math.inf)
        self.dormant = True
        self._park_known.clear()
        held = await self._guarded(
            lambda home, run, epoch, wakes: self.store.park(home, run, epoch, wakes, status, due)
        )
        self._park_known.set()
        if held is Held.LOST:
            return None
        if held is Held.WOKEN:
            self._wake_up()
            self._watch_time()
            self.poke()
            return None
        self.record.status = status
        if due is not None:
            self.services.timer(due)
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        evict = self._in_code == 0 and self.is_evictable
        self.events.emit("run.parked", run=self.record.id, status=status, evicted=evict)
        return Left.WARM

    async def ready(self, scope: Scope) -> None:
        """Called before a call of a run that is parked, or whose worker's lease is in doubt: makes it certain again."""
        if self.dormant and not self.lost:
            await self._take_back()
        while not self.lost and not self.valid(self.services.clock()):
            await asyncio.sleep(0.05)
        if self.lost or scope.closed:
            await never()

    async def _take_back(self) -> None:
        """A warm run acts by itself, by a user's timer: it must be held before it may."""
        async with self._taking_back:
            await self._park_known.wait()
            if not self.dormant or self.lost:
                return
            taken = await patiently(
                lambda: self.store.unpark(
                    self.record.home, self.record.id, self.journal.epoch, self.services.worker
                )
            )
            if taken:
                self.record.status = Status.IN_PROGRESS
                self._wake_up()
                self._watch_time()
                self.poke()
                self.services.revive(self)
            elif self.dormant:  # else it was claimed again meanwhile, by this very worker
                self.lose()

    def _wake_up(self) -> None:
        """The run is held again: what waits for a time is timed in memory again."""
        self.dormant = False
        for row, waiters in self._waits.values():
            if waiters:
                self._arm(row)

    # --- answers -------------------------------------------------------------------------------

    async def look(self) -> None:
        """Takes in what was sent until now, without waiting to be told of it."""
        if not self.ending:
            await self._refresh()

    async def _refresh(self) -> Loaded | None:
        """Reads what happened outside, and hands it on."""
        try:
            loaded = await self.store.refresh(self.record.home, self.record.id, self.journal.epoch, None)
        except StoreError:
            await asyncio.sleep(RETRY_SECONDS)
            self.poked = True
            return None
        if loaded is None:
            self.lose()
            return None
        self._react_to(loaded)
        return loaded

    def _react_to(self, loaded: Loaded) -> None:
        self._take_in(loaded)
        if loaded.status == Status.CANCELLING:
            status = Status(loaded.outcome or Status.CANCELLED)
            self._stop = End(status, loaded.reason or status)
            if self.end is None and not self.ending:  # else it walks its recorded steps to that very end
                self._stop_when_walked(self._stop)

    def _stop_when_walked(self, stop: End) -> None:
        """A stop that comes while recorded steps are walked waits until what they deferred is known.

        Meanwhile nothing more is done for real: the code may have changed, and never come to it.
        """
        if self._recorded_defers:
            self.ending, self._planned, self._stops_midway = True, stop, True
            asyncio.get_running_loop().call_later(REPLAY_SECONDS, self._stop_replaying)
        else:
            self._decide(stop)

    def _take_in(self, loaded: Loaded) -> None:
        self.wakes = loaded.wakes
        for row in loaded.answered:
            if row.answer_reason is not None:
                self.journal.reasons[row.key] = row.answer_reason
            if row.answer is not None:
                self._answers[row.key, row.attempt] = row.answer
        for item in loaded.inbox:
            if item.id not in self._received:
                self._received.add(item.id)
                self.inbox.setdefault(item.name, []).append(item)
        now = self.services.clock()
        for row, waiters in list(self._waits.values()):
            waited_for = any(not future.done() for future, _ in waiters)
            answer = self._answer_to(row, now) if waited_for else None
            if answer is not None:
                self._deliver(row, answer)

    def _answer_to(self, row: StepRecord, now: float) -> Any:
        if (row.key, row.attempt) in self._answers:
            return self._answers[row.key, row.attempt]
        if row.kind == Kind.EVENT and self.inbox.get(row.name):
            return self.inbox[row.name].pop(0)
        return DUE if row.due is not None and row.due <= now else None

    def _deliver(self, row: StepRecord, answer: Any) -> None:
        for future, scope in self._waits[row.key][1]:
            if not future.done():
                self.count(scope)
                future.set_result(answer)
        self._waits[row.key][1].clear()

    async def wait(self, scope: Scope, row: StepRecord) -> Any:
        """The answer to an open row. Meanwhile the scope is not in code, and the run may park."""
        answer = self._answer_to(row, self.services.clock())
        if answer is not None:
            return answer
        future = asyncio.get_running_loop().create_future()
        self._waits.setdefault(row.key, (row, []))[1].append((future, scope))
        self._arm(row)
        self.uncount(scope)
        try:
            return await Wait(future)
        except asyncio.CancelledError:
            if not future.cancelled() and isinstance(sent := future.result(), InboxItem):
                self.inbox[row.name].insert(
                    0, sent
                )  # it came just as the wait was given up: for the next one
            raise

    def stop_waiting(self, row: StepRecord) -> None:
        entry = self._waits.get(row.key)
        if entry is not None:
            entry[1][:] = [(future, scope) for future, scope in entry[1] if not future.done()]
            if not entry[1]:
                del self._waits[row.key]
        handle = self._timers.pop(row.key, None)
        if handle is not None:
            handle.cancel()

    def _arm(self, row: StepRecord) -> None:
        if row.due is not None and row.key not in self._timers:
            delay = max(row.due - self.services.clock(), 0.0)
            self._timers[row.key] = asyncio.get_running_loop().call_later(delay, self._time_is_up, row)

    def _time_is_up(self, row: StepRecord) -> None:
        del self._timers[row.key]
        if self.dormant or row.key not in self._waits or row.due is None:
            return
        if row.due <= self.services.clock():
            self._deliver(row, DUE)
        else:  # the clock was set back
            self._arm(row)

    # --- the limit of time -----------------------------------------------------------------------

    @property
    def _stops_at(self) -> float | None:
        """When a limit of seconds ends the run; None also where a person is asked, at the next step."""
        budget = self.budget
        return None if budget is None or budget.asks else budget.until

    def _time_reached(self) -> Reached | None:
        if self.budget is None or self._stops_at is None:
            return None
        return self.budget.time_reached(self.services.clock())

    def _watch_time(self) -> None:
        """Ends the run when its time is up, now or by a timer; one that is parked is due by then."""
        until = self._stops_at
        if until is None or self.end is not None or self.ending:
            return
        if (reached := self._time_reached()) is not None:
            self._stop_when_walked(self._end_at(reached))
            return
        if (timer := self._timers.pop(TIME_LIMIT, None)) is not None:
            timer.cancel()
        delay = max(until - self.services.clock(), 0.0)
        self._timers[TIME_LIMIT] = asyncio.get_running_loop().call_later(delay, self._watch_time)

    # --- for Run -------------------------------------------------------------------------------

    @property
    def threads(self) -> Threads:
        return self.services.threads

    def valid(self, now: float) -> bool:
        """Whether the worker's lease is certain: past it, nothing begins."""
        return now < self.services.valid_until

    def warn(self, step: str, message: str) -> None:
        message = self.redact.text(message)
        self.events.emit("run.warning", run=self.record.id, step=step, message=message)

    def model_named(self, model: str | Model | None) -> Model:
        return self.services.model_named(model)

    async def know(self, job: Job) -> None:
        await patiently(lambda: self.services.know(job))

    def defer(self, key: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._defers.append((fn, args))
        self._recorded_defers.discard(key)
        if self._stops_midway and not self._recorded_defers:
            self._stop_replaying()

    def enter(self, scope: Scope) -> Scope | None:
        """A scope begins in the task of its parent."""
        task = asyncio.current_task()
        assert task is not None
        outer = self._tasks.get(task)
        self._tasks[task] = scope
        scope.counted = True
        if scope.parent is not None and scope.parent.counted:
            scope.parent.counted = False
        else:
            self._in_code += 1
        return outer

    def leave(self, scope: Scope, outer: Scope | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if outer is not None:
            self._tasks[task] = outer
        else:
            self._tasks.pop(task, None)
        parent = scope.parent
        if scope.counted and parent is not None and not parent.closed:
            scope.counted = False
            parent.counted = True
        elif not scope.counted and parent is not None:
            self.count(parent)
        else:
            self.uncount(scope)

    def current_scope(self, otherwise: Scope) -> Scope:
        task = asyncio.current_task()
        return self._tasks.get(task, otherwise) if task is not None else otherwise

    def count(self, scope: Scope) -> None:
        """The scope is in code."""
        if not scope.counted and not scope.closed:
            scope.counted = True
            self._in_code += 1

    def uncount(self, scope: Scope) -> None:
        """The scope waits, joins or is over."""
        if scope.counted:
            scope.counted = False
            self._in_code -= 1
            if self._in_code == 0:
                self._changed.set()

    def spawn(self, scope: Scope, body: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(body, name=f"dayjob {self.record.id} {scope.path}")
        scope.owner = task
        self._tasks[task] = scope
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (problem := task.exception()) is not None and not self.lost:
            self._decide(self._failure(_as_step_error(problem)))

    # --- leaving memory --------------------------------------------------------------------------

    def _close_all(self) -> None:
        for scope in (self._root, self._last_scope):
            if scope is not None:
                scope.close()

    def _drop(self, left: Left) -> Left:
        """Stops whatever still runs, without waiting for it."""
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        tasks = [task for task in self._tasks if not task.done() and task is not asyncio.current_task()]
        tasks += self._writes
        if tasks:
            watcher = asyncio.create_task(_see_off(tasks, self))
            self.services.background.add(watcher)
            watcher.add_done_callback(self.services.background.discard)
        if left is Left.LOST:
            self.events.emit("run.lost", run=self.record.id, epoch=self.journal.epoch)
        return left

    def leave_behind(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Gives up tasks that ignore their cancellation: nothing waits for them any more, not even the loop's end."""
        for task in tasks:
            self._tasks.pop(task, None)
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
            asyncio._unregister_task(task)  # noqa: SLF001
            _abandoned.append(task)
        self.events.emit("run.abandoned", run=self.record.id, tasks=len(tasks))

    async def _stop_tasks(self) -> None:
        """Before the end: every task of the job is over, or left behind."""
        tasks = [task for task in self._tasks if not task.done() and task is not asyncio.current_task()]
        if tasks:
            await _see_off(tasks, self)


_abandoned: list[asyncio.Task[Any]] = []
"""Kept for good: to collect a job that catches everything would throw GeneratorExit into it."""


async def _see_off(tasks: list[asyncio.Task[Any]], execution: Execution) -> None:
    """Cancels tasks, waits a grace, and leaves behind those that ignore it."""
    for task in tasks:
        task.cancel()
    _, pending = await asyncio.wait(tasks, timeout=execution.services.grace_seconds)
    if pending:
        execution.leave_behind(pending)


def _kept_until(task: asyncio.Task[Any]) -> float | None:
    """The loop's time at which a task's own timer rings, infinity if nobody can tell, None if it has none.

    Walks its await chain: a task that may leave memory has coroutines only, ending in `Wait`, of which
    none holds an open timeout or task group.
    """
    awaited: Any = task.get_coro()
    kept: float | None = None
    while getattr(awaited, "gi_code", None) is not _WAITS:
        if not hasattr(awaited, "cr_await"):
            return math.inf if kept is None else kept
        for held in gc.get_referents(awaited):  # the value stack too: where `async with` keeps its exit
            owner = getattr(held, "__self__", held)
            if isinstance(owner, (asyncio.Timeout, asyncio.TaskGroup)):
                rings = owner.when() if isinstance(owner, asyncio.Timeout) else None
                kept = min(math.inf if kept is None else kept, math.inf if rings is None else rings)
        awaited = awaited.cr_await
    return kept


def _as_step_error(problem: BaseException) -> StepError:
    """A job's own error. If it came of a step's error, that step is the one to do again on resume."""
    step = None
    cause: BaseException | None = problem
    seen = 0
    while cause is not None and seen < 20:
        if isinstance(cause, StepError) and cause.step:
            step = cause.step
            break
        cause = cause.__cause__ or cause.__context__
        seen += 1
    return step_error_of(problem, step)
