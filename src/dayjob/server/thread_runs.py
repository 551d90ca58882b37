"""Runs of an assistant on a thread: made, waited for, answered and cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request, Response

from dayjob.assistant import JOB, AssistantRun
from dayjob.errors import ThreadBusy, UnknownAction
from dayjob.kept import ThreadRecord
from dayjob.limits import Limits
from dayjob.runs import RunRecord, Status, StepRecord
from dayjob.server.access import Caller, Member
from dayjob.server.answers import JSON, PageAsked, listed
from dayjob.server.bodies import (
    ChangedMetadata,
    NewMessage,
    NewRun,
    NewRunOfAnyThread,
    NewThread,
    NewThreadAndRun,
    ToolOutput,
    ToolOutputs,
)
from dayjob.server.described import answers, answers_or_streams, answers_pages_of, streams
from dayjob.server.desk import AtDesk, Desk, submit_key_for
from dayjob.server.errors import Refused
from dayjob.server.events import EventStream
from dayjob.server.streams import LAST_WORDS, Place, events_of
from dayjob.server.threads import has_attachments, new_thread, records_of
from dayjob.server.wire import (
    ClientCall,
    calls_required,
    client_calls,
    details_of,
    not_offered,
    run_object,
    status_of,
)
from dayjob.stream import position_at
from dayjob.values import encode

MOVING = ("queued", "in_progress", "cancelling")
"""The statuses in which a client's poll helper asks again."""
HOLD_SECONDS = 1.0
AGAIN_MS, AGAIN_AT_ONCE_MS = "500", "5"
"""When to ask again: a client that was held may do so at once."""
TURNS_FOR_THE_RUN = 4
"""Of the event loop: a run that was claimed at once sends its model's request first, and then its stream begins."""
router = APIRouter(prefix="/threads", tags=["Assistant runs"])
OF_THREAD = "/{thread_id}/runs"
OF_RUN = f"{OF_THREAD}/{{run_id}}"


@router.post("/runs", responses=answers_or_streams("Run"))
async def create_thread_and_run(
    request: Request, caller: Member, desk: AtDesk, body: NewThreadAndRun
) -> Response:
    """Makes a thread, and a run of it."""
    asked = await _asked(desk, caller, body)
    thread = body.thread or NewThread()
    if body.tool_resources is not None and thread.tool_resources is None:
        thread = thread.model_copy(update={"tool_resources": body.tool_resources})
    made, said = new_thread(request, caller, desk, thread), thread.messages or []
    run = await _submit(request, caller, desk, made.id, asked, body, said, made)
    return await _answer(desk, run, body.stream, not_offered(asked.tools, has_attachments(said)), thread=made)


@router.get(OF_THREAD, responses=answers_pages_of("Run"))
async def list_runs(caller: Member, desk: AtDesk, thread_id: str, page: PageAsked) -> JSON:
    """The runs of assistants on a thread, newest first."""
    await desk.thread_of(caller, thread_id)
    found = await desk.app.store.thread_runs(thread_id, page, JOB)
    return JSON(listed([await _body(desk, run) for run in found.rows], found.more))


@router.post(OF_THREAD, responses=answers_or_streams("Run"))
async def create_run(
    request: Request, caller: Member, desk: AtDesk, thread_id: str, body: NewRun
) -> Response:
    """Makes a run of a thread. `additional_messages` are added to the thread in the same breath."""
    asked = await _asked(desk, caller, body, body.additional_instructions)
    added = body.additional_messages or []
    run = await _submit(request, caller, desk, thread_id, asked, body, added)
    return await _answer(desk, run, body.stream, not_offered(asked.tools, has_attachments(added)))


