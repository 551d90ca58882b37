"""Assistants: what an agent is told and may use, kept under an id."""

from __future__ import annotations

from fastapi import APIRouter, Request

from dayjob.kept import ObjectRecord
from dayjob.server.access import Member
from dayjob.server.answers import JSON, PageAsked, page_body
from dayjob.server.bodies import ChangedAssistant, NewAssistant
from dayjob.server.described import answers, answers_pages_of
from dayjob.server.desk import AtDesk, id_for
from dayjob.server.errors import not_found
from dayjob.server.wire import assistant_object, not_offered
from dayjob.values import encode

KIND = "assistant"
router = APIRouter(prefix="/assistants", tags=["Assistants"])


@router.get("", responses=answers_pages_of("Assistant"))
async def list_assistants(caller: Member, desk: AtDesk, page: PageAsked) -> JSON:
    """The project's assistants, newest first."""
    return JSON(page_body(await desk.app.store.objects(caller.project, KIND, page), assistant_object))


@router.post("", responses=answers("Assistant"))
async def create_assistant(request: Request, caller: Member, desk: AtDesk, body: NewAssistant) -> JSON:
    """Makes an assistant."""
    made = ObjectRecord(KIND, id_for("asst", caller, request), desk.app.now(), encode(body.given))
    return _answer(await desk.app.store.create_object(caller.project, made))


@router.get("/{assistant_id}", responses=answers("Assistant"))
async def retrieve_assistant(caller: Member, desk: AtDesk, assistant_id: str) -> JSON:
    """An assistant, as it is now."""
    return _answer(await desk.object_of(caller, KIND, assistant_id))


@router.post("/{assistant_id}", responses=answers("Assistant"))
async def modify_assistant(
    caller: Member, desk: AtDesk, assistant_id: str, body: ChangedAssistant | None = None
) -> JSON:
    """Changes what is given, and nothing else. Runs that were made before keep what they were made with."""
    given = {} if body is None else body.given
    if given.get("model", "") is None:
        del given["model"]
    changed = await desk.app.store.change_object(caller.project, KIND, assistant_id, encode(given))
    if changed is None:
        raise not_found(KIND, assistant_id)
    return _answer(changed)


@router.delete("/{assistant_id}", responses=answers("AssistantDeleted"))
async def delete_assistant(caller: Member, desk: AtDesk, assistant_id: str) -> JSON:
    """Deletes an assistant. Its threads stay, and so do its runs, which go on."""
    if not await desk.app.store.delete_object(caller.project, KIND, assistant_id):
        raise not_found(KIND, assistant_id)
    return JSON({"id": assistant_id, "object": "assistant.deleted", "deleted": True})


def _answer(record: ObjectRecord) -> JSON:
    made = assistant_object(record)
    return JSON(made, headers=not_offered(made["tools"]))
