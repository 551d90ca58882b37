"""Tools under their contract: what may be done again after a crash, and what must not.

    read         one row, when it is done
    idempotent   the same, and always sent with the same `call.key`
    write        a row before it is sent, the intent, and one update of it: done, failed or unknown;
                 so is an idempotent call that can be undone, or whose key its receiver forgets

A write whose outcome is unknown never goes to the model as an error that invites a second payment. It
is resolved first: by the tool's own `probe`, else by a person who is asked "did this happen?".
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dayjob.calls import FunctionCall, call_function
from dayjob.errors import (
    InputError,
    IntentRefused,
    NotDone,
    NotJSON,
    StepError,
    Unknown,
    ValueTooLarge,
    text_of,
)
from dayjob.journal import error_bytes
from dayjob.keys import Fate, fate_of
from dayjob.retry import NO_RETRY, decide
from dayjob.runs import Kind, Outcome, StepRecord
from dayjob.shapes import shape_of
from dayjob.spending import hold_step
from dayjob.steps import APPROVE, HAPPENED, MISSING, Steps, awaited, cancellings, never
from dayjob.threads import Threads
from dayjob.tools import Call, Deadline, Tool
from dayjob.values import REDACTED, canonical, convert, decode, digest, schema_of, secrets_in, within_limit

PROBE_SECONDS = 60.0
PROBE_DELAYS = (0.5, 1.0, 2.0)
"""A probe that fails is tried again after so many seconds each; then a person is asked."""
PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""A receiver that knows the key is asked again after so many seconds each, and then as after the last."""

