"""The command line: `dayjob run FILE:JOB`, and everything else that is done to runs from a shell.

What a person reads while waiting goes to stderr, results go to stdout. Exit codes: 0 completed, 1 failed,
2 usage, 3 cancelled, 4 expired, 5 incomplete, 6 waiting for someone, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from importlib.metadata import version as version_of_package
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from dayjob import doctor as doctors
from dayjob import trace
from dayjob.app import PROJECT, Dayjob
from dayjob.cli.catalogue import catalogue_of, show_tools
from dayjob.cli.files import (
    check_model,
    job_named,
    job_of,
    json_or_text,
    load,
    model_of,
    request_for,
    source_of,
)
from dayjob.cli.importing import fields_of, import_file, show_report
from dayjob.cli.printing import (
    DEFAULT_STORE,
    err,
    how_to_answer,
    line_to_type,
    out,
    print_json,
    print_line,
    print_table,
    runs_table,
    show_run,
    show_step,
    summary_table,
)
from dayjob.cli.routes import decide, route_fields, routes_of, show_routes
from dayjob.cli.work import (
    EXIT_OF,
    Exit,
    Work,
    cancel_run,
    complain,
    exit_code_of,
    interruptible,
    leave,
    opened,
    resumable,
    serve,
    waits_of,
    workers_for,
)
from dayjob.documents import action_fields, document, event_fields, run_fields
from dayjob.errors import DayjobError, InputError, WrongStatus
from dayjob.limits import Limits
from dayjob.runs import Status

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
    typer.Option(
        "--model",
        envvar="DAYJOB_MODEL",
        help='"openai:NAME", "anthropic:NAME", "local:" or "local:/path.gguf".',
    ),
]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The id of a run; see `dayjob runs`.")]


ActionArgument = Annotated[str, typer.Argument(metavar="ACTION", help="See `dayjob actions`.")]


OnLimitOption = StrEnum("OnLimitOption", ["stop", "ask"])


WhenBusyOption = StrEnum("WhenBusyOption", ["refuse", "enqueue"])


RoleOption = StrEnum("RoleOption", ["admin", "member"])


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
        complain(problem)
        sys.exit(exit_code_of(problem))


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
    max_dollars: Annotated[
        float | None, typer.Option(help="What it may cost, with all its children.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="How many tokens its model calls may take.")] = None,
    max_input_tokens: Annotated[
        int | None, typer.Option(help="How many tokens all its prompts may have.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(help="How many tokens all its answers may have.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="How many steps it may do.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="How long it may last, waiting included.")] = None,
    on_limit: Annotated[
        OnLimitOption | None, typer.Option(help="Stop at a limit, or ask for a higher one.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a job, and watch it. Kill it at any time: `dayjob resume` goes on."""
    file, jobs = load(target)
    job = job_of(target, jobs)
    request = request_for(job, input or [], input_json)
    limits = _limits(
        on_limit, dollars=max_dollars, tokens=max_tokens, input_tokens=max_input_tokens,
        output_tokens=max_output_tokens, steps=max_steps, seconds=max_seconds,
    )  # fmt: skip
    work = Work(store, model, jobs, as_json)

    async def begin(app: Dayjob) -> str:
        tags = [f"model={model}"] if model else []
        handle = await app.submit(request, source=f"{file}:{job.name}", tags=tags, limits=limits)
        return handle.id

    leave(work.until_it_stops(begin))


def _limits(on_limit: OnLimitOption | None, **most: Any) -> Limits | None:
    if on_limit is None and all(value is None for value in most.values()):
        return None
    return Limits(**most, on_limit=on_limit.value if on_limit else "stop")


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
    record = asyncio.run(resumable(store, run))
    path, jobs = load(file or source_of(record))
    job_named(jobs, record.job, path)
    work = Work(store, model_of(record, model), jobs, as_json)

    async def begin(app: Dayjob) -> str:
        if record.status.is_terminal:
            await app.resume(run, changed=changed, from_step=from_step)
        elif changed or from_step:
            raise WrongStatus(f"{run}: is {record.status}; --changed and --from are for a run that is over")
        else:
            await app.store.forgive(run)
        return run

    leave(work.until_it_stops(begin))


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
    leave(serve(store, model, jobs, concurrency, queue or ["default"], as_json))


@app.command("serve")
def serve_http(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A Python file with jobs and tools.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    map: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="NAME=MODEL", help="What answers for a model's name; repeatable."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 100,
    expires: Annotated[
        str, typer.Option(metavar="SECONDS|none", help="When a run of an assistant expires.")
    ] = "600",
    when_busy: Annotated[
        WhenBusyOption, typer.Option(help="What becomes of a message or run for a busy thread.")
    ] = WhenBusyOption.refuse,
    files: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where uploads are kept; else beside the store.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", metavar="URL", help="Web pages that may call it; repeatable."),
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, metavar="MB", help="The largest file.")] = 512,
    max_body: Annotated[int, typer.Option(min=1, metavar="MB", help="The largest other request.")] = 16,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the Assistants API and Dayjob's own, and work on runs, until stopped."""
    from dayjob.cli import serving  # noqa: PLC0415

    settings = serving.settings_of(
        store, model, map or [], expires, when_busy.value, files, origin or [], max_upload, max_body
    )
    leave(serving.serve(file, host, port, settings, store, model, concurrency, as_json))


