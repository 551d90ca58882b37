"""The steps of a run over the Assistants wire: from its journal, or, of one that was imported, as they came."""

from __future__ import annotations

from typing import Any

import orjson

from dayjob.kept import Page, is_imported, step_kind
from dayjob.runs import RunRecord
from dayjob.server.wire import step_objects
from dayjob.stores import Store

MOST_STEPS = 1_000_000


async def steps_of(store: Store, run: RunRecord) -> list[dict[str, Any]]:
    """All steps of a run of this wire, oldest first."""
    if not is_imported(run):
        return step_objects(run, await store.steps(run.id))
    assert run.thread is not None
    found = await store.objects(run.thread, step_kind(run.id), Page(MOST_STEPS, ascending=True))
    return [orjson.loads(each.body) for each in found.rows]
