"""The steps of a run: what it said and which tools it called, read from its journal."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from dayjob.server.access import Caller, Member
from dayjob.server.answers import JSON, PageAsked, page_of
from dayjob.server.described import answers, answers_pages_of
from dayjob.server.desk import AtDesk, Desk
from dayjob.server.errors import not_found
from dayjob.server.imported import steps_of

router = APIRouter(prefix="/threads/{thread_id}/runs/{run_id}/steps", tags=["Run steps"])


@router.get("", responses=answers_pages_of("RunStep"))
async def list_steps(caller: Member, desk: AtDesk, thread_id: str, run_id: str, page: PageAsked) -> JSON:
    """The steps of a run, newest first."""
    return JSON(page_of(await _steps(desk, caller, thread_id, run_id), page))


@router.get("/{step_id}", responses=answers("RunStep"))
async def retrieve_step(caller: Member, desk: AtDesk, thread_id: str, run_id: str, step_id: str) -> JSON:
    """One step of a run."""
    for step in await _steps(desk, caller, thread_id, run_id):
        if step["id"] == step_id:
            return JSON(step)
    raise not_found("run step", step_id)


async def _steps(desk: Desk, caller: Caller, thread: str, run: str) -> list[dict[str, Any]]:
    record = await desk.assistants_run_of(caller, thread, run)
    return await steps_of(desk.app.store, record)
