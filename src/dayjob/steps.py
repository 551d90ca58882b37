"""How a step is found, done and recorded: what all the verbs of `Run` have in common."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NoReturn, Protocol, Self, TypeVar

import orjson

from dayjob.errors import DayjobError, InputError, StepError, StoreError, step_error_of
from dayjob.events import Events
from dayjob.jobs import Job, Request
from dayjob.journal import Journal, Scope, error_bytes, stored_error
from dayjob.keys import is_write
from dayjob.limits import Budget, Reached
from dayjob.models import Model
from dayjob.runs import Kind, Outcome, RunRecord, StepRecord
from dayjob.stores import End
from dayjob.threads import Threads
from dayjob.tools import Deadline, Tool, Undo
from dayjob.values import canonical, decode, digest, encode

T = TypeVar("T")

RETRY_SECONDS = 0.2
"""How soon a failing store is tried again."""
MISSING: Any = object()
CHANGED = "#changed"
"""The name of the action that asks what to do about changed code; no step's own name can hold a "#"."""

APPROVE = "#approve"
HAPPENED = "#happened"
"""Actions that belong to a tool's step: their keys are its own, and these."""

DUE: Any = object()
"""What a wait is given when its time has come."""


class Keeper(Protocol):
    """Who executes a run: what its verbs need of them."""

    journal: Journal
    events: Events
    record: RunRecord
    dormant: bool
    ending: bool
    busy: int
    inbox: dict[str, list[Any]]
    tools: dict[str, Tool[..., Any]]
    undos: dict[str, Undo]
    lease_seconds: float
    budget: Budget | None
    end: End | None

    @property
    def threads(self) -> Threads: ...
    def valid(self, now: float) -> bool: ...
    async def ready(self, scope: Scope) -> None: ...
    def poke(self) -> None: ...
    async def look(self) -> None: ...
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
    async def undo_after(self, key: str) -> list[str]: ...
    async def slot(self, tool: Tool[..., Any]) -> Callable[[], None]: ...
    def send(self, sending: Coroutine[Any, Any, T], seconds: float | None) -> asyncio.Task[T]: ...
    async def know(self, job: Job) -> None: ...
    def defer(self, key: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None: ...
    def continue_as(self, request: Request) -> None: ...
    def expire(self, reason: str) -> None: ...
    def stop_at_limit(self, reached: Reached) -> None: ...
    def lose(self) -> None: ...
    def keep_old_version(self) -> None: ...


async def never() -> NoReturn:
    """Does not return: what a call on a closed scope does, since an error could be caught and tried again."""
    try:
        await asyncio.get_running_loop().create_future()
    except (
        RuntimeError
    ):  # the interpreter ends, and closes what was left behind: an error would let that spin
        await _Nothing()
    raise AssertionError


class _Nothing:
    def __await__(self) -> Any:
        yield


async def patiently(read: Callable[[], Awaitable[T]]) -> T:
    """What a read of the store gives, tried until it can: a job never sees a storage error."""
    while True:
        try:
            return await read()
        except StoreError:
            await asyncio.sleep(RETRY_SECONDS)


class Steps:
    """A sequential scope of journaled steps, in the hands of whoever runs in it."""

    def __init__(self, keeper: Keeper, scope: Scope) -> None:
        self.keeper = keeper
        self.scope = scope
        self.journal = keeper.journal

    @property
    def id(self) -> str:
        return self.keeper.record.id

    def inside(self, scope: Scope) -> Self:
        """Another scope, of the same kind."""
        return type(self)(self.keeper, scope)

    # --- how a step is done ----------------------------------------------------------------------

    async def begin(self, name: str) -> str:
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

        If that would write off an answered action, a write that was or may have been done, or a child that runs
        or wrote something, a person decides first.
        """
        at_stake = [row.key for row in doomed if _is_at_stake(row) or await self._wrote_something(row)]
        if at_stake and not self.keeper.ending:
            await self._ask_about_change(at_stake)
        self.journal.supersede(self.scope, doomed)

    async def _wrote_something(self, row: StepRecord) -> bool:
        """Whether a row is that of a finished child that did what must not be done twice, itself or by a child."""
        if row.kind != Kind.RUN or row.child is None:
            return False
        child = row.child
        for effect in await patiently(lambda: self.journal.store.effects(child)):
            if is_write(effect) or await self._wrote_something(effect):
                return True
        return False

    async def _ask_about_change(self, at_stake: list[str]) -> None:
        scope = self.scope
        current, scope.current = scope.current, None
        name = CHANGED
        question = (
            f"The code of this run has changed before {current or 'its end'!r}. To go on would write off "
            f"{', '.join(at_stake)}. Answer continue, or keep (only the old code will go on with this run)."
        )
        key = f"{scope.prefix}{name}"
        row = scope.mine.get(key)
        answer = await self.wait_for(
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
        return await never()  # it was cancelled: it waits to be cancelled again

    async def body(
        self, call: Callable[[], Any], returns: Any, name: str, timeout: float | None, before: int
    ) -> tuple[Any, bytes | None, StepError | None]:
        """What a scope comes to: (value, its JSON, error). Raises CancelledError if it was cancelled from outside."""
        limit = asyncio.timeout(timeout)
        try:
            if timeout is None:
                value = await awaited(call())
            else:
                async with limit:
                    value = await awaited(call())
            if doomed := self.journal.doomed(self.scope):
                recorded = self.scope.recorded
                await self.diverge(doomed if recorded is None else [recorded, *doomed])
            data = self.encode(f"step {name!r}", value, returns)
            return decode(data, returns), data, None
        except asyncio.CancelledError:
            if self.scope.closed or cancellings() > before:
                raise
            return (
                None,
                None,
                StepError("CancelledError", f"{name!r} cancelled itself", step=self.scope.path),
            )
        except (Exception, SystemExit) as problem:
            return (
                None,
                None,
                self.step_error(self.scope.path, name, problem, timeout if limit.expired() else None),
            )

    def is_settled(self, row: StepRecord) -> bool:
        """Whether a finished scope counts without being walked: it was written by this very version."""
        return row.version == self.journal.version and not self.journal.changed

    # --- how a wait is done ----------------------------------------------------------------------

    async def wait(
        self,
        name: str,
        kind: Kind,
        input: dict[str, Any],
        deadline: Deadline | None,
        declared: Any,
        default: Any = MISSING,
    ) -> Any:
        key = await self.begin(name)
        try:
            row = await self.find(key, name, kind, digest(canonical(input)))
            return await self.wait_for(key, name, kind, input, deadline, declared, row, default)
        finally:
            self.scope.current = None

    async def wait_for(
        self,
        key: str,
        name: str,
        kind: Kind,
        input: dict[str, Any],
        deadline: Deadline | None,
        declared: Any,
        row: StepRecord | None,
        default: Any = MISSING,
        fingerprint: bytes | None = None,
    ) -> Any:
        """Opens a waiting row, or takes up the recorded one, and waits for its answer.

        At the deadline the answer is `default`, which may be a StepError to raise; without one the run expires.
        """
        journal = self.journal
        if row is not None and row.outcome is not None:
            return await self.replay(row, declared)
        if row is None:
            await self.live()
            started = journal.clock()
            data = journal.redact(canonical(input))
            fingerprint = fingerprint or digest(canonical(input))
            at_once = kind == Kind.EVENT and deadline is not None and deadline.seconds == 0
            if at_once:
                with self.given_up(key, name, kind, fingerprint, data):
                    await self.keeper.look()
                if self.scope.closed:
                    await never()
            row = journal.row(
                self.scope.path, key, name, kind, None, started, fingerprint, input=data,
                due=None if deadline is None else started + deadline.seconds,
            )  # fmt: skip
            if at_once:  # it waits for nothing, so its row is written once
                sent = self.keeper.inbox.get(name)
                return await self._consume(row, sent.pop(0) if sent else DUE, declared, default, is_new=True)
            if deadline is not None and kind in (Kind.ASK, Kind.TOOL):
                row.warn_at = started + deadline.seconds - deadline.warn_seconds
            journal.open[key] = row
            # A copy: its answer may come before the writer does, and must not be written without what it consumed.
            journal.put((copy(row),))
            if self.keeper.events.active:
                self.keeper.events.emit(
                    "step.opened", run=self.id, key=key, name=name, kind=kind, due=row.due
                )
        return await self._consume(row, await self.answered(row), declared, default)

    async def answered(self, row: StepRecord, mark: bool = True) -> Any:
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
        self, row: StepRecord, answer: Any, declared: Any, default: Any, is_new: bool = False
    ) -> Any:
        """Writes an answer down as the outcome of its row, and gives it to the job."""
        journal = self.journal
        value: Any = None
        error: StepError | None = None
        data = b"null"
        more: dict[str, Any] = {}
        if answer is DUE:
            if isinstance(default, StepError):
                error = default
            elif default is not MISSING:
                data = self.encode(f"default of {row.name!r}", default, declared)
            elif row.kind == Kind.EVENT:
                error = StepError("Timeout", f"no {row.name!r} was sent in time", True, step=row.key)
            elif row.kind in (Kind.ASK, Kind.TOOL):
                self.keeper.expire(f"no answer to {row.key!r} in time")
                await never()
        elif row.kind == Kind.EVENT:
            data, more = answer.value, {"consumed": answer.id}
        else:
            data = answer
        if error is None:
            try:
                value = None if row.kind == Kind.SLEEP else decode(data, declared)
            except DayjobError as problem:
                error = StepError("InvalidAnswer", f"{row.name!r}: {problem}", step=row.key)
        outcome = Outcome.VALUE if error is None else Outcome.ERROR
        journal.finish(row, outcome, data if error is None else None, error_bytes(error) if error else None)
        journal.put((row,) if is_new else (), () if is_new else (row,), **more)
        if self.keeper.events.active:
            self.announce(row)
        if error is not None:
            raise error
        return value

    async def value(self, name: str, make: Callable[[], Any], input: dict[str, Any] | None = None) -> Any:
        """A value that is made once. Its row needs no waiting for: making it again would do no harm."""
        key = await self.begin(name)
        try:
            fingerprint = digest(canonical(input)) if input else None
            row = await self.find(key, name, Kind.VALUE, fingerprint)
            if row is not None:
                return await self.replay(row, Any)
            await self.live()
            started = self.journal.clock()
            data = self.encode(name, await awaited(make()))
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

    async def note_down(self, name: str, value: Any, fingerprint: bytes | None = None, **more: Any) -> str:
        """Writes a note, once; gives its key."""
        key = await self.begin(name)
        try:
            data = self.encode(name, value)
            fingerprint = fingerprint or digest(data)
            row = await self.find(key, name, Kind.NOTE, fingerprint)
            if row is not None:
                return key
            await self.live()
            started = self.journal.clock()
            row = self.journal.row(
                self.scope.path,
                key,
                name,
                Kind.NOTE,
                Outcome.VALUE,
                started,
                fingerprint,
                value=data,
            )
            if more:
                await self.journal.commit((row,), **more)
            else:
                self.journal.put((row,))
            if self.keeper.events.active:
                self.announce(row)
                told = orjson.loads(data)
                self.keeper.events.emit("run.note", run=self.id, key=key, name=name, value=told)
            return key
        finally:
            self.scope.current = None

    # --- small parts -----------------------------------------------------------------------------

    async def commit(self, row: StepRecord, **more: Any) -> None:
        """Waits until a finished row is durable; a cancellation meanwhile is written over it."""
        try:
            await self.journal.commit((row,), **more)
        except asyncio.CancelledError:
            if not self.scope.closed:
                self._warn_of_cancellation(row.key)
                self.journal.finish(row, Outcome.CANCELLED)
                self.journal.put(update=(row,))
            raise
        if self.keeper.events.active:
            self.announce(row)

    def _warn_of_cancellation(self, key: str) -> None:
        self.keeper.warn(
            key,
            "was cancelled by the job's own code (asyncio.timeout, say), which takes its time again on replay; "
            "timeout= is the durable form",
        )

    @contextmanager
    def given_up(
        self, key: str, name: str, kind: Kind, fingerprint: bytes | None, input: bytes | None
    ) -> Iterator[None]:
        """A step that the job gives up while it has no row is recorded as cancelled, and replays so."""
        started = self.journal.clock()
        try:
            yield
        except asyncio.CancelledError:
            self.record_cancelled(key, name, kind, started, fingerprint, input)
            raise

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
        self._warn_of_cancellation(key)
        row = self.journal.row(
            self.scope.path, key, name, kind, Outcome.CANCELLED, started, fingerprint, input=input
        )
        self.journal.put((row,))
        if self.keeper.events.active:
            self.announce(row)

    async def pause(self, key: str, attempt: int, delay: float, error: StepError) -> None:
        told = self.journal.redact.text(str(error))
        self.keeper.events.emit(
            "step.retrying", run=self.id, key=key, attempt=attempt, delay=delay, error=told
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

    def step_error(
        self, key: str, name: str, problem: BaseException, timeout: float | None = None
    ) -> StepError:
        """Any exception as the one error that steps raise; `timeout` is what the step took longer than, if it did."""
        if isinstance(problem, TimeoutError) and timeout is not None:
            return StepError("Timeout", f"step {name!r} took longer than {timeout:g} s", True, step=key)
        if isinstance(problem, InputError):
            return StepError("InvalidResult", f"step {name!r}: {problem}", step=key)
        return step_error_of(problem, key)


def _is_at_stake(row: StepRecord) -> bool:
    """Whether a person decides before this row is written off: an answer, a running child, a write that may be done.

    Not so an approval: it is bound to its arguments, and with others it is asked again.
    """
    if row.kind == Kind.RUN:
        return row.outcome is None
    if row.kind == Kind.TOOL and row.call_key is not None:
        return is_write(row) and row.outcome in (None, Outcome.VALUE)
    if row.kind == Kind.TOOL and row.answered_at is None:  # a read: the worker did it, and no client
        return False
    if row.kind == Kind.EVENT and row.due == row.started and row.value == b"null":  # nothing had been sent
        return False
    answered = row.outcome == Outcome.VALUE or (row.outcome is None and row.answer is not None)
    return row.kind in (Kind.ASK, Kind.EVENT, Kind.TOOL) and answered and row.name not in (CHANGED, APPROVE)


def cancellings() -> int:
    """How often the current task was asked to stop: it tells a cancellation from outside from a body's own."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


async def awaited(result: Any) -> Any:
    """The result of a function that may or may not be async."""
    return await result if inspect.isawaitable(result) else result
