"""What an account of the Assistants API held comes into a store: a file of objects, one a line, in any order.

The lines are checked one by one and sorted, beyond what fits in memory on disk, so that each thread comes with
its messages, runs and steps in order; then they go into the store, thousands in a transaction. A line is taken,
or was there already, or is refused with the reason; what is fine never depends on what is not.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import marshal
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import IO, Any, NamedTuple

import orjson

from dayjob.assistant import JOB
from dayjob.kept import (
    IMPORTED,
    Arrival,
    Came,
    MessageRecord,
    ObjectRecord,
    Received,
    ThreadRecord,
    is_imported,
    step_kind,
)
from dayjob.runs import TERMINAL, RunRecord, Status
from dayjob.stores import Store
from dayjob.threads import in_a_thread

ASSISTANT, THREAD, MESSAGE, RUN, STEP = (
    "assistant", "thread", "thread.message", "thread.run", "thread.run.step",
)  # fmt: skip
BATCH = 2_000
MOST_LINE_BYTES = 16 * 1024 * 1024
MOST_TOLD = 100_000
"""So many lines are told of by number; the rest is counted."""
MOST_ID = 256
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512
LAST_SECOND = 253_402_300_799
"""The end of the year 9999: no calendar here knows a later time."""
_ROW_BYTES = 700
"""About what a row takes in memory, without what is stored of it."""
SORTED_BYTES = 64 * 1024 * 1024
TOGETHER = 100
PART_OF_SECOND = 1e-6
"""What parts those of the same second, so that they keep their order; their own times are whole seconds."""

Row = tuple[tuple[Any, ...], str, str, tuple[Any, ...]]
"""A line that is fine: what it is sorted by, ending with its number; its `object`; its id; what is stored of it."""


class Told(NamedTuple):
    """What is said of a line."""

    line: int
    object: str
    id: str | None
    field: str | None
    reason: str


@dataclass
class Report:
    """What came of a file: by `object` how many were taken, there already, or refused; and of which lines what is told.

    `remarks` are on what was taken otherwise than it stood in the file.
    """

    taken: Counter[str] = field(default_factory=Counter)
    there: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[Told] = field(default_factory=list)
    remarks: list[Told] = field(default_factory=list)
    remarked: int = 0

    def refuse(self, told: Told) -> None:
        self.refused[told.object] += 1
        if len(self.refusals) < MOST_TOLD:
            self.refusals.append(told)

    def remark(self, told: Told) -> None:
        self.remarked += 1
        if len(self.remarks) < MOST_TOLD:
            self.remarks.append(told)


class Unfit(Exception):
    """A line that cannot be taken: the field, and why."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


Progress = Callable[[str, int], None]
"""Is told now and then how far it is: ("read", lines so far), then ("kept", rows since the last time)."""


async def import_lines(
    store: Store, file: IO[bytes], project: str, on_progress: Progress = lambda phase, done: None
) -> Report:
    """Takes what stands in a file into a store. Again with the same file, it changes nothing."""
    report = Report()
    with Sorter() as rows:
        await in_a_thread(_read, file, rows, report, on_progress)
        places, ordered = _Places(), iter(rows)
        writing: asyncio.Task[list[_Placed]] | None = None
        while True:  # the next rows are made ready while those before them are written
            placed = [places.place(project, row) for row in islice(ordered, BATCH)]
            if writing is not None:
                on_progress("kept", len(await writing))
            if not placed:
                break
            writing = asyncio.create_task(_keep(store, project, placed, report))
            await asyncio.sleep(0)
    report.refusals.sort(key=lambda told: told.line)
    report.remarks.sort(key=lambda told: told.line)
    return report


async def _keep(store: Store, project: str, placed: list[_Placed], report: Report) -> list[_Placed]:
    received = await store.receive(project, [each.arrival for each in placed])
    for each, came in zip(placed, received, strict=True):
        _count(report, each, came)
    return placed


# --- reading ---------------------------------------------------------------------------------------


