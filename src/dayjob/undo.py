"""Taking back what a run did: each effect once, the latest first, a finished child's with its parent's.

An undo is itself a write with an intent. One that fails, or whose outcome is unknown, is not tried again:
it leaves the run marked as needing attention.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import is_
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import orjson

from dayjob.effects import called, name_of, outcome_is_unknown, probed, undo_of
from dayjob.errors import DayjobError, InputError, NotDone, StepError, step_error_of, text_of
from dayjob.jobs import Job
from dayjob.journal import Journal, error_bytes
from dayjob.keys import UNDO_SCOPE, Fate, fate_of, undo_key
from dayjob.runs import Kind, Outcome, Status, StepRecord
from dayjob.shapes import parameter_types
from dayjob.steps import cancellings, patiently
from dayjob.stores import Store
from dayjob.threads import Threads
from dayjob.tools import Call, Tool, Undo
from dayjob.values import decode, digest, encode

UNDO_SECONDS = 60.0
"""How long an undo may take whose tool names no timeout."""
LOOK_SECONDS = 0.1
_MANY = 5_000
_STANDING = frozenset({Status.COMPLETED, Status.INCOMPLETE})
"""Children that ended so leave it to their parent to undo what they did."""


class Done(NamedTuple):
    """An effect of a run or of one of its children, with the job whose code made it."""

    row: StepRecord
    job: Job | None
    undone: StepRecord | None = None
    """Its undo by the child itself, or by a child that had started it."""


class Unwinding:
    """Undoes the effects of a run, and records that in its journal."""

    def __init__(
        self,
        journal: Journal,
        job: Job,
        jobs: Mapping[str, Job],
        tools: Mapping[str, Tool[..., Any]],
        undos: Mapping[str, Undo],
        lease_seconds: float,
        threads: Threads,
        warn: Callable[[str, str], None],
        announce: Callable[[StepRecord], None],
    ) -> None:
        self.journal = journal
        self.store: Store = journal.store
        self._job = job
        self._jobs = jobs
        self._tools = tools
        self._undos = undos
        self._lease_seconds = lease_seconds
        self._threads = threads
        self._warn = warn
        self._announce = announce
        self.failed: list[str] = []
        """The keys of what could not be undone."""

    async def effects(self, after: int = 0) -> list[Done]:
        """What there is to undo that finished after a seq, the latest first; calls of unknown outcome come before."""
        return [done async for done in self._effects_of(self.journal.run, self._job, after, {})]

    async def undo(self, effects: Sequence[Done]) -> list[str]:
        """Undoes them in this order; returns the keys of those that could not be."""
        for done in effects:
            if not await self._tried(done):
                self.failed.append(done.row.key)
        return self.failed

    async def _tried(self, done: Done) -> bool:
        """One that goes wrong in whatever way does not keep the others from being undone."""
        before = cancellings()
        try:
            return await self._undo(done)
        except asyncio.CancelledError:
            if cancellings() > before:
                raise
            problem = "it cancelled itself"
        except (Exception, SystemExit) as unforeseen:
            problem = f"{type(unforeseen).__name__}: {text_of(unforeseen)}"
        self._warn(done.row.key, f"needs attention: it could not be undone: {problem}")
        return False

    async def _effects_of(
        self, run: str, job: Job | None, after: int, undone: Mapping[str | None, StepRecord]
    ) -> AsyncIterator[Done]:
        found = await patiently(lambda: self.store.effects(run))
        rows = [row for row in found if row.scope != UNDO_SCOPE]
        if run != self.journal.run:
            undone = {**undone, **{row.call_key: row for row in found if row.scope == UNDO_SCOPE}}
        latest = {row.call_key: row for row in rows if row.call_key is not None}
        mine = [row for row in rows if row.call_key is None or latest[row.call_key] is row]
        lines = {row.child: await patiently(partial(self.store.line, row.child)) for row in mine if row.child}

        def place(row: StepRecord) -> float:
            """When it finished; that of a child which ended unnoticed is after all that had finished by then."""
            line = lines.get(row.child or "", [])
            if row.seq is not None or not line or line[0].ended is None:
                return row.seq or float("inf")
            earlier = (each.seq for each in mine if each.seq and (each.ended or 0.0) <= line[0].ended)
            return max(earlier, default=0) + 0.5

        for row in sorted(mine, key=place, reverse=True):
            if place(row) <= after:
                continue
            if row.kind != Kind.RUN:
                if (row.undo and fate_of(row) is Fate.DONE) or fate_of(row) is Fate.UNKNOWN:
                    yield Done(row, job, undone.get(undo_key(row.call_key or "")))
                continue
            line = lines.get(row.child or "", [])
            for child in line if line and line[0].status.is_terminal else ():
                if child.status in _STANDING:
                    async for done in self._effects_of(child.id, self._jobs.get(child.job), 0, undone):
                        yield done

    async def _undo(self, done: Done) -> bool:
        row = done.row
        if done.undone is not None and done.undone.outcome == Outcome.VALUE:
            return True
        tool = self._tool_of(done)
        if fate_of(row) is Fate.UNKNOWN and not await self._find_out(row, tool):
            return False
        if fate_of(row) is not Fate.DONE or row.undo is None or row.call_key is None:
            return True
        intent = self.journal.effects.latest(undo_key(row.call_key))
        if intent is not None and intent.outcome is not None:
            return intent.outcome == Outcome.VALUE
        undos = self._undos_of(done, tool)
        undo = undos[0] if len(undos) == 1 else None
        if intent is not None and not _may_be_repeated(undo):
            return await self._fail(
                intent, StepError("Unknown", "cut off: it may or may not have been undone"), True
            )
        if intent is None:
            intent = self._intent(row)
            self.journal.effects.note(intent)
            await self.journal.commit((intent,))
        if done.undone is not None:
            return await self._fail(
                intent, StepError("NotUndone", f"{done.undone.run} tried to undo it, and could not")
            )
        if undo is None:
            return await self._fail(intent, _not_the_one(row.undo, undos))
        return await self._call(intent, undo, row, tool)

    def _intent(self, row: StepRecord) -> StepRecord:
        child = "" if row.run == self.journal.run else f"{row.run}/"
        return self.journal.row(
            UNDO_SCOPE, f"{UNDO_SCOPE}/{child}{row.key}@{row.attempt}", f"undo {row.name}", Kind.TOOL, None,
            self.journal.clock(), digest((row.call_key or "").encode()), input=row.input,
            call_key=undo_key(row.call_key or ""),
        )  # fmt: skip

    async def _call(
        self, intent: StepRecord, undo: Undo, row: StepRecord, tool: Tool[..., Any] | None
    ) -> bool:
        fn = undo.fn if isinstance(undo, Tool) else undo
        before = cancellings()
        try:
            call, result = _call_of(row, tool), decode(row.value or b"null", _declared(fn))
            async with asyncio.timeout(tool.timeout if tool and tool.timeout else UNDO_SECONDS):
                came_to = await called(self._threads, fn, call, result)
        except asyncio.CancelledError:
            if cancellings() > before:
                raise
            return await self._fail(intent, StepError("CancelledError", "it cancelled itself"), True)
        except (Exception, SystemExit) as problem:
            error = step_error_of(problem, row.key)
            return await self._fail(intent, error, outcome_is_unknown(problem, tool or _NO_TOOL))
        try:
            data = self.journal.redact(encode(came_to))
        except Exception:  # it was undone, whatever it gave
            data = b"null"
        self.journal.finish(intent, Outcome.VALUE, data)
        await self.journal.commit(update=(intent,))
        self._announce(intent)
        return True

    async def _fail(self, intent: StepRecord, error: StepError, unknown: bool = False) -> bool:
        self.journal.finish(
            intent, Outcome.ERROR, None, self.journal.redact(error_bytes(error, unknown=unknown))
        )
        await self.journal.commit(update=(intent,))
        self._announce(intent)
        self._warn(intent.key, f"needs attention: it could not be undone: {error}")
        return False

    async def _find_out(self, row: StepRecord, tool: Tool[..., Any] | None) -> bool:
        """Asks the probe what became of a call. False: nobody knows, and a person has to look."""
        if tool is None or tool.probe is None:
            self._warn(row.key, "needs attention: nobody knows whether it happened")
            return False
        quiet = max(row.started + self._lease_seconds + (tool.timeout or 0.0), row.due or 0.0)
        while (left := quiet - self.journal.clock()) > 0:  # a look at the clock now and then: it may be set
            await asyncio.sleep(min(left, LOOK_SECONDS))
        found = await probed(self._threads, tool, _call_of(row, tool), partial(self._warn, row.key))
        if found is None:
            self._warn(row.key, "needs attention: nobody knows whether it happened")
            return False
        row.due = None
        if isinstance(found, NotDone):
            self.journal.finish(row, Outcome.ERROR, None, error_bytes(_not_done(row), not_done=True))
        else:
            self._finish_found(row, found.value)
        if row.run == self.journal.run:
            await self.journal.commit(update=(row,))
        return True

    def _finish_found(self, row: StepRecord, value: Any) -> None:
        try:
            self.journal.finish(row, Outcome.VALUE, self.journal.redact(encode(value)))
        except DayjobError as problem:
            error = StepError(type(problem).__name__, f"what its probe found: {problem}", step=row.key)
            self.journal.finish(row, Outcome.ERROR, None, self.journal.redact(error_bytes(error, done=True)))

    def _tool_of(self, done: Done) -> Tool[..., Any] | None:
        """The tool that was called: as this process has it, or the only such one that the job's code mentions."""
        row = done.row
        if row.kind != Kind.TOOL:
            return None
        tool = self._tools.get(row.key) if row.run == self.journal.run else None
        if tool is not None and (row.outcome != Outcome.SUPERSEDED or _has_made(tool, row)):
            return tool
        found = _different([each for each in _reachable(done.job) if _has_made(each, row)])
        return found[0] if len(found) == 1 else None

    def _undos_of(self, done: Done, tool: Tool[..., Any] | None) -> list[Undo]:
        """The functions that may be meant: the one that this process was given, or those of its name."""
        row = done.row
        if tool is not None and tool.undo is not None:
            return [tool.undo]
        undo = self._undos.get(row.key) if row.run == self.journal.run else None
        if undo is not None and (row.outcome != Outcome.SUPERSEDED or name_of(undo) == row.undo):
            return [undo]
        return _different([each for each in _reachable(done.job) if name_of(each) == row.undo])


