"""What every endpoint works with, and how it finds what it is asked for: never what is another project's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from dayjob.app import Dayjob
from dayjob.assistant import request_of
from dayjob.errors import UnknownRun
from dayjob.kept import MessageRecord, ObjectRecord, ThreadRecord
from dayjob.runs import RunRecord, new_id
from dayjob.server.access import Caller, Door
from dayjob.server.errors import Refused, not_found
from dayjob.server.settings import Settings
from dayjob.server.watching import Watches
from dayjob.server.wire import is_assistants
from dayjob.values import canonical, digest

MOST_ASSISTANTS = 10_000


@dataclass(frozen=True)
class Desk:
    """The app, and how this server behaves. Each `…_of` raises the 404 of what is not there for the caller."""

    app: Dayjob
    settings: Settings
    door: Door
    watches: Watches
    assistants: dict[str, str | None] = field(default_factory=dict)
    """By run: the assistant that it is one of, which never changes."""

    async def object_of(self, caller: Caller, kind: str, id: str) -> ObjectRecord:
        found: ObjectRecord | None = await self.app.store.object(caller.project, kind, id)
        if found is None:
            raise not_found(kind, id)
        return found

    async def thread_of(self, caller: Caller, id: str) -> ThreadRecord:
        found: ThreadRecord | None = await self.app.store.thread(id)
        if found is None or found.project != caller.project:
            raise not_found("thread", id)
        return found

    async def message_of(self, caller: Caller, thread: str, id: str) -> MessageRecord:
        await self.thread_of(caller, thread)
        found: MessageRecord | None = await self.app.store.message(thread, id)
        if found is None or not found.said:
            raise not_found("message", id)
        return found

    async def run_of(self, caller: Caller, id: str) -> RunRecord:
        """Any run of the caller's project."""
        try:
            found = await self.app.get(id)
        except UnknownRun:
            raise not_found("run", id) from None
        if found.project != caller.project:
            raise not_found("run", id)
        return found

    async def assistants_run_of(self, caller: Caller, thread: str, id: str) -> RunRecord:
        """A run of the Assistants wire, in its thread. One read: it is what pollers ask for."""
        found = await self.run_of(caller, id)
        if found.thread != thread or not is_assistants(found):
            raise not_found("run", id)
        return found

    async def assistant_of(self, run: str | None) -> str | None:
        """The assistant that a run is one of; None if there is no such run, or it is of another job."""
        if run is None:
            return None
        if run not in self.assistants:
            record = await self.app.store.get(run)
            if len(self.assistants) >= MOST_ASSISTANTS:
                self.assistants.clear()
            self.assistants[run] = request_of(record).assistant if record and is_assistants(record) else None
        return self.assistants[run]

    def answering(self, model: str) -> str | None:
        """The model that answers for the name that a client gave; None is the app's own. Raises Refused."""
        if model in self.settings.models:
            return self.settings.models[model]
        if self.settings.answers_any:
            return None
        raise Refused(
            f"The model '{model}' is not one of this server's. Say which model answers for it when the server is "
            f"started: --map {model}=MODEL, such as --map {model}=openai:gpt-5-mini.",
            param="model",
            code="model_not_found",
        )


def id_for(prefix: str, caller: Caller, request: Request, part: str = "") -> str:
    """The id of what a request makes. With an Idempotency-Key it is the same each time the request is sent."""
    key = request.headers.get("idempotency-key")
    if not key:
        return new_id(prefix)
    return f"{prefix}_{digest(canonical([caller.project, request.url.path, key, part])).hex()}"


def submit_key_for(request: Request) -> str | None:
    """The key of the run that a request makes, if it carries an Idempotency-Key."""
    key = request.headers.get("idempotency-key")
    return f"{request.method} {request.url.path} {key}" if key else None


async def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(desk_of)]
