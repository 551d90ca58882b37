"""Jobs, runs, steps and actions as JSON: what `--json` prints, and what the API answers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from dayjob.app import Dayjob
from dayjob.jobs import Job
from dayjob.keys import attention_of
from dayjob.runs import Action, Kind, Outcome, RunRecord, StepRecord

_RUN = (
    "id", "job", "status", "reason", "created", "started", "ended", "attempts", "queue", "priority",
    "source", "version", "thread", "parent", "next_run", "dollars", "expires",
)  # fmt: skip
_STEP = (
    "key", "name", "kind", "outcome", "attempt", "seq", "started", "ended", "due", "child", "model",
    "input_tokens", "output_tokens", "cached_tokens", "dollars", "answered_by",
)  # fmt: skip


async def document(app: Dayjob, run: str) -> dict[str, Any]:
    """A run with all that belongs to it."""
    record, steps = await app.get(run), await app.steps(run)
    return {**await run_document(app, record, steps), "steps": [step_fields(step) for step in steps]}


async def run_document(app: Dayjob, record: RunRecord, steps: Sequence[StepRecord]) -> dict[str, Any]:
    """A run with all that belongs to it, but its steps."""
    models = [step for step in steps if step.kind == Kind.MODEL]
    return {
        **run_fields(record),
        "input": loaded(record.input),
        "output": loaded(record.output),
        "error": loaded(record.error),
        "usage": {
            name: sum(getattr(step, name) or 0 for step in models)
            for name in ("input_tokens", "output_tokens", "cached_tokens")
        },
        "dollars": cost(steps),
        "attention": attention_of(steps) if record.status.is_terminal else {},
        "limits": await app.limits(record.id) if record.budget else None,
        "actions": [
            action_fields(action)
            for action in (() if record.status.is_terminal else await app.actions(record.id))
        ],
    }


def run_fields(record: RunRecord) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in _RUN}
    fields["tags"] = loaded(record.tags) or []
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


def step_fields(step: StepRecord) -> dict[str, Any]:
    fields = {name: getattr(step, name) for name in _STEP}
    return {**fields, "input": loaded(step.input), "value": loaded(step.value), "error": loaded(step.error)}


def action_fields(action: Action) -> dict[str, Any]:
    return {name: getattr(action, name) for name in Action._fields}


def event_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The data of a `RunEvent`."""
    if "step" in data and isinstance(data["step"], StepRecord):
        return {"step": step_fields(data["step"])}
    if "action" in data:
        return {"action": action_fields(data["action"])}
    return data


def job_fields(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "version": job.version,
        "description": inspect.getdoc(inspect.unwrap(job.fn)),
        "input": job.signature.schema(),
    }


def cost(steps: Iterable[StepRecord]) -> float | None:
    """Dollars of all model calls made, the superseded ones too; None if the price of one is unknown."""
    prices = [s.dollars for s in steps if s.kind == Kind.MODEL and s.outcome != Outcome.CANCELLED]
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


def loaded(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)
