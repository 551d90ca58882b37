"""`Run`: what a job is given. Each awaited verb replays a recorded step, or does it and records it."""

from __future__ import annotations

import asyncio
import inspect
import random
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import orjson

from dayjob.errors import DayjobError, InputError, NotJSON, StepError
from dayjob.events import Events
from dayjob.jobs import Request
from dayjob.join import Join
from dayjob.journal import Journal, Scope, error_bytes, stored_error
from dayjob.models import Message, Model
from dayjob.replies import ModelCall, Reply
from dayjob.retry import MODEL_RETRY, NO_RETRY, RetryPolicy
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord, new_id
from dayjob.shapes import Shape, shape_of
from dayjob.values import canonical, convert, decode, digest, encode, schema_of

_MISSING: Any = object()
DUE: Any = object()
"""What a wait is given when its time has come."""
PROGRESS_SECONDS = 0.25
_CHILD_ERRORS = {
    Status.FAILED: "RunFailed",
    Status.CANCELLED: "RunCancelled",
    Status.EXPIRED: "RunExpired",
    Status.INCOMPLETE: "RunIncomplete",
}


class Keeper(Protocol):
    """Who executes a run: what its verbs need of them."""

    journal: Journal
    events: Events
    record: RunRecord
    dormant: bool
    ending: bool
    busy: int
    inbox: dict[str, list[Any]]

    def valid(self, now: float) -> bool: ...
    async def ready(self, scope: Scope) -> None: ...
    def fatal(self, reason: str) -> None: ...
    def warn(self, step: str, message: str) -> None: ...
    def model_named(self, model: str | Model | None) -> Model: ...
    def enter(self, scope: Scope) -> Scope | None: ...
    def leave(self, scope: Scope, outer: Scope | None) -> None: ...
    def current_scope(self, otherwise: Scope) -> Scope: ...
    def count(self, scope: Scope) -> None: ...
    def uncount(self, scope: Scope) -> None: ...
    def spawn(self, scope: Scope, body: Awaitable[None]) -> asyncio.Task[None]: ...
    def wait(self, scope: Scope, row: StepRecord) -> Awaitable[Any]: ...
    def stop_waiting(self, row: StepRecord) -> None: ...
    def defer(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None: ...
    def continue_as(self, request: Request) -> None: ...
    def expire(self, reason: str) -> None: ...
    def keep_old_version(self) -> None: ...


async def never() -> NoReturn:
    """Does not return: what a call on a closed scope does, since an error could be caught and tried again."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


class Run:
    """One execution of a job, in the job's hands: a sequential scope of journaled steps.

    Await its verbs one after another; concurrency is `gather`, `map` and `race`. What a step returned
    before a crash is what it returns after it. A step that failed raises StepError.
    """

    def __init__(self, keeper: Keeper, scope: Scope) -> None:
        self.keeper = keeper
        self.scope = scope
        self.journal = keeper.journal
        self._progress_at = 0.0

    # --- who this is ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.keeper.record.id

    @property
    def attempt(self) -> int:
        """1, and one more for each worker in a row that died without finishing a step of this run."""
        return self.keeper.record.attempts + 1

    @property
    def thread(self) -> RunThread | None:
        """The conversation that this run belongs to, if it was submitted with one."""
        return RunThread(self, self.keeper.record.thread) if self.keeper.record.thread else None

    # --- work ----------------------------------------------------------------------------------

    async def step(
        self,
        fn: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Calls a function once: its outcome is durable before this returns, and is what every replay returns.

        Sync functions run in a thread. If the function's first parameter is annotated `Run`, it gets a
        scope of its own, and one row stands for all that happened inside once it is complete. Arguments
        and result must be JSON or of pydantic's types. Raises StepError if the function raises, takes
        longer than `timeout` seconds, or returns what is no JSON.
        """
        shape = shape_of(fn)
        name = name or shape.name
        key = await self._begin(name)
        scope, journal = self.scope, self.journal
        try:
            input = journal.redact(_encoded_arguments(name, args)) if args else b"[]"
            fingerprint = digest(input)
            if shape.takes_run:
                if retry is not None:
                    raise InputError(
                        f"step {name!r}: retry= belongs to the steps inside a function that takes a Run"
                    )
                return await self._scoped(key, name, fn, args, shape, input, fingerprint, timeout)
            row = await self.find(key, name, Kind.CALL, fingerprint, shape.code)
            if row is not None:
                return await self.replay(row, shape.returns)
            return await self._call(
                key, name, fn, args, shape, input, fingerprint, retry or NO_RETRY, timeout
            )
        finally:
            scope.current = None

    async def model(
        self,
        prompt: str | Sequence[Message],
        *,
        model: str | Model | None = None,
        instructions: str | None = None,
        tools: Iterable[Any] = (),
        returns: Any = None,
        max_tokens: int | None = None,
        name: str = "model",
        retry: RetryPolicy = MODEL_RETRY,
        timeout: float | None = None,
        corrections: int = 2,
        **options: Any,
    ) -> Reply:
        """One model call. Nothing is added to what you wrote.

        `prompt` is a text or chat-style messages; `instructions` become the first, a system message.
        `tools` are tools, typed functions or function definitions; they are offered, not executed.
        With `returns` (a type), its JSON schema is sent, and the answer is validated: one that does not
        fit is sent back with the validation error, at most `corrections` times, each time a row of its
        own. `options` go to the model as they are. Raises StepError: of type ModelRefused,
        ModelUnavailable and so on, or InvalidAnswer.
        """
        key = await self._begin(name)
        try:
            call = ModelCall(prompt, model, instructions, tools, returns, max_tokens, options)
            return await call.perform(self, key, name, retry, timeout, corrections)
        finally:
            self.scope.current = None

    # --- side by side --------------------------------------------------------------------------

    async def gather(self, *fns: Callable[[Run], Any], name: str = "gather") -> list[Any]:
        """Runs functions of one argument, a Run, side by side; returns their results in order.

        Each has a scope of its own. The first error cancels the others and is raised.
        """
        return list(await self._join(name, [(str(i), fn, None) for i, fn in enumerate(fns)], race=False))

    async def map(
        self,
        fn: Callable[[Run, Any], Any],
        items: Iterable[Any],
        key: Callable[[Any], str] | None = None,
        limit: int | None = None,
        name: str = "map",
    ) -> list[Any]:
        """Runs `fn(run, item)` for each item side by side, `limit` at a time; results in input order.

        `key(item)` names an item's scope; the default is its index. Equal keys raise InputError. The
        first error cancels the others and is raised.
        """
        items = list(items)
        labels = [str(key(item)) if key else str(index) for index, item in enumerate(items)]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise InputError(f"map {name!r}: key {twice!r} stands for more than one item")
        if limit is not None and limit < 1:
            raise InputError(f"map {name!r}: limit must be at least 1, got {limit}")
        calls = [
            (label, partial(_with_item, fn, item), item) for label, item in zip(labels, items, strict=True)
        ]
        returns = shape_of(fn).returns
        return list(await self._join(name, calls, race=False, limit=limit, returns=returns))

    async def race(self, *fns: Callable[[Run], Any], name: str = "race") -> Any:
        """Runs functions side by side; the first to succeed wins, the others are cancelled.

        The winner is journaled. If all fail, the last error is raised.
        """
        if not fns:
            raise InputError(f"race {name!r}: needs at least one function")
        return await self._join(name, [(str(i), fn, None) for i, fn in enumerate(fns)], race=True)

    # --- waiting -------------------------------------------------------------------------------

    async def ask(
        self,
        question: str,
        returns: Any = str,
        timeout: float | None = None,
        default: Any = _MISSING,
        name: str = "ask",
    ) -> Any:
        """Waits for a person to answer; the run takes no memory meanwhile.

        `returns` is the type of the answer, checked when it is given. After `timeout` seconds the
        answer is `default`; without one the run expires.
        """
        schema = {} if returns is Any else schema_of(returns)
        answer = await self._wait(
            name, Kind.ASK, {"question": question, "schema": schema}, timeout, returns, default
        )
        return answer

    async def event(self, name: str, returns: Any = Any, timeout: float | None = None) -> Any:
        """Waits for a value sent by another system under this name, before or after this call.

        Values sent under one name are received in order, each once. Raises StepError of type Timeout
        after `timeout` seconds.
        """
        return await self._wait(name, Kind.EVENT, {"event": name}, timeout, returns)

    async def sleep(self, seconds: float, name: str = "sleep") -> None:
        """Waits; the run takes no memory meanwhile, and wakes on time whatever happens to its worker."""
        await self._wait(name, Kind.SLEEP, {"seconds": seconds}, seconds, Any)

    async def start(self, request: Request, name: str | None = None) -> Child:
        """Starts a child run; `child.result()` waits for it. Cancelling this run cancels its children."""
        if not isinstance(request, Request):
            raise InputError(
                f"start: expected a request, as calling a job gives, got {type(request).__name__}"
            )
        name = name or request.job.name
        key = await self._begin(name)
        try:
            input = self.journal.redact(request.input)
            row = await self.find(key, name, Kind.RUN, digest(request.job.name.encode() + input))
            if row is None:
                await self.live()
                child = self._child_record(request, key, input)
                row = self.journal.row(
                    self.scope.path, key, name, Kind.RUN, None, self.journal.clock(),
                    digest(request.job.name.encode() + input), child=child.id, input=input,
                )  # fmt: skip
                self.journal.open[key] = row
                await self.journal.commit((row,), child=child)
            return Child(self, row, request.job.signature.returns)
        finally:
            self.scope.current = None

    # --- values that must not change on replay ---------------------------------------------------

    async def now(self) -> float:
        """Seconds since the epoch; the same on replay."""
        return float(await self._value("now", self.journal.clock))

    async def random(self) -> float:
        """A number in [0, 1); the same on replay."""
        return float(await self._value("random", random.random))

    async def uuid(self) -> str:
        """A random UUID; the same on replay."""
        return str(await self._value("uuid", lambda: str(uuid.uuid4())))

    async def remember(self, name: str, value: Any) -> None:
        """Keeps a value under a name, for this and all later runs of the project."""
        data = self.encode(f"remember {name!r}", value)
        await self._note("remember", {"name": name}, memory=(name, data))

    async def recall(self, name: str, default: Any = None) -> Any:
        """The value remembered under a name, as it was when this step first ran."""

        async def read() -> Any:
            data = await self.journal.store.recall(self.keeper.record.project, name)
            return default if data is None else orjson.loads(data)

        return await self._value("recall", read, {"name": name})

    # --- for people ----------------------------------------------------------------------------

    async def note(self, text: str, **data: Any) -> None:
        """Leaves a remark in the journal."""
        await self._note("note", {"text": text, **({"data": data} if data else {})})

    async def partial(self, value: Any) -> None:
        """Sets the output that this run has if it stops early."""
        await self._note("partial", value)

    async def verdict(self, success: bool, score: float | None = None, reason: str = "") -> None:
        """Says whether the run did its job, for the success figures."""
        await self._note(
            "verdict",
            {"success": success, "score": score, "reason": reason},
            verdict=(success, score, reason),
        )

    def progress(self, done: float, total: float | None = None) -> None:
        """Shows how far the work is. Not awaited, not journaled."""
        if self.scope.closed:
            return
        self.keeper.events.emit("run.progress", run=self.id, done=done, total=total)
        now = self.journal.clock()
        if not self.keeper.dormant and (now - self._progress_at >= PROGRESS_SECONDS or done == total):
            self._progress_at = now
            self.journal.put(progress=(done, total))

    # --- the end -------------------------------------------------------------------------------

    async def defer(self, fn: Callable[..., Any], *args: Any) -> None:
        """Has a function called once when the run ends, however it ends; the last deferred is called first."""
        await self._note("defer", {"function": shape_of(fn).name})
        self.keeper.defer(fn, args)

    async def continue_as(self, request: Request) -> NoReturn:
        """Ends this run and starts the next of an endless job, with a fresh journal. Does not return.

        The next run takes this one's place: its thread, its parent's wait, and `handle.result()`.
        """
        await self._begin("continue_as")
        self.keeper.continue_as(request)
        await never()

    # --- how a step is done ----------------------------------------------------------------------

    async def _begin(self, name: str) -> str:
        """Opens a step in this scope, and gives its key."""
        scope, keeper = self.scope, self.keeper
        if scope.closed:
            await never()
        if scope.current is not None:
            keeper.fatal(
                f"two calls at once in one scope: {name!r} began while {scope.current!r} was in progress. "
                "Await each call, or use gather, map or race."
            )
            await never()
        if keeper.dormant or not keeper.valid(self.journal.clock()):
            await keeper.ready(scope)
        scope.current = key = scope.next_key(name)
        return key

    async def find(
        self, key: str, name: str, kind: Kind, fingerprint: bytes | None, code: bytes | None = None
    ) -> StepRecord | None:
        """The recorded row; None once it is certain that the step has to be done."""
        scope, journal = self.scope, self.journal
        row = journal.find(scope, key, name, kind, fingerprint, code)
        if row is None:
            if doomed := journal.doomed(scope):
                await self.diverge(doomed)
            return None
        if row.kind != kind:
            self.keeper.fatal(
                f"step {key!r} is a {kind} now and was a {row.kind}: the job is not deterministic"
            )
            await never()
        if row.fingerprint != fingerprint:
            self.keeper.warn(
                key,
                "its input differs from the recorded one: something in the job is not deterministic",
            )
        if asyncio.current_task() is not scope.owner:
            await asyncio.sleep(0)  # so that two calls at once meet, on replay as they do live
        return row

    async def live(self) -> None:
        """Called before anything is done for real."""
        self.scope.live = True
        if self.keeper.ending:
            self.keeper.uncount(self.scope)
            await never()

    async def diverge(self, doomed: list[StepRecord]) -> None:
        """The code took another path than the recorded one: what is not on it no longer counts.

        If that would write off an answered action or a running child, a person decides first.
        """
        at_stake = [
            row.key
            for row in doomed
            if (row.kind in (Kind.ASK, Kind.EVENT) and row.outcome == Outcome.VALUE)
            or (row.kind == Kind.RUN and row.outcome is None)
        ]
        if at_stake and not self.keeper.ending:
            await self._ask_about_change(at_stake)
        self.journal.supersede(self.scope, doomed)

    async def _ask_about_change(self, at_stake: list[str]) -> None:
        scope = self.scope
        current, scope.current = scope.current, None
        name = "#changed"
        question = (
            f"The code of this run has changed before {current or 'its end'!r}. To go on would write off "
            f"{', '.join(at_stake)}. Answer continue, or keep (only the old code will go on with this run)."
        )
        key = f"{scope.prefix}{name}"
        row = scope.mine.get(key)
        answer = await self._wait_for(
            key,
            name,
            Kind.ASK,
            {"question": question, "schema": {"enum": ["continue", "keep"]}},
            None,
            str,
            row,
        )
        if answer != "continue":
            self.keeper.keep_old_version()
            await never()
        scope.current = current

    async def replay(self, row: StepRecord, declared: Any) -> Any:
        """A recorded outcome, as the job saw it."""
        if self.keeper.events.active:
            self.announce(row, reused=True)
        if row.outcome == Outcome.VALUE:
            return decode(row.value or b"null", declared)
        if row.outcome == Outcome.ERROR:
            raise stored_error(row.error or b"{}", row.key)
        await never()  # it was cancelled: it waits to be cancelled again
        return None

    async def _call(
        self,
        key: str,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        shape: Shape,
        input: bytes,
        fingerprint: bytes,
        retry: RetryPolicy,
        timeout: float | None,
    ) -> Any:
        await self.live()
        journal, scope = self.journal, self.scope
        attempt = journal.retries_of(key)
        while True:
            attempt += 1
            started = journal.clock()
            if self.keeper.events.active:
                self.keeper.events.emit(
                    "step.started", run=self.id, key=key, name=name, kind=Kind.CALL, attempt=attempt
                )
            before = self.cancellings()
            value = data = error = None
            self.keeper.busy += 1
            try:
                if timeout is None:
                    value = await _called(fn, args, shape)
                else:
                    async with asyncio.timeout(timeout):
                        value = await _called(fn, args, shape)
                data = self.encode(f"step {name!r}", value, shape.returns)
                value = decode(data, shape.returns)
            except asyncio.CancelledError:
                if scope.closed or self.cancellings() > before:
                    self.record_cancelled(key, name, Kind.CALL, started, fingerprint, input)
                    raise
                error = StepError("CancelledError", f"step {name!r} cancelled itself", step=key)
            except Exception as problem:
                error = self.step_error(key, name, problem, timeout)
            finally:
                self.keeper.busy -= 1
            again = retry(attempt, error) if error is not None else None
            outcome = Outcome.VALUE if error is None else Outcome.SUPERSEDED if again else Outcome.ERROR
            row = journal.row(
                scope.path, key, name, Kind.CALL, outcome, started, fingerprint, input=input, value=data,
                error=None if error is None else journal.redact(error_bytes(error, retried=again is not None)),
            )  # fmt: skip
            row.code = shape.code
            await self.commit(row)
            if error is None:
                return value
            if again is None:
                raise error
            await self.pause(key, attempt, again.delay, error)
            if again.instead is not None:
                fn, shape = again.instead, shape_of(again.instead)

    async def _scoped(
        self,
        key: str,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        shape: Shape,
        input: bytes,
        fingerprint: bytes,
        timeout: float | None,
    ) -> Any:
        """Calls a function with a scope of its own; a finished scope of this version is not entered again."""
        journal, keeper, scope = self.journal, self.keeper, self.scope
        row = await self.find(key, name, Kind.SCOPE, fingerprint)
        if row is not None and (self.is_settled(row) or row.outcome == Outcome.CANCELLED):
            return await self.replay(row, shape.returns)
        inner = Scope(journal, key, scope, source=row.key if row else None)
        inner.owner = asyncio.current_task()
        outer = keeper.enter(inner)
        started = journal.clock()
        before = self.cancellings()
        if keeper.events.active:
            keeper.events.emit("step.started", run=self.id, key=key, name=name, kind=Kind.SCOPE, attempt=1)
        try:
            inside = Run(keeper, inner)
            value, data, error = await inside.body(
                partial(fn, inside, *args), shape.returns, name, timeout, before
            )
        except asyncio.CancelledError:
            self.record_cancelled(key, name, Kind.SCOPE, started, fingerprint, input)
            raise
        finally:
            inner.leave()
            keeper.leave(inner, outer)
        if scope.closed:
            await never()
        if row is not None and not inner.live:
            return await self.replay(row, shape.returns)
        if row is not None:
            await self.diverge([row, *journal.doomed(scope)])
        finished = journal.row(
            scope.path, key, name, Kind.SCOPE, Outcome.VALUE if error is None else Outcome.ERROR, started, fingerprint,
            input=input, value=data, error=None if error is None else journal.redact(error_bytes(error)),
        )  # fmt: skip
        scope.prompt = inner.prompt or scope.prompt
        scope.live = True
        await self.commit(finished)
        if error is not None:
            raise error
        return value

    async def body(
        self, call: Callable[[], Any], returns: Any, name: str, timeout: float | None, before: int
    ) -> tuple[Any, bytes | None, StepError | None]:
        """What a scope comes to: (value, its JSON, error). Raises CancelledError if it was cancelled from outside."""
        try:
            if timeout is None:
                value = await _awaited(call())
            else:
                async with asyncio.timeout(timeout):
                    value = await _awaited(call())
            if doomed := self.journal.doomed(self.scope):
                await self.diverge(doomed)
            data = self.encode(f"step {name!r}", value, returns)
            return decode(data, returns), data, None
        except asyncio.CancelledError:
            if self.scope.closed or self.cancellings() > before:
                raise
            return (
                None,
                None,
                StepError("CancelledError", f"{name!r} cancelled itself", step=self.scope.path),
            )
        except Exception as problem:
            return None, None, self.step_error(self.scope.path, name, problem, timeout)

    def is_settled(self, row: StepRecord) -> bool:
        """Whether a finished scope counts without being walked: it was written by this very version."""
        return row.version == self.journal.version and not self.journal.changed

    async def _join(
        self,
        name: str,
        calls: list[tuple[str, Callable[[Run], Any], Any]],
        race: bool,
        limit: int | None = None,
        returns: Any = _MISSING,
    ) -> Any:
        key = await self._begin(name)
        try:
            types = [returns if returns is not _MISSING else shape_of(fn).returns for _, fn, _ in calls]
            join = Join(self, key, name, calls, types, race, limit)
            return await join.perform()
        finally:
            self.scope.current = None

    # --- how a wait is done ----------------------------------------------------------------------

    async def _wait(
        self,
        name: str,
        kind: Kind,
        input: dict[str, Any],
        seconds: float | None,
        declared: Any,
        default: Any = _MISSING,
    ) -> Any:
        key = await self._begin(name)
        try:
            row = await self.find(key, name, kind, digest(canonical(input)))
            return await self._wait_for(key, name, kind, input, seconds, declared, row, default)
        finally:
            self.scope.current = None

    async def _wait_for(
        self,
        key: str,
        name: str,
        kind: Kind,
        input: dict[str, Any],
        seconds: float | None,
        declared: Any,
        row: StepRecord | None,
        default: Any = _MISSING,
    ) -> Any:
        """Opens a waiting row, or takes up the recorded one, and waits for its answer."""
        journal = self.journal
        if row is not None and row.outcome is not None:
            return await self.replay(row, declared)
        if row is None:
            await self.live()
            started = journal.clock()
            data = journal.redact(canonical(input))
            row = journal.row(
                self.scope.path, key, name, kind, None, started, digest(canonical(input)), input=data,
                due=None if seconds is None else started + seconds,
            )  # fmt: skip
            journal.open[key] = row
            journal.put((row,))
            if self.keeper.events.active:
                self.keeper.events.emit(
                    "step.opened", run=self.id, key=key, name=name, kind=kind, due=row.due
                )
        answer = await self._answered(row)
        item = None
        if kind == Kind.EVENT and answer is not DUE:
            item, answer = answer.id, answer.value
        return await self._consume(row, answer, declared, default, item)

    async def _answered(self, row: StepRecord, mark: bool = True) -> Any:
        """The answer to an open row; the run may leave memory meanwhile."""
        if self.keeper.ending:
            await self.live()
        try:
            return await self.keeper.wait(self.scope, row)
        except asyncio.CancelledError:
            if not self.scope.closed:
                self.keeper.count(self.scope)
                if self.keeper.dormant:
                    await self.keeper.ready(self.scope)
                if mark and row.outcome is None:
                    self.journal.finish(row, Outcome.CANCELLED)
                    self.journal.put(update=(row,))
            raise
        finally:
            self.keeper.stop_waiting(row)

    async def _consume(
        self, row: StepRecord, answer: Any, declared: Any, default: Any, item: str | None
    ) -> Any:
        """Writes an answer down as the outcome of its row, and gives it to the job."""
        journal = self.journal
        value: Any = None
        error: StepError | None = None
        data = b"null"
        if answer is DUE:
            if row.kind == Kind.EVENT:
                error = StepError("Timeout", f"no {row.name!r} was sent in time", True, step=row.key)
            elif default is not _MISSING:
                data = self.encode(f"default of {row.name!r}", default, declared)
            elif row.kind == Kind.ASK:
                self.keeper.expire(f"no answer to {row.key!r} in time")
                await never()
        else:
            data = answer
        if error is None:
            try:
                value = None if row.kind == Kind.SLEEP else decode(data, declared)
            except DayjobError as problem:
                error = StepError("InvalidAnswer", f"{row.name!r}: {problem}", step=row.key)
        outcome = Outcome.VALUE if error is None else Outcome.ERROR
        journal.finish(row, outcome, data if error is None else None, error_bytes(error) if error else None)
        more = {} if item is None else {"consumed": item}
        journal.put(update=(row,), **more)
        if self.keeper.events.active:
            self.announce(row)
        if error is not None:
            raise error
        return value

    @staticmethod
    def cancellings() -> int:
        """How often the current task was asked to stop: it tells a cancellation from outside from a body's own."""
        task = asyncio.current_task()
        return task.cancelling() if task is not None else 0

    def inside(self, scope: Scope) -> Run:
        return Run(self.keeper, scope)

    async def child_result(self, row: StepRecord, returns: Any) -> Any:
        """Waits for a child in this scope; only a wait that was given up leaves a row of its own."""
        name = f"{row.name} result"
        key = await self._begin(name)
        try:
            gave_up = self.scope.mine.get(key)
            if gave_up is not None:
                await never()
            if row.outcome is None:
                started = self.journal.clock()
                try:
                    answer = await self._answered(row, mark=False)
                except asyncio.CancelledError:
                    self.record_cancelled(key, name, Kind.RUN, started, None, None)
                    raise
                if row.outcome is None:
                    self._end_child(row, answer)
            return await self.replay(row, returns)
        finally:
            self.scope.current = None

    def _end_child(self, row: StepRecord, answer: bytes) -> None:
        end = orjson.loads(answer)
        if end["status"] == Status.COMPLETED:
            self.journal.finish(row, Outcome.VALUE, orjson.dumps(end["output"]))
        else:
            error = StepError(
                _CHILD_ERRORS[end["status"]], f"child {row.child}: {end['reason']}", step=row.key
            )
            self.journal.finish(row, Outcome.ERROR, orjson.dumps(end["output"]), error_bytes(error))
        self.journal.put(update=(row,))

    async def _value(self, name: str, make: Callable[[], Any], input: dict[str, Any] | None = None) -> Any:
        """A value that is made once. Its row needs no waiting for: making it again would do no harm."""
        key = await self._begin(name)
        try:
            fingerprint = digest(canonical(input)) if input else None
            row = await self.find(key, name, Kind.VALUE, fingerprint)
            if row is not None:
                return await self.replay(row, Any)
            await self.live()
            started = self.journal.clock()
            data = self.encode(name, await _awaited(make()))
            row = self.journal.row(
                self.scope.path,
                key,
                name,
                Kind.VALUE,
                Outcome.VALUE,
                started,
                fingerprint,
                value=data,
            )
            self.journal.put((row,))
            return orjson.loads(data)
        finally:
            self.scope.current = None

    async def _note(self, name: str, value: Any, **more: Any) -> None:
        key = await self._begin(name)
        try:
            data = self.encode(name, value)
            row = await self.find(key, name, Kind.NOTE, digest(data))
            if row is not None:
                return
            await self.live()
            started = self.journal.clock()
            row = self.journal.row(
                self.scope.path,
                key,
                name,
                Kind.NOTE,
                Outcome.VALUE,
                started,
                digest(data),
                value=data,
            )
            if more:
                await self.journal.commit((row,), **more)
            else:
                self.journal.put((row,))
            if self.keeper.events.active:
                self.announce(row)
        finally:
            self.scope.current = None

    # --- small parts -----------------------------------------------------------------------------

    async def commit(self, row: StepRecord, **more: Any) -> None:
        """Waits until a finished row is durable; a cancellation meanwhile is written over it."""
        try:
            await self.journal.commit((row,), **more)
        except asyncio.CancelledError:
            if not self.scope.closed:
                self.journal.finish(row, Outcome.CANCELLED)
                self.journal.put(update=(row,))
            raise
        if self.keeper.events.active:
            self.announce(row)

    def record_cancelled(
        self,
        key: str,
        name: str,
        kind: Kind,
        started: float,
        fingerprint: bytes | None,
        input: bytes | None,
    ) -> None:
        if self.scope.closed:
            return
        row = self.journal.row(
            self.scope.path, key, name, kind, Outcome.CANCELLED, started, fingerprint, input=input
        )
        self.journal.put((row,))
        if self.keeper.events.active:
            self.announce(row)

    async def pause(self, key: str, attempt: int, delay: float, error: StepError) -> None:
        self.keeper.events.emit(
            "step.retrying", run=self.id, key=key, attempt=attempt, delay=delay, error=str(error)
        )
        if delay > 0:
            await asyncio.sleep(delay)
        if self.keeper.dormant or not self.keeper.valid(self.journal.clock()):
            await self.keeper.ready(self.scope)

    def announce(self, row: StepRecord, reused: bool = False) -> None:
        self.keeper.events.emit(
            "step.finished", run=self.id, key=row.key, name=row.name, kind=row.kind, attempt=row.attempt,
            outcome=row.outcome, seconds=(row.ended or row.started) - row.started, dollars=row.dollars,
            input_tokens=row.input_tokens, output_tokens=row.output_tokens, reused=reused,
        )  # fmt: skip

    def encode(self, what: str, value: Any, declared: Any = Any) -> bytes:
        """JSON bytes, without secrets. Raises StepError naming what could not be stored."""
        try:
            return self.journal.redact(encode(value, declared))
        except DayjobError as problem:
            raise StepError(type(problem).__name__, f"{what}: {problem}", step=self.scope.current) from None

    def step_error(self, key: str, name: str, problem: Exception, timeout: float | None = None) -> StepError:
        """Any exception as the one error that steps raise."""
        if isinstance(problem, StepError):
            return StepError(
                problem.type, problem.message, problem.retryable, step=problem.step or key,
                retry_after=problem.retry_after, traceback=problem.traceback,
            )  # fmt: skip
        if isinstance(problem, TimeoutError) and timeout is not None:
            return StepError("Timeout", f"step {name!r} took longer than {timeout:g} s", True, step=key)
        if isinstance(problem, InputError):
            return StepError("InvalidResult", f"step {name!r}: {problem}", step=key)
        return StepError(
            type(problem).__name__,
            str(problem),
            bool(getattr(problem, "retryable", False)),
            step=key,
            retry_after=getattr(problem, "retry_after", None),
            traceback="".join(traceback.format_exception(problem)),
        )

    def _child_record(self, request: Request, key: str, input: bytes) -> RunRecord:
        parent = self.keeper.record
        return new_run(
            request, input, self.journal.clock(), home=parent.home, project=parent.project, queue=parent.queue,
            priority=parent.priority, root=parent.root, parent=parent.id, parent_key=key, source=parent.source,
        )  # fmt: skip


class Child:
    """A child run."""

    def __init__(self, run: Run, row: StepRecord, returns: Any) -> None:
        self._run = run
        self._row = row
        self._returns = returns

    @property
    def id(self) -> str:
        return str(self._row.child)

    async def result(self) -> Any:
        """The child's output. Raises StepError of type RunFailed, RunCancelled, RunExpired or RunIncomplete."""
        run = self._run
        scope = run.keeper.current_scope(run.scope)
        inside = run if scope is run.scope else Run(run.keeper, scope)
        return await inside.child_result(self._row, self._returns)


class RunThread:
    """The run's conversation: what was said in it, as journaled steps."""

    def __init__(self, run: Run, id: str) -> None:
        self._run = run
        self.id = id

    async def messages(self) -> list[Message]:
        """The messages so far; on replay the same ones."""
        store = self._run.journal.store

        async def count() -> int:
            found = await store.thread_messages(self.id)
            return found[-1][0] if found else 0

        up_to = await self._run._value("messages", count)
        return [orjson.loads(message) for _, _, message in await store.thread_messages(self.id, up_to)]

    async def append(self, message: Message | str) -> None:
        """Adds a message; a text is one of the assistant's."""
        if isinstance(message, str):
            message = {"role": "assistant", "content": message}
        data = self._run.encode("append", message)
        await self._run._note("append", message, append=(self.id, new_id("msg"), data))


def new_run(
    request: Request,
    input: bytes,
    now: float,
    *,
    id: str | None = None,
    home: str | None = None,
    root: str | None = None,
    queue: str = "default",
    priority: int = 0,
    project: str = "default",
    **more: Any,
) -> RunRecord:
    """A record of a run that has not begun."""
    id = id or new_id("run")
    fields: dict[str, Any] = dict.fromkeys(RunRecord.__dataclass_fields__)
    fields.update(
        home=home or id, id=id, project=project, job=request.job.name, status=Status.QUEUED, epoch=0, wakes=0,
        attempts=0, claimed_seq=0, admitted=1, queue=queue, priority=priority, root=root or id, pinned=0, changed=0,
        created=now, input=input, **more,
    )  # fmt: skip
    return RunRecord(**fields)


def _encoded_arguments(name: str, args: tuple[Any, ...]) -> bytes:
    try:
        return canonical(args)
    except NotJSON as problem:
        raise StepError("NotJSON", f"step {name!r}: argument {problem}") from None


def _with_item(fn: Callable[[Run, Any], Any], item: Any, run: Run) -> Any:
    return fn(run, item)


async def _called(fn: Callable[..., Any], args: tuple[Any, ...], shape: Shape) -> Any:
    if shape.is_async:
        return await fn(*args)
    result = await asyncio.to_thread(fn, *args)
    return await result if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
