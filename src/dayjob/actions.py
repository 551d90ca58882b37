"""What a run waits for from outside, as those see it who are to give it."""

from __future__ import annotations

import orjson

from dayjob.runs import Action, StepRecord
from dayjob.steps import APPROVE, CHANGED, HAPPENED

_KINDS = {APPROVE: "approval", HAPPENED: "happened", CHANGED: "change"}


def action_of(row: StepRecord) -> Action:
    """The action that an open row of the journal stands for."""
    input = orjson.loads(row.input or b"{}")
    return Action(
        row.key if row.attempt == 1 else f"{row.key}@{row.attempt}", row.run, _KINDS.get(row.name, row.kind),
        input.get("question", ""), input.get("schema"), row.due, row.started, input.get("tool"),
        input.get("arguments"), row.key, row.attempt,
    )  # fmt: skip