@app.command()
def cancel(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Kept with the run.")] = "cancelled by request",
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a run and its children."""
    leave(cancel_run(store, run, reason, model, as_json))


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
        async with opened(store) as app:
            if by_job:
                summary = await app.summary()
                print_json({"data": summary}) if as_json else print_table(summary_table(summary))
                return
            found = await app.runs(job=job, status=wanted, limit=limit)
            if as_json:
                print_json({"data": [run_fields(record) for record in found]})
            elif found:
                print_table(runs_table(found))
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
        async with opened(store) as app:
            record = await app.get(run)
            steps = await app.steps(run)
            if step is not None:
                await show_step(app, [s for s in steps if s.key == step], f"{run}: no step {step!r}", as_json)
            elif as_json:
                print_json(await document(app, run))
            else:
                waits = await waits_of(app, record)
                show_run(record, steps, waits, await app.limits(run), store)

    asyncio.run(look())


@app.command()
def tail(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Follow a run in another process."""

    async def follow() -> int:
        async with opened(store) as app:
            record = await app.get(run)
            if not as_json:
                err.print(Text.assemble((record.job, "bold"), "  ", run), soft_wrap=True)
            with trace.Trace(Console(highlight=False, quiet=as_json), run) as shown:
                async for event in app.handle(run).events():
                    if as_json:
                        print_line({"event": event.name, "id": event.id, **event_fields(event.data)})
                    elif event.name == "step.finished":
                        shown.stored(event.data["step"])
                    elif event.name == "action.required":
                        for text in how_to_answer([event.data["action"]], store):
                            out.print(text, soft_wrap=True)
            record = await app.get(run)
            if not as_json:
                err.print(trace.totals(record, await app.steps(run)), soft_wrap=True)
            return EXIT_OF[record.status]

    leave(interruptible(follow()))


@app.command()
def actions(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only those of this run.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List what runs wait for from people."""

    async def look() -> None:
        async with opened(store) as app:
            if run is not None:
                await app.get(run)
            found = await app.actions(run)
            if as_json:
                print_json({"data": [action_fields(action) for action in found]})
            elif not found:
                err.print("nothing is waited for")
            for text in [] if as_json else how_to_answer(found, store):
                out.print(text, soft_wrap=True)

    asyncio.run(look())


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
        _tell(store, run, lambda app: app.send(run, name, None if value is None else json_or_text(value)))
    )


async def _tell(store: str, run: str, give: Callable[[Dayjob], Coroutine[Any, Any, None]]) -> None:
    """Gives a run something from outside, and says who will take it up."""
    async with opened(store) as app:
        await give(app)
        record = await app.get(run)
        if await workers_for(app, record):
            err.print("recorded; a worker takes it up")
        else:
            again = line_to_type("resume", record.root, store=store)
            text = Text.assemble("recorded; no worker has this job, so go on with:  ", (again, "bold"))
            err.print(text, soft_wrap=True)


def _me() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or "command line"


@app.command()
def tools(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A Python file with tools.")],
    as_json: JsonOption = False,
) -> None:
    """Show the tools in FILE as a model sees them, and where they leave it guessing."""
    entries = asyncio.run(catalogue_of(file))
    print_json({"data": [entry.fields() for entry in entries]}) if as_json else show_tools(entries)


@app.command()
def routes(
    accept: Annotated[str | None, typer.Option(metavar="ID", help="Offer this proposal from now on.")] = None,
    reject: Annotated[
        str | None, typer.Option(metavar="ID", help="Propose it no more; or withdraw an accepted route.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List the routes that models have proposed, and accept or reject them."""

    async def look() -> None:
        async with opened(store) as app:
            if accept is not None:
                await decide(app, accept, True)
            if reject is not None:
                await decide(app, reject, False)
            found = await routes_of(app)
            if as_json:
                print_json({"data": [route_fields(route) for route in found]})
            elif found:
                show_routes(found, store)
            else:
                err.print("no route is proposed, and none was accepted")

    asyncio.run(look())


keys = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke the API keys of a server."
)
app.add_typer(keys, name="keys")


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="Whose it is, or what it is for.")],
    project: Annotated[
        str, typer.Option(help="What it opens; keys of other projects see none of it.")
    ] = PROJECT,
    role: Annotated[RoleOption, typer.Option(help="An admin may also make keys.")] = RoleOption.member,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Make an API key. Its secret is shown now, and never again."""
    from dayjob.cli.keys import create  # noqa: PLC0415

    asyncio.run(create(store, name, project, role.value, as_json))


@keys.command("list")
def keys_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the API keys of all projects, those that were revoked too."""
    from dayjob.cli.keys import show  # noqa: PLC0415

    asyncio.run(show(store, as_json))


@keys.command("revoke")
def keys_revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="See `dayjob keys list`.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Let a key open nothing any more."""
    from dayjob.cli.keys import revoke  # noqa: PLC0415

    asyncio.run(revoke(store, id, as_json))


@app.command("import")
def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help='Objects of the Assistants API, one a line; "-": standard input.'
        ),
    ],
    project: Annotated[str, typer.Option(help="Whose they will be.")] = PROJECT,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Take in assistants, threads, messages, runs and steps from a file."""
    report, seconds = asyncio.run(import_file(file, store, project))
    print_json(fields_of(report)) if as_json else show_report(report, seconds)
    raise typer.Exit(Exit.FAILED if report.refused else Exit.COMPLETED)


@app.command()
def doctor(
    store: StoreOption = DEFAULT_STORE, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Say what is missing, stuck or wrong, and what to do."""
    findings = asyncio.run(doctors.examine(store, model))
    if as_json:
        print_json({"ok": doctors.is_well(findings), "data": [f.fields() for f in findings]})
    else:
        doctors.report(out, findings)
    raise typer.Exit(Exit.COMPLETED if doctors.is_well(findings) else Exit.FAILED)
