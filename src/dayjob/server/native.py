"""Dayjob's own API, under `/api`: jobs, runs, their journals, and what they wait for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Response

from dayjob.app import Dayjob, event_of
from dayjob.documents import action_fields, event_fields, job_fields, run_document, run_fields, step_fields
from dayjob.errors import InputError
from dayjob.jobs import Request
from dayjob.kept import Page
from dayjob.runs import Status
from dayjob.server.access import Caller, Member
from dayjob.server.answers import JSON, page_body
from dayjob.server.described import gives, streams
from dayjob.server.desk import AtDesk, Desk
from dayjob.server.errors import Refused, not_found
from dayjob.server.events import HEARTBEAT, EventStream, frame
from dayjob.server.native_bodies import (
    ACTION_EXAMPLE,
    JOB_EXAMPLE,
    LARGEST,
    RUN_EXAMPLE,
    STEP_EXAMPLE,
    STEP_WITH_REQUEST_EXAMPLE,
    SUMMARY_EXAMPLE,
    WHOLE_RUN_EXAMPLE,
    ActionBody,
    Approval,
    Cancellation,
    Everything,
    JobBody,
    NewAnswer,
    NewEvent,
    Rejection,
    Resumption,
    RunRequest,
    RunsPage,
    StepsPage,
    SummaryBody,
    WholeRunBody,
    WholeStepBody,
)
from dayjob.stream import Happening
from dayjob.values import encode

STREAM_EXAMPLE = (
    'id: 0.in_progress\nevent: run.status\ndata: {"status":"in_progress","reason":null}\n\n'
    'event: step.started\ndata: {"key":"model","name":"model","kind":"model","attempt":1}\n\n'
    "id: 0.in_progress.t5f6a7b8c-1-5\nevent: step.text\n"
    'data: {"key":"model","attempt":1,"text":"It is","offset":0}\n\n'
    'id: 1.in_progress\nevent: step.finished\ndata: {"step":{"key":"model","seq":1,"outcome":"value"}}\n\n'
    'id: 1.completed\nevent: run.status\ndata: {"status":"completed","reason":null}\n\n'
)
router = APIRouter(prefix="/api")


def all_of(example: Any) -> dict[str, Any]:
    return {"data": [example]}


# --- jobs ------------------------------------------------------------------------------------------


@router.get("/jobs", tags=["Jobs"], responses=gives(Everything[JobBody], all_of(JOB_EXAMPLE)))
async def list_jobs(caller: Member, desk: AtDesk) -> JSON:
    """The jobs that runs can be made of here."""
    return JSON({"data": [job_fields(desk.app.jobs[name]) for name in sorted(desk.app.jobs)]})


@router.get("/jobs/{name}", tags=["Jobs"], responses=gives(JobBody, JOB_EXAMPLE))
async def retrieve_job(caller: Member, desk: AtDesk, name: str) -> JSON:
    """One job, with the JSON schema of its input."""
    if name not in desk.app.jobs:
        raise not_found("job", name)
    return JSON(job_fields(desk.app.jobs[name]))


# --- runs ------------------------------------------------------------------------------------------


@router.post(
    "/runs", tags=["Runs"], status_code=201, responses=gives(WholeRunBody, WHOLE_RUN_EXAMPLE, status=201)
)
async def create_run(
    caller: Member, desk: AtDesk, body: RunRequest,
    idempotency_key: Annotated[str | None, Header(description="As `key`.")] = None,
) -> JSON:  # fmt: skip
    """Makes a run; it is durable when this answers. The same key with the same input gives the same run."""
    if body.key is not None and idempotency_key is not None and body.key != idempotency_key:
        raise Refused("key: is another one than in the header Idempotency-Key", param="key")
    if body.thread is not None:
        await desk.thread_of(caller, body.thread)
    handle = await desk.app.submit(
        _request(desk.app, body), key=body.key or idempotency_key, thread=body.thread, queue=body.queue,
        priority=body.priority, delay=body.delay, tags=body.tags,
        limits=None if body.limits is None else body.limits.limits(),
        when_busy=body.when_busy, project=caller.project, make_thread=False,
    )  # fmt: skip
    return JSON(await run_document(desk.app, await desk.app.get(handle.id), ()), 201)


def _request(app: Dayjob, body: RunRequest) -> Request:
    job = app.jobs.get(body.job)
    if job is None:
        known = ", ".join(sorted(app.jobs)) or "none"
        raise Refused(f"job: {body.job!r} is not known here; known are {known}", 404, param="job")
    try:
        return job.request(encode(body.input))
    except InputError as problem:
        raise Refused(problem.message, param="input") from None


@router.get(
    "/runs",
    tags=["Runs"],
    responses=gives(
        RunsPage,
        {"object": "list", "data": [RUN_EXAMPLE], "first_id": RUN_EXAMPLE["id"], "last_id": RUN_EXAMPLE["id"],
         "has_more": False},
    ),
)  # fmt: skip
async def list_runs(
    caller: Member, desk: AtDesk, status: Status | None = None, job: str | None = None,
    thread: str | None = None, parent: str | None = None, tag: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="The id of a run: older ones than this.")] = None,
    before: Annotated[str | None, Query(description="The id of a run: newer ones than this.")] = None,
) -> JSON:  # fmt: skip
    """Runs, newest first."""
    found = await desk.app.store.runs_page(
        caller.project, Page(limit, False, after, before), status=status, job=job, thread=thread,
        parent=parent, tag=tag,
    )  # fmt: skip
    return JSON(page_body(found, run_fields))


@router.get("/runs/{run}", tags=["Runs"], responses=gives(WholeRunBody, WHOLE_RUN_EXAMPLE))
async def retrieve_run(caller: Member, desk: AtDesk, run: str) -> JSON:
    """A run, with what it was given, what it gave, what it spent and what it waits for."""
    return await _whole(desk, caller, run)


async def _whole(desk: Desk, caller: Caller, run: str) -> JSON:
    record = await desk.run_of(caller, run)
    return JSON(await run_document(desk.app, record, await desk.app.store.steps(run)))


@router.post("/runs/{run}/cancel", tags=["Runs"], responses=gives(WholeRunBody, WHOLE_RUN_EXAMPLE))
async def cancel_run(caller: Member, desk: AtDesk, run: str, body: Cancellation | None = None) -> JSON:
    """Asks a run and its children to stop. One that is over stays as it is."""
    await desk.run_of(caller, run)
    await desk.app.cancel(run, (body or Cancellation()).reason)
    return await _whole(desk, caller, run)


@router.post("/runs/{run}/resume", tags=["Runs"], responses=gives(WholeRunBody, WHOLE_RUN_EXAMPLE))
async def resume_run(caller: Member, desk: AtDesk, run: str, body: Resumption | None = None) -> JSON:
    """Queues a run again that has ended: finished steps are reused, the error that ended it is done again."""
    await desk.run_of(caller, run)
    body = body or Resumption()
    await desk.app.resume(run, body.changed, body.from_step)
    return await _whole(desk, caller, run)


@router.post("/runs/{run}/events", tags=["Runs"], status_code=204, response_class=Response)
async def send_event(caller: Member, desk: AtDesk, run: str, body: NewEvent) -> Response:
    """Sends a value that the run receives by `run.event(name)`, now or when it comes to it."""
    await desk.run_of(caller, run)
    await desk.app.send(run, body.name, body.value)
    return Response(status_code=204)


@router.get("/summary", tags=["Runs"], responses=gives(Everything[SummaryBody], all_of(SUMMARY_EXAMPLE)))
async def summarize(caller: Member, desk: AtDesk) -> JSON:
    """By job: how many runs, how they ended, how many did their job, and what they cost."""
    return JSON({"data": await desk.app.summary(caller.project)})


# --- the journal -----------------------------------------------------------------------------------


@router.get(
    "/runs/{run}/steps",
    tags=["Steps"],
    responses=gives(StepsPage, {"data": [STEP_EXAMPLE], "last_seq": 1, "has_more": False}),
)
async def list_steps(
    caller: Member, desk: AtDesk, run: str, limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    after: Annotated[int, Query(ge=0, le=LARGEST, description="A seq: steps that finished later.")] = 0,
) -> JSON:  # fmt: skip
    """The journal: finished steps in their order; those that are open come last, with the last page."""
    await desk.run_of(caller, run)
    found = await desk.app.store.steps_page(run, after, limit)
    last = max((step.seq or 0 for step in found.rows), default=after)
    return JSON(
        {
            "data": [step_fields(step) for step in found.rows],
            "last_seq": max(last, after),
            "has_more": found.more,
        }
    )


@router.get("/runs/{run}/step", tags=["Steps"], responses=gives(WholeStepBody, STEP_WITH_REQUEST_EXAMPLE))
async def retrieve_step(
    caller: Member, desk: AtDesk, run: str,
    key: Annotated[str, Query(description="With its `/`, `#` and `%`, percent-encoded as in any query.")],
    attempt: Annotated[int | None, Query(ge=1, le=LARGEST, description="The last, if left out.")] = None,
) -> JSON:  # fmt: skip
    """One step, by its key; a model's with the exact request that it was sent."""
    await desk.run_of(caller, run)
    step = await desk.app.store.step(run, key, attempt)
    if step is None:
        raise not_found("step", key)
    request = await desk.app.request_of(step)
    return JSON({**step_fields(step), "request": None if request is None else orjson.loads(request)})


