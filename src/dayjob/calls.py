"""A function as a step: called once, tried again by its policy, or given a scope of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from dayjob.errors import NotJSON, StepError, ValueTooLarge
from dayjob.journal import WALKED, Scope, error_bytes
from dayjob.retry import RetryPolicy, decide
from dayjob.runs import Kind, Outcome
from dayjob.shapes import Shape, shape_of
from dayjob.spending import hold_step
from dayjob.steps import Steps, awaited, cancellings, never
from dayjob.values import canonical, decode, within_limit


class FunctionCall(NamedTuple):
    """A call of a function as one step."""

    key: str
    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    shape: Shape
    input: bytes
    fingerprint: bytes
    timeout: float | None
    kind: Kind = Kind.CALL
    call_key: str | None = None
    undo: str | None = None
    prepare: Callable[[], Awaitable[Callable[[], None]]] | None = None
    """Awaited before each try; what it returns is called after it."""


async def call_function(run: Steps, step: FunctionCall, retry: RetryPolicy) -> Any:
    """Calls the function, again as often as the policy says; every try is a row."""
    key, name, fn, args, shape, input, fingerprint, timeout, kind, call_key, undo, prepare = step
    await run.live()
    journal, scope = run.journal, run.scope
    what = "step" if kind == Kind.CALL else "tool"
    failed = journal.retries_of(key)
    attempt = len(failed)
    for number, past in enumerate(failed, 1):  # by another worker, before it died
        decided, _ = decide(retry, number, past)
        if decided is not None and decided.instead is not None:
            fn, shape = decided.instead, shape_of(decided.instead)
    while True:
        attempt += 1
        held = None
        if run.keeper.budget is not None:
            with run.given_up(key, name, kind, fingerprint, input):
                held = await hold_step(run, key)
        started = journal.clock()
        if run.keeper.events.active:
            run.keeper.events.emit("step.started", run=run.id, key=key, name=name, kind=kind, attempt=attempt)
        before = cancellings()
        value = data = error = release = None
        limit = asyncio.timeout(timeout)
        run.keeper.busy += 1
        try:
            if prepare is not None:
                release = await prepare()
            if timeout is None:
                value = await _called(run, fn, args, shape)
            else:
                async with limit:
                    value = await _called(run, fn, args, shape)
            data = run.encode(f"{what} {name!r}", value, shape.returns)
            value = decode(data, shape.returns)
        except asyncio.CancelledError:
            if scope.closed or cancellings() > before:
                if held is not None:
                    held.spend_all()
                run.record_cancelled(key, name, kind, started, fingerprint, input)
                raise
            error = StepError("CancelledError", f"{what} {name!r} cancelled itself", step=key)
        except (Exception, SystemExit) as problem:
            error = run.step_error(key, name, problem, timeout if limit.expired() else None)
        finally:
            run.keeper.busy -= 1
            if release is not None:
                release()
        if scope.closed:
            await never()
        again = None
        if error is not None:
            again, error = decide(retry, attempt, error)
        outcome = Outcome.VALUE if error is None else Outcome.SUPERSEDED if again else Outcome.ERROR
        row = journal.row(
            scope.path, key, name, kind, outcome, started, fingerprint, input=input, value=data,
            error=None if error is None else journal.redact(error_bytes(error, retried=again is not None)),
        )  # fmt: skip
        row.code, row.call_key, row.undo = shape.code, call_key, undo
        if call_key is not None:
            journal.effects.note(row)
        await (run.commit(row) if held is None else held.commit(row))
        if error is None:
            return value
        if again is None:
            raise error
        with run.given_up(key, name, kind, fingerprint, input):
            await run.pause(key, attempt, again.delay, error)
        if again.instead is not None:
            fn, shape = again.instead, shape_of(again.instead)


async def call_scoped(run: Steps, step: FunctionCall) -> Any:
    """Calls a function with a scope of its own; a finished scope of this version is not entered again."""
    key, name, fn, args, shape, input, fingerprint, timeout, *_ = step
    journal, keeper, scope = run.journal, run.keeper, run.scope
    row = await run.find(key, name, Kind.SCOPE, fingerprint)
    if row is not None and (run.is_settled(row) or row.outcome == Outcome.CANCELLED):
        return await run.replay(row, shape.returns)
    inner = Scope(journal, key, scope, row)
    inner.owner = asyncio.current_task()
    outer = keeper.enter(inner)
    started = journal.clock()
    before = cancellings()
    if keeper.events.active:
        keeper.events.emit("step.started", run=run.id, key=key, name=name, kind=Kind.SCOPE, attempt=1)
    try:
        inside = run.inside(inner)
        value, data, error = await inside.body(
            partial(fn, inside, *args), shape.returns, name, timeout, before
        )
    except asyncio.CancelledError:
        run.record_cancelled(key, name, Kind.SCOPE, started, fingerprint, input)
        raise
    finally:
        inner.leave()
        keeper.leave(inner, outer)
    if scope.closed:
        await never()
    if row is not None and not inner.live:
        return await run.replay(row, shape.returns)
    if row is not None:
        await run.diverge([row, *journal.doomed(scope)])
    finished = journal.row(
        scope.path, key, name, Kind.SCOPE, Outcome.VALUE if error is None else Outcome.ERROR, started, fingerprint,
        input=input, value=data, error=None if error is None else journal.redact(error_bytes(error)),
    )  # fmt: skip
    if inner.walked:
        finished.version = WALKED
    scope.prompt = inner.prompt or scope.prompt
    scope.live = True
    await run.commit(finished)
    if error is not None:
        raise error
    return value


def encoded_arguments(name: str, args: tuple[Any, ...]) -> bytes:
    try:
        return within_limit(canonical(args))
    except (NotJSON, ValueTooLarge) as problem:
        raise StepError(type(problem).__name__, f"step {name!r}: arguments: {problem}") from None


async def _called(run: Steps, fn: Callable[..., Any], args: tuple[Any, ...], shape: Shape) -> Any:
    if shape.is_async:
        return await fn(*args)
    return await awaited(await run.keeper.threads.call(fn, *args))