def _read(file: IO[bytes], rows: Sorter, report: Report, on_progress: Progress) -> None:
    number = 0
    try:
        for number, line in enumerate(_lines(file), 1):
            _read_line(number, line, rows, report)
            if number % BATCH == 0:
                on_progress("read", number)
    except (OSError, EOFError, zlib.error) as problem:
        report.refuse(Told(number + 1, "line", None, None, f"the file cannot be read any further: {problem}"))
    on_progress("read", number)


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Each line; None for one that is too long."""
    first = True
    while line := file.readline(MOST_LINE_BYTES + 1):
        if first:
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        too_long = len(line) > MOST_LINE_BYTES
        rest = line
        while len(rest) > MOST_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MOST_LINE_BYTES + 1)
        yield None if too_long else line


def _read_line(number: int, line: bytes | None, rows: Sorter, report: Report) -> None:
    if line is not None and not line.strip():
        return
    kind, id = "line", None
    try:
        found = _loaded(line)
        id = found.get("id") if isinstance(found.get("id"), str) else None
        kind = _kind_of(found)
        remarks: list[tuple[str, str]] = []
        rows.add(_row_of(kind, found, number, remarks))
    except Unfit as problem:
        report.refuse(Told(number, kind, None if id is None else id[:MOST_ID], problem.field, problem.reason))
    else:
        for name, remark in remarks:
            report.remark(Told(number, kind, id, name, remark))


def _loaded(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise Unfit(None, f"is longer than {MOST_LINE_BYTES // (1024 * 1024)} MB")
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as problem:
        _look_for_half_characters(line)
        raise Unfit(None, f"is not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise Unfit(None, "is no JSON object")
    return found


def _look_for_half_characters(line: bytes) -> None:
    """JSON can spell half a surrogate pair, which no text has; says in which field."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return
    for name, value in found.items() if isinstance(found, dict) else ():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            shown = name.encode("ascii", "backslashreplace").decode()
            raise Unfit(shown, "has half a surrogate pair, which is no character") from None


def _kind_of(found: dict[str, Any]) -> str:
    kind = found.get("object")
    if kind is None:
        raise Unfit("object", "is missing")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise Unfit("object", f"is {str(kind)[:MOST_ID]!r}; expected one of {', '.join(_DEFAULTS)}")
    return kind


# --- checking --------------------------------------------------------------------------------------

_NULL = dict.fromkeys
# What may be missing, as it is in the examples that were published, and what it then is.
_DEFAULTS: dict[str, dict[str, Any]] = {
    ASSISTANT: {
        **_NULL(("name", "description", "instructions", "tool_resources", "temperature", "top_p")),
        "response_format": "auto",
    },
    THREAD: _NULL(("tool_resources",)),
    MESSAGE: {
        "status": "completed",
        **_NULL(("incomplete_details", "completed_at", "incomplete_at", "assistant_id", "run_id")),
    },
    RUN: {
        **_NULL(
            (
                "required_action", "last_error", "expires_at", "started_at", "cancelled_at", "failed_at",
                "completed_at", "incomplete_details", "usage", "temperature", "top_p", "max_prompt_tokens",
                "max_completion_tokens",
            )
        ),
        "parallel_tool_calls": True,
        "response_format": "auto",
        "tool_choice": "auto",
    },
    STEP: _NULL(("last_error", "expired_at", "cancelled_at", "failed_at", "completed_at", "usage")),
}  # fmt: skip
# What is null in old objects, and no typed client takes as null.
_INSTEAD_OF_NULL: dict[str, dict[str, Any]] = {
    ASSISTANT: {"tools": list, "metadata": dict},
    THREAD: {"metadata": dict},
    MESSAGE: {"metadata": dict, "attachments": list},
    RUN: {
        "tools": list,
        "metadata": dict,
        "instructions": str,
        "truncation_strategy": lambda: {"type": "auto", "last_messages": None},
    },
    STEP: {"metadata": dict},
}
_TIMES = (
    "created_at", "completed_at", "incomplete_at", "expires_at", "started_at", "cancelled_at", "failed_at",
    "expired_at",
)  # fmt: skip
_IDS = ("id", "thread_id", "run_id", "assistant_id")


def _row_of(kind: str, found: dict[str, Any], number: int, remarks: list[tuple[str, str]]) -> Row:
    """A line as a row. Raises Unfit."""
    for name, default in _DEFAULTS[kind].items():
        found.setdefault(name, default)
    for name, make in _INSTEAD_OF_NULL[kind].items():
        if found.get(name) is None:
            found[name] = make()
    _check(kind, found)
    return _ROWS[kind](found, number, remarks)


