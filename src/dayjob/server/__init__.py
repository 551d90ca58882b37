"""The server: the Assistants wire under `/v1`, Dayjob's own API under `/api`, over one app.

    server = create_server(app, Settings(), tools)

It keeps nothing of its own: what is asked for is in the store before it is answered, and what is streamed
is read from the journal. So it may be killed at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse

from dayjob.app import Dayjob
from dayjob.server.access import Door
from dayjob.server.errors import answer_errors
from dayjob.server.settings import Settings

__all__ = ["Desk", "Settings", "create_server", "desk_of"]


@dataclass(frozen=True)
class Desk:
    """What every endpoint works with."""

    app: Dayjob
    settings: Settings
    door: Door


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk
