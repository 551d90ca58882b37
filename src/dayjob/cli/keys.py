"""`dayjob keys`: the API keys of a server, made, listed and revoked where the store is."""

from __future__ import annotations

from typing import cast

from rich.text import Text

from dayjob import trace
from dayjob.app import Dayjob
from dayjob.cli.printing import err, new_table, out, print_json, print_table
from dayjob.cli.work import opened
from dayjob.errors import InputError
from dayjob.kept import KeyRecord
from dayjob.server.access import Role, new_key
from dayjob.server.administration import key_fields

MOST_NAME = 100


async def create(store: str, name: str, project: str, role: str, as_json: bool) -> None:
    """Makes the store if none is there: a server that others reach needs a key before it starts."""
    for option, text in (("--name", name), ("--project", project)):
        if not 0 < len(text) <= MOST_NAME or not text.isprintable():
            raise InputError(f"{option}: {text!r}: expected 1 to {MOST_NAME} characters that can be printed")
    async with Dayjob(store, worker=False) as app:
        secret, key = new_key(project, cast(Role, role), name, app.now())
        await app.store.add_key(key)
    if as_json:
        print_json({**key_fields(key), "secret": secret})
        return
    err.print(
        f"key {key.id} of project {project}, as {role}. It is shown now, and never again:", markup=False
    )
    out.print(secret, markup=False, soft_wrap=True)


async def show(store: str, as_json: bool) -> None:
    async with opened(store) as app:
        found: list[KeyRecord] = await app.store.api_keys()
    if as_json:
        print_json({"data": [key_fields(key) for key in found]})
    elif not found:
        err.print("no keys; `dayjob keys create --name NAME` makes one")
    else:
        table = new_table("key", "name", "project", "role", "begins", "made", "")
        for key in found:
            state = Text("" if key.revoked is None else f"revoked {trace.ago(key.revoked)}", "red")
            row = (key.id, key.name, key.project, key.role, f"{key.start}…", trace.ago(key.created))
            table.add_row(*map(Text, row), state)
        print_table(table)


async def revoke(store: str, id: str, as_json: bool) -> None:
    async with opened(store) as app:
        if id not in [key.id for key in await app.store.api_keys()]:
            raise InputError(f"{id}: no such key; `dayjob keys list` lists them")
        revoked = await app.store.revoke_key(id)
    if as_json:
        print_json({"id": id, "revoked": True})
    else:
        err.print(f"{id} is revoked" if revoked else f"{id} was revoked before")
