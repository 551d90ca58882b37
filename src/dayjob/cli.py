"""The command line: `dayjob run FILE:JOB`, and everything else that is done to runs from a shell.

What a person reads goes to stderr, results go to stdout. Exit codes: 0 completed, 1 failed, 2 usage,
3 cancelled, 4 expired, 5 incomplete, 6 waiting for someone, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import importlib.util
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version as version_of_package
from pathlib import Path
from types import FrameType, ModuleType
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dayjob import doctor as doctors
from dayjob import trace
from dayjob.app import Dayjob
from dayjob.errors import (
    DayjobError,
    InputError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    UnknownJob,
    WrongStatus,
)
from dayjob.jobs import Job, Request
from dayjob.models import open_model
from dayjob.runs import Action, Kind, RunRecord, Status, StepRecord
from dayjob.stores import WorkerRecord, store_exists
from dayjob.stores.process import is_gone
from dayjob.values import convert

DEFAULT_STORE = "sqlite:///dayjob.db"
DEBUG = "DAYJOB_DEBUG"
POLL_SECONDS = 0.1
CANCEL_SECONDS = 10.0
DRAIN_SECONDS = 25.0
FAMILY_LIMIT = 1_000


class Exit:
    """What a command's exit code says."""

    COMPLETED = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    EXPIRED = 4
    INCOMPLETE = 5
    WAITING = 6
    INTERRUPTED = 130


EXIT_OF = {
    Status.COMPLETED: Exit.COMPLETED,
    Status.FAILED: Exit.FAILED,
    Status.CANCELLED: Exit.CANCELLED,
    Status.EXPIRED: Exit.EXPIRED,
    Status.INCOMPLETE: Exit.INCOMPLETE,
    Status.REQUIRES_ACTION: Exit.WAITING,
    Status.WAITING: Exit.WAITING,
}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give your AI agent a day job: durable runs that survive kill -9.",
)  # fmt: skip

