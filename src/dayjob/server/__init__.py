"""The server: the Assistants wire under `/v1`, Dayjob's own API under `/api`, over one app.

    server = create_server(app, Settings())

It keeps nothing of its own: what is asked for is in the store before it is answered, and what is streamed
is read from the journal. So it may be killed at any moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse

from dayjob.app import Dayjob
from dayjob.server import (
    administration,
    assistants,
    files,
    health,
    messages,
    models,
    native,
    run_steps,
    thread_runs,
    threads,
    vector_stores,
)
from dayjob.server.access import Door
from dayjob.server.audit import Audit
from dayjob.server.described import TAGS, describe
from dayjob.server.desk import Desk
from dayjob.server.errors import REFUSALS, answer_errors
from dayjob.server.middleware import Frame, Gate, Streams
from dayjob.server.reference import add_reference
from dayjob.server.settings import Settings
from dayjob.server.watching import Watches

__all__ = ["Settings", "create_server"]


def create_server(app: Dayjob, settings: Settings) -> FastAPI:
    """The server over an open app, which knows the job `assistant`."""
    door, audit, streams = Door(app, settings.on_loopback), Audit(app), Streams()

    @asynccontextmanager
    async def lifespan(server: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(files.remove_stale_parts, settings.files)
        yield
        await audit.flush()

    server = FastAPI(
        title="Dayjob", version=version("dayjob"), description=__doc__, lifespan=lifespan, openapi_url=None,
        docs_url=None, redoc_url=None, responses=REFUSALS,
        openapi_tags=[{"name": name, "description": told} for name, told in TAGS.items()],
    )  # fmt: skip
    server.state.desk = Desk(app, settings, door, Watches(app))
    server.state.streams = streams
    server.state.stalled_seconds = settings.stalled_seconds
    answer_errors(server)
    server.add_middleware(Gate, door=door, settings=settings)
    if settings.origins:
        server.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", "openai-poll-after-ms"],
        )  # fmt: skip
    server.add_middleware(Frame, audit=audit, streams=streams, now=app.now)

    for router in (thread_runs.router, threads.router, messages.router, run_steps.router, assistants.router):
        server.include_router(router, prefix="/v1")
    server.include_router(files.router)
    server.include_router(models.router)
    server.include_router(vector_stores.router)
    server.include_router(administration.router)
    server.include_router(health.router)
    server.include_router(native.router)

    describe(server)
    add_reference(server)

    @server.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return server