def _not_the_one(name: str, found: Sequence[Undo]) -> StepError:
    if found:
        return StepError(
            "Ambiguous", f"{name}: more than one function of that name is in reach of the job's code"
        )
    return StepError("NotFound", f"{name}: is not in reach of the job's code")


def _nothing() -> None:
    pass


_NO_TOOL = Tool(_nothing, "undo")


def _may_be_repeated(undo: Undo | None) -> bool:
    return isinstance(undo, Tool) and undo.effect != "write"


def _not_done(row: StepRecord) -> StepError:
    return StepError("NotDone", f"{row.name}: it did not happen", step=row.key)


def _call_of(row: StepRecord, tool: Tool[..., Any] | None) -> Call:
    """The call as it was recorded, its arguments of the tool's own types."""
    input = orjson.loads(row.input or b"{}")
    arguments = input["arguments"] if isinstance(input, dict) else {"args": input}
    if tool is not None:
        with contextlib.suppress(InputError):  # recorded by older code: as JSON, then
            arguments = tool.validate(arguments)
    return Call(row.call_key or "", row.run, row.key, row.attempt, row.name, arguments)


def _declared(undo: Callable[..., Any]) -> Any:
    """The type that the undo wants its result in."""
    types = parameter_types(undo)
    return types[1] if len(types) > 1 else Any