@router.get(
    "/runs/{run}/events",
    tags=["Steps"],
    status_code=200,
    response_class=Response,
    responses={
        **streams(STREAM_EXAMPLE),
        204: {"description": "It is over, and all of it was seen: do not come back."},
    },
)
async def follow_run(
    caller: Member, desk: AtDesk, run: str,
    last_event_id: Annotated[str | None, Header(description="Goes before `after`.")] = None,
    after: Annotated[str, Query(description="The id of an event, or a seq: what comes after it.")] = "0",
) -> Response:  # fmt: skip
    """What happens to the run until it is over, as server-sent events.

    `step.finished`, `action.required` and `run.status` are durable; `step.text` is the next piece of what a
    model says; these have ids. Come back with the last one, to any server: nothing is missed, and nothing
    is sent twice.
    """
    record = await desk.run_of(caller, run)
    happenings = desk.app.streams.follow(
        run, last_event_id or after, quiet_seconds=desk.settings.heartbeat_seconds
    )
    if record.status.is_terminal:
        async with aclosing(desk.app.streams.follow(run, last_event_id or after)) as rest:
            if await anext(rest, None) is None:
                return Response(status_code=204)
    return EventStream(_chunks(run, happenings))


async def _chunks(run: str, happenings: AsyncGenerator[Happening, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(happenings):
        async for happening in happenings:
            event = event_of(run, happening)
            yield HEARTBEAT if event is None else frame(event.name, event_fields(event.data), event.id)


# --- actions ---------------------------------------------------------------------------------------


@router.get("/actions", tags=["Actions"], responses=gives(Everything[ActionBody], all_of(ACTION_EXAMPLE)))
async def list_actions(caller: Member, desk: AtDesk) -> JSON:
    """What runs wait for from people and other systems, oldest first."""
    found = await desk.app.actions(project=caller.project)
    return JSON({"data": [action_fields(action) for action in found]})


@router.get(
    "/runs/{run}/actions", tags=["Actions"], responses=gives(Everything[ActionBody], all_of(ACTION_EXAMPLE))
)
async def list_actions_of_run(caller: Member, desk: AtDesk, run: str) -> JSON:
    """What one run waits for, oldest first."""
    await desk.run_of(caller, run)
    return JSON({"data": [action_fields(action) for action in await desk.app.actions(run)]})


@router.post("/runs/{run}/answer", tags=["Actions"], status_code=204, response_class=Response)
async def answer_action(caller: Member, desk: AtDesk, run: str, body: NewAnswer) -> Response:
    """Answers an action, by its id. The value has to fit its schema."""
    await desk.run_of(caller, run)
    await desk.app.answer(run, body.action, body.value, by=caller.who)
    return Response(status_code=204)


@router.post("/runs/{run}/approve", tags=["Actions"], status_code=204, response_class=Response)
async def approve_action(caller: Member, desk: AtDesk, run: str, body: Approval) -> Response:
    """Answers an action that asks for a yes."""
    await desk.run_of(caller, run)
    await desk.app.approve(run, body.action, by=caller.who)
    return Response(status_code=204)


@router.post("/runs/{run}/reject", tags=["Actions"], status_code=204, response_class=Response)
async def reject_action(caller: Member, desk: AtDesk, run: str, body: Rejection) -> Response:
    """Answers an action that asks for a yes with a no."""
    await desk.run_of(caller, run)
    await desk.app.reject(run, body.action, body.reason, by=caller.who)
    return Response(status_code=204)
