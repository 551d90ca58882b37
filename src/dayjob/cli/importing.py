"""`dayjob import FILE`: how far it is, and what came of it."""

from __future__ import annotations

import gzip
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dayjob.cli.printing import err, new_table, out, print_table
from dayjob.errors import InputError
from dayjob.importing import Report, Told, import_lines
from dayjob.stores import open_store


async def import_file(file: str, store: str, project: str) -> tuple[Report, float]:
    """What came of a file, or of standard input if it is "-"; and the seconds that it took."""
    if not project or not project.isprintable():
        raise InputError(f"--project: {project!r} is no name")
    began = time.monotonic()
    with _opened(file) as (lines, raw, size):
        kept = open_store(store)
        try:
            with _progress() as bar:
                task = bar.add_task("reading", total=size, lines=0)

                def on_progress(phase: str, done: int) -> None:
                    if phase == "read":
                        bar.update(task, completed=raw.tell() if size else done, lines=done)
                    else:
                        if bar.tasks[0].description != "keeping":
                            lines = bar.tasks[0].fields["lines"]
                            bar.update(task, description="keeping", total=lines, completed=0)
                        bar.advance(task, done)

                report = await import_lines(kept, lines, project, on_progress)
        finally:
            await kept.close()
    return report, time.monotonic() - began


@contextmanager
def _opened(file: str) -> Iterator[tuple[IO[bytes], IO[bytes], int | None]]:
    """The lines, the file they are in, and its size, as far as one can know it."""
    try:
        raw: IO[bytes] = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as problem:
        raise InputError(f"{file}: cannot be read ({problem.strerror})") from None
    try:
        size = os.fstat(raw.fileno()).st_size if raw.seekable() else None
        lines = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if file.endswith(".gz") else raw
        yield lines, raw, size
    finally:
        if file != "-":
            raw.close()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[lines]:,} lines"),
        TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip


def fields_of(report: Report) -> dict[str, Any]:
    """A report for programs."""
    return {
        "taken": dict(report.taken),
        "there": dict(report.there),
        "refused": dict(report.refused),
        "refusals": [told._asdict() for told in report.refusals],
        "remarks": [told._asdict() for told in report.remarks],
    }


def show_report(report: Report, seconds: float) -> None:
    """A report for people."""
    for told in report.remarks:
        err.print(_sentence(told), style="yellow", soft_wrap=True)
    _say_the_rest(report.remarked - len(report.remarks), "remarks")
    for told in report.refusals:
        err.print(Text.assemble(("refused  ", "red"), _sentence(told)), soft_wrap=True)
    _say_the_rest(report.refused.total() - len(report.refusals), "lines were refused")
    table = new_table("", ">taken", ">there already", ">refused")
    for kind in sorted({*report.taken, *report.there, *report.refused}):
        table.add_row(kind, *(f"{count[kind]:,}" for count in (report.taken, report.there, report.refused)))
    if table.row_count:
        print_table(table)
    if not report.taken.total():
        out.print("nothing was changed")
    else:
        rate = report.taken.total() / max(seconds, 0.001)
        out.print(f"{report.taken.total():,} taken in {seconds:,.1f} s ({rate:,.0f} a second)")


def _sentence(told: Told) -> str:
    named = f"{told.object} {told.id}" if told.id else told.object if told.object != "line" else ""
    field = f"{told.field} " if told.field else ""
    return f"line {told.line}: {named + ': ' if named else ''}{field}{told.reason}"


def _say_the_rest(more: int, what: str) -> None:
    if more > 0:
        err.print(f"… and {more:,} more {what}")
