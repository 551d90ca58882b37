"""Who may come in: API keys, of which only a hash is kept, each with a project and a role.

A key without rows of its own project sees nothing of another's. While no key exists, a server that is
reached from its own machine only is open: any key or none is accepted, for the project "default".
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from dayjob.app import PROJECT, Dayjob
from dayjob.kept import KeyRecord
from dayjob.runs import new_id
from dayjob.server.errors import Refused

Role = Literal["admin", "member"]
ROLES: tuple[Role, ...] = ("admin", "member")
FRESH_SECONDS = 1.0
"""So long a list of keys is believed: a key that is revoked opens nothing any more after this."""
SHOWN = 11


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `who` is the id of the API key, or "anyone"."""

    project: str
    role: Role
    who: str


ANYONE = Caller(PROJECT, "admin", "anyone")


def new_key(project: str, role: Role, name: str, now: float) -> tuple[str, KeyRecord]:
    """A key's secret, which is shown once, and what is kept of it."""
    secret = f"dj_{secrets.token_urlsafe(32)}"
    return secret, KeyRecord(new_id("key"), hash_of(secret), secret[:SHOWN], project, role, name, now)


def hash_of(secret: str) -> bytes:
    """A plain hash is enough: a secret of 256 random bits cannot be guessed, however fast one tries."""
    return hashlib.sha256(secret.encode()).digest()


class Door:
    """Lets callers in, by their keys."""

    def __init__(self, app: Dayjob, on_loopback: bool) -> None:
        self._app = app
        self._on_loopback = on_loopback
        self._keys: dict[bytes, KeyRecord] = {}
        self._any = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def forget(self) -> None:
        """The keys have changed: the next caller is judged by the new ones."""
        self._read_at = float("-inf")

    async def caller(self, authorization: str | None) -> Caller:
        """Raises Refused, with status 401."""
        await self._refresh()
        if not self._any and self._on_loopback:
            return ANYONE
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Refused(
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                401,
            )
        key = self._keys.get(hash_of(secret))
        if key is None:
            raise Refused(f"Incorrect API key provided: {_shown(secret)}.", 401, code="invalid_api_key")
        return Caller(key.project, "admin" if key.role == "admin" else "member", key.id)

    async def _refresh(self) -> None:
        if self._is_fresh():
            return
        async with self._reading:
            if not self._is_fresh():
                await self._read()

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < FRESH_SECONDS

    async def _read(self) -> None:
        asked = time.monotonic()
        keys = await self._app.store.api_keys()
        self._read_at = asked
        self._any = bool(keys)  # one that was revoked too: to revoke the last key must not open the door
        self._keys = {key.hash: key for key in keys if key.revoked is None}


def _shown(secret: str) -> str:
    return f"{secret[:3]}…{secret[-4:]}" if len(secret) > 12 else "…"


async def caller_of(request: Request) -> Caller:
    """Who sent this request: put there by the middleware, before anything of its body was read."""
    caller: Caller = request.state.caller
    return caller


async def admin_of(request: Request) -> Caller:
    caller = await caller_of(request)
    if caller.role != "admin":
        raise Refused("This needs a key whose role is admin.", 403, code="insufficient_role")
    return caller


Member = Annotated[Caller, Depends(caller_of)]
Admin = Annotated[Caller, Depends(admin_of)]