_YES_OR_NO = {"type": "boolean"}
_NOT_SENT = frozenset(
    {
        "ConnectError", "ConnectTimeout", "ConnectTimeoutError", "PoolTimeout", "NewConnectionError",
        "NameResolutionError", "EndpointConnectionError", "ClientConnectorError", "gaierror",
    }
)  # fmt: skip
_LOST_ON_THE_WAY = frozenset(
    {
        "TransportError", "ClientConnectionError", "ClientPayloadError", "ConnectionError", "ConnectionClosed",
        "ConnectionClosedError", "Timeout", "TimeoutError", "TimeoutExpired", "HTTPException", "ProtocolError",
        "ChunkedEncodingError", "SSLEOFError", "SSLZeroReturnError", "SSLSyscallError", "SMTPServerDisconnected",
    }
)  # fmt: skip
"""Classes by name: those of httpx, aiohttp, requests, urllib3, botocore, websockets and of Python itself."""
_NETWORK_GONE = frozenset(
    {errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
_SERVER_ERROR = 500


class Found(NamedTuple):
    """A call turned out to have been done, with this result."""

    value: Any


class _Sent(NamedTuple):
    data: bytes | None = None
    error: StepError | None = None
    unknown: bool = False
    delay: float | None = None


class ToolStep:
    """One call of a tool by a run, as one step."""

    def __init__(self, run: Steps, tool: Tool[..., Any], key: str, given: dict[str, Any]) -> None:
        self.run = run
        self.tool = tool
        self.key = key
        self.name = tool.name
        self.journal = run.journal
        self.shape = copy(shape_of(tool.fn))
        self.shape.is_async = True
        self.attempt = 0
        self.abandoned = False
        self.refusal: StepError | None = None
        self.verdict: bool | None = None
        self.call_key = ""
        try:
            self.arguments = deepcopy(tool.validate(given))  # the job may go on changing what it gave
        except InputError as problem:
            self.arguments = self._veiled(given)
            self.refusal = StepError("InvalidArguments", str(problem), step=key)
        self.journal.redact.learn(secrets_in(self.arguments))
        try:
            self.written = self.journal.redact(within_limit(canonical(self.arguments)))
        except (NotJSON, ValueTooLarge) as problem:
            self.written = b"{}"
            self.refusal = self.refusal or StepError(
                type(problem).__name__, f"{self.name}: arguments: {problem}", step=key
            )
        self.fingerprint = digest(orjson.dumps(self.name) + self.written)

    async def perform(self) -> Any:
        """The tool's result: the recorded one, or that of the one call which the contract allows."""
        run, tool = self.run, self.tool
        row = await run.find(self.key, self.name, Kind.TOOL, self.fingerprint)
        run.keeper.tools[self.key if row is None else row.key] = tool
        if row is not None and row.outcome is not None:
            return await run.replay(row, self.shape.returns)
        await run.live()
        if row is not None and row.call_key is None:
            return await self._client_does_it(row)
        if row is not None and row.fingerprint != self.fingerprint:
            run.keeper.fatal(
                f"{self.key!r} was begun with other arguments, and nobody knows whether it was done: "
                "the job is not deterministic"
            )
            return await never()
        if row is not None:
            return await self._resolve(row)
        if self.refusal is not None:
            return await self._fail(self.refusal)
        if tool.effect != "read" and (adopted := self._adoptable()) is not None:
            return await self._adopt(adopted)
        await self._be_approved()
        if tool.external:
            return await self._client_does_it(None)
        if tool.effect == "write" or tool.key_lifetime is not None or tool.undo is not None:
            return await self._write()
        return await self._call()

    # --- reads, and what may be repeated -----------------------------------------------------------

    async def _call(self) -> Any:
        tool = self.tool
        if tool.effect == "read":
            self.call_key = digest(f"{self.run.id} {self.key}".encode()).hex()
        else:
            self.call_key, _ = self.journal.effects.assign(self.name, self.written)
        step = FunctionCall(
            self.key, self.name, self._invoke, (), self.shape, self._input(), self.fingerprint, tool.timeout, Kind.TOOL,
            None if tool.effect == "read" else self.call_key, undo_of(tool), self._prepare,
        )  # fmt: skip
        return await call_function(self.run, step, tool.retry or NO_RETRY)

    async def _prepare(self) -> Callable[[], None]:
        """Waits for a place, and for the word that the run was not cancelled; returns how to give the place back."""
        release = await self.run.keeper.slot(self.tool)
        try:
            if self.tool.effect != "read":
                await self._be_allowed(self.journal.commit(intent=True))
        except asyncio.CancelledError:
            release()
            raise
        return release

    async def _invoke(self) -> Any:
        self.attempt += 1
        arguments = (self._as_call(),) if self.tool.wants_call else ()
        return await called(self.run.keeper.threads, self.tool.fn, *arguments, **self.arguments)

    def _as_call(self) -> Call:
        return Call(self.call_key, self.run.id, self.key, max(self.attempt, 1), self.name, self.arguments)

    # --- writes ------------------------------------------------------------------------------------

    async def _write(self) -> Any:
        self.call_key, adopted = self.journal.effects.assign(self.name, self.written)
        if adopted is not None:
            return await self._adopt((self.call_key, adopted))
        return await self._see_through(None)

    async def _see_through(self, row: StepRecord | None) -> Any:
        """Makes the call, or finds out about the one that was made, until it is done or has failed for good."""
        tries = len(self.journal.retries_of(self.key))
        pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
        sent = _Sent()
        while True:
            if sent.unknown and sent.error is not None and self._may_be_repeated(row):
                await self.run.pause(self.key, tries, next(pauses), sent.error)
            if row is None:
                tries += 1
                with self._given_up():
                    await self._reserve()
                row = self._row(None)
                sent = await self._intend_and_send(row, tries, insert=True)
            else:
                sent = await self._find_out(row, max(tries, 1))
            if sent.delay is not None and sent.error is not None:
                with self._given_up():
                    await self.run.pause(self.key, tries, sent.delay, sent.error)
                row = None
            elif not sent.unknown:
                break
        if sent.error is not None:
            raise sent.error
        return decode(sent.data or b"null", self.shape.returns)

    async def _intend_and_send(
        self, row: StepRecord, tries: int, insert: bool, spent: tuple[str, int] | None = None
    ) -> _Sent:
        """Sends it once the intent is durable, in a task of its own: what has begun is not cut off, but recorded."""
        if insert:
            with self._given_up():
                release = await self.run.keeper.slot(self.tool)
        else:
            await self._reserve()
            release = await self.run.keeper.slot(self.tool)
        self.journal.effects.note(row)
        self.journal.open[row.key] = row
        now = self.journal.clock()
        if insert:
            row.started = now
        else:
            row.due, row.error = self._quiet_after(now), None
        try:
            rows: dict[str, Any] = {"insert": (row,)} if insert else {"update": (row,)}
            if spent is not None:
                rows["supersede"] = (spent,)
            await self._be_allowed(self.journal.commit(**rows, intent=True))
            if not self.run.keeper.valid(self.journal.clock()):
                await self.run.keeper.ready(self.run.scope)
        except asyncio.CancelledError:
            release()
            if insert:  # it was not sent, and never will be; a copy, since the intent may not be written yet
                row = copy(row)
                self._finish(row, Outcome.CANCELLED, error=error_bytes(_not_sent(self.name), not_done=True))
                self.journal.put(update=(row,))
            raise
        task = self.run.keeper.send(self._sending(row, tries), self.tool.timeout)
        task.add_done_callback(lambda _: release())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.abandoned = not self.run.scope.closed
            raise

    async def _reserve(self) -> None:
        """Each sending is a step of the run's budget."""
        if self.run.keeper.budget is not None and (held := await hold_step(self.run, self.key)) is not None:
            held.spend_all()

    def _given_up(self) -> AbstractContextManager[None]:
        return self.run.given_up(self.key, self.name, Kind.TOOL, self.fingerprint, self._input())

    async def _be_allowed(self, intent: asyncio.Future[None]) -> None:
        """Goes on once the intent is durable, and never if the run was cancelled before."""
        try:
            await intent
        except IntentRefused:
            self.run.keeper.poke()
            await never()

    async def _sending(self, row: StepRecord, tries: int) -> _Sent:
        run, tool, keeper = self.run, self.tool, self.run.keeper
        if keeper.events.active:
            keeper.events.emit(
                "step.started", run=run.id, key=self.key, name=self.name, kind=Kind.TOOL, attempt=tries
            )
        before = cancellings()
        limit = asyncio.timeout(tool.timeout)
        keeper.busy += 1
        try:
            async with limit:
                value = await self._invoke()
        except asyncio.CancelledError:
            if cancellings() > before:  # the worker is gone, and the outcome unknown
                raise
            sent = _Sent(error=StepError("CancelledError", f"{self.name!r} cancelled itself"), unknown=True)
        except (Exception, SystemExit) as problem:
            perhaps = outcome_is_unknown(problem, tool)
            error = run.step_error(self.key, self.name, problem, tool.timeout if limit.expired() else None)
            sent = self._delayed(_Sent(error=error, unknown=perhaps and tool.effect == "write"), tries)
            await self._record_failure(row, sent, perhaps=perhaps, not_done=isinstance(problem, NotDone))
            return sent
        else:
            return await self._record_value(row, value)
        finally:
            keeper.busy -= 1
        await self._record_failure(row, sent, perhaps=True)
        return sent

    async def _record_value(self, row: StepRecord, value: Any) -> _Sent:
        try:
            data = self.run.encode(f"tool {self.name!r}", value, self.shape.returns)
            decode(data, self.shape.returns)
        except (StepError, InputError) as unstorable:
            problem = self.run.step_error(self.key, self.name, unstorable)
            message = f"{problem.message}. It was done: do not repeat it"
            problem = StepError(problem.type, message, step=self.key)
            await self._settle(row, Outcome.ERROR, error=error_bytes(problem, done=True))
            return _Sent(error=problem)
        await self._settle(row, Outcome.VALUE, data)
        return _Sent(data)

    async def _record_failure(
        self, row: StepRecord, sent: _Sent, *, perhaps: bool, not_done: bool = False
    ) -> None:
        """`perhaps` it was done nevertheless: of a write that has to be found out first, of others just be known."""
        assert sent.error is not None
        if sent.unknown:
            row.error = self.journal.redact(error_bytes(sent.error, unknown=True))
            self.run.keeper.warn(self.key, f"its outcome is unknown: {sent.error}")
            await self.journal.commit(update=(row,))
            return
        again = sent.delay is not None
        error = error_bytes(sent.error, retried=again, unknown=perhaps, not_done=not_done)
        await self._settle(row, Outcome.SUPERSEDED if again else Outcome.ERROR, error=error)

    def _delayed(self, sent: _Sent, tries: int) -> _Sent:
        """With the policy's delay, if it may be tried again: never while its outcome is unknown."""
        if sent.unknown or sent.error is None or self.abandoned or self.run.scope.closed:
            return sent
        again, _ = decide(self.tool.retry or NO_RETRY, tries, sent.error)
        return sent if again is None else sent._replace(delay=again.delay)

    async def _settle(
        self, row: StepRecord, outcome: Outcome, data: bytes | None = None, error: bytes | None = None
    ) -> None:
        """Ends the intent; if the job gave up waiting for it, it replays as given up, with what came of it."""
        self._finish(row, Outcome.CANCELLED if self.abandoned else outcome, data, error)
        await self.journal.commit(update=(row,))
        if self.run.keeper.events.active:
            self.run.announce(row)

    def _finish(
        self, row: StepRecord, outcome: Outcome, data: bytes | None = None, error: bytes | None = None
    ) -> None:
        row.due = None
        self.journal.finish(row, outcome, data, None if error is None else self.journal.redact(error))
        self.journal.effects.note(row)

    # --- what nobody knows the outcome of ------------------------------------------------------------

    async def _resolve(self, row: StepRecord) -> Any:
        """Finds out what became of a call: by its receiver's memory of the key, its probe, or a person."""
        self.call_key = row.call_key or ""
        self.journal.effects.note(row)
        self.journal.open[row.key] = row
        return await self._see_through(row)

    async def _find_out(self, row: StepRecord, tries: int) -> _Sent:
        if self._may_be_repeated(row):
            return await self._intend_and_send(row, tries, insert=False)
        found: Found | NotDone | None = None
        if self.tool.probe is not None:
            await self._until_quiet(row)
            found = await probed(self.run.keeper.threads, self.tool, self._as_call(), self._warn)
        if found is None:
            found = await self._ask_what_happened()
        if isinstance(found, Found):
            return await self._record_value(row, found.value)
        if row.error is None:  # a crash cut it off: this is still the same call
            return await self._intend_and_send(row, tries, insert=False, spent=self._spent_answer())
        error = StepError("NotDone", f"{self.name}: {stored_message(row)}. It did not happen", step=self.key)
        await self._settle(row, Outcome.ERROR, error=error_bytes(error, not_done=True))
        return _Sent(error=error)

    def _spent_answer(self) -> tuple[str, int] | None:
        """The answer that it did not happen, once it is acted on: what is sent then may get lost as well."""
        key = self.key + HAPPENED
        return self.journal.spend(self.run.scope, key) if self.journal.was_opened(key) else None

    def _may_be_repeated(self, row: StepRecord | None) -> bool:
        """Whether the receiver still knows the key, counted from when it first got it."""
        if row is None:
            return False
        if self.tool.key_lifetime is None:
            return self.tool.effect == "idempotent"
        return self.journal.clock() - row.started < self.tool.key_lifetime

    async def _until_quiet(self, row: StepRecord) -> None:
        """A frozen worker that thaws may still be sending: until its lease and the tool's time are over."""
        quiet = max(self._quiet_after(row.started), row.due or 0.0)
        if self.journal.clock() < quiet:
            row.due = quiet
            self.journal.put(update=(row,))
            if self.run.keeper.events.active:
                self.run.keeper.events.emit(
                    "step.opened", run=self.run.id, key=self.key, name=self.name, kind=Kind.TOOL, due=quiet
                )
            await self.run.answered(row, mark=False)

    def _quiet_after(self, sent: float) -> float:
        return sent + self.run.keeper.lease_seconds + (self.tool.timeout or 0.0)

    async def _ask_what_happened(self) -> Found | NotDone:
        answer = await self._ask(
            HAPPENED,
            f"Did this happen: {self._shown()}? Nobody knows, and it must not be done twice.",
            _yes_or_no_with(self.shape.returns),
        )
        if answer is False:
            return NotDone(f"{self.name}: a person says that it did not happen")
        result = answer["result"] if isinstance(answer, dict) else None
        with suppress(InputError):  # else it is told where it is recorded
            result = convert(result, self.shape.returns)
        return Found(result)

    def _warn(self, message: str) -> None:
        self.run.keeper.warn(self.key, message)

    # --- people and clients ----------------------------------------------------------------------------

    async def _be_approved(self) -> None:
        """Returns once a person approved these arguments; a refusal is the call's error."""
        try:
            needed = self._was_asked() or self.tool.needs_approval(self.arguments)
        except Exception as problem:
            await self._fail(self.run.step_error(self.key, f"approve= of {self.name}", problem))
            return
        self.verdict = needed if callable(self.tool.approve) else None
        if not needed:
            return
        try:
            approved = await self._ask(
                APPROVE, f"May it do this: {self._shown()}?", _YES_OR_NO, self.tool.deadline
            )
        except StepError as denied:
            await self._fail(denied)
            return
        if not approved:
            reason = self.journal.reasons.get(self.key + APPROVE)
            told = f"{self.name}: a person refused it{f': {reason}' if reason else ''}"
            await self._fail(StepError("Rejected", told, step=self.key))

    def _was_asked(self) -> bool:
        """The verdict that somebody has to approve stands, whatever the predicate says on replay."""
        return self.key + APPROVE in self.run.scope.mine or self.key + APPROVE in self.journal.open

    async def _ask(
        self, name: str, question: str, schema: dict[str, Any], deadline: Deadline | None = None
    ) -> Any:
        """An action of this call's own, bound to its arguments: with others it is asked again."""
        run = self.run
        input = {
            "question": question,
            "tool": self.name,
            "arguments": orjson.loads(self.written),
            "schema": schema,
        }
        key = self.key + name
        fingerprint = digest(canonical(input))
        row = self.journal.find(run.scope, key, name, Kind.ASK, fingerprint)
        if row is not None and row.fingerprint != fingerprint:
            self.journal.put(supersede=[(row.key, row.attempt)])
            self.journal.open.pop(row.key, None)
            row = None
        if row is not None and row.answer_reason is not None:
            self.journal.reasons[key] = row.answer_reason
        return await run.wait_for(key, name, Kind.ASK, input, deadline, Any, row, self._at(deadline))

    async def _client_does_it(self, row: StepRecord | None) -> Any:
        """Waits for the client to execute the tool, and hand in what it gave."""
        deadline = self.tool.deadline
        input = {
            "question": f"Do this, and hand in what it gave: {self._shown()}",
            **orjson.loads(self._input()),
        }
        return await self.run.wait_for(
            self.key, self.name, Kind.TOOL, input, deadline, self.shape.returns, row, self._at(deadline),
            self.fingerprint,
        )  # fmt: skip

    def _at(self, deadline: Deadline | None) -> Any:
        """The answer when nobody has given one in time."""
        if deadline is None or deadline.then == "expire":
            return MISSING
        if deadline.then == "default":
            return deadline.default
        return StepError("Rejected", f"{self.name}: nobody answered in time", step=self.key)

    def _shown(self) -> str:
        arguments = ", ".join(
            f"{name}={orjson.dumps(value).decode()}" for name, value in orjson.loads(self.written).items()
        )
        return f"{self.name}({arguments})"

    # --- small parts -------------------------------------------------------------------------------

    def _adoptable(self) -> tuple[str, StepRecord] | None:
        key, earlier = self.journal.effects.assign(self.name, self.written)
        if earlier is None:
            self.journal.effects.give_back(key)
            return None
        return key, earlier

    async def _adopt(self, adopted: tuple[str, StepRecord]) -> Any:
        """Takes over what changed code left behind: its result, key, approval and undo. Nothing is sent."""
        self.call_key, earlier = adopted
        row = self._row(None)
        row.started = earlier.started
        row.error = earlier.error if fate_of(earlier) is Fate.UNKNOWN else None
        self.journal.effects.note(row)
        self.journal.open[row.key] = row
        self.journal.put((row,))
        if fate_of(earlier) is Fate.UNKNOWN:
            return await self._resolve(row)
        await self._settle(row, Outcome.VALUE, earlier.value or b"null")
        return decode(row.value or b"null", self.shape.returns)

    def _row(self, outcome: Outcome | None, error: bytes | None = None) -> StepRecord:
        row = self.journal.row(
            self.run.scope.path, self.key, self.name, Kind.TOOL, outcome, self.journal.clock(), self.fingerprint,
            input=self._input(), error=error, call_key=self.call_key or None, undo=undo_of(self.tool),
        )  # fmt: skip
        row.code = self.shape.code
        return row

    def _veiled(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments that are of no type yet, without those that should have been secret."""
        secret = {name: given[name] for name in self.tool.secret_arguments & given.keys()}
        self.journal.redact.learn([value for value in secret.values() if isinstance(value, str)])
        self.journal.redact.learn(secrets_in(given))
        return {**given, **dict.fromkeys(secret, REDACTED)}

    def _input(self) -> bytes:
        more: dict[str, Any] = {} if self.verdict is None else {"approval": self.verdict}
        if self.tool.external and self.shape.returns is not Any:
            more["schema"] = schema_of(self.shape.returns)
        if self.tool.undo is not None or self.tool.probe is not None:
            more["function"] = name_of(self.tool)
        head = {"tool": self.name, "effect": self.tool.effect, **more}
        return b'%b,"arguments":%b}' % (orjson.dumps(head)[:-1], self.written)

    async def _fail(self, error: StepError) -> Any:
        """The call was refused before anything was sent."""
        self.call_key = ""
        await self.run.commit(self._row(Outcome.ERROR, self.journal.redact(error_bytes(error))))
        raise error


def _yes_or_no_with(returns: Any) -> dict[str, Any]:
    """The schema of an answer to "did this happen?": no, or yes with its result, or a plain yes if null is one."""
    plain: dict[str, Any] = _YES_OR_NO
    result: dict[str, Any] = {}
    try:
        result = schema_of(returns)
        decode(b"null", returns)
    except InputError:
        plain = {"const": False}
    except Exception:  # pydantic knows no schema of it
        result = {}
    definitions = {"$defs": result.pop("$defs")} if "$defs" in result else {}
    yes = {
        "type": "object",
        "properties": {"result": result},
        "required": ["result"],
        "additionalProperties": False,
    }
    return {"anyOf": [plain, yes], **definitions}


def undo_of(tool: Tool[..., Any]) -> str | None:
    """The name under which the undo is found again, in whatever process."""
    return None if tool.undo is None else name_of(tool.undo)


def name_of(fn: Any) -> str:
    """`module:name` of a function, a tool's own, or of the one that a partial completes."""
    if isinstance(fn, Tool):
        return name_of(fn.fn)
    if isinstance(fn, partial):
        return f"partial {name_of(fn.func)}"
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{_module_of(named)}:{named.__qualname__}"


def _module_of(named: Any) -> str:
    """The module's name as other processes have it, which may import the file that is the program here."""
    name = str(named.__module__).removeprefix("dayjob file ")
    if name != "__main__":
        return name
    spec, file = getattr(sys.modules[name], "__spec__", None), getattr(sys.modules[name], "__file__", None)
    return spec.name if spec is not None else Path(file or name).stem


async def called(threads: Threads, fn: Callable[..., Any], /, *args: Any, **arguments: Any) -> Any:
    """What an async function gives; a sync one runs in a thread."""
    if shape_of(fn).is_async:
        return await fn(*args, **arguments)
    return await awaited(await threads.call(partial(fn, *args, **arguments)))


async def probed(
    threads: Threads, tool: Tool[..., Any], call: Call, warn: Callable[[str], None]
) -> Found | NotDone | None:
    """What the tool's probe found, or None if it does not know either."""
    assert tool.probe is not None
    for delay in (*PROBE_DELAYS, None):
        try:
            async with asyncio.timeout(tool.timeout or PROBE_SECONDS):
                found = await called(threads, tool.probe, call)
        except NotDone as found_out:
            return found_out
        except Exception as problem:
            warn(f"its probe failed: {type(problem).__name__}: {text_of(problem)}")
            if delay is not None:
                await asyncio.sleep(delay)
            continue
        if found is NotDone or isinstance(found, NotDone):
            return found if isinstance(found, NotDone) else found()
        return None if found is None else Found(found)
    return None


def outcome_is_unknown(problem: BaseException, tool: Tool[..., Any]) -> bool:
    """Whether a call that failed so may have been done nevertheless.

    A timeout, a connection lost after sending, and HTTP 5xx may; a connection that was never made may
    not. Looks at what the error was raised from, while handling what, and at the members of a group: a
    second try that was not sent says nothing of the first.
    """
    waiting: list[Any] = [problem]
    seen: set[int] = set()
    not_sent: set[int] = set()
    while waiting:
        cause = waiting.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen or isinstance(cause, NotDone):
            continue
        seen.add(id(cause))
        waiting.append(_raised_while(cause))
        if id(cause) not in not_sent and isinstance(cause, (Unknown, *tool.unknown)):
            return True
        if id(cause) in not_sent or _was_not_sent(cause):
            not_sent.add(id(cause.__cause__))
        elif _was_lost(cause):
            return True
        elif isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        waiting += [cause.__cause__, getattr(cause, "reason", None)]
    return False


def _was_not_sent(problem: BaseException) -> bool:
    return isinstance(problem, ConnectionRefusedError) or bool(_names_of(problem) & _NOT_SENT)


def _was_lost(problem: BaseException) -> bool:
    if (
        isinstance(problem, TimeoutError | ConnectionError | EOFError)
        or _names_of(problem) & _LOST_ON_THE_WAY
    ):
        return True
    gone = isinstance(problem, OSError) and problem.errno in _NETWORK_GONE
    return gone or _status_of(problem) >= _SERVER_ERROR


def _names_of(problem: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(problem).__mro__}


def _raised_while(problem: BaseException) -> BaseException | None:
    """The error that was being handled; `raise … from None` says that it does not matter."""
    hidden = problem.__suppress_context__ and problem.__cause__ is None
    return None if hidden else problem.__context__


def _status_of(problem: BaseException) -> int:
    places = (problem, getattr(problem, "response", None))
    found = (getattr(place, name, None) for place in places for name in ("status_code", "status", "code"))
    return next((status for status in found if isinstance(status, int)), 0)


def stored_message(row: StepRecord) -> str:
    return str(orjson.loads(row.error or b"{}").get("message", "it was cut off"))


def _not_sent(name: str) -> StepError:
    return StepError("CancelledError", f"{name!r} was cancelled before it was sent")
