"""What the command line prints: tables and trees for people, JSON for programs."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dayjob import trace
from dayjob.app import Dayjob
from dayjob.documents import loaded, step_fields
from dayjob.errors import InputError
from dayjob.keys import attention_of
from dayjob.limits import in_words
from dayjob.runs import Action, Kind, RunRecord, Status, StepRecord
from dayjob.stores import COUNTED
from dayjob.values import json_of

DEFAULT_STORE = "sqlite:///dayjob.db"
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def line_to_type(name: str, run: str, *more: str, store: str) -> str:
    """The line to type, with the options that differ from what a shell here would take by itself."""
    elsewhere = ["--store", store] if store != os.environ.get("DAYJOB_STORE", DEFAULT_STORE) else []
    return shlex.join(["dayjob", name, run, *more, *elsewhere])


def how_to_answer(actions: Sequence[Action], store: str) -> Iterator[Text]:
    for action in actions:
        by = f"  (until {trace.clock(action.due)})" if action.due else ""
        yield Text.assemble(("? ", "yellow"), (action.question, "bold"), (by, "dim"))
        if action.kind == Kind.EVENT:
            yield Text("  " + line_to_type("send", action.run, action.question, "VALUE", store=store))
        elif action.kind == "happened":
            yield Text("  " + line_to_type("answer", action.run, action.id, '{"result": VALUE}', store=store))
            yield Text("  " + line_to_type("reject", action.run, action.id, store=store))
        elif (action.schema or {}).get("type") == "boolean":
            yield Text("  " + line_to_type("approve", action.run, action.id, store=store))
            yield Text("  " + line_to_type("reject", action.run, action.id, store=store))
        else:
            yield Text("  " + line_to_type("answer", action.run, action.id, _wanted(action), store=store))


def _wanted(action: Action) -> str:
    schema = action.schema or {}
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    return "VALUE" if schema.get("type") in (None, "string") else str(schema["type"]).upper()


def runs_table(found: Sequence[RunRecord]) -> Table:
    table = new_table("run", "job", "status", "begun", ">took", ">tokens", ">dollars", "")
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
    if record.attention:
        return Text(f"needs attention: {record.attention}", "red")
    if record.reason:
        return Text(trace.first_line(record.reason, 60), "dim")
    if record.progress_done is not None and record.progress_total:
        return Text(f"{record.progress_done:g} of {record.progress_total:g}", "dim")
    return Text("")


def summary_table(summary: Sequence[dict[str, Any]]) -> Table:
    table = new_table(
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


def print_table(table: Table) -> None:
    """Never cut: an id that is cut cannot be typed."""
    out.width = max(out.width, out.measure(table, options=out.options.update(max_width=1_000)).maximum)
    out.print(table, soft_wrap=True)


def new_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table


def show_run(
    record: RunRecord,
    steps: Sequence[StepRecord],
    waits: Sequence[Action],
    limits: dict[str, Any] | None,
    store: str,
) -> None:
    out.print(Text.assemble((record.job, "bold"), "  ", record.id), soft_wrap=True)
    out.print(trace.totals(record, steps), soft_wrap=True)
    facts = {
        "begun": f"{trace.clock(record.created)}, {trace.ago(record.created)}",
        "reason": record.reason if record.status != Status.COMPLETED else None,
        "verdict": None if record.success is None else _verdict(record),
        "expires": trace.clock(record.expires) if record.expires else None,
        "limits": _limits_text(record, limits or {}),
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
    if record.attention:
        out.print("\nneeds attention", style="bold red")
        for key, why in attention_of(steps).items():
            out.print(Text.assemble(("! ", "red"), (key, "bold"), "  ", why), soft_wrap=True)
    if waits:
        out.print()
    for text in how_to_answer(waits, store):
        out.print(text, soft_wrap=True)


def _limits_text(record: RunRecord, limits: dict[str, Any]) -> str:
    """What of each limit is spent."""
    parts = [
        f"{limits[name]['spent']:,} of {limits[name]['limit']:,} {in_words(name)}"
        for name in COUNTED
        if name in limits and name != "dollars"
    ]
    if dollars := limits.get("dollars"):
        parts.insert(0, f"{trace.money(dollars['spent'])} of {trace.money(dollars['limit'])}")
    if time_limit := limits.get("seconds"):
        passed = (record.ended or time.time()) - (time_limit["since"] or record.created)
        parts.append(f"{trace.seconds(passed)} of {trace.seconds(time_limit['limit'])}")
    family = limits.get("run", record.id)
    of = "" if family == record.id else f" (with its family, {family})"
    return " · ".join(parts) + of


def _verdict(record: RunRecord) -> str:
    note = {"success": bool(record.success), "score": record.score, "reason": record.verdict}
    return trace.note_text("verdict", note).removeprefix("verdict: ")


def _print_titled(title: str, data: bytes | None) -> None:
    if data is not None:
        out.print(f"\n{title}", style="dim")
        print_value(orjson.loads(data))


async def show_step(app: Dayjob, rows: Sequence[StepRecord], missing: str, as_json: bool) -> None:
    if not rows:
        raise InputError(f"{missing}; `dayjob show RUN` lists them")
    requests = [await app.request_of(row) for row in rows]
    if as_json:
        found = [{**step_fields(row), "request": loaded(r)} for row, r in zip(rows, requests, strict=True)]
        print_json({"data": found})
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
        print_value(content if isinstance(content, str) else message)
    _print_titled("request", orjson.dumps({name: value for name, value in request.items() if value}))


def print_value(value: Any) -> None:
    if isinstance(value, str):
        out.print(value, markup=False, soft_wrap=True)
    else:
        print_json(value)


def print_json(document: Any) -> None:
    text = json_of(document, indented=True).decode()
    if out.is_terminal:
        out.print_json(text)
    else:
        typer.echo(text)


def print_line(fields: dict[str, Any]) -> None:
    typer.echo(json_of(fields, str).decode())


def print_event(name: str, fields: dict[str, Any]) -> None:
    if name != "step.text":
        print_line({"event": name, "at": time.time(), **fields})


_LOGGED: dict[str, Callable[[dict[str, Any]], str]] = {
    "worker.started": lambda fields: (
        f"worker of {', '.join(fields['jobs'])} on {', '.join(fields['queues'])}"
    ),
    "run.claimed": lambda fields: (
        f"{fields['run']} {fields['job']} begun"
        + (f" again, attempt {fields['attempts'] + 1}" if fields["attempts"] else "")
    ),
    "run.parked": lambda fields: f"{fields['run']} {fields['status'].replace('_', ' ')}",
    "run.settled": lambda fields: (
        f"{fields['run']} {fields['job']} {fields['status']}"
        + (f": {fields['reason']}" if fields["reason"] and fields["status"] != Status.COMPLETED else "")
    ),
    "run.limit": lambda fields: (
        f"{fields['run']} reached its limit of {fields['allowed']:g} {in_words(fields['limit'])}"
    ),
    "run.lost": lambda fields: f"{fields['run']} is another worker's now",
    "run.warning": lambda fields: f"{fields['run']} ! step {fields['step']!r}: {fields['message']}",
    "worker.took_over": lambda fields: f"took over {len(fields['runs'])} runs of dead workers",
    "worker.dead": lambda fields: "this worker was declared dead; it registers anew",
    "worker.blocked": lambda fields: f"! step {fields['step']!r} blocks the event loop",
    "store.failing": lambda fields: f"! store: {fields['error']}; trying again",
    "worker.stopped": lambda fields: "stopped",
}
"""What is said of each event that the log tells of."""


def log_event(name: str, fields: dict[str, Any]) -> None:
    told = _LOGGED.get(name)
    if told is None:
        return
    clock, line = trace.clock(time.time()), _one_line(told(fields))
    if out.is_terminal:
        out.print(Text.assemble((clock + "  ", "dim"), line), soft_wrap=True)
    else:  # styling takes a millisecond, in which the event loop does nothing else
        out.file.write(f"{clock}  {line}\n")
        out.file.flush()


def _one_line(text: str) -> str:
    """What clients and models wrote begins no line of its own in the log, and does not steer the terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
