"""`Dayjob`: everything that is done to runs from outside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import orjson

from dayjob.actions import action_of
from dayjob.answers import fitting
from dayjob.errors import (
    InputError,
    RunCancelled,
    RunEnded,
    RunExpired,
    RunFailed,
    RunIncomplete,
    StoreError,
    StoreUnavailable,
    UnknownAction,
    UnknownRun,
    WrongStatus,
)
from dayjob.events import Events, Subscriber
from dayjob.jobs import Job, Request
from dayjob.kept import MessageRecord, ThreadRecord, is_imported, is_said
from dayjob.keys import UNDO_SCOPE, attention_of, was_unwound
from dayjob.limits import Limits, limits_fields
from dayjob.models import Message, Model
from dayjob.prompts import request_json, split_hashes
from dayjob.run import new_run
from dayjob.runs import Action, Kind, Outcome, RunRecord, Status, StepRecord, is_action, new_id
from dayjob.steps import APPROVE, HAPPENED
from dayjob.stores import Answer, InboxItem, Store, open_store
from dayjob.stream import ActionRequired, Finished, Happening, Noted, Started, StatusChanged, Streams, Text
from dayjob.threads import in_a_thread
from dayjob.values import Redactor, decode, encode, seconds_of
from dayjob.worker import Worker

POLL_SECONDS = 0.05
RECENT = 1_000
PROJECT = "default"
_ENDED = {
    Status.FAILED: RunFailed,
    Status.CANCELLED: RunCancelled,
    Status.EXPIRED: RunExpired,
    Status.INCOMPLETE: RunIncomplete,
}


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of a run's stream.

    With the `id` of one ask for `events(after=id)`, in any process, to go on after it. What is durable, and
    text, has an id; what passes (starts, progress, warnings) has none.
    """

    name: str
    data: dict[str, Any]
    id: str | None = None


