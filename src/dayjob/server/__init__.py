"""The server: the Assistants wire under `/v1`, Dayjob's own API under `/api`, over one app.

    server = create_server(app, Settings())

It keeps nothing of its own: what is asked for is in the store before it is answered, and what is streamed
is read from the journal. So it may be killed at any moment.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from starlette.responses import RedirectResponse

from dayjob.app import Dayjob
from dayjob.server import assistants, messages, run_steps, thread_runs, threads
from dayjob.server.access import Door
from dayjob.server.described import describe
from dayjob.server.desk import Desk
from dayjob.server.errors import answer_errors
from dayjob.server.settings import Settings
from dayjob.server.watching import Watches

__all__ = ["Settings", "create_server"]


def create_server(app: Dayjob, settings: Settings) -> FastAPI:
    """The server over an open app, which knows the job `assistant`."""
    server = FastAPI(title="Dayjob", version=version("dayjob"), description=__doc__)
    server.state.desk = Desk(app, settings, Door(app, settings.on_loopback), Watches(app))
    answer_errors(server)
    server.include_router(assistants.router, prefix="/v1")
    server.include_router(thread_runs.router, prefix="/v1")
    server.include_router(threads.router, prefix="/v1")
    server.include_router(messages.router, prefix="/v1")
    server.include_router(run_steps.router, prefix="/v1")

    describe(server)

    @server.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return server
