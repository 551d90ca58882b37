"""Threads: conversations that outlive a run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fastapi import APIRouter, Request

from dayjob.errors import ThreadBusy
from dayjob.kept import MessageRecord, ThreadRecord
from dayjob.server.access import Caller, Member
from dayjob.server.answers import JSON, PageAsked, page_body
from dayjob.server.bodies import ChangedThread, NewMessage, NewThread
from dayjob.server.described import answers, answers_pages_of
from dayjob.server.desk import AtDesk, Desk, id_for
from dayjob.server.errors import not_found
from dayjob.server.wire import not_offered, thread_object
from dayjob.values import encode

STOP_SECONDS = 5.0
STOPS = 2
"""So long the deletion of a thread waits for its run to stop, and so often."""
router = APIRouter(prefix="/threads", tags=["Threads"])


@router.get("", responses=answers_pages_of("Thread"))
async def list_threads(caller: Member, desk: AtDesk, page: PageAsked) -> JSON:
    """All threads. The Assistants API had no such call for API keys."""
    return JSON(page_body(await desk.app.store.threads(caller.project, page), thread_object))


@router.post("", responses=answers("Thread"))
async def create_thread(
    request: Request, caller: Member, desk: AtDesk, body: NewThread | None = None
) -> JSON:
    """Makes a thread, with its first messages if there are any."""
    body = body or NewThread()
    made = new_thread(request, caller, desk, body)
    messages = records_of(request, caller, desk, body.messages or ())
    await desk.app.store.create_thread(caller.project, made.id, made.details, messages, made.created)
    return JSON(thread_object(made), headers=not_offered(attached=has_attachments(body.messages)))


@router.get("/{thread_id}", responses=answers("Thread"))
async def retrieve_thread(caller: Member, desk: AtDesk, thread_id: str) -> JSON:
    """A thread, without its messages."""
    return JSON(thread_object(await desk.thread_of(caller, thread_id)))


@router.post("/{thread_id}", responses=answers("Thread"))
async def modify_thread(
    caller: Member, desk: AtDesk, thread_id: str, body: ChangedThread | None = None
) -> JSON:
    """Changes the metadata or the tool resources of a thread: each as a whole, if it is given."""
    await desk.thread_of(caller, thread_id)
    changed = await desk.app.store.change_thread(thread_id, encode({} if body is None else body.given))
    if changed is None:
        raise not_found("thread", thread_id)
    return JSON(thread_object(changed))


@router.delete("/{thread_id}", responses=answers("ThreadDeleted"))
async def delete_thread(caller: Member, desk: AtDesk, thread_id: str) -> JSON:
    """Deletes a thread with all that was said and done in it; a run that is active is cancelled first."""
    await desk.thread_of(caller, thread_id)
    if not await _deleted(desk, thread_id):
        raise not_found("thread", thread_id)
    return JSON({"id": thread_id, "object": "thread.deleted", "deleted": True})


async def _deleted(desk: Desk, thread: str) -> bool:
    for _ in range(STOPS):
        await _stop_runs(desk, thread)
        with contextlib.suppress(ThreadBusy):  # by one that was made meanwhile, or does not stop
            return bool(await desk.app.store.delete_thread(thread, when_busy="refuse"))
    return bool(await desk.app.store.delete_thread(thread))


async def _stop_runs(desk: Desk, thread: str) -> None:
    active = await desk.app.store.active_runs(thread)
    for run in reversed(active):  # the one at work last, so that none that waits its turn begins meanwhile
        await desk.app.cancel(run, "its thread was deleted")
    for run in active:
        with contextlib.suppress(TimeoutError):
            await desk.app.until_settled(run, STOP_SECONDS)


def new_thread(request: Request, caller: Caller, desk: Desk, body: NewThread) -> ThreadRecord:
    """A thread of the caller's, as it is to be kept."""
    kept = {name: value for name, value in body.given.items() if name != "messages" and value}
    details = encode(kept) if kept else None
    return ThreadRecord(id_for("thread", caller, request), caller.project, desk.app.now(), details)


def records_of(
    request: Request, caller: Caller, desk: Desk, messages: Sequence[NewMessage]
) -> list[MessageRecord]:
    """What clients say, as it is kept."""
    now, redact = desk.app.now(), desk.app.redact
    return [
        MessageRecord(
            id_for("msg", caller, request, str(number)),
            redact(encode(each.message)),
            now,
            details=redact(encode(each.details)) if each.details else None,
        )
        for number, each in enumerate(messages)
    ]


def has_attachments(messages: Sequence[NewMessage] | None) -> bool:
    return any(each.attachments for each in messages or ())