def _check(kind: str, found: dict[str, Any]) -> None:
    _validator_of(kind)(found)
    for name in _IDS:
        if found.get(name) is not None:
            _check_id(name, found[name])
    for name in _TIMES:
        at = found.get(name)
        if at is not None and not 0 <= at <= LAST_SECOND:
            raise Unfit(name, f"is {at}; expected seconds since 1970")
    if found["metadata"]:
        _check_metadata(found["metadata"])


@cache
def _validator_of(kind: str) -> Callable[[dict[str, Any]], None]:
    """Checks against the types of the clients. Raises Unfit."""
    from openai.types.beta import Assistant, Thread
    from openai.types.beta.threads import Message, Run
    from openai.types.beta.threads.runs import RunStep
    from pydantic import TypeAdapter, ValidationError

    types = {ASSISTANT: Assistant, THREAD: Thread, MESSAGE: Message, RUN: Run, STEP: RunStep}
    check = TypeAdapter[Any](types[kind]).validator

    def validate(found: dict[str, Any]) -> None:
        try:
            check.validate_python(found, strict=True)
        except ValidationError as problem:
            raise _unfit(
                problem.errors(include_url=False, include_context=False, include_input=False)
            ) from None

    return validate


def _unfit(errors: Sequence[Mapping[str, Any]]) -> Unfit:
    """The first thing that is wrong; of the forms that a field may have, in the one that its `type` says."""
    unlike = [each for each in errors if each["type"] == "literal_error" and each["loc"][-1] == "type"]
    others = {each["loc"][:-1] for each in unlike}
    of_its_form = [each for each in errors if each["loc"][: _form(each["loc"])] not in others]
    first = (of_its_form or unlike)[0]
    place = ".".join(str(part) for part in first["loc"] if not _is_form(part))
    if not of_its_form:
        return Unfit(place, "is missing, or not one of those that there are")
    if first["type"] == "missing":
        return Unfit(place, "is missing")
    return Unfit(place, first["msg"].replace("Input should be", "should be"))


