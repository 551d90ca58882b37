"""What the live trace of a run says."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from dayjob.runs import Kind, Outcome
from dayjob.trace import Trace


def finished(key: str, reused: bool) -> dict[str, Any]:
    return {
        "run": "run_1", "key": key, "name": key, "kind": Kind.CALL, "attempt": 1, "outcome": Outcome.VALUE,
        "seconds": 0.1, "dollars": None, "input_tokens": None, "output_tokens": None, "reused": reused,
    }  # fmt: skip


def test_a_step_that_was_told_is_not_told_again_when_it_is_replayed() -> None:
    said = StringIO()
    trace = Trace(Console(file=said), "run_1")
    for key, reused in (("read", True), ("pause", False), ("read", True), ("pause", True), ("pause", False)):
        trace("step.finished", finished(key, reused))
    assert [line.split()[:2] for line in said.getvalue().splitlines()] == [
        ["↺", "read"], ["✓", "pause"], ["✓", "pause"],
    ]  # fmt: skip