@router.get(OF_RUN, responses=answers("Run"))
async def retrieve_run(
    caller: Member,
    desk: AtDesk,
    thread_id: str,
    run_id: str,
    x_stainless_poll_helper: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JSON:
    """A run as it is; to a client's poll helper it is told when it needs no further poll, or after a second."""
    if x_stainless_poll_helper != "true":
        run = await desk.assistants_run_of(caller, thread_id, run_id)
        return JSON(await _body(desk, run), headers={"openai-poll-after-ms": AGAIN_MS})
    with desk.watches.on(run_id, HOLD_SECONDS) as watch:
        while True:
            run = await desk.assistants_run_of(caller, thread_id, run_id)
            body = await _body(desk, run)
            if body["status"] not in MOVING or not await watch.moves(run.status):
                return JSON(body, headers={"openai-poll-after-ms": AGAIN_AT_ONCE_MS})


@router.get(f"{OF_RUN}/stream", response_class=Response, responses=streams())
async def stream_run(
    caller: Member,
    desk: AtDesk,
    thread_id: str,
    run_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The stream of a run from its beginning, or after the event that the client saw last."""
    run = await desk.assistants_run_of(caller, thread_id, run_id)
    Place.of(last_event_id)
    return EventStream(events_of(desk, run, last_event_id), last_words=LAST_WORDS)


@router.post(OF_RUN, responses=answers("Run"))
async def modify_run(
    caller: Member, desk: AtDesk, thread_id: str, run_id: str, body: ChangedMetadata | None = None
) -> JSON:
    """Replaces the metadata of a run as a whole."""
    run = await desk.assistants_run_of(caller, thread_id, run_id)
    if body is not None and "metadata" in body.model_fields_set:
        run.details = encode({**details_of(run), "metadata": body.metadata or {}})
        await desk.app.store.change_run(run_id, run.details)
    return JSON(await _body(desk, run))


@router.post(f"{OF_RUN}/cancel", responses=answers("Run"))
async def cancel_run(caller: Member, desk: AtDesk, thread_id: str, run_id: str) -> JSON:
    """Asks a run to stop. What it has said is kept, as an incomplete message."""
    run = await desk.assistants_run_of(caller, thread_id, run_id)
    if not run.status.is_terminal:
        run = replace(run, status=await desk.app.cancel(run_id))
        if not run.status.is_terminal or run.status == Status.CANCELLED:
            return JSON(await _body(desk, await desk.assistants_run_of(caller, thread_id, run_id)))
    raise Refused(f"Cannot cancel run with status '{status_of(run, False)}'.")


@router.post(f"{OF_RUN}/submit_tool_outputs", responses=answers_or_streams("Run"))
async def submit_tool_outputs(
    caller: Member, desk: AtDesk, thread_id: str, run_id: str, body: ToolOutputs
) -> Response:
    """Hands in what the client's tools gave, for all calls at once. Sent again, it changes nothing."""
    for _ in range(2):  # once more if another request was faster
        run = await desk.assistants_run_of(caller, thread_id, run_id)
        steps = await desk.app.store.steps(run_id)
        required = calls_required(run, steps)
        if not required or not _fit(required, body.tool_outputs):
            handed_in = _handed_in(desk, steps, body.tool_outputs)
            if handed_in is not None:
                return await _answer(desk, run, body.stream, after=_waiting_at(steps, handed_in))
            if not required:
                raise _takes_none(status_of(run, False))
        with contextlib.suppress(UnknownAction):
            await desk.app.answer_all(run_id, _answers(required, body.tool_outputs), by=caller.who)
            return await _answer(
                desk, replace(run, status=Status.QUEUED), body.stream, after=_waiting_at(steps)
            )
    raise _takes_none(Status.EXPIRED)  # nobody was: the time of the calls is up, and the run's end near


def _takes_none(status: str) -> Refused:
    return Refused(f'Runs in status "{status}" do not accept tool outputs.')


# --- how a run is made -----------------------------------------------------------------------------


async def _asked(
    desk: Desk, caller: Caller, body: NewRunOfAnyThread, more_instructions: str | None = None
) -> AssistantRun:
    """What a run is asked for: what its assistant says, but for what the run's own body says."""
    assistant = orjson.loads((await desk.object_of(caller, "assistant", body.assistant_id)).body)
    given = {name: value for name, value in body.given.items() if value is not None}
    said = {name: value for name, value in {**assistant, **given}.items() if value is not None}
    said["instructions"] = "\n\n".join(text for text in (said.get("instructions"), more_instructions) if text)
    if "truncation_strategy" in said:
        said["truncation_strategy"] = {"last_messages": None, **said["truncation_strategy"]}
    known = {name: said[name] for name in AssistantRun.__dataclass_fields__ if name in said}
    return AssistantRun(assistant=body.assistant_id, answers=desk.answering(said["model"]), **known)


async def _submit(
    request: Request,
    caller: Caller,
    desk: Desk,
    thread: str,
    asked: AssistantRun,
    body: NewRunOfAnyThread,
    messages: list[NewMessage],
    new: ThreadRecord | None = None,
) -> RunRecord:
    """Adds the messages to the thread, which is made if it is `new`, and queues a run of it: all of it, or nothing."""
    try:
        handle = await desk.app.submit(
            desk.app.jobs[JOB](asked), key=submit_key_for(request), thread=thread, project=caller.project,
            expires=desk.settings.expires_seconds, when_busy=desk.settings.when_busy,
            messages=records_of(request, caller, desk, messages), make_thread=new or False, limits=_limits(asked),
            details={"metadata": body.metadata} if body.metadata else None,
        )  # fmt: skip
    except ThreadBusy as busy:
        raise Refused(f"Thread {thread} already has an active run {busy.run}.") from None
    assert handle.submitted is not None
    return handle.submitted


def _limits(asked: AssistantRun) -> Limits | None:
    """What all prompts, and all answers, of a run may have together."""
    prompts, answers = asked.max_prompt_tokens, asked.max_completion_tokens
    if prompts is None and answers is None:
        return None
    return Limits(input_tokens=prompts, output_tokens=answers)


async def _answer(
    desk: Desk,
    run: RunRecord,
    stream: bool | None,
    headers: dict[str, str] | None = None,
    *,
    after: str | None = None,
    thread: ThreadRecord | None = None,
) -> Response:
    """The answer to what sets a run going."""
    if stream:
        for _ in range(TURNS_FOR_THE_RUN):
            await asyncio.sleep(0)
        return EventStream(events_of(desk, run, after, thread), headers, last_words=LAST_WORDS)
    return JSON(await _body(desk, run), headers=headers)


async def _body(desk: Desk, run: RunRecord) -> dict[str, Any]:
    waits = run.status == Status.REQUIRES_ACTION
    return run_object(run, await desk.app.store.steps(run.id) if waits else ())


# --- tool outputs ----------------------------------------------------------------------------------


def _answers(required: list[ClientCall], outputs: list[ToolOutput]) -> dict[str, Any]:
    """By action: what was handed in for it. A model may give two calls the same id: they are matched in order."""
    if not _fit(required, outputs):
        expected, got = [call.id for call in required], [output.tool_call_id for output in outputs]
        raise Refused(f"Expected tool outputs for call_ids {expected}, got {got}")
    left = list(outputs)
    answers = {}
    for call in required:
        output = next(each for each in left if each.tool_call_id == call.id)
        left.remove(output)
        answers[call.action] = call.answer(output.output or "")
    return answers


def _fit(calls: list[ClientCall], outputs: list[ToolOutput]) -> bool:
    """Whether there is an output for each call, and no other."""
    return sorted(call.id for call in calls) == sorted(output.tool_call_id for output in outputs)


def _waiting_at(steps: list[StepRecord], until: float = math.inf) -> str:
    """The id of the event that told the client to hand in outputs, which it did at that time."""
    seen = max((row.seq or 0 for row in steps if (row.ended or 0.0) <= until), default=0)
    status = Status.REQUIRES_ACTION
    return f"{position_at(seen, status)}~0~{status}"


def _handed_in(desk: Desk, steps: list[StepRecord], outputs: list[ToolOutput]) -> float | None:
    """When these very outputs were taken, by a request whose answer may have got lost; None: never."""
    for calls in client_calls(steps):
        if not _fit(calls, outputs):
            continue
        answers = _answers(calls, outputs)
        if all(call.given == desk.app.redact(encode(answers[call.action])) for call in calls):
            return min(call.row.answered_at or math.inf for call in calls)
    return None