class Dayjob:
    """Runs jobs durably.

    `store` is a URL; `model` a string such as "openai:gpt-5-mini" or "local:", or a model object;
    `jobs` are known from the start, others become known when they are submitted. With `worker` (the
    default) the app works on its runs while it is open; without, nothing runs until `app.worker()`.
    Use it as an async context manager. Raises StoreError if the store cannot be opened.
    """

    def __init__(
        self,
        store: str | Any = "sqlite:///dayjob.db",
        model: str | Model | None = None,
        jobs: Iterable[Job] = (),
        worker: bool = True,
        *,
        concurrency: int = 100,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.jobs: dict[str, Job] = {}
        for job in jobs:
            self._know(job)
        self.events = Events()
        self._store_url = store
        self._model = model
        self._embedded = worker
        self._concurrency = concurrency
        self._clock = clock
        self.redact = Redactor.from_environment()
        self._workers: list[Worker] = []
        self._waiting: dict[str, list[asyncio.Future[RunRecord]]] = {}
        self._recent: OrderedDict[str, RunRecord] = OrderedDict()
        self._poller: asyncio.Task[None] | None = None
        self._store: Any = None
        self._streams: Streams | None = None
        self._closed = False

    async def __aenter__(self) -> Dayjob:
        self._closed = False
        self._store = self._store_url
        if isinstance(self._store_url, str):
            loop = asyncio.get_running_loop()
            self._store = await in_a_thread(self._open, loop)
        self._streams = Streams(self._store, self.events)
        if self._embedded:
            try:
                self._workers.append(await self._start_worker(self._concurrency, ("default",)))
            except BaseException:
                await self._close_store()
                raise
        return self

    def _open(self, loop: asyncio.AbstractEventLoop) -> Store:
        def on_trouble(error: StoreError) -> None:  # from the writer's thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(lambda: self.events.emit("store.failing", error=str(error)))

        return open_store(str(self._store_url), clock=self._clock, on_trouble=on_trouble)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            await worker.stop()
        self._workers.clear()
        self._closed = True
        for run_id, futures in self._waiting.items():
            for future in futures:
                if not future.done():
                    future.set_exception(_closed(run_id))
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await self.streams.close()
        await self._close_store()

    async def _close_store(self) -> None:
        if isinstance(self._store_url, str):
            await self._store.close()

    @property
    def store(self) -> Any:
        if self._store is None:
            raise InputError("the app is not open: use `async with Dayjob(…) as app:`")
        return self._store

    @property
    def streams(self) -> Streams:
        """What happens to runs, as it happens."""
        if self._streams is None:
            raise InputError("the app is not open: use `async with Dayjob(…) as app:`")
        return self._streams

    @property
    def model_name(self) -> str | None:
        """The model that answers where a job names no other."""
        return self._model if self._model is None or isinstance(self._model, str) else self._model.name

    def now(self) -> float:
        """Seconds since the epoch, by the app's clock."""
        return self._clock()

    def subscribe(self, subscriber: Subscriber, run: str | None = None) -> Callable[[], None]:
        """Calls `subscriber(name, fields)` for each event (see `dayjob.events.EVENTS`), or each of one run.

        Returns how to stop it.
        """
        return self.events.subscribe(subscriber, run)

    @asynccontextmanager
    async def worker(
        self,
        *,
        concurrency: int = 100,
        queues: Sequence[str] = ("default",),
        only: str | None = None,
        **settings: Any,
    ) -> AsyncIterator[Worker]:
        """Works on the app's runs while open: up to `concurrency` at a time, of these queues, or `only` one run."""
        worker = await self._start_worker(concurrency, queues, only=only, **settings)
        self._workers.append(worker)
        try:
            yield worker
        finally:
            self._workers.remove(worker)
            await worker.stop()

    async def _start_worker(self, concurrency: int, queues: Sequence[str], **settings: Any) -> Worker:
        worker = Worker(
            self.store, self.jobs.values(), model=self._model, events=self.events, concurrency=concurrency,
            queues=queues, clock=self._clock, on_settled=self._on_settled, **settings,
        )  # fmt: skip
        await worker.start()
        return worker

    # --- runs ----------------------------------------------------------------------------------

    async def submit(
        self,
        request: Request,
        *,
        key: str | None = None,
        thread: str | Thread | None = None,
        queue: str = "default",
        priority: int = 0,
        delay: float = 0.0,
        expires: float | None = None,
        limits: Limits | None = None,
        tags: Iterable[str] = (),
        when_busy: str = "refuse",
        source: str | None = None,
        project: str = PROJECT,
        details: dict[str, Any] | None = None,
        messages: Sequence[MessageRecord] = (),
        make_thread: bool | ThreadRecord = True,
    ) -> Handle:
        """Queues a run; it is durable when this returns.

        The same `key` for the same job gives the run that is there already; with other input it raises
        SubmitConflict. A higher `priority` goes first. `delay` is in seconds. A run that is not over
        `expires` seconds from now ends expired, whatever it is doing. A `thread` has one active run: a second
        raises ThreadBusy, or waits its turn with `when_busy="enqueue"`. One that is not there is made, as
        `make_thread` says; with False it raises UnknownThread. `limits` are for the run and all its
        children together. `details` are kept with the run for its client, and `messages` added to its thread,
        if the run is queued.
        """
        if not isinstance(request, Request):
            raise InputError(
                f"submit: expected a request, as calling a job gives, got {type(request).__name__}"
            )
        if when_busy not in ("refuse", "enqueue"):
            raise InputError(f'when_busy: expected "refuse" or "enqueue", got {when_busy!r}')
        thread_id = thread.id if isinstance(thread, Thread) else thread
        if not isinstance(limits, Limits | None):
            raise InputError(f"limits: expected Limits(…), got {type(limits).__name__}")
        for name, text in (("key", key), ("thread", thread_id), ("source", source), ("project", project)):
            _check_text(name, text)
        _check_text("queue", queue, needed=True)
        _check_priority(priority)
        delay = seconds_of("delay", delay)
        if expires is not None:
            expires = seconds_of("expires", expires)
        await self._make_known(request.job)
        now = self._clock()
        record = new_run(
            request, self.redact(request.input), now, home=thread_id, thread=thread_id, project=project,
            queue=queue, priority=priority, submit_key=key, source=source, tags=encode(list(tags)) if tags else None,
            details=None if details is None else self.redact(encode(details)),
        )  # fmt: skip
        if limits is not None:
            record.limits, record.budget = limits.to_json(), record.id
        if delay > 0:
            record.admitted, record.due = 0, now + delay
        if expires is not None:
            record.expires, record.expires_seconds = now + expires, expires
        submitting = asyncio.create_task(self._submit(record, when_busy, messages, make_thread))
        submitting.add_done_callback(lambda done: done.cancelled() or done.exception())
        stored = await asyncio.shield(submitting)  # what was claimed must be begun, whoever still waits
        return Handle(self, stored.id, request.job, stored)

    async def _submit(
        self,
        record: RunRecord,
        when_busy: str,
        messages: Sequence[MessageRecord],
        make_thread: bool | ThreadRecord,
    ) -> RunRecord:
        """Queues a run; a worker of this app that has room claims it in the same transaction."""
        with contextlib.ExitStack() as stack:
            offers = ((worker, stack.enter_context(worker.offer())) for worker in self._workers)
            worker, wanted = next((each for each in offers if each[1] is not None), (None, None))
            stored, claimed = await self.store.submit_and_claim(
                record, when_busy, messages, wanted, make_thread
            )
            if worker is not None:
                worker.take(claimed)
        run: RunRecord = stored
        if run.id not in [record.id for record, _ in claimed]:
            for worker in self._workers:
                worker.poke()
        return run

    async def get(self, run_id: str) -> RunRecord:
        """A run as it is stored. Raises UnknownRun."""
        _check_text("run", run_id, needed=True)
        record: RunRecord | None = await self.store.get(run_id)
        if record is None:
            raise UnknownRun(
                f"{run_id}: no run of that id is in {self.store.url}. List them with `dayjob runs`."
            )
        return record

    async def limits(self, run_id: str) -> dict[str, Any] | None:
        """By limit what the run and its family may spend, have spent and have in flight; None without limits."""
        record = await self.get(run_id)
        budget = await self.store.budget(record.home, record.budget) if record.budget else None
        return None if budget is None else limits_fields(budget)

    def handle(self, run_id: str) -> Handle:
        """A handle on a run that was submitted before."""
        return Handle(self, run_id, None)

    async def runs(self, **filters: Any) -> list[RunRecord]:
        """Runs, newest first: filter by `status`, `job`, `thread`, `parent`; `limit` and `before` (an id) page."""
        for name, text in filters.items():
            if name != "limit":
                _check_text(name, text)
        found: list[RunRecord] = await self.store.runs(**filters)
        return found

    async def steps(self, run_id: str, after: int = 0) -> list[StepRecord]:
        """The journal of a run: finished steps in their order, then open ones. `after` is a seq."""
        await self.get(run_id)
        found: list[StepRecord] = await self.store.steps(run_id, after)
        return found

    async def attention(self, run_id: str) -> dict[str, str]:
        """What a person has to look into, and why, by step: effects of unknown outcome, or not undone."""
        record = await self.get(run_id)
        return attention_of(await self.steps(run_id)) if record.status.is_terminal else {}

    async def request_of(self, step: StepRecord) -> bytes | None:
        """The exact request of a model step, as canonical JSON: what the adapter was given, without secrets."""
        if step.hashes is None:
            return None
        head, hashes = split_hashes(step.hashes)
        walked = step
        while walked.base_step is not None:
            attempt, _, key = walked.base_step.partition(":")
            keep = walked.keep_n or 0
            base = await self.store.step(step.run, key, int(attempt))
            own = split_hashes(base.hashes)[1]
            inherited = base.keep_n or 0
            hashes = own[: max(keep - inherited, 0)] + hashes
            missing = min(keep, inherited)
            walked = StepRecord(
                **{
                    **_fields(base),
                    "keep_n": missing,
                    "base_step": base.base_step if missing else None,
                }
            )
        found = await self.store.messages(step.home, [head, *hashes])
        return request_json(found[head], [found[hash] for hash in hashes])

    async def summary(self, project: str = PROJECT) -> list[dict[str, Any]]:
        """By job: how many runs, how they ended, how many did their job, and what they cost."""
        found: list[dict[str, Any]] = await self.store.summary(project)
        return found

    # --- actions -------------------------------------------------------------------------------

    async def actions(self, run_id: str | None = None, project: str | None = None) -> list[Action]:
        """What runs wait for from outside, oldest first: one run, those of one project, or all."""
        _check_text("run", run_id)
        return [action_of(row) for row in await self.store.open_actions(run_id, project)]

    async def answer(
        self, run_id: str, action_id: str, value: Any, by: str | None = None, reason: str | None = None
    ) -> None:
        """Answers an action; who did, and why, is kept with the step.

        Raises UnknownAction if the run does not wait for it (any more), InputError if the value does not fit.
        """
        by, reason = self._told("by", by), self._told("reason", reason)
        action = await self._action(run_id, action_id)
        data = self._fitting(action, value)
        if not await self.store.answer(run_id, action.key, data, by, reason, action.attempt):
            raise UnknownAction(f"{run_id}: {action_id!r} was answered meanwhile, or its time is up")
        self._poke(run_id)

    async def answer_all(self, run_id: str, values: Mapping[str, Any], by: str | None = None) -> None:
        """Answers actions together, by id: all of them, or none. Raises as `answer` does."""
        by, answers = self._told("by", by), []
        for action_id, value in values.items():
            action = await self._action(run_id, action_id)
            answers.append(Answer(action.key, action.attempt, self._fitting(action, value)))
        if not await self.store.answer_all(run_id, answers, by):
            raise UnknownAction(f"{run_id}: one of these was answered meanwhile, or its time is up")
        self._poke(run_id)

    async def approve(self, run_id: str, action_id: str, by: str | None = None) -> None:
        """Answers an action that asks for a yes."""
        await self._decide(run_id, action_id, True, by, None)

    async def reject(self, run_id: str, action_id: str, reason: str = "", by: str | None = None) -> None:
        """Answers an action that asks for a yes with a no."""
        await self._decide(run_id, action_id, False, by, reason or None)

    async def _decide(
        self, run_id: str, action_id: str, yes: bool, by: str | None, reason: str | None
    ) -> None:
        action = await self._action(run_id, action_id)
        if action.kind == "tool":
            raise InputError(f"{action_id}: is no yes or no; hand in what {action.tool} gave, by an answer")
        await self.answer(run_id, action_id, yes, by, reason)

    async def send(self, run_id: str, name: str, value: Any = None) -> None:
        """Sends a value that the run receives by `run.event(name)`, now or when it comes to it.

        Raises WrongStatus if the run is over.
        """
        _check_text("run", run_id, needed=True)
        _check_text("name", name, needed=True)
        item = InboxItem(new_id("evt"), name, self.redact(encode(value)))
        if not await self.store.send(run_id, item):
            raise WrongStatus(f"{run_id}: is over; nothing can be sent to it any more")
        self._poke(run_id)

    async def cancel(self, run_id: str, reason: str = "cancelled by request") -> Status:
        """Asks a run, and its children, to stop. Idempotent; returns the status that it has now.

        If it was continued as another run, that one is meant.
        """
        _check_text("run", run_id, needed=True)
        while True:
            status: Status = await self.store.cancel(run_id, self.redact.text(reason))
            self._poke(run_id)
            following = (await self.get(run_id)).next_run if status == Status.COMPLETED else None
            if following is None:
                return status
            run_id = following

    async def resume(self, run_id: str, changed: bool = False, from_step: str | None = None) -> Handle:
        """Queues a run again that has ended: finished steps are reused, the error that ended it is done again.

        With `changed`, steps whose function's code has changed are done again, and what follows them;
        with `from_step`, that step and all that finished after it. Raises WrongStatus if it is not
        over, if what it did was undone, or if it completed and neither is given.
        """
        record = await self.get(run_id)
        steps = await self.store.steps(run_id)
        if not record.status.is_terminal:
            raise WrongStatus(f"{run_id}: is {record.status}; only a run that is over can be resumed")
        if is_imported(record):
            raise WrongStatus(
                f"{run_id}: was imported, and did not happen here; start a new run in its thread"
            )
        if record.status == Status.COMPLETED and not changed and from_step is None:
            raise WrongStatus(
                f"{run_id}: is completed; to do some of it again, give --changed or --from STEP"
            )
        if was_unwound(steps):
            raise WrongStatus(f"{run_id}: what it did was undone; start it anew")
        supersede = _superseded_by_resume(record, steps, from_step)
        self._recent.pop(run_id, None)
        if not await self.store.resume(run_id, supersede, changed):
            raise WrongStatus(f"{run_id}: was resumed meanwhile")
        self._poke(run_id)
        return Handle(self, run_id, self.jobs.get(record.job))

    # --- threads and memory ----------------------------------------------------------------------

    def thread(self, id: str | None = None) -> Thread:
        """A conversation: the one of that id, or a new one."""
        _check_text("thread", id)
        return Thread(self, id or new_id("thread"))

    @property
    def memory(self) -> Memory:
        """Named values that outlive runs."""
        return Memory(self)

    # --- small parts ---------------------------------------------------------------------------

    def _told(self, name: str, text: str | None) -> str | None:
        """What a person says, as it may be stored. Raises InputError for what no column of text can hold."""
        _check_text(name, text)
        return None if text is None else self.redact.text(text)

    def _fitting(self, action: Action, value: Any) -> bytes:
        data = self.redact(encode(value))
        return encode(fitting(action, orjson.loads(data))) if action.schema else data

    def _know(self, job: Job) -> None:
        if not isinstance(job, Job):
            raise InputError(f"jobs: {job!r} is no job; decorate it with @job")
        known = self.jobs.get(job.name)
        if known is not None and known is not job:
            raise InputError(f"jobs: two jobs are named {job.name!r}; give one @job(name=…)")
        self.jobs[job.name] = job

    async def _make_known(self, job: Job) -> None:
        if job.name in self.jobs and self.jobs[job.name] is job:
            return
        self._know(job)
        for worker in self._workers:
            await worker.add_job(job)

    def _poke(self, run_id: str) -> None:
        for worker in self._workers:
            worker.poke(run_id)

    def _on_settled(self, record: RunRecord) -> None:
        """A run ended in this process: whoever waits for it need not ask the store."""
        self._recent[record.id] = record
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        for future in self._waiting.pop(record.id, ()):
            _resolve(future, record)

    async def _action(self, run_id: str, action_id: str) -> Action:
        _check_text("run", run_id, needed=True)
        _check_text("action", action_id, needed=True)
        key, _, attempt = action_id.rpartition("@")
        row = await self.store.open_step(run_id, action_id)
        if row is None and key and attempt.isdigit():
            row = await self.store.open_step(run_id, key)
        if row is None or not is_action(row) or action_of(row).id != action_id:
            await self.get(run_id)
            waiting = ", ".join(repr(action.id) for action in await self.actions(run_id)) or "nothing"
            raise UnknownAction(f"{run_id}: does not wait for {action_id!r}; it waits for {waiting}")
        return action_of(row)

    async def until_settled(self, run_id: str, timeout: float | None = None) -> RunRecord:
        """Waits until a run is over, here or in another process. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                if run_id in self._recent:
                    record = await self.get(run_id)
                    if not record.status.is_terminal:  # another process has resumed it
                        self._recent.pop(run_id, None)
                        continue
                else:
                    record = await self._next_end(run_id)
                if record.next_run is None:
                    return record
                run_id = record.next_run

    async def _next_end(self, run_id: str) -> RunRecord:
        if self._closed:
            raise _closed(run_id)
        future: asyncio.Future[RunRecord] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, []).append(future)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll_ends())
        try:
            return await future
        finally:
            waiting = self._waiting.get(run_id, [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._waiting.pop(run_id, None)

    async def _poll_ends(self) -> None:
        """One look for all who wait for runs that this process does not hold: another may have ended them."""
        while self._waiting:
            elsewhere = [
                run for run in self._waiting if not any(run in worker.held for worker in self._workers)
            ]
            with contextlib.suppress(StoreError):  # it is looked at again
                for run in await self.store.ended(elsewhere):
                    record = await self.store.get(run)
                    for future in self._waiting.pop(run, ()):
                        _resolve(future, record)
            await asyncio.sleep(POLL_SECONDS)


def _closed(run_id: str) -> StoreUnavailable:
    return StoreUnavailable(f"{run_id}: the app is closed; ask for its result while it is open")


def _resolve(future: asyncio.Future[RunRecord], record: RunRecord) -> None:
    if not future.done():
        future.set_result(record)


class Handle:
    """A run, from outside. `submitted` is its record as `submit` left it, or found it."""

    def __init__(self, app: Dayjob, id: str, job: Job | None, submitted: RunRecord | None = None) -> None:
        self._app = app
        self.id = id
        self._job = job
        self.submitted = submitted

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    async def status(self) -> Status:
        return (await self._app.get(self.id)).status

    async def result(self, timeout: float | None = None) -> Any:
        """The run's output, of the job's declared type.

        Raises RunFailed, RunCancelled, RunExpired or RunIncomplete, each with the reason (and the
        partial output), TimeoutError after `timeout` seconds, and StoreUnavailable if the app is closed first.
        """
        if self._job is None:
            await self._app.get(self.id)
        record = await self._app.until_settled(self.id, timeout)
        if record.status != Status.COMPLETED:
            record = await self._app.get(record.id)  # with the partial output
        job = self._job or self._app.jobs.get(record.job)
        if record.status == Status.COMPLETED:
            return decode(record.output or b"null", job.signature.returns if job else Any)
        partial = orjson.loads(record.output) if record.output else None
        error: type[RunEnded] = _ENDED[record.status]
        raise error(self.id, record.reason or record.status, partial)

    async def cancel(self, reason: str = "cancelled by request") -> Status:
        return await self._app.cancel(self.id, reason)

    async def events(self, after: str | int = 0) -> AsyncIterator[RunEvent]:
        """What happens to the run, until it is over: each finished step once, in order, and its status.

        Text deltas, starts and progress come between if the run is worked on in this process; of a model call
        that is under way, all that it said so far.
        """
        async with contextlib.aclosing(self._app.streams.follow(self.id, after)) as happenings:
            async for happening in happenings:
                if (event := event_of(self.id, happening)) is not None:
                    yield event


def event_of(run: str, happening: Happening) -> RunEvent | None:
    """A happening by its name and fields; None: it is quiet."""
    match happening:
        case Started(key, name, attempt, started, again, _):
            fields = {"run": run, "key": key, "name": name, "kind": Kind.MODEL, "attempt": attempt}
            return RunEvent("step.restarted" if again else "step.started", {**fields, "started": started})
        case Text(key, attempt, text, offset, position):
            fields = {"run": run, "key": key, "attempt": attempt, "text": text, "offset": offset}
            return RunEvent("step.text", fields, position)
        case Finished(step, _, position):
            return RunEvent("step.finished", {"step": step}, position)
        case ActionRequired(action, position):
            return RunEvent("action.required", {"action": action}, position)
        case StatusChanged(record, position):
            return RunEvent("run.status", {"status": record.status, "reason": record.reason}, position)
        case Noted(name, noted):
            return RunEvent(name, dict(noted))
    return None


class Thread:
    """A conversation: messages that outlive a run."""

    def __init__(self, app: Dayjob, id: str) -> None:
        self._app = app
        self.id = id

    async def messages(self) -> list[Message]:
        return [orjson.loads(message) for _, _, message in await self._app.store.thread_messages(self.id)]

    async def append(self, message: Message | str) -> str:
        """Adds a message and returns its id; a text is one of the user's."""
        if isinstance(message, str):
            message = {"role": "user", "content": message}
        await self._app.store.create_thread(PROJECT, self.id)
        data = self._app.redact(encode(message))
        record = MessageRecord(new_id("msg"), data, self._app.now(), said=is_said(message))
        await self._app.store.append_message(self.id, record)
        return record.id


class Memory:
    """Small named values that outlive runs and threads."""

    def __init__(self, app: Dayjob) -> None:
        self._app = app

    async def get(self, name: str, default: Any = None) -> Any:
        _check_text("name", name, needed=True)
        data = await self._app.store.recall(PROJECT, name)
        return default if data is None else orjson.loads(data)

    async def set(self, name: str, value: Any) -> None:
        _check_text("name", name, needed=True)
        await self._app.store.remember(PROJECT, name, self._app.redact(encode(value)))

    async def all(self, prefix: str = "") -> dict[str, Any]:
        """Values by name: those whose names begin so."""
        _check_text("prefix", prefix, needed=True)
        found = await self._app.store.memories(PROJECT, prefix)
        return {name: orjson.loads(value) for name, value in found.items()}


def _check_text(name: str, text: Any, needed: bool = False) -> None:
    """Raises InputError for what no column of text can hold."""
    if text is None and not needed:
        return
    if not isinstance(text, str):
        raise InputError(f"{name}: expected str, got {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name}: {text!r} holds half a surrogate pair, which is no valid UTF-8"
            ) from None


def _check_priority(priority: Any) -> None:
    if not isinstance(priority, int) or abs(priority) >= 2**31:
        raise InputError(f"priority: expected an int of up to 31 bits, got {priority!r}")


def _fields(row: StepRecord) -> dict[str, Any]:
    return {name: getattr(row, name) for name in StepRecord.__dataclass_fields__}


def _superseded_by_resume(
    record: RunRecord, steps: Sequence[StepRecord], from_step: str | None
) -> list[tuple[str, int]]:
    """The rows that must not be reused when a run goes on."""
    current = [row for row in steps if row.outcome != Outcome.SUPERSEDED and row.scope != UNDO_SCOPE]
    if from_step is not None:
        first = next((row for row in current if row.key == from_step and row.seq is not None), None)
        if first is None:
            raise InputError(f"from_step: {record.id} has no finished step {from_step!r}")
        doomed = [row for row in current if row.seq is None or (row.seq or 0) >= (first.seq or 0)]
        doomed += [row for row in current if _is_above(row.key, from_step) and row not in doomed]
    else:
        origin = orjson.loads(record.error).get("step") if record.error else None
        doomed = [] if origin is None else _error_chain(current, origin)
        if record.status == Status.EXPIRED:  # asked again, with its time anew
            doomed += [row for row in current if is_action(row) and row.outcome is None and row.due]
    asked = {row.key + name for row in doomed if row.kind == Kind.TOOL for name in (APPROVE, HAPPENED)}
    doomed += [row for row in current if row.key in asked and row not in doomed]  # of that one execution
    return [(row.key, row.attempt) for row in doomed]


def _error_chain(rows: Sequence[StepRecord], origin: str) -> list[StepRecord]:
    """The failed step, the scopes and joins that failed with it, and the branches that were cut off by that."""
    chain = [row for row in rows if row.key == origin or _is_above(row.key, origin)]
    chain = [
        row for row in chain if row.outcome in (Outcome.ERROR, Outcome.CANCELLED) or row.kind == Kind.JOIN
    ]
    joins = {row.key for row in chain if row.kind == Kind.JOIN}
    return chain + [row for row in rows if row.scope in joins and row.outcome == Outcome.CANCELLED]


def _is_above(key: str, below: str) -> bool:
    return below.startswith(key + "/")
