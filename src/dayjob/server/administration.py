"""`/api/keys` and `/api/audit`: who may come into a project, and what was done in it. For keys whose role is admin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from dayjob.kept import KeyRecord
from dayjob.server.access import Admin, Role, new_key
from dayjob.server.answers import JSON
from dayjob.server.described import gives
from dayjob.server.desk import AtDesk
from dayjob.server.errors import Refused, not_found
from dayjob.server.native_bodies import Everything, Given

router = APIRouter(prefix="/api", tags=["Administration"])


KEY_EXAMPLE: dict[str, Any] = {
    "id": "key_06bq3x0k8d4m2r7v9tza1ce", "name": "reporter", "project": "default", "role": "member",
    "start": "dj_4JkWq8Zp", "created": 1767225600.0, "revoked": None,
}  # fmt: skip
AUDIT_EXAMPLE: dict[str, Any] = {
    "at": 1767225600.0, "who": "key_06bq3x0k8d4m2r7v9tza1ce", "action": "POST /v1/threads", "status": 200,
    "request": "req_06bq3x0k8d4m2r7v9tza1cf",
}  # fmt: skip


class NewKey(BaseModel):
    """What a key is made of; it is one of the caller's own project."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "reporter", "role": "member"}]})

    name: str = Field(min_length=1, max_length=100)
    role: Role = "member"


class KeyBody(Given):
    """A key. `start` is how its secret begins."""

    id: str
    name: str
    project: str
    role: Role
    start: str
    created: float
    revoked: float | None


class NewKeyBody(KeyBody):
    """A key that was just made, with its secret."""

    secret: str


class RevokedKeyBody(Given):
    """That a key is revoked."""

    id: str
    revoked: Literal[True]


class AuditBody(Given):
    """A request that changed something, or was refused: when, by which key, what, and how it was answered."""

    at: float
    who: str
    action: str
    status: int
    request: str


@router.get("/keys", responses=gives(Everything[KeyBody], {"data": [KEY_EXAMPLE]}))
async def list_keys(desk: AtDesk, caller: Admin) -> JSON:
    """The project's keys, those that were revoked too, oldest first."""
    keys: list[KeyRecord] = await desk.app.store.api_keys()
    return JSON({"data": [key_fields(key) for key in keys if key.project == caller.project]})


@router.post("/keys", responses=gives(NewKeyBody, {**KEY_EXAMPLE, "secret": "dj_4JkWq8Zp…"}))
async def create_key(wanted: NewKey, desk: AtDesk, caller: Admin) -> JSON:
    """The answer holds the key's secret, which is nowhere else and never shown again."""
    if not wanted.name.isprintable():  # it is shown on terminals
        raise Refused("Invalid 'name': expected characters that can be printed.", param="name")
    secret, key = new_key(caller.project, wanted.role, wanted.name, desk.app.now())
    await desk.app.store.add_key(key)
    desk.door.forget()
    return JSON({**key_fields(key), "secret": secret})


@router.delete("/keys/{id}", responses=gives(RevokedKeyBody, {"id": KEY_EXAMPLE["id"], "revoked": True}))
async def revoke_key(id: str, desk: AtDesk, caller: Admin) -> JSON:
    """Revokes a key, which opens nothing any more."""
    keys: list[KeyRecord] = await desk.app.store.api_keys()
    if not any(key.id == id and key.project == caller.project for key in keys):
        raise not_found("key", id)
    await desk.app.store.revoke_key(id)
    desk.door.forget()
    return JSON({"id": id, "revoked": True})


@router.get("/audit", responses=gives(Everything[AuditBody], {"data": [AUDIT_EXAMPLE]}))
async def audit(desk: AtDesk, caller: Admin, limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> JSON:
    """The requests that changed something in the project, or were refused, newest first."""
    entries = await desk.app.store.audit(caller.project, limit)
    return JSON({"data": [entry._asdict() for entry in entries]})


def key_fields(key: KeyRecord) -> dict[str, Any]:
    """What is told of a key: never its hash."""
    copied = ("id", "name", "project", "role", "start", "created", "revoked")
    return {name: getattr(key, name) for name in copied}
