"""`Run`: what a job is given. Each awaited verb replays a recorded step, or does it and records it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import orjson

from dayjob.calls import FunctionCall, call_function, call_scoped, encoded_arguments
from dayjob.collection import Collection, Err, Ok
from dayjob.effects import ToolStep, name_of
from dayjob.errors import InputError, StepError
from dayjob.jobs import Request
from dayjob.join import Join
from dayjob.journal import Scope, error_bytes
from dayjob.kept import MessageRecord, is_said
from dayjob.limits import Left
from dayjob.models import Message, Model
from dayjob.replies import ModelCall, Reply
from dayjob.retry import MODEL_RETRY, NO_RETRY, RetryPolicy
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord, new_id
from dayjob.shapes import shape_of
from dayjob.steps import MISSING, Keeper, Steps, never, patiently
from dayjob.tools import Deadline, Tool, Undo, as_tool
from dayjob.values import canonical, digest, schema_of, seconds_of, timeout_of

PROGRESS_SECONDS = 0.25
_CHILD_ERRORS = {
    Status.FAILED: "RunFailed",
    Status.CANCELLED: "RunCancelled",
    Status.EXPIRED: "RunExpired",
    Status.INCOMPLETE: "RunIncomplete",
}


class Run(Steps):
    """One execution of a job, in the job's hands: a sequential scope of journaled steps.

    Await its verbs one after another; concurrency is `gather`, `map`, `race` and `collect`. What a step returned
    before a crash is what it returns after it. A step that failed raises StepError.
    """

    def __init__(self, keeper: Keeper, scope: Scope) -> None:
        super().__init__(keeper, scope)
        self._progress_at = 0.0

    # --- who this is ---------------------------------------------------------------------------

    @property
    def job(self) -> str:
        """The name of the job."""
        return self.keeper.record.job

    @property
    def attempt(self) -> int:
        """1, and one more for each worker in a row that died without finishing a step of this run."""
        return self.keeper.record.attempts + 1

    @property
    def limits(self) -> Left | None:
        """What this run, with all its family, has left of its limits; None without limits.

        It is what is left now, on replay too: what the path of the job depends on belongs into a step.
        """
        budget = self.keeper.budget
        return None if budget is None else budget.left(self.journal.clock())

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
        undo: Undo | None = None,
    ) -> Any:
        """Calls a function once: its outcome is durable before this returns, and is what every replay returns.

        Sync functions run in a thread. If the function's first parameter is annotated `Run`, it gets a
        scope of its own, and one row stands for all that happened inside once it is complete. Arguments
        are JSON values, dataclasses or pydantic models; the result may be of any type that pydantic
        knows. `undo(call, result)` takes it back if the run ends otherwise than completed, or at
        `rollback`; it is found again after a crash if the job's code mentions it by name. Raises
        StepError if the function raises, takes longer than `timeout` seconds, or returns what is no JSON.
        """
        if timeout is not None:
            timeout = timeout_of(timeout)
        shape = shape_of(fn)
        name = name or shape.name
        key = await self.begin(name)
        scope, journal = self.scope, self.journal
        try:
            input = journal.redact(encoded_arguments(name, args)) if args else b"[]"
            call = FunctionCall(key, name, fn, args, shape, input, digest(input), timeout)
            if undo is not None:
                call = call._replace(call_key=journal.step_key(key), undo=name_of(undo))
            if shape.takes_run:
                if retry is not None or undo is not None:
                    raise InputError(
                        f"step {name!r}: retry= and undo= belong to the steps inside a function that takes a Run"
                    )
                return await call_scoped(self, call)
            row = await self.find(key, name, Kind.CALL, call.fingerprint, shape.code)
            if undo is not None:
                self.keeper.undos[key if row is None else row.key] = undo
            if row is not None:
                return await self.replay(row, shape.returns)
            return await call_function(self, call, retry or NO_RETRY)
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
        append: bool = False,
        **options: Any,
    ) -> Reply:
        """One model call. Nothing is added to what you wrote.

        `prompt` is a text or chat-style messages; `instructions` become the first, a system message.
        `tools` are tools, typed functions or function definitions; they are offered, not executed.
        With `returns` (a type), its JSON schema is sent, and the answer is validated: one that does not
        fit is sent back with the validation error, at most `corrections` times, each time a row of its
        own. With `append`, the answer becomes a message of the run's thread, in the same transaction; so does what was
        said of one that is cut off. `options` go to the model as they are. Raises StepError: of type ModelRefused,
        ModelUnavailable and so on, or InvalidAnswer.
        """
        timeout = timeout_of(timeout)
        key = await self.begin(name)
        try:
            call = ModelCall(prompt, model, instructions, tools, returns, max_tokens, options, append)
            return await call.perform(self, key, name, retry, timeout, corrections)
        finally:
            self.scope.current = None

    async def tool(self, tool: Tool[..., Any] | Callable[..., Any], /, **arguments: Any) -> Any:
        """Calls a tool under its contract, and gives its result.

        A read may be done again after a crash, an idempotent call is, with the same `call.key`, and a write
        is not: it is recorded before it is sent, and one whose outcome nobody knows is looked into by the
        tool's `probe`, or by a person. The arguments are validated first, and approved by a person if the
        tool asks for it. Raises StepError: of type InvalidArguments, Rejected, NotDone, or the tool's own.
        """
        tool = as_tool(tool)
        key = await self.begin(tool.name)
        try:
            return await ToolStep(self, tool, key, arguments).perform()
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
        calls: list[tuple[str, Callable[[Run], Any], Any]] = [
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

    async def collect(
        self,
        fn: Callable[[Run, Any], Any],
        items: Iterable[Any],
        key: Callable[[Any], str] | None = None,
        limit: int | None = None,
        quorum: int | None = None,
        after: Callable[[Run, Ok | Err], Any] | None = None,
        name: str = "collect",
    ) -> list[Ok | Err]:
        """Runs `fn(run, item)` for each item side by side, and hears them all out: no error ends it.

        Gives `Ok(value, item)` or `Err(error, item)`, in input order. With `quorum`, the branches that still
        run when so many have succeeded are cancelled: an Err of type Cancelled. `after(run, outcome)` is
        called when a branch has ended, for one after the other; an error of it ends the collection. In
        `fn` and in `after`, `await run.more(item)` adds an item; its outcome stands behind the others.
        """
        if limit is not None and limit < 1:
            raise InputError(f"collect {name!r}: limit must be at least 1, got {limit}")
        if quorum is not None and (quorum < 1 or after is not None):
            raise InputError(f"collect {name!r}: quorum must be at least 1, and goes without after=")
        step = await self.begin(name)
        try:
            collection = Collection(self, step, name, fn, list(items), key, limit, quorum, after)
            return list(await collection.perform())
        finally:
            self.scope.current = None

    async def more(self, item: Any) -> None:
        """Adds an item to the `collect` that this branch, or this `after`, belongs to; it begins at once.

        Elsewhere InputError is raised, in a scope inside a branch too: once that is done, nobody walks it again.
        """
        if self.scope.more is None:
            raise InputError(
                "more: only a branch of run.collect itself, or its after=, can add an item, not a scope inside it"
            )
        await self.scope.more(self, item)

    # --- waiting -------------------------------------------------------------------------------

    async def ask(
        self,
        question: str,
        returns: Any = str,
        timeout: float | None = None,
        default: Any = MISSING,
        name: str = "ask",
    ) -> Any:
        """Waits for a person to answer; the run takes no memory meanwhile.

        `returns` is the type of the answer, checked when it is given. After `timeout` seconds the
        answer is `default`; without one the run expires.
        """
        deadline = _deadline(timeout)
        schema = {} if returns is Any else schema_of(returns)
        input = {"question": question, "schema": schema}
        return await self.wait(name, Kind.ASK, input, deadline, returns, default)

    async def event(
        self, name: str, returns: Any = Any, timeout: float | None = None, default: Any = MISSING
    ) -> Any:
        """Waits for a value sent by another system under this name, before or after this call.

        Values sent under one name are received in order, each once. After `timeout` seconds it is
        `default`; without one StepError of type Timeout is raised. With a timeout of 0 it does not wait:
        it gives what was sent before.
        """
        return await self.wait(name, Kind.EVENT, {"event": name}, _deadline(timeout), returns, default)

    async def sleep(self, seconds: float, name: str = "sleep") -> None:
        """Waits; the run takes no memory meanwhile, and wakes on time whatever happens to its worker."""
        seconds = seconds_of("seconds", seconds, or_past=True)
        await self.wait(name, Kind.SLEEP, {"seconds": seconds}, Deadline(seconds), Any)

    async def start(self, request: Request, name: str | None = None) -> Child:
        """Starts a child run; `child.result()` waits for it. Cancelling this run cancels its children."""
        if not isinstance(request, Request):
            raise InputError(
                f"start: expected a request, as calling a job gives, got {type(request).__name__}"
            )
        name = name or request.job.name
        key = await self.begin(name)
        try:
            input = self.journal.redact(request.input)
            await self.keeper.know(request.job)
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
        return float(await self.value("now", self.journal.clock))

    async def random(self) -> float:
        """A number in [0, 1); the same on replay."""
        return float(await self.value("random", random.random))

    async def uuid(self) -> str:
        """A random UUID; the same on replay."""
        return str(await self.value("uuid", lambda: str(uuid.uuid4())))

    async def remember(self, name: str, value: Any) -> None:
        """Keeps a value under a name, for this and all later runs of the project."""
        data = self.encode(f"remember {name!r}", value)
        fingerprint = digest(canonical(name) + data)
        await self.note_down("remember", {"name": name}, fingerprint, memory=(name, data))

    async def recall(self, name: str, default: Any = None) -> Any:
        """The value remembered under a name, as it was when this step first ran."""

        async def read() -> Any:
            data = await patiently(lambda: self.journal.store.recall(self.keeper.record.project, name))
            return default if data is None else orjson.loads(data)

        return await self.value("recall", read, {"name": name})

    async def recall_all(self, prefix: str) -> dict[str, Any]:
        """The values by name, of all names that begin so, as they were when this step first ran.

        What several runs add to at the same moment is best kept as an entry each, and recalled so.
        """

        async def read() -> Any:
            found = await patiently(lambda: self.journal.store.memories(self.keeper.record.project, prefix))
            return {name: orjson.loads(data) for name, data in found.items()}

        found: dict[str, Any] = await self.value("recall", read, {"prefix": prefix})
        return found

    # --- for people ----------------------------------------------------------------------------

    async def note(self, text: str, **data: Any) -> None:
        """Leaves a remark in the journal."""
        await self.note_down("note", {"text": text, **({"data": data} if data else {})})

    async def partial(self, value: Any) -> None:
        """Sets the output that this run has if it stops early."""
        await self.note_down("partial", value)

    async def verdict(self, success: bool, score: float | None = None, reason: str = "") -> None:
        """Says whether the run did its job, for the success figures."""
        await self.note_down(
            "verdict",
            {"success": success, "score": score, "reason": reason},
            verdict=(success, score, self.journal.redact.text(reason)),
        )

    def progress(self, done: float, total: float | None = None) -> None:
        """Shows how far the work is. Not awaited, not journaled."""
        if self.scope.closed:
            return
        done, total = float(done), None if total is None else float(total)
        self.keeper.events.emit("run.progress", run=self.id, done=done, total=total)
        now = self.journal.clock()
        if not self.keeper.dormant and (now - self._progress_at >= PROGRESS_SECONDS or done == total):
            self._progress_at = now
            self.journal.put(progress=(done, total))

    # --- the end -------------------------------------------------------------------------------

    async def defer(self, fn: Callable[..., Any], *args: Any) -> None:
        """Has a function called once when the run ends, however it ends; the last deferred is called first."""
        key = await self.note_down("defer", {"function": shape_of(fn).name})
        self.scope.walk_always()
        self.keeper.defer(key, fn, args)

    async def continue_as(self, request: Request) -> NoReturn:
        """Ends this run and starts the next of an endless job, with a fresh journal. Does not return.

        The next run takes this one's place: its thread, its parent's wait, and `handle.result()`.
        """
        if not isinstance(request, Request):
            raise InputError(
                f"continue_as: expected a request, as calling a job gives, got {type(request).__name__}"
            )
        await self.begin("continue_as")
        await self.live()
        self.keeper.continue_as(request)
        await never()

    async def rollback(self, to: str) -> None:
        """Undoes what was done after a step, named by its key, the latest first; that step itself stays.

        Raises InputError if no finished step has that key, StepError of type NotUndone if something could
        not be undone: the rest is, all the same.
        """
        key = await self.begin("rollback")
        try:
            row = await self.find(key, "rollback", Kind.NOTE, digest(to.encode()))
            if row is not None:
                await self.replay(row, Any)
                return
            await self.live()
            started = self.journal.clock()
            failed = await self.keeper.undo_after(to)
            error = (
                StepError("NotUndone", f"could not be undone: {', '.join(failed)}", step=key)
                if failed
                else None
            )
            row = self.journal.row(
                self.scope.path, key, "rollback", Kind.NOTE, Outcome.ERROR if error else Outcome.VALUE, started,
                digest(to.encode()), value=None if error else orjson.dumps({"to": to}),
                error=error_bytes(error) if error else None,
            )  # fmt: skip
            await self.commit(row)
            if error is not None:
                raise error
        finally:
            self.scope.current = None

    # --- small parts -----------------------------------------------------------------------------

    async def _join(
        self,
        name: str,
        calls: list[tuple[str, Callable[[Run], Any], Any]],
        race: bool,
        limit: int | None = None,
        returns: Any = MISSING,
    ) -> Any:
        key = await self.begin(name)
        try:
            types = [returns if returns is not MISSING else shape_of(fn).returns for _, fn, _ in calls]
            join = Join(self, key, name, calls, types, race, limit)
            return await join.perform()
        finally:
            self.scope.current = None

    async def child_result(self, row: StepRecord, returns: Any) -> Any:
        """Waits for a child in this scope; only a wait that was given up leaves a row of its own."""
        name = f"{row.name} result"
        key = await self.begin(name)
        try:
            gave_up = self.scope.mine.get(key)
            if gave_up is not None:
                await never()
            if row.outcome is None:
                started = self.journal.clock()
                try:
                    answer = await self.answered(row, mark=False)
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
            limit = (end["error"] or {}).get("limit")
            error = StepError(
                _CHILD_ERRORS[end["status"]], f"child {row.child}: {end['reason']}", step=row.key, limit=limit
            )
            self.journal.finish(row, Outcome.ERROR, orjson.dumps(end["output"]), error_bytes(error))
        self.journal.put(update=(row,))

    def _child_record(self, request: Request, key: str, input: bytes) -> RunRecord:
        parent = self.keeper.record
        return new_run(
            request, input, self.journal.clock(), home=parent.home, project=parent.project, queue=parent.queue,
            priority=parent.priority, root=parent.root, parent=parent.id, parent_key=key, source=parent.source,
            budget=parent.budget,
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

    async def messages(self, last: int | None = None) -> list[Message]:
        """The messages so far, from the `last` on that people read; on replay the same ones."""
        store = self._run.journal.store
        found: list[tuple[int, str, bytes]] | None = None

        async def read() -> int:
            nonlocal found
            found = await patiently(lambda: store.thread_messages(self.id, None, last))
            return max((n for n, _, _ in found), default=0)

        up_to = await self._run.value("messages", read)
        if found is None:
            found = await patiently(lambda: store.thread_messages(self.id, up_to, last))
        return [orjson.loads(message) for _, _, message in found]

    async def append(self, message: Message | str) -> None:
        """Adds a message; a text is one of the assistant's."""
        if isinstance(message, str):
            message = {"role": "assistant", "content": message}
        data = self._run.encode("append", message)
        record = MessageRecord(
            new_id("msg"), data, self._run.journal.clock(), run=self._run.id, said=is_said(message)
        )
        await self._run.note_down("append", message, append=(self.id, record))


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
        attempts=0, claimed_seq=0, attention=0, admitted=1,
        queue=queue, priority=priority, root=root or id, pinned=0, changed=0,
        created=now, input=input, **more,
    )  # fmt: skip
    return RunRecord(**fields)


def _deadline(timeout: float | None) -> Deadline | None:
    seconds = timeout_of(timeout)
    return None if seconds is None else Deadline(seconds)


def _with_item(fn: Callable[[Run, Any], Any], item: Any, run: Run) -> Any:
    return fn(run, item)