def _is_form(part: object) -> bool:
    """Whether a part of a place is the name of a type, which only those know who wrote the types."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part)


def _form(place: Sequence[object]) -> int:
    """How much of a place leads to the form that it is in."""
    return max((number for number, part in enumerate(place, 1) if _is_form(part)), default=len(place))


def _check_id(name: str, id: str) -> None:
    if not id:
        raise Unfit(name, "is empty")
    if len(id) > MOST_ID:
        raise Unfit(name, f"has {len(id):,} characters; the most are {MOST_ID}")
    if not id.isprintable():
        raise Unfit(name, "has a character that cannot be shown")
    if "/" in id:
        raise Unfit(name, 'has a "/", by which no URL could name it')


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > MOST_PAIRS:
        raise Unfit("metadata", f"has {len(metadata)} pairs; the most are {MOST_PAIRS}")
    for name, value in metadata.items():
        if len(name) > MOST_KEY:
            raise Unfit("metadata", f"has a key of {len(name)} characters; the most are {MOST_KEY}")
        if len(value) > MOST_VALUE:
            raise Unfit(f"metadata.{name}", f"has {len(value):,} characters; the most are {MOST_VALUE}")


# --- what is stored of each ------------------------------------------------------------------------


def _assistant_row(found: dict[str, Any], number: int, remarks: list[tuple[str, str]]) -> Row:
    id, created = found["id"], found["created_at"]
    body = {name: value for name, value in found.items() if name not in ("id", "object", "created_at")}
    return (0, id, 0, "", created, number), ASSISTANT, id, (id, created, _json(body))


def _thread_row(found: dict[str, Any], number: int, remarks: list[tuple[str, str]]) -> Row:
    id, created = found["id"], found["created_at"]
    details = _json({name: found[name] for name in ("tool_resources", "metadata")})
    return (1, id, 0, "", created, number), THREAD, id, (id, created, details)


def _message_row(found: dict[str, Any], number: int, remarks: list[tuple[str, str]]) -> Row:
    id, thread, created = found["id"], found["thread_id"], found["created_at"]
    told = told_of(found["content"])
    details: dict[str, Any] = {IMPORTED: True}
    details.update((name, found[name]) for name in ("metadata", "assistant_id", "completed_at"))
    if found["content"] != [{"type": "text", "text": {"value": told, "annotations": []}}]:
        details["content"] = found["content"]
    if found["attachments"]:
        details["attachments"] = found["attachments"]
    if found["status"] != "completed":
        why = (found["incomplete_details"] or {}).get("reason")
        if found["status"] == "in_progress":
            why, at = "run_expired", created
            remarks.append(("status", 'was "in_progress", and is taken as "incomplete"'))
        else:
            at = found["incomplete_at"]
        if why is None:
            why = "run_failed"
            remarks.append(("incomplete_details", 'gave no reason, and is taken as "run_failed"'))
        details.update(incomplete=why, incomplete_at=at)
    message = _json({"role": found["role"], "content": told})
    values = (id, message, created, found["run_id"], _json(details))
    return (1, thread, 1, "", created, number), MESSAGE, id, values


def told_of(content: Iterable[Mapping[str, Any]]) -> str | list[Any]:
    """What a model is told of the parts of a message: text as it was said, images as they are."""
    parts: list[Any] = []
    for part in content:
        match part["type"]:
            case "text":
                parts.append({"type": "text", "text": part["text"]["value"]})
            case "refusal":
                parts.append({"type": "text", "text": part["refusal"]})
            case _:
                parts.append(part)
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


_BECAME = {"cancelling": ("cancelled", "cancelled_at")}
_EXPIRED = ("expired", None)


def _run_row(found: dict[str, Any], number: int, remarks: list[tuple[str, str]]) -> Row:
    id, thread, created, metadata = found["id"], found["thread_id"], found["created_at"], found["metadata"]
    if found["status"] not in TERMINAL:
        status, at = _BECAME.get(found["status"], _EXPIRED)
        remarks.append(
            ("status", f'was "{found["status"]}", and is taken as "{status}": it does not go on here')
        )
        found.update(status=status, required_action=None)
        if at is not None:
            found[at] = found["started_at"] or created
    details = {
        IMPORTED: {name: value for name, value in found.items() if name != "metadata"},
        "metadata": metadata,
    }
    usage = found["usage"] or {}
    times = (found[name] for name in ("completed_at", "failed_at", "cancelled_at"))
    ended = next((at for at in times if at is not None), None)
    if ended is None and found["status"] == "expired":
        ended = found["expires_at"]
    why = (found["last_error"] or {}).get("message") or (found["incomplete_details"] or {}).get("reason")
    values = (
        id, thread, found["status"], created, found["started_at"], created if ended is None else ended, why,
        usage.get("prompt_tokens"), usage.get("completion_tokens"), _json(details),
        _json({"request": {"assistant": found["assistant_id"], "model": found["model"]}}),
    )  # fmt: skip
    return (1, thread, 2, "", created, number), RUN, id, values


def _step_row(found: dict[str, Any], number: int, remarks: list[tuple[str, str]]) -> Row:
    id, thread, run, created = found["id"], found["thread_id"], found["run_id"], found["created_at"]
    if found["status"] == "in_progress":
        found.update(status="expired", expired_at=created)
        remarks.append(("status", 'was "in_progress", and is taken as "expired"'))
    return (1, thread, 3, run, created, number), STEP, id, (id, created, _json(found))


_ROWS: dict[str, Callable[[dict[str, Any], int, list[tuple[str, str]]], Row]] = {
    ASSISTANT: _assistant_row,
    THREAD: _thread_row,
    MESSAGE: _message_row,
    RUN: _run_row,
    STEP: _step_row,
}


def _json(value: Any) -> bytes:
    """Equal values give equal bytes. Raises Unfit.

    A copy: what orjson returns holds on to the whole buffer that it was written in, which is several times as large.
    """
    try:
        return bytes(memoryview(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)))
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        raise Unfit(None, "is nested too deeply") from None


class _Placed(NamedTuple):
    """A row on its way to the store. `twin` is an earlier line of its thread with the same id."""

    line: int
    kind: str
    id: str
    arrival: Arrival
    twin: int | None


class _Places:
    """Rows in their order become arrivals: those of the same second keep the order of their lines."""

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._number = 0
        self._thread: str | None = None
        self._lines: dict[tuple[str, str], int] = {}

    def place(self, project: str, row: Row) -> _Placed:
        key, kind, id, _ = row
        if key[:4] != self._of:
            self._of, self._number = key[:4], 0
        self._number = min(self._number + 1, 999_999)
        if key[1] != self._thread:
            self._thread, self._lines = key[1], {}
        twin = self._lines.setdefault((kind, id), key[-1])
        arrival = _arrival(project, row, self._number * PART_OF_SECOND)
        return _Placed(key[-1], kind, id, arrival, None if twin == key[-1] else twin)


def _arrival(project: str, row: Row, apart: float) -> Arrival:
    (_, thread, _, run, _, _), kind, id, values = row
    match kind:
        case "assistant":
            return Arrival(ObjectRecord(ASSISTANT, *values))
        case "thread":
            _, created, details = values
            return Arrival(ThreadRecord(id, project, created, details))
        case "thread.message":
            _, message, created, of_run, details = values
            return Arrival(MessageRecord(id, message, created, run=of_run, details=details), thread)
        case "thread.run":
            return Arrival(_run_record(project, values, apart), thread)
    _, created, body = values
    return Arrival(ObjectRecord(step_kind(run), id, created + apart, body), thread, run)


def _run_record(project: str, values: tuple[Any, ...], apart: float) -> RunRecord:
    id, thread, status, created, started, ended, why, input_tokens, output_tokens, details, input = values
    fields: dict[str, Any] = dict.fromkeys(RunRecord.__dataclass_fields__)
    fields.update(
        home=thread, id=id, project=project, job=JOB, status=Status(status), reason=why, epoch=0, wakes=0, attempts=0,
        claimed_seq=0, admitted=1, queue="default", priority=0, thread=thread, root=id, pinned=0, changed=0,
        created=created + apart, started=started, ended=ended, input_tokens=input_tokens,
        output_tokens=output_tokens, steps=0, attention=0, details=details, input=input,
    )  # fmt: skip
    return RunRecord(**fields)


# --- what came of it -------------------------------------------------------------------------------

_WHY = {
    Came.CLASH: ("id", "is taken by something else in this store"),
    Came.NO_THREAD: ("thread_id", "names no thread that is in the store, or was taken from this file"),
    Came.NO_RUN: ("run_id", "names no run of this thread that was taken from this file, or from one before"),
    Came.WENT_ON: (
        "thread_id",
        "names a thread that went on here: no message may come in among those it has by now",
    ),
}


def _count(report: Report, placed: _Placed, received: Received) -> None:
    line, kind, id, arrival, twin = placed
    if received.came == Came.TAKEN:
        report.taken[kind] += 1
        return
    if received.came == Came.THERE:
        differing = _differing(arrival.record, received.found)
        if not differing:
            report.there[kind] += 1
            return
        field = ", ".join(differing)
        reason = "differs from what is there under this id, which stays as it is"
        if twin is not None:
            reason = f"differs from line {twin}, which has the same id"
    else:
        field, reason = _WHY[received.came]
    report.refuse(Told(line, kind, id, field, reason))


def _differing(made: Any, found: Any) -> list[str]:
    """The fields in which what comes is another than what is there; metadata may have been changed since."""
    if isinstance(found, RunRecord) and not is_imported(found):
        return ["id"]
    one, other = _fields_of(made), _fields_of(found)
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


def _fields_of(record: Any) -> dict[str, Any]:
    kept = orjson.loads((record.body if isinstance(record, ObjectRecord) else record.details) or b"{}")
    match record:
        case ObjectRecord() | ThreadRecord():
            return {**kept, "created_at": int(record.created)}
        case MessageRecord():
            message = orjson.loads(record.message)
            return {**message, **kept, "created_at": record.created, "run_id": record.run}
    return {**kept[IMPORTED], "metadata": kept.get("metadata")}


# --- sorting ---------------------------------------------------------------------------------------


class Sorter:
    """Rows in the order of their keys, however many: what does not fit in memory waits on disk, sorted."""

    def __init__(self, most_bytes: int = SORTED_BYTES) -> None:
        self._most = most_bytes
        self._rows: list[Row] = []
        self._bytes = 0
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Sorter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += _ROW_BYTES + sum(len(each) for each in row[3] if isinstance(each, bytes))
        if self._bytes > self._most:
            self._spill()

    def __iter__(self) -> Iterator[Row]:
        self._rows.sort()
        return heapq.merge(*map(_spilled, self._files), self._rows)

    def _spill(self) -> None:
        self._rows.sort()
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the others
        self._files.append(file)
        for start in range(0, len(self._rows), TOGETHER):
            marshal.dump(self._rows[start : start + TOGETHER], file)
        self._rows, self._bytes = [], 0


def _spilled(file: IO[bytes]) -> Iterator[Row]:
    end = file.tell()
    file.seek(0)
    while file.tell() < end:
        yield from marshal.load(file)
