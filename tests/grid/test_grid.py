"""Whatever befalls a run with effects: nothing is done twice, nothing is lost, and nothing undone twice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson

from dayjob.keys import Fate, fate_of
from dayjob.runs import RunRecord, Status, StepRecord
from dayjob.steps import APPROVE
from dayjob.testing import Ended
from tests.bank import Happened
from tests.grid.cases import Case
from tests.grid.play import BRANCHES, Play

UNDONE = (Status.FAILED, Status.CANCELLED, Status.EXPIRED)


def test_effects(stage: Any, case: Case) -> None:
    play = Play(stage, case)
    ended = stage.run(play.perform())
    try:
        check_ends(play, ended)
        check_ledger(play)
        check_journal(play)
        check_cancel(play)
        check_undo(play)
        check_people(play)
        check_stream(play, ended)
    except AssertionError as failed:
        raise AssertionError(f"{failed}\n{shown(play, ended)}") from failed


def check_ends(play: Play, ended: Ended) -> None:
    """Each run is over, with one reason; what it was about to give stays."""
    for record in play.family:
        assert record.status.is_terminal, record
        assert bool(record.reason) == (record.status != Status.COMPLETED), record
        assert record.outcome is None
    if play.returned == Status.CANCELLING:
        expected = Status.CANCELLED
    else:
        ends = {"complete": Status.COMPLETED, "limit": Status.INCOMPLETE}
        expected = ends.get(play.case["end"], Status.FAILED)
    assert ended.status == expected, ended.run.reason
    if ended.status != Status.COMPLETED and any(step.name == "partial" for step in ended.steps):
        assert ended.output in ("begun", "done")
    assert not [warning for warning in ended.warnings if "not deterministic" in warning]


def check_ledger(play: Play) -> None:
    """No entry twice; no request again but with the same key, and without keys only after somebody said no."""
    account = play.account
    for reference in {h.reference for h in account.all("asked")}:
        assert account.count("booked", reference) <= 1, f"{reference} was booked twice"
        for first, again in pairwise(account.all("asked", reference=reference)):
            assert first.key == again.key, f"{reference} was asked for with two keys"
            if not account.honours_keys:
                between = [h for h in account.history if first.number < h.number < again.number]
                said_no = [h for h in between if h.reference == reference and h.what in ("looked", "told")]
                assert any(not h.found for h in said_no), f"{reference} was repeated without asking"


def check_journal(play: Play) -> None:
    """What the journal calls done is in the ledger; what is there is done, undone or listed in the journal."""
    booked = {h.key: h for h in play.account.all("booked")}
    latest: dict[str, tuple[RunRecord, StepRecord]] = {}
    for record in play.family:
        rows = [row for row in play.steps[record.id] if row.name in ("book", "subject") and row.call_key]
        for row in sorted(rows, key=lambda row: (row.started, row.attempt)):
            latest[row.call_key or ""] = (record, row)
    writes = {
        key: found for key, found in latest.items() if b'"effect":"read"' not in (found[1].input or b"")
    }
    for key, (_, row) in writes.items():
        if fate_of(row) is Fate.DONE:
            assert key in booked, f"{row.key} is called done, and is not in the ledger"
        elif fate_of(row) in (Fate.FAILED, Fate.NOT_DONE):
            assert key not in booked, f"{row.key} is called failed, and is in the ledger"
    for key, entry in booked.items():
        assert key in writes, f"{entry.reference} is in the ledger, and not in the journal"
        check_entry(play, entry, *writes[key or ""])


def check_entry(play: Play, entry: Happened, record: RunRecord, row: StepRecord) -> None:
    root = play.family[0]
    is_reversed = play.account.count("reversed", entry.reference) == 1
    listed = root.attention + (record.attention if record is not root else 0) > 0
    if fate_of(row) is Fate.UNKNOWN:
        assert listed, f"{entry.reference} is in the ledger, of unknown outcome, and not listed"
    elif root.status in UNDONE or record.status in UNDONE:
        assert is_reversed or listed, f"{entry.reference} was neither undone nor listed"
    else:
        assert not is_reversed, f"{entry.reference} was undone though the run ended well"


def check_cancel(play: Play) -> None:
    if play.cancelled is None:
        return
    for late in play.account.all("asked"):
        if late.number > play.cancelled:
            assert late.key in play.begun, f"{late.reference} was sent after the cancellation"


def check_undo(play: Play) -> None:
    """Each at most once, and the latest first; branches have no order among themselves."""
    back = [h.reference for h in play.account.all("asked back")]
    assert len(back) == len(set(back)), f"undone twice: {back}"
    order = [h.reference for h in play.account.all("booked")]
    for earlier, later in pairwise(back):
        if {earlier, later} != set(BRANCHES):
            assert order.index(earlier) > order.index(later), f"booked {order}, undone {back}"
    for record in play.family:
        for row in play.steps[record.id]:
            if row.scope == "#undo" and row.value is not None:
                to = orjson.loads(row.input or b"{}")["arguments"]["to"]
                assert play.account.count("reversed", to) == 1, f"{to} is called undone, and stands"


def check_people(play: Play) -> None:
    """Nothing before its own yes, and nothing after its own no."""
    if not play.case["approval"]:
        return
    account = play.account
    for reference in ("only", *BRANCHES):
        done = account.all("asked", reference=reference)
        said_yes = account.all("approved", reference=reference)
        assert not done or said_yes[0].number < done[0].number, f"{reference} was sent without its approval"
        assert not (done and account.count("rejected", reference)), (
            f"{reference} was sent though it was refused"
        )
    questions = [row.input for rows in play.steps.values() for row in rows if row.name == APPROVE]
    assert len(questions) == len(set(questions)), "somebody was asked twice"


def check_stream(play: Play, ended: Ended) -> None:
    """Who reads along sees every finished step once, in order."""
    if play.reader is None:
        return
    seen = [event.data["step"].seq for event in play.streamed if event.name == "step.finished"]
    assert seen == sorted(step.seq for step in ended.steps if step.seq is not None)


def shown(play: Play, ended: Ended) -> str:
    lines = [f"{play.case}", f"cancelled at {play.cancelled} ({play.returned}), begun {play.begun}"]
    lines += [
        f"{h.number} {h.what} {h.reference} {(h.key or '')[:6]} {h.found}" for h in play.account.history
    ]
    for record in play.family:
        lines.append(f"{record.job} {record.status} attention={record.attention} {record.reason}")
        lines += [
            f"  {row.seq} {row.key} #{row.attempt} {row.outcome} {(row.call_key or '')[:6]} {row.value!r} {row.error!r}"
            for row in play.steps[record.id]
        ]
    return "\n".join([*lines, *ended.warnings])
