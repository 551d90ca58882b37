"""`/health`: whether this server can do its work. Open to all."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from dayjob.app import PROJECT
from dayjob.errors import StoreError
from dayjob.server.answers import JSON
from dayjob.server.described import gives
from dayjob.server.desk import AtDesk

router = APIRouter(tags=["Health"])
STORE_SECONDS = 5.0
HEALTHY = {"status": "ok"}


class Health(BaseModel):
    """`store` is there when it is what fails."""

    status: Literal["ok", "failing"]
    store: str | None = None


@router.get("/health", responses={**gives(Health, HEALTHY), 503: {"model": Health}})
async def health(desk: AtDesk) -> JSON:
    """200 when the store answers, else 503."""
    try:
        async with asyncio.timeout(STORE_SECONDS):
            await desk.app.store.object(PROJECT, "health", "")
    except (StoreError, TimeoutError):
        return JSON({"status": "failing", "store": "not reachable"}, 503)
    return JSON(HEALTHY)
