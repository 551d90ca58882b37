"""`/api/keys` and `/api/audit`: who may come into a project, and what was done in it. For keys whose role is admin."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from dayjob.kept import KeyRecord
from dayjob.server.access import Admin, Role, new_key
from dayjob.server.answers import JSON
from dayjob.server.desk import AtDesk
from dayjob.server.errors import Refused, not_found

router = APIRouter(prefix="/api", tags=["administration"])


class NewKey(BaseModel):
    """What a key is made of; it is one of the caller's own project."""

    name: str = Field(min_length=1, max_length=100)
    role: Role = "member"


@router.get("/keys")
async def list_keys(desk: AtDesk, caller: Admin) -> JSON:
    """The project's keys, those that were revoked too, oldest first."""
    keys: list[KeyRecord] = await desk.app.store.api_keys()
    return JSON({"data": [key_fields(key) for key in keys if key.project == caller.project]})


@router.post("/keys")
async def create_key(wanted: NewKey, desk: AtDesk, caller: Admin) -> JSON:
    """The answer holds the key's secret, which is nowhere else and never shown again."""
    if not wanted.name.isprintable():  # it is shown on terminals
        raise Refused("Invalid 'name': expected characters that can be printed.", param="name")
    secret, key = new_key(caller.project, wanted.role, wanted.name, desk.app.now())
    await desk.app.store.add_key(key)
    desk.door.forget()
    return JSON({**key_fields(key), "secret": secret})


@router.delete("/keys/{id}")
async def revoke_key(id: str, desk: AtDesk, caller: Admin) -> JSON:
    keys: list[KeyRecord] = await desk.app.store.api_keys()
    if not any(key.id == id and key.project == caller.project for key in keys):
        raise not_found("key", id)
    await desk.app.store.revoke_key(id)
    desk.door.forget()
    return JSON({"id": id, "revoked": True})


@router.get("/audit")
async def audit(desk: AtDesk, caller: Admin, limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> JSON:
    """The requests that changed something in the project, or were refused, newest first."""
    entries = await desk.app.store.audit(caller.project, limit)
    return JSON({"data": [entry._asdict() for entry in entries]})


def key_fields(key: KeyRecord) -> dict[str, Any]:
    """What is told of a key: never its hash."""
    copied = ("id", "name", "project", "role", "start", "created", "revoked")
    return {name: getattr(key, name) for name in copied}