StoreOption = Annotated[
    str, typer.Option("--store", envvar="DAYJOB_STORE", help="Where runs are kept: sqlite:///path.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", envvar="DAYJOB_MODEL", help='"openai:NAME", "local:" or "local:/path.gguf".'),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run; see `dayjob runs`.")]
ActionArgument = Annotated[str, typer.Argument(metavar="ACTION", help="See `dayjob actions`.")]
StatusOption = StrEnum("StatusOption", {status.name: status.value for status in Status})  # type: ignore[misc]


def main() -> None:
    """The console script. Every error that a user can cause is one message, without a traceback."""
    logging.getLogger("dayjob").addHandler(logging.NullHandler())  # the trace shows what it would say
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except DayjobError as problem:
        _complain(problem)
        sys.exit(Exit.FAILED if _is_ours(problem) else Exit.USAGE)


def _complain(problem: DayjobError) -> None:
    if os.environ.get(DEBUG):
        traceback.print_exception(problem)
    err.print(Text.assemble(("error: ", "bold red"), problem.message), soft_wrap=True)


def _is_ours(problem: DayjobError) -> bool:
    """Whether it is trouble while working, not something that was given wrongly."""
    return isinstance(problem, StoreFull | StoreLocked)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dayjob {version_of_package('dayjob')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- working -------------------------------------------------------------------------------------


@app.command()
def run(
    target: Annotated[str, typer.Argument(metavar="FILE:JOB", help="A Python file, and a job in it.")],
    input: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=VALUE", help="A field of the input; repeatable."),
    ] = None,
    input_json: Annotated[
        str | None, typer.Option("--input-json", metavar="JSON", help="The whole input as a JSON object.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a job, and watch it. Kill it at any time: `dayjob resume` goes on."""
    file, jobs = load(target)
    job = _job_of(target, jobs)
    request = _request(job, input or [], input_json)
    work = Work(store, model, jobs, as_json)

    async def begin(app: Dayjob) -> str:
        tags = [f"model={model}"] if model else []
        handle = await app.submit(request, source=f"{file}:{job.name}", tags=tags)
        return handle.id

    _leave(work.until_it_stops(begin))


@app.command()
def resume(
    run: RunArgument,
    file: Annotated[str | None, typer.Option("--file", help="The job's file, if it has moved.")] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Do steps again whose function has changed.")
    ] = False,
    from_step: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Do this step again, and what follows it.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run; its finished steps are reused."""
    record = asyncio.run(_resumable(store, run))
    path, jobs = load(file or _source_of(record))
    _named(jobs, record.job, path)
    work = Work(store, _model_of(record, model), jobs, as_json)

    async def begin(app: Dayjob) -> str:
        if record.status.is_terminal:
            await app.resume(run, changed=changed, from_step=from_step)
        elif changed or from_step:
            raise WrongStatus(f"{run}: is {record.status}; --changed and --from are for a run that is over")
        return run

    _leave(work.until_it_stops(begin))


@app.command()
def worker(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A Python file with jobs.")],
    concurrency: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 100,
    queue: Annotated[list[str] | None, typer.Option("--queue", help="A queue to serve; repeatable.")] = None,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Work on runs of the jobs in FILE, until stopped."""
    _, jobs = load(file)
    check_model(model)
    _leave(_serve(store, model, jobs, concurrency, queue or ["default"], as_json))


async def _serve(
    store: str,
    model: str | None,
    jobs: dict[str, Job],
    concurrency: int,
    queues: Sequence[str],
    as_json: bool,
) -> int:
    with _signals() as stop:
        async with Dayjob(store, model, jobs.values(), worker=False) as app:
            app.subscribe(_print_event if as_json else _log_event)
            async with app.worker(concurrency=concurrency, queues=queues) as worker:
                await stop.wait()
                if not as_json:
                    err.print("stopping: steps in progress may finish; again to stop at once", style="yellow")
                await worker.stop(DRAIN_SECONDS)
    return Exit.COMPLETED


@app.command()
def cancel(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Kept with the run.")] = "cancelled by request",
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a run and its children."""
    _leave(_cancel(store, run, reason, model, as_json))


async def _cancel(store: str, run: str, reason: str, model: str | None, as_json: bool) -> int:
    async with _opened(store) as app:
        status = await app.cancel(run, reason)
        record = await app.get(run)
        if not status.is_terminal and await _workers_for(app, record):
            record = await _poll(app, run, time.monotonic() + CANCEL_SECONDS)
    if not record.status.is_terminal and record.worker is None and record.source is not None:
        record = await _finish_cancelling(store, record, model)
    if as_json:
        await _print_run(store, run)
    elif record.status == Status.CANCELLED:
        err.print(f"{run} is cancelled")
    elif record.status.is_terminal:
        err.print(f"{run} was over already: {record.status}")
    else:
        err.print(f"{run} will be cancelled by the worker that has it, or by the next one that has its job")
    return Exit.COMPLETED


async def _finish_cancelling(store: str, record: RunRecord, model: str | None) -> RunRecord:
    """Nobody works on it: does here what is to be done at its end."""
    try:
        _, jobs = load(_source_of(record))
    except InputError as problem:
        err.print(f"! {problem.message}", style="yellow", soft_wrap=True)
        return record
    model = _model_of(record, model)
    async with Dayjob(store, model, jobs.values(), worker=False) as app, app.worker(only=record.id):
        return await _poll(app, record.id, time.monotonic() + CANCEL_SECONDS)


async def _poll(app: Dayjob, run: str, deadline: float) -> RunRecord:
    while True:
        record = await app.get(run)
        if record.status.is_terminal or time.monotonic() > deadline:
            return record
        await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Work:
    """A process that works on one run and its children, and shows it. Raises InputError for a bad model."""

    store: str
    model: str | None
    jobs: dict[str, Job]
    as_json: bool

    def __post_init__(self) -> None:
        check_model(self.model)

    async def until_it_stops(self, begin: Callable[[Dayjob], Coroutine[Any, Any, str]]) -> int:
        """Works until the run is over, waits for someone, or this process is told to stop."""
        with _signals() as stop:
            async with Dayjob(self.store, self.model, self.jobs.values(), worker=False) as app:
                run = await begin(app)
                console = Console(stderr=True, highlight=False, quiet=self.as_json)
                self._greet(console, run, await app.get(run))
                since = max((step.seq or 0 for step in await app.steps(run)), default=0)
                with trace.Trace(console, run) as shown:
                    app.subscribe(shown)
                    record = await self._work(app, run, stop)
                return await self._part(app, console, record, since, stop.is_set())

    def _greet(self, console: Console, run: str, record: RunRecord) -> None:
        console.print(
            Text.assemble((record.job, "bold"), "  ", run, ("  " + (self.model or "no model"), "dim")),
            soft_wrap=True,
        )

    async def _work(self, app: Dayjob, run: str, stop: asyncio.Event) -> RunRecord:
        # Only this run and its family: to run a job must not take up whatever else was left in the store.
        async with app.worker(only=run):
            while True:
                record = await app.get(run)
                if record.next_run is not None:
                    run = record.next_run
                    continue
                if record.status.is_terminal or stop.is_set():
                    return record
                if record.status.is_parked and await _waits_for_someone(app, record):
                    return record
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    async def _part(self, app: Dayjob, console: Console, record: RunRecord, since: int, stopped: bool) -> int:
        """What is said when the work is over, and how the process exits."""
        record = await app.get(record.id)
        steps = await app.steps(record.id)
        stopped = stopped and not record.status.is_terminal
        if not stopped:
            console.print(trace.totals(record, steps, since), soft_wrap=True)
        if record.reason and record.status != Status.COMPLETED and not stopped:
            console.print(Text(record.reason, "red"), soft_wrap=True)
        if record.error and os.environ.get(DEBUG):
            console.print(orjson.loads(record.error).get("traceback") or "", markup=False, soft_wrap=True)
        again = _command("resume", record.id, store=self.store)
        if stopped:
            err.print(Text.assemble("stopped; it goes on with:  ", (again, "bold")), soft_wrap=True)
        elif record.status == Status.FAILED:
            console.print(Text.assemble("look at it:  ", _command("show", record.id, store=self.store)))
            console.print(Text.assemble("go on from the failed step:  ", again))
        elif record.status.is_parked:
            for text in _how_to_answer(await _waits(app, record), self.store):
                console.print(text, soft_wrap=True)
            console.print(Text.assemble("and then:  ", (again, "bold")), soft_wrap=True)
        if self.as_json:
            _print_json(await _document(app, record.id))
        elif record.output is not None:
            _print_value(orjson.loads(record.output))
        return Exit.INTERRUPTED if stopped else EXIT_OF[record.status]


# --- looking -------------------------------------------------------------------------------------


@app.command()
def runs(
    job: Annotated[str | None, typer.Option(help="Only runs of this job.")] = None,
    status: Annotated[StatusOption | None, typer.Option(help="Only runs in this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    by_job: Annotated[
        bool, typer.Option("--by-job", help="Sum cost, time and success by job instead.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    wanted = None if status is None else Status(status.value)

    async def look() -> None:
        async with _opened(store) as app:
            if by_job:
                summary = await app.summary()
                _print_json({"data": summary}) if as_json else _print_table(_summary_table(summary))
                return
            found = await app.runs(job=job, status=wanted, limit=limit)
            if as_json:
                _print_json({"data": [_run_fields(record) for record in found]})
            elif found:
                _print_table(_runs_table(found))
            else:
                err.print("no runs")

    asyncio.run(look())


@app.command()
def show(
    run: RunArgument,
    step: Annotated[
        str | None, typer.Option(metavar="KEY", help="One step: its exact request or input, and its outcome.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show a run: every step, and every prompt."""

    async def look() -> None:
        async with _opened(store) as app:
            record = await app.get(run)
            steps = await app.steps(run)
            if step is not None:
                await _show_step(
                    app, [s for s in steps if s.key == step], f"{run}: no step {step!r}", as_json
                )
            elif as_json:
                _print_json(await _document(app, run))
            else:
                _show_run(record, steps, await _waits(app, record), store)

    asyncio.run(look())


@app.command()
def tail(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Follow a run in another process."""

    async def follow() -> int:
        async with _opened(store) as app:
            record = await app.get(run)
            if not as_json:
                err.print(Text.assemble((record.job, "bold"), "  ", run), soft_wrap=True)
            with trace.Trace(Console(highlight=False, quiet=as_json), run) as shown:
                async for event in app.handle(run).events():
                    if as_json:
                        _print_line({"event": event.name, "id": event.id, **_event_fields(event.data)})
                    elif event.name == "step.finished":
                        shown.stored(event.data["step"])
                    elif event.name == "action.required":
                        for text in _how_to_answer([event.data["action"]], store):
                            out.print(text, soft_wrap=True)
            record = await app.get(run)
            if not as_json:
                err.print(trace.totals(record, await app.steps(run)), soft_wrap=True)
            return EXIT_OF[record.status]

    _leave(_interruptible(follow()))


@app.command()
def actions(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only those of this run.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List what runs wait for from people."""

    async def look() -> None:
        async with _opened(store) as app:
            if run is not None:
                await app.get(run)
            found = await app.actions(run)
            if as_json:
                _print_json({"data": [_action_fields(action) for action in found]})
            elif not found:
                err.print("nothing is waited for")
            for text in [] if as_json else _how_to_answer(found, store):
                out.print(text, soft_wrap=True)

    asyncio.run(look())


# --- answering -----------------------------------------------------------------------------------


@app.command()
def answer(
    run: RunArgument,
    action: ActionArgument,
    value: Annotated[str, typer.Argument(help="JSON if that fits what is asked for, else text.")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Answer what a run asks."""

    async def give(app: Dayjob) -> None:
        with contextlib.suppress(orjson.JSONDecodeError, InputError):
            await app.answer(run, action, orjson.loads(value), by=_me())
            return
        await app.answer(run, action, value, by=_me())

    asyncio.run(_tell(store, run, give))


@app.command()
def approve(run: RunArgument, action: ActionArgument, store: StoreOption = DEFAULT_STORE) -> None:
    """Say yes to what a run asks."""
    asyncio.run(_tell(store, run, lambda app: app.approve(run, action, by=_me())))


@app.command()
def reject(
    run: RunArgument,
    action: ActionArgument,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Say no to what a run asks."""
    asyncio.run(_tell(store, run, lambda app: app.reject(run, action, reason, by=_me())))


@app.command()
def send(
    run: RunArgument,
    name: Annotated[str, typer.Argument(help="The name of the event.")],
    value: Annotated[str | None, typer.Argument(help="JSON if it is, else text.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Send a value that a run receives by `run.event(NAME)`."""
    asyncio.run(
        _tell(store, run, lambda app: app.send(run, name, None if value is None else _json_or_text(value)))
    )


async def _tell(store: str, run: str, give: Callable[[Dayjob], Coroutine[Any, Any, None]]) -> None:
    """Gives a run something from outside, and says who will take it up."""
    async with _opened(store) as app:
        await give(app)
        record = await app.get(run)
        if await _workers_for(app, record):
            err.print("recorded; a worker takes it up")
        else:
            again = _command("resume", record.root, store=store)
            text = Text.assemble("recorded; no worker has this job, so go on with:  ", (again, "bold"))
            err.print(text, soft_wrap=True)


def _me() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or "command line"


# --- the state of things -------------------------------------------------------------------------


@app.command()
def doctor(
    store: StoreOption = DEFAULT_STORE, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Say what is missing, stuck or wrong, and what to do."""
    findings = asyncio.run(doctors.examine(store, model))
    if as_json:
        _print_json({"ok": all(f.ok for f in findings), "data": [f.fields() for f in findings]})
    else:
        doctors.report(out, findings)
    raise typer.Exit(Exit.COMPLETED if all(f.ok for f in findings) else Exit.FAILED)


# --- files with jobs -----------------------------------------------------------------------------


def load(target: str) -> tuple[Path, dict[str, Job]]:
    """The jobs in FILE (or FILE:JOB). Raises InputError saying what is wrong with it."""
    path = Path(_file_of(target)).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}; expected FILE.py:JOB")
    module = _imported(path)
    found = [value for value in vars(module).values() if isinstance(value, Job)]
    jobs: dict[str, Job] = {}
    for job in found:
        if jobs.setdefault(job.name, job) is not job:
            raise InputError(f"{path}: two jobs are named {job.name!r}; give one @job(name=…)")
    if not jobs:
        raise InputError(f"{path}: has no job; decorate an async function with @job")
    return path, jobs


def _file_of(target: str) -> str:
    file, colon, _ = target.rpartition(":")
    return file if colon and file else target


def _job_of(target: str, jobs: dict[str, Job]) -> Job:
    file = _file_of(target)
    name = target[len(file) + 1 :]
    if name:
        return _named(jobs, name, file)
    if len(jobs) == 1:
        return next(iter(jobs.values()))
    raise InputError(
        f"{target}: has more than one job; name one: {', '.join(f'{file}:{job}' for job in jobs)}"
    )


def _named(jobs: dict[str, Job], name: str, file: str | Path) -> Job:
    if name not in jobs:
        raise UnknownJob(f"{file}: has no job {name!r}; it has {', '.join(jobs)}")
    return jobs[name]


def _imported(path: Path) -> ModuleType:
    """Imports a file by its path: with its neighbours in reach, and as a part of its package if it has one."""
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        return importlib.import_module(name) if "." in name else _imported_alone(path, name)
    except SyntaxError as problem:
        raise InputError(f"{problem.filename}:{problem.lineno}: {problem.msg}") from problem
    except (Exception, SystemExit) as problem:  # whatever the user's file does
        frames = traceback.extract_tb(problem.__traceback__)
        line = next((f":{frame.lineno}" for frame in reversed(frames) if frame.filename == str(path)), "")
        what = f"{type(problem).__name__}: {problem} (the traceback: {DEBUG}=1)"
        raise InputError(f"{path}{line}: cannot be imported: {what}") from problem


def _imported_alone(path: Path, name: str) -> ModuleType:
    """A file may be called like a module that is there already, json.py for one: it must not replace it."""
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"dayjob file {name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _request(job: Job, inputs: Sequence[str], input_json: str | None) -> Request:
    """Raises InputError naming the field or the flag."""
    if input_json is not None and inputs:
        raise InputError("--input and --input-json: give one of them")
    if input_json is not None:
        try:
            fields = orjson.loads(input_json)
        except orjson.JSONDecodeError as problem:
            raise InputError(f"--input-json: is no JSON: {problem}") from None
        if not isinstance(fields, dict):
            raise InputError(f"--input-json: expected an object of {job.signature.described()}")
        return job.request(orjson.dumps(fields))
    given: dict[str, Any] = {}
    for pair in inputs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--input {pair!r}: expected NAME=VALUE")
        if name in given:
            raise InputError(f"--input {name}: given twice")
        given[name] = _parsed(name, text, job.signature.types.get(name, Any))
    return job.request(orjson.dumps(given))


def _parsed(name: str, text: str, declared: Any) -> Any:
    """A text as the type wants it: as it is if it fits, else read as JSON."""
    if declared is Any:
        return _json_or_text(text)
    with contextlib.suppress(InputError):
        convert(text, declared)
        return text
    value = _json_or_text(text)
    try:
        convert(value, declared)
    except InputError as problem:
        raise InputError(f"--input {name}: {problem}") from None
    return value


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _source_of(record: RunRecord) -> str:
    if record.source is None:
        raise InputError(
            f"{record.id}: was not started from a file; name the one of job {record.job!r}: --file FILE"
        )
    file, _, job = record.source.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"{record.id}: its file {file} is gone; say where job {job!r} is now: --file FILE")
    return file


def check_model(model: str | None) -> None:
    """Raises InputError for what is no model's name; whether it answers is seen when it is used."""
    try:
        if model is not None:
            open_model(model)
    except InputError as problem:
        raise InputError(f"--model: {problem.message.removeprefix('model: ')}") from None


def _model_of(record: RunRecord, given: str | None) -> str | None:
    """What the command line names, else what the run began with, else the environment's."""
    default = os.environ.get("DAYJOB_MODEL") or None
    tags = orjson.loads(record.tags) if record.tags else []
    remembered = next((tag.removeprefix("model=") for tag in tags if tag.startswith("model=")), None)
    return (remembered or default) if given in (None, default) else given


# --- stores and workers --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _opened(store: str) -> AsyncIterator[Dayjob]:
    """A store that is there already: to look at runs must not make one."""
    if not store_exists(store):
        raise StoreUnavailable(f"{store}: no store is there; `dayjob run` makes one, --store names another")
    async with Dayjob(store, worker=False) as app:
        yield app


async def _resumable(store: str, run: str) -> RunRecord:
    async with _opened(store) as app:
        record = await app.get(run)
        holder = next((w for w in await _live_workers(app) if w.id == record.worker), None)
        if holder is not None:
            raise WrongStatus(
                f"{run}: process {holder.pid} on {holder.host} works on it; watch it: dayjob tail {run}"
            )
        return record


async def _live_workers(app: Dayjob) -> list[WorkerRecord]:
    now = time.time()
    workers: list[WorkerRecord] = await app.store.workers()
    return [
        w
        for w in workers
        if not w.dead and w.beat + w.lease > now and not is_gone(w.host, w.boot, w.pid, w.start)
    ]


async def _workers_for(app: Dayjob, record: RunRecord) -> list[WorkerRecord]:
    """Live workers that hold the run, or may claim it."""
    return [
        w
        for w in await _live_workers(app)
        if w.id == record.worker
        or (record.worker is None and record.job in w.jobs and record.queue in w.queues)
    ]


async def _waits_for_someone(app: Dayjob, record: RunRecord) -> bool:
    """Whether nothing in this process can bring the run, or a child of it, on."""
    family = await _family(app, record)
    if any(not member.status.is_parked for member in family):
        return False
    if any(member.status == Status.REQUIRES_ACTION for member in family):
        return True
    return all(member.due is None for member in family)


async def _family(app: Dayjob, record: RunRecord) -> list[RunRecord]:
    """The run and its children that are not over."""
    children = await app.runs(parent=record.id, limit=FAMILY_LIMIT)
    nested = [await _family(app, child) for child in children if not child.status.is_terminal]
    return [record, *(member for family in nested for member in family)]


async def _waits(app: Dayjob, record: RunRecord) -> list[Action]:
    """What the run and its children wait for from outside."""
    found: list[Action] = []
    for member in [] if record.status.is_terminal else await _family(app, record):
        found += await app.actions(member.id)
        found += [
            Action(row.key, row.run, row.kind, row.name, None, row.due, row.started)
            for row in await app.store.open_steps(member.id, [Kind.EVENT])
        ]
    return found


# --- signals, and leaving ------------------------------------------------------------------------


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process at once.

    Not the loop's own handlers: a job that blocks the loop must not keep the user from leaving.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    with _signals() as stop:
        task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        return Exit.INTERRUPTED


def _leave(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Runs the work and exits with its code.

    At once: a function that a step left behind in a thread, or a task that swallows its cancellation,
    would keep the process alive, and the journal needs neither.
    """
    runner = asyncio.Runner()
    try:
        code = runner.run(work)
    except DayjobError as problem:
        _complain(problem)
        code = Exit.FAILED if _is_ours(problem) else Exit.USAGE
    atexit._run_exitfuncs()  # noqa: SLF001 - those of the user's file: exporters flush there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# --- printing ------------------------------------------------------------------------------------


def _command(name: str, run: str, *more: str, store: str) -> str:
    """The line to type, with the options that differ from what a shell here would take by itself."""
    elsewhere = ["--store", store] if store != os.environ.get("DAYJOB_STORE", DEFAULT_STORE) else []
    return shlex.join(["dayjob", name, run, *more, *elsewhere])


def _how_to_answer(actions: Sequence[Action], store: str) -> Iterator[Text]:
    for action in actions:
        by = f"  (until {trace.clock(action.due)})" if action.due else ""
        yield Text.assemble(("? ", "yellow"), (action.question, "bold"), (by, "dim"))
        if action.kind == Kind.EVENT:
            yield Text("  " + _command("send", action.run, action.question, "VALUE", store=store))
        elif (action.schema or {}).get("type") == "boolean":
            yield Text("  " + _command("approve", action.run, action.id, store=store))
            yield Text("  " + _command("reject", action.run, action.id, store=store))
        else:
            yield Text("  " + _command("answer", action.run, action.id, _wanted(action), store=store))


def _wanted(action: Action) -> str:
    schema = action.schema or {}
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    return "VALUE" if schema.get("type") in (None, "string") else str(schema["type"]).upper()


def _runs_table(found: Sequence[RunRecord]) -> Table:
    table = _table("run", "job", "status", "begun", ">took", ">tokens", ">dollars", "")
    for record in found:
        over = record.ended is not None
        took = trace.seconds(record.ended - record.started) if record.ended and record.started else ""
        tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
        table.add_row(
            record.id,
            record.job,
            Text(record.status.replace("_", " "), trace.STATUS_STYLES.get(record.status, "")),
            trace.ago(record.created),
            took,
            f"{tokens:,}" if tokens else "",
            trace.money(record.dollars) if over and (tokens or record.dollars is None) else "",
            _remark(record),
        )
    return table


def _remark(record: RunRecord) -> Text:
    if record.status == Status.COMPLETED:
        return Text(
            "" if record.success is None else "did its job" if record.success else "did not do its job"
        )
    if record.reason:
        return Text(trace.first_line(record.reason, 60), "dim")
    if record.progress_done is not None and record.progress_total:
        return Text(f"{record.progress_done:g} of {record.progress_total:g}", "dim")
    return Text("")


def _summary_table(summary: Sequence[dict[str, Any]]) -> Table:
    table = _table(
        "job",
        ">runs",
        ">active",
        ">completed",
        ">failed",
        ">other",
        ">success",
        ">mean time",
        ">tokens",
        ">dollars",
    )
    for row in summary:
        judged = f"{row['succeeded'] / row['judged']:.0%} of {row['judged']}" if row["judged"] else ""
        table.add_row(
            row["job"], str(row["runs"]), str(row["active"]), str(row["completed"]), str(row["failed"]),
            str(row["cancelled"] + row["expired"] + row["incomplete"]), judged,
            "" if row["seconds"] is None else trace.seconds(row["seconds"]),
            f"{row['input_tokens'] + row['output_tokens']:,}", trace.money(row["dollars"]),
        )  # fmt: skip
    return table


def _print_table(table: Table) -> None:
    """Never cut: an id that is cut cannot be typed."""
    out.width = max(out.width, out.measure(table, options=out.options.update(max_width=1_000)).maximum)
    out.print(table, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table


def _show_run(record: RunRecord, steps: Sequence[StepRecord], waits: Sequence[Action], store: str) -> None:
    out.print(Text.assemble((record.job, "bold"), "  ", record.id), soft_wrap=True)
    out.print(trace.totals(record, steps), soft_wrap=True)
    facts = {
        "begun": f"{trace.clock(record.created)}, {trace.ago(record.created)}",
        "reason": record.reason if record.status != Status.COMPLETED else None,
        "verdict": None if record.success is None else _verdict(record),
        "from": record.source,
        "version": record.version,
        "parent": record.parent,
        "thread": record.thread,
        "goes on": record.next_run,
    }
    for name, fact in facts.items():
        if fact:
            out.print(Text.assemble((f"{name:<9}", "dim"), fact), soft_wrap=True)
    _print_titled("input", record.input)
    if steps:
        out.print("\nsteps", style="dim")
        for text in trace.tree(out, steps):
            out.print(text, soft_wrap=True)
    _print_titled("output", record.output)
    if waits:
        out.print()
    for text in _how_to_answer(waits, store):
        out.print(text, soft_wrap=True)


def _verdict(record: RunRecord) -> str:
    note = {"success": bool(record.success), "score": record.score, "reason": record.verdict}
    return trace.note_text("verdict", note).removeprefix("verdict: ")


def _print_titled(title: str, data: bytes | None) -> None:
    if data is not None:
        out.print(f"\n{title}", style="dim")
        _print_value(orjson.loads(data))


async def _show_step(app: Dayjob, rows: Sequence[StepRecord], missing: str, as_json: bool) -> None:
    if not rows:
        raise InputError(f"{missing}; `dayjob show RUN` lists them")
    requests = [await app.request_of(row) for row in rows]
    if as_json:
        found = [{**_step_fields(row), "request": _loaded(r)} for row, r in zip(rows, requests, strict=True)]
        _print_json({"data": found})
        return
    for row, request in zip(rows, requests, strict=True):
        for text in trace.tree(out, [row]):
            out.print(text, soft_wrap=True)
        if request is not None:
            _print_conversation(orjson.loads(request))
        for title, data in (("input", row.input), ("value", row.value), ("error", row.error)):
            _print_titled(title, data)
        if row.error and (told := orjson.loads(row.error).get("traceback")):
            out.print("\n" + told, markup=False, soft_wrap=True)


def _print_conversation(request: dict[str, Any]) -> None:
    """The exact request: every message as it went, then whatever else went with it."""
    for message in request.pop("messages"):
        out.print(f"\n{message['role']}", style="dim")
        content = message.get("content")
        _print_value(content if isinstance(content, str) else message)
    _print_titled("request", orjson.dumps({name: value for name, value in request.items() if value}))


def _print_value(value: Any) -> None:
    if isinstance(value, str):
        out.print(value, markup=False, soft_wrap=True)
    else:
        _print_json(value)


def _print_json(document: Any) -> None:
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
    if out.is_terminal:
        out.print_json(text)
    else:
        typer.echo(text)


def _print_line(fields: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(fields, default=str).decode())


def _print_event(name: str, fields: dict[str, Any]) -> None:
    if name != "step.text":
        _print_line({"event": name, "at": time.time(), **fields})


def _log_event(name: str, fields: dict[str, Any]) -> None:
    told: Callable[[], str] | None = {
        "worker.started": lambda: f"worker of {', '.join(fields['jobs'])} on {', '.join(fields['queues'])}",
        "run.claimed": lambda: (
            f"{fields['run']} {fields['job']} begun"
            + (f" again, attempt {fields['attempts'] + 1}" if fields["attempts"] else "")
        ),
        "run.parked": lambda: f"{fields['run']} {fields['status'].replace('_', ' ')}",
        "run.settled": lambda: (
            f"{fields['run']} {fields['job']} {fields['status']}"
            + (f": {fields['reason']}" if fields["reason"] and fields["status"] != Status.COMPLETED else "")
        ),
        "run.lost": lambda: f"{fields['run']} is another worker's now",
        "run.warning": lambda: f"{fields['run']} ! step {fields['step']!r}: {fields['message']}",
        "worker.took_over": lambda: f"took over {len(fields['runs'])} runs of dead workers",
        "worker.dead": lambda: "this worker was declared dead; it registers anew",
        "worker.blocked": lambda: f"! step {fields['step']!r} blocks the event loop",
        "store.failing": lambda: f"! store: {fields['error']}; trying again",
        "worker.stopped": lambda: "stopped",
    }.get(name)
    if told is not None:
        out.print(Text.assemble((trace.clock(time.time()) + "  ", "dim"), told()), soft_wrap=True)


# --- as JSON -------------------------------------------------------------------------------------


async def _print_run(store: str, run: str) -> None:
    async with _opened(store) as app:
        _print_json(await _document(app, run))


async def _document(app: Dayjob, run: str) -> dict[str, Any]:
    """A run with all that belongs to it."""
    record, steps = await app.get(run), await app.steps(run)
    models = [step for step in steps if step.kind == Kind.MODEL]
    return {
        **_run_fields(record),
        "input": _loaded(record.input),
        "output": _loaded(record.output),
        "error": _loaded(record.error),
        "usage": {
            name: sum(getattr(step, name) or 0 for step in models)
            for name in ("input_tokens", "output_tokens", "cached_tokens")
        },
        "dollars": trace.cost(steps),
        "actions": [_action_fields(action) for action in await app.actions(run)],
        "steps": [_step_fields(step) for step in steps],
    }


def _run_fields(record: RunRecord) -> dict[str, Any]:
    copied = (
        "id", "job", "status", "reason", "created", "started", "ended", "attempts", "queue", "priority",
        "source", "version", "thread", "parent", "next_run", "dollars",
    )  # fmt: skip
    fields = {name: getattr(record, name) for name in copied}
    fields["tags"] = _loaded(record.tags) or []
    fields["progress"] = (
        None
        if record.progress_done is None
        else {"done": record.progress_done, "total": record.progress_total}
    )
    fields["verdict"] = (
        None
        if record.success is None
        else {"success": bool(record.success), "score": record.score, "reason": record.verdict}
    )
    fields["usage"] = {"input_tokens": record.input_tokens, "output_tokens": record.output_tokens}
    return fields


def _step_fields(step: StepRecord) -> dict[str, Any]:
    copied = (
        "key", "name", "kind", "outcome", "attempt", "seq", "started", "ended", "due", "child", "model",
        "input_tokens", "output_tokens", "cached_tokens", "dollars", "answered_by",
    )  # fmt: skip
    fields = {name: getattr(step, name) for name in copied}
    return {
        **fields,
        "input": _loaded(step.input),
        "value": _loaded(step.value),
        "error": _loaded(step.error),
    }


def _action_fields(action: Action) -> dict[str, Any]:
    return {name: getattr(action, name) for name in Action.__dataclass_fields__}


def _event_fields(data: dict[str, Any]) -> dict[str, Any]:
    if "step" in data and isinstance(data["step"], StepRecord):
        return {"step": _step_fields(data["step"])}
    if "action" in data:
        return {"action": _action_fields(data["action"])}
    return data


def _loaded(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


if __name__ == "__main__":
    main()
