"""How a run looks to a person: live while it works, and afterwards as a tree of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dayjob.documents import cost
from dayjob.runs import Kind, Outcome, RunRecord, Status, StepRecord

MARKS = {
    Outcome.VALUE: ("✓", "green"),
    Outcome.ERROR: ("✗", "red"),
    Outcome.CANCELLED: ("–", "dim"),
    Outcome.SUPERSEDED: ("↻", "dim"),
    None: ("…", "yellow"),
}
STATUS_STYLES = {
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.EXPIRED: "red",
    Status.REQUIRES_ACTION: "yellow",
    Status.INCOMPLETE: "yellow",
}
WORK = frozenset({Kind.CALL, Kind.MODEL, Kind.TOOL, Kind.ASK, Kind.EVENT, Kind.SLEEP, Kind.RUN})
"""The kinds of steps that do something; scopes, joins, values and notes only say how it went."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MOST_ACTIVE = 6
TEXT_KEPT = 240


@dataclass(slots=True)
class Active:
    """A step that is being done."""

    label: Text
    started: float = field(default_factory=time.monotonic)
    said: str = ""


class Trace:
    """A subscriber to the app's events that shows one run, and its children, while they work.

    A line a finished step; on a terminal also, at the foot, what is being done and how far it is.
    """

    def __init__(self, console: Console, run: str) -> None:
        self._console = console
        self._run = run
        self._jobs: dict[str, str] = {}
        self._active: dict[tuple[str, str], Active] = {}
        self._progress: tuple[float, float | None] | None = None
        self._complaint = ""
        self._told: set[tuple[str, str]] = set()
        self._show: dict[str, Callable[[dict[str, Any]], None]] = {
            "run.claimed": self._claimed,
            "run.progress": self._progressed,
            "run.note": self._noted,
            "run.warning": lambda f: self._complain(f"step {f['step']!r}: {f['message']}"),
            "run.lost": self._lost,
            "run.settled": self._settled,
            "step.started": self._started,
            "step.text": self._spoke,
            "step.opened": self._opened,
            "step.finished": self.finished,
            "step.retrying": self._retrying,
            "worker.blocked": self._blocked,
            "store.failing": lambda f: self._complain(f"store: {f['error']}; trying again"),
        }
        self._live = Live(get_renderable=self._foot, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Trace:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._active.clear()
        self._progress = None
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        if name in self._show:
            self._show[name](fields)

    # --- events --------------------------------------------------------------------------------

    def _claimed(self, fields: dict[str, Any]) -> None:
        self._jobs[fields["run"]] = fields["job"]

    def _progressed(self, fields: dict[str, Any]) -> None:
        if fields["run"] == self._run:
            self._progress = (fields["done"], fields["total"])

    def _noted(self, fields: dict[str, Any]) -> None:
        if fields["name"] in ("note", "verdict"):
            text = Text(note_text(fields["name"], fields["value"]), "dim")
            self._print(Text.assemble(("· ", "dim"), "  " * fields["key"].count("/"), text))

    def _started(self, fields: dict[str, Any]) -> None:
        if fields["kind"] in WORK:
            self._active[fields["run"], fields["key"]] = Active(self._label(fields))

    def _spoke(self, fields: dict[str, Any]) -> None:
        active = self._active.get((fields["run"], fields["key"]))
        if active is not None:
            active.said = (active.said + fields["text"])[-TEXT_KEPT:]

    def _opened(self, fields: dict[str, Any]) -> None:
        until = f" until {clock(fields['due'])}" if fields["due"] else ""
        self._line(MARKS[None], self._label(fields), Text(f"waits{until}", "yellow"))

    def finished(self, fields: dict[str, Any]) -> None:
        """A line for a finished step; those that only close what was shown have none."""
        step = fields["run"], fields["key"]
        self._active.pop(step, None)
        if fields["reused"] and step in self._told:  # a run that left memory is replayed from its beginning
            return
        self._told.add(step)
        if is_worth_a_line(fields["kind"], fields["outcome"], fields["reused"]):
            mark = ("↺", "cyan") if fields["reused"] else MARKS[fields["outcome"]]
            self._line(mark, self._label(fields), measures(fields))

    def stored(self, step: StepRecord) -> None:
        """A line for a step that another process did."""
        if step.kind == Kind.NOTE:
            self._noted({"key": step.key, "name": step.name, "value": orjson.loads(step.value or b"null")})
        else:
            self.finished(fields_of(step))

    def _retrying(self, fields: dict[str, Any]) -> None:
        self._active.pop((fields["run"], fields["key"]), None)
        again = f"in {seconds(fields['delay'])}" if fields["delay"] else "now"
        text = f"failed ({first_line(fields['error'])}); attempt {fields['attempt'] + 1} {again}"
        self._line(("↻", "yellow"), self._label(fields), Text(text, "yellow"))

    def _lost(self, fields: dict[str, Any]) -> None:
        if fields["run"] == self._run:
            self._complain("another worker has this run now")

    def _blocked(self, fields: dict[str, Any]) -> None:
        step = f"step {fields['step']!r}" if fields["step"] else "something"
        self._complain(f"{step} has held up all other steps of this process for {fields['seconds']:.1f} s")

    def _settled(self, fields: dict[str, Any]) -> None:
        if fields["run"] != self._run:
            text = f"child {fields['job']} is {fields['status']}"
            self._print(Text.assemble("  ", (text, STATUS_STYLES.get(fields["status"], ""))))

    # --- drawing -------------------------------------------------------------------------------

    def _label(self, fields: dict[str, Any]) -> Text:
        child = "" if fields["run"] == self._run else self._jobs.get(fields["run"], fields["run"]) + " › "
        return label(fields["key"], child)

    def _line(self, mark: tuple[str, str], what: Text, how: Text) -> None:
        self._print(line(self._console, mark, what, how))

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            self._print(Text(f"! {text}", "yellow"))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def _foot(self) -> RenderableType:
        """What is being done right now. Called from rich's own thread."""
        now = time.monotonic()
        active = list(self._active.values())
        rows: list[RenderableType] = [self._active_row(each, now) for each in active[:MOST_ACTIVE]]
        if len(active) > MOST_ACTIVE:
            rows.append(Text(f"  and {len(active) - MOST_ACTIVE} more", "dim"))
        if (progress := self._progress) is not None:
            rows.append(progress_row(*progress))
        return Group(*rows)

    def _active_row(self, active: Active, now: float) -> Text:
        spinner = SPINNER[int(now * 10) % len(SPINNER)]
        elapsed = Text(f"{seconds(now - active.started):>10}")
        row = line(self._console, (spinner, "cyan"), active.label, elapsed)
        room = self._console.width - row.cell_len - 3
        if active.said and room > 8:
            row.append("  " + " ".join(active.said.split())[-room:], "dim italic")
        row.truncate(self._console.width)
        return row


def is_worth_a_line(kind: str, outcome: str | None, reused: bool) -> bool:
    """Whether a finished step is shown by itself: work is; a scope is when its inside is not shown."""
    if kind in WORK:
        return True
    return kind == Kind.SCOPE and (reused or outcome == Outcome.CANCELLED)


def line(console: Console, mark: tuple[str, str], what: Text, how: Text) -> Text:
    """A step: its mark, its key, and in a column of their own what it took."""
    width = max(30, min(46, console.width - 38))
    text = Text.assemble(mark, " ", what)
    return text.append(" " * max(1, width - text.cell_len)).append_text(how)


def label(key: str, prefix: str = "") -> Text:
    """A step's key, indented by its depth, with the way to it in a softer voice."""
    above, slash, name = key.rpartition("/")
    return Text.assemble("  " * key.count("/"), (prefix + above + slash, "dim"), name)


def measures(fields: dict[str, Any]) -> Text:
    """What a step took: time, tokens, dollars."""
    if fields["reused"]:
        return Text(f"{'reused':>10}", "cyan")
    how = Text(f"{seconds(fields['seconds']):>10}")
    if fields["input_tokens"] is not None:
        how.append(f"{fields['input_tokens'] + (fields['output_tokens'] or 0):>8,} tokens", "dim")
        how.append(f"  {money(fields['dollars'])}", "dim")
    if fields["outcome"] in (Outcome.ERROR, Outcome.CANCELLED):
        how.append(f"  {'failed' if fields['outcome'] == Outcome.ERROR else 'cancelled'}", "red")
    return how


def progress_row(done: float, total: float | None) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    if total:
        row.add_row(" ", ProgressBar(total, done, width=40), f"{done:g} of {total:g}")
    else:
        row.add_row(" ", f"{done:g} done")
    return row


def fields_of(step: StepRecord, reused: bool = False) -> dict[str, Any]:
    """A stored step as its event would have said it."""
    copied = ("run", "key", "name", "kind", "attempt", "outcome", "dollars", "input_tokens", "output_tokens")
    took = (step.ended or step.started) - step.started
    return {**{name: getattr(step, name) for name in copied}, "seconds": took, "reused": reused}


# --- afterwards ----------------------------------------------------------------------------------


def totals(record: RunRecord, steps: Sequence[StepRecord], since: int = 0) -> Text:
    """The closing line of a run: the steps up to the seq `since` were there when this process took it."""
    work = [s for s in steps if s.kind in WORK and s.outcome in (Outcome.VALUE, Outcome.ERROR)]
    reused = [s for s in work if (s.seq or 0) <= since]
    parts = [f"{len(work)} step{'' if len(work) == 1 else 's'}"]
    if reused:
        parts[0] += f": {len(reused)} reused, {len(work) - len(reused)} done now"
    if record.started is not None:
        parts.append(seconds((record.ended or time.time()) - record.started))
    models = [s for s in steps if s.kind == Kind.MODEL]
    if models:
        parts.append(f"{sum((s.input_tokens or 0) + (s.output_tokens or 0) for s in models):,} tokens")
        parts.append(money(cost(steps)))
    status = Text(str(record.status).replace("_", " "), f"bold {STATUS_STYLES.get(record.status, '')}")
    return Text.assemble(status, ("  " + " · ".join(parts), "dim"))


def tree(console: Console, steps: Sequence[StepRecord]) -> Iterable[Text]:
    """The steps of a run, each below the scope that it belongs to, in the order in which they began."""
    below: dict[str, list[StepRecord]] = {}
    keys = {step.key for step in steps}
    for step in sorted(steps, key=lambda s: (s.started, s.seq or 0, s.attempt)):
        below.setdefault(step.scope if step.scope in keys else "", []).append(step)

    def walk(scope: str) -> Iterable[Text]:
        shown = set()
        for step in below.get(scope, ()):
            yield line(console, MARKS[_outcome(step)], label(step.key), _told(step))
            if step.key not in shown and step.outcome != Outcome.SUPERSEDED:
                shown.add(step.key)
                yield from walk(step.key)

    return walk("")


def _outcome(step: StepRecord) -> Outcome | None:
    return None if step.outcome is None else Outcome(step.outcome)


def _told(step: StepRecord) -> Text:
    if step.kind == Kind.NOTE:
        return Text(note_text(step.name, orjson.loads(step.value or b"null")), "dim")
    if step.outcome is None:
        return Text(f"open {step.kind}" + (f" until {clock(step.due)}" if step.due else ""), "yellow")
    how = Text(f"{seconds((step.ended or step.started) - step.started):>10}")
    how.append(f"  {step.kind}", "dim")
    if step.input_tokens is not None:
        tokens = f"{step.input_tokens:>7,} → {step.output_tokens or 0:,} tokens"
        how.append(f"{tokens}  {money(step.dollars)}", "dim")
    if step.outcome == Outcome.SUPERSEDED:
        how.append("  done again", "dim")
    if step.error is not None:
        how.append(f"  {error_text(step.error)}", "red")
    return how


def note_text(name: str, value: Any) -> str:
    """What a note says, on one line."""
    if name == "note":
        return first_line(" ".join([value["text"], *(f"{k}={v}" for k, v in value.get("data", {}).items())]))
    if name == "verdict":
        score = "" if value["score"] is None else f", score {value['score']:g}"
        reason = f" ({value['reason']})" if value["reason"] else ""
        return first_line(f"verdict: {'did' if value['success'] else 'did not do'} its job{score}{reason}")
    return first_line(orjson.dumps(value).decode())


# --- words ---------------------------------------------------------------------------------------


def seconds(count: float) -> str:
    if count < 0.9995:
        return f"{count * 1000:.0f} ms"
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def money(dollars: float | None) -> str:
    if dollars is None:
        return "$ unknown"
    return f"${dollars:.4f}" if 0 < dollars < 1 else f"${dollars:,.2f}" if dollars else "$0"


def ago(moment: float) -> str:
    since = max(time.time() - moment, 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if since >= size:
            return f"{since / size:.0f} {unit} ago"
    return "just now" if since < 2 else f"{since:.0f} s ago"


def clock(moment: float) -> str:
    try:
        local = datetime.fromtimestamp(moment).astimezone()
    except (ValueError, OverflowError, OSError):
        return "the end of time"  # beyond what a calendar holds
    today = local.date() == datetime.now().astimezone().date()
    return f"{local:%H:%M:%S}" if today else f"{local:%Y-%m-%d %H:%M}"


def error_text(error: bytes) -> str:
    """A stored error on one line."""
    fields = orjson.loads(error)
    return first_line(": ".join(filter(None, [fields.get("type"), fields.get("message")])))


def first_line(text: str, limit: int = 160) -> str:
    stripped = " ".join(text.split())
    return stripped if len(stripped) <= limit else stripped[: limit - 1] + "…"
