"""Messages of a thread, as people read them."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request

from dayjob.errors import ThreadBusy
from dayjob.kept import MessageRecord
from dayjob.server.access import Member
from dayjob.server.answers import JSON, PageAsked, listed
from dayjob.server.bodies import ChangedMetadata, NewMessage
from dayjob.server.described import answers, answers_pages_of
from dayjob.server.desk import AtDesk, Desk
from dayjob.server.errors import Refused, not_found
from dayjob.server.threads import has_attachments, records_of
from dayjob.server.wire import details_of, message_object, not_offered
from dayjob.values import encode

router = APIRouter(prefix="/threads/{thread_id}/messages", tags=["Messages"])


@router.get("", responses=answers_pages_of("Message"))
async def list_messages(
    caller: Member, desk: AtDesk, thread_id: str, page: PageAsked, run_id: str | None = None
) -> JSON:
    """What was said in a thread, newest first; with `run_id`, what that run said."""
    await desk.thread_of(caller, thread_id)
    found = await desk.app.store.messages_page(thread_id, page, run_id or None)
    return JSON(listed([await _object(desk, thread_id, row) for row in found.rows], found.more))


@router.post("", responses=answers("Message"))
async def create_message(
    request: Request, caller: Member, desk: AtDesk, thread_id: str, body: NewMessage
) -> JSON:
    """Adds a message to a thread."""
    await desk.thread_of(caller, thread_id)
    [record] = records_of(request, caller, desk, [body])
    try:
        made = await desk.app.store.append_message(thread_id, record, desk.settings.when_busy)
    except ThreadBusy as busy:
        raise Refused(f"Can't add messages to {thread_id} while a run {busy.run} is active.") from None
    if made is None:
        raise not_found("thread", thread_id)
    return JSON(message_object(made, thread_id, None), headers=not_offered(attached=has_attachments([body])))


@router.get("/{message_id}", responses=answers("Message"))
async def retrieve_message(caller: Member, desk: AtDesk, thread_id: str, message_id: str) -> JSON:
    """One message."""
    return JSON(await _object(desk, thread_id, await desk.message_of(caller, thread_id, message_id)))


@router.post("/{message_id}", responses=answers("Message"))
async def modify_message(
    caller: Member, desk: AtDesk, thread_id: str, message_id: str, body: ChangedMetadata | None = None
) -> JSON:
    """Replaces the metadata of a message as a whole."""
    found = await desk.message_of(caller, thread_id, message_id)
    if body is not None and "metadata" in body.model_fields_set:
        found = replace(found, details=encode({**details_of(found), "metadata": body.metadata or {}}))
        await desk.app.store.change_message(thread_id, message_id, found.details)
    return JSON(await _object(desk, thread_id, found))


@router.delete("/{message_id}", responses=answers("MessageDeleted"))
async def delete_message(caller: Member, desk: AtDesk, thread_id: str, message_id: str) -> JSON:
    """Takes a message out of its thread: no later run is told it."""
    await desk.message_of(caller, thread_id, message_id)
    try:
        deleted = await desk.app.store.delete_message(thread_id, message_id)
    except ThreadBusy as busy:
        raise Refused(f"Can't delete messages of {thread_id} while a run {busy.run} is active.") from None
    if not deleted:
        raise not_found("message", message_id)
    return JSON({"id": message_id, "object": "thread.message.deleted", "deleted": True})


async def _object(desk: Desk, thread: str, record: MessageRecord) -> dict[str, object]:
    return message_object(record, thread, await desk.assistant_of(record.run))