def _has_made(found: Any, row: StepRecord) -> bool:
    """Whether it is the tool of a call, as far as names tell."""
    if not isinstance(found, Tool) or found.name != row.name or undo_of(found) != row.undo:
        return False
    return orjson.loads(row.input or b"{}").get("function") in (None, name_of(found))


def _different(found: Sequence[Any]) -> list[Any]:
    """Of equally named functions those that may do different things; not what others of them are made of."""
    inner = {id(part) for each in found for part in _inside(each)}
    kept: list[Any] = []
    for each in found:
        if id(each) not in inner and not any(_are_same(each, other) for other in kept):
            kept.append(each)
    return kept


def _inside(fn: Any) -> Iterator[Any]:
    while (fn := fn.fn if isinstance(fn, Tool) else getattr(fn, "__wrapped__", None)) is not None:
        yield fn


def _are_same(one: Any, other: Any) -> bool:
    """Whether two objects are one function, made twice: of the same code, over the same values."""
    if isinstance(one, Tool) and isinstance(other, Tool):
        return all(map(_are_same, (one.fn, one.undo, one.probe), (other.fn, other.undo, other.probe)))
    if one is other:
        return True
    parts, others = _parts(one), _parts(other)
    return 0 < len(parts) == len(others) and all(map(is_, parts, others))


def _parts(fn: Any) -> list[Any]:
    if isinstance(fn, FunctionType):
        return [fn.__code__, *_cells(fn), *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    if isinstance(fn, MethodType):
        return [fn.__func__, fn.__self__]
    if isinstance(fn, partial):
        return [fn.func, *fn.args, *fn.keywords, *fn.keywords.values()]
    return []


def _reachable(job: Job | None) -> Iterator[Any]:
    """The tools and functions that a job's code mentions by name, and those that these mention."""
    waiting: list[Any] = [] if job is None else [inspect.unwrap(job.fn)]
    seen: set[int] = set()
    while waiting and len(seen) < _MANY:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tool):
            yield found
            waiting += [found.fn, found.undo]
        elif isinstance(found, Job):
            waiting.append(inspect.unwrap(found.fn))
        elif isinstance(found, partial):
            yield found
            waiting += [found.func, *found.args]
        elif isinstance(found, MethodType):
            yield found
            waiting += _mentioned(found.__func__)
        elif isinstance(found, FunctionType) and not found.__module__.startswith("dayjob."):
            yield found
            waiting += _mentioned(found)
        elif isinstance(found, list | tuple):
            waiting += found
        elif isinstance(found, dict):
            waiting += found.values()


def _mentioned(fn: Any) -> list[Any]:
    names = set(_names(fn.__code__))
    globals_ = [fn.__globals__[name] for name in names if name in fn.__globals__]
    modules = [each for each in globals_ if isinstance(each, ModuleType)]
    in_modules = [vars(module)[name] for module in modules for name in names if name in vars(module)]
    return [*globals_, *in_modules, *_cells(fn)]


def _cells(fn: FunctionType) -> list[Any]:
    cells = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return cells


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
